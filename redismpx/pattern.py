"""One glob pattern."""

from __future__ import annotations

__all__ = ["PatternSubscription", "escape_glob"]

from ._core.wire import Kind
from ._core.wire import escape_glob as escape
from ._io.delivery.consumer import Consumer
from ._io.hub import Hub
from .arguments import to_bytes
from .errors import quote
from .reading import MessageSubscription
from .typing import T


def escape_glob(text: str | bytes) -> bytes:
    """Escape the glob characters in a text, to use a text from outside as a part of a pattern.

    Args:
        text: any text; `str` is encoded as UTF-8.

    Returns:
        A pattern that matches this text and nothing else.

    Raises:
        TypeError, ValueError: `text` is not `str` or `bytes`, or has a character that UTF-8 cannot encode.

    Example:
        ::

            name = "what?"  # from outside
            mpx.new_pattern_subscription(b"user:" + escape_glob(name) + b":*")
    """
    return escape(to_bytes(text, "a text to escape"))


class PatternSubscription(MessageSubscription[T]):
    """All channels that match one pattern. Made by `Multiplexer.new_pattern_subscription()`.

    A consumer that subscribes to a channel both by its name and by a pattern gets each message twice. A pattern must be
    trusted input: a stranger who may choose it can read every channel.
    """

    __slots__ = ("_pattern", "_source")

    _kind = Kind.PATTERN

    def __init__(self, hub: Hub, consumer: Consumer, pattern: bytes) -> None:
        hub.admit(self._kind, (pattern,))
        self._pattern = self._source = pattern
        super().__init__(hub, consumer, f"pattern subscription {quote(pattern)}")
        hub.add(self._kind, (pattern,), self._inbox)

    @property
    def pattern(self) -> bytes:
        """The pattern, in the glob syntax of Redis (https://redis.io/docs/latest/commands/psubscribe/)."""
        return self._pattern

    @property
    def _names(self) -> tuple[bytes]:
        return (self._pattern,)

    def __repr__(self) -> str:
        return self._describe(quote(self._pattern))
