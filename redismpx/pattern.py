"""One glob pattern."""

from __future__ import annotations

__all__ = ["PatternSubscription", "escape_glob"]

from ._core.wire import Kind
from ._core.wire import escape_glob as escape
from ._io.delivery.inbox import Consumer
from ._io.hub import Hub
from .arguments import to_bytes
from .errors import quote
from .subscription import MessageSubscription
from .typing import T


def escape_glob(text: str | bytes) -> bytes:
    """Return the pattern that matches `text` and nothing else: to make text from outside a part of your pattern."""
    return escape(to_bytes(text, "what is to be escaped"))


class PatternSubscription(MessageSubscription[T]):
    """All channels that match one pattern. Made by `Multiplexer.new_pattern_subscription()`.

    A message on a channel that is also subscribed by its name arrives twice, once for each. A pattern is trusted
    input: one that a stranger may choose reads what it likes.
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
        """The pattern, in Redis' glob syntax (https://redis.io/docs/latest/commands/psubscribe/)."""
        return self._pattern

    @property
    def _names(self) -> tuple[bytes]:
        return (self._pattern,)

    def __repr__(self) -> str:
        return self._describe(quote(self._pattern))
