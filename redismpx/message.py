"""What reading a subscription returns: messages, and the events around them."""

from __future__ import annotations

__all__ = [
    "Activation",
    "Disconnect",
    "Event",
    "Message",
    "OnGap",
    "OnStreamMessage",
    "StreamEvent",
    "StreamMessage",
    "messages_of",
    "new_message",
    "new_messages",
    "new_stream_message",
]

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import repeat, starmap
from typing import Any, Generic, NamedTuple, TypeAlias

from .errors import ConnectionLost, MessageGap, quote
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


def new_messages(items: list[bytes], pattern: bytes | None) -> list[Message[Any]]:
    """Make messages from channel, payload, channel, ... No step in Python for each."""
    fields = zip(items[::2], items[1::2], repeat(pattern), strict=False)
    return [*starmap(tuple.__new__, zip(repeat(Message), fields, strict=False))]


class StreamMessage(NamedTuple, Generic[T]):
    """A message of a stream."""

    channel: bytes
    """The name of the stream."""
    data: T
    """The payload: `bytes`, or the result of `decode`. The `repr` shows only its type and size."""
    id: bytes
    """The id of its entry, which Redis made: `b"1700000000000-0"`."""

    @property
    def timestamp(self) -> float:
        """When it was appended, in seconds since the epoch, by the clock of the server."""
        return int(self.id.partition(b"-")[0]) / 1_000

    def __repr__(self) -> str:
        kind = type(self.data)
        data = f"{len(self.data)} bytes" if kind is bytes else kind.__name__  # type: ignore[arg-type]
        return f"StreamMessage(channel={quote(self.channel)}, data=<{data}>, id={self.id!r})"


OnStreamMessage: TypeAlias = Callable[[StreamMessage[T]], object]
"""Called with each message of a stream subscription."""

OnGap: TypeAlias = Callable[[MessageGap], object]
"""Called with each gap of a stream subscription, in its place between the messages."""

StreamEvent: TypeAlias = Activation | StreamMessage[T] | MessageGap | Disconnect
"""What `events()` of a stream subscription yields."""


new_stream_message: Callable[[tuple[bytes, Any, bytes]], StreamMessage[Any]] = partial(tuple.__new__, StreamMessage)
"""Makes a message of a stream from a tuple of its three fields, as new_message does."""


def messages_of(channel: bytes, ids: Iterable[bytes], payloads: Iterable[bytes]) -> Iterator[StreamMessage[bytes]]:
    """Yield messages of a stream. No step in Python for each, and one call less than `new_stream_message()`."""
    fields = zip(repeat(channel), payloads, ids, strict=False)
    return starmap(tuple.__new__, zip(repeat(StreamMessage), fields, strict=False))
