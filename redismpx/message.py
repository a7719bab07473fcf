"""What a subscription that is read hands out."""

from __future__ import annotations

__all__ = ["Message", "new_message"]

from collections.abc import Callable
from functools import partial
from typing import Any, Generic, NamedTuple

from .errors import quote
from .typing import T


class Message(NamedTuple, Generic[T]):
    """One message."""

    channel: bytes
    """The channel that it was published to."""
    data: T
    """The payload: bytes, or what `decode` made of them. Not shown in the `repr`."""
    pattern: bytes | None = None
    """The pattern by which it was subscribed; None for a channel subscription."""

    def __repr__(self) -> str:
        pattern = "" if self.pattern is None else f", pattern={quote(self.pattern)}"
        return f"Message(channel={quote(self.channel)}{pattern})"


new_message: Callable[[tuple[bytes, Any, bytes | None]], Message[Any]] = partial(tuple.__new__, Message)
"""Makes a message of its three fields, without the detour of the generated `__new__`, which takes twice as long."""
