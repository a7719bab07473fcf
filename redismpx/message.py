"""What reading a subscription returns: messages, and the events around them."""

from __future__ import annotations

__all__ = ["Activation", "Disconnect", "Event", "Message", "new_message"]

from collections.abc import Callable
from functools import partial
from typing import Any, Generic, NamedTuple, TypeAlias

from .errors import ConnectionLost, quote
from .typing import T


class Message(NamedTuple, Generic[T]):
    """A message, as reading a subscription returns it."""

    channel: bytes
    """The channel on which the message was published."""
    data: T
    """The payload: `bytes`, or the result of `decode`. The `repr` shows only its type and size."""
    pattern: bytes | None = None
    """The pattern of the subscription; None for a channel subscription."""

    def __repr__(self) -> str:
        kind = type(self.data)
        data = f"{len(self.data)} bytes" if kind is bytes else kind.__name__  # type: ignore[arg-type]
        pattern = "" if self.pattern is None else f", pattern={quote(self.pattern)}"
        return f"Message(channel={quote(self.channel)}, data=<{data}>{pattern})"


class Activation(NamedTuple):
    """A name became active: from here on, the subscription gets its messages."""

    name: bytes
    """The channel or pattern."""

    def __repr__(self) -> str:
        return f"Activation(name={quote(self.name)})"


class Disconnect(NamedTuple):
    """The connection was lost: here is a gap. What is published until the next activation is missed."""

    error: ConnectionLost
    """Why, and for which names."""


Event: TypeAlias = Activation | Message[T] | Disconnect
"""What `events()` of a subscription yields."""

new_message: Callable[[tuple[bytes, Any, bytes | None]], Message[Any]] = partial(tuple.__new__, Message)
"""Makes a message from a tuple of its three fields, in half the time of the generated `__new__`."""
