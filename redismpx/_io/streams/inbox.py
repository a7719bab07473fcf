"""The inbox of a stream subscription. It drops nothing for good: what has no room is read from the stream again."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..._core.events import Signal
from ...errors import ConnectionLost, DecodeError, SlowConsumer
from ...observing import Missed
from ..delivery.inbox import Inbox
from ..delivery.observed import ObservedInbox
from ..delivery.reporter import Report, raise_in_loop


class StreamInbox(Inbox):
    """The events of one stream subscription on their way to its consumer.

    When a message was dropped, the subscription is behind: `on_behind` is called, and `on_caught_up` once its consumer
    has handled all that is queued. `on_undecodable` is called with the channel and the live form of a message.
    """

    __slots__ = ("_is_forgetting", "is_behind", "on_behind", "on_caught_up", "on_undecodable")

    is_behind: bool
    on_behind: Callable[[], object]
    on_caught_up: Callable[[], object]
    on_undecodable: Callable[[bytes, bytes], object]

    def connect(
        self,
        on_behind: Callable[[], object],
        on_caught_up: Callable[[], object],
        on_undecodable: Callable[[bytes, bytes], object],
    ) -> None:
        """Set the functions that are called. This comes before any event."""
        self.is_behind = self._is_forgetting = False
        self.on_behind, self.on_caught_up, self.on_undecodable = on_behind, on_caught_up, on_undecodable

    def gap(self, argument: object, name: bytes) -> None:
        """Take note that messages of a stream are missing here."""
        self._signal(Signal.GAP, argument, name)

    def missed(self, fact: Missed) -> None:
        """Count a gap that the consumer gets now."""
        self.context.counters.stream_gaps += 1
        if self.context.watch is not None:
            self.context.watch.tell(fact)

    def disconnect(self, error: ConnectionLost, lost: Iterable[bytes] | None = None) -> None:
        """Take note that the connection is lost, or some names on it.

        Two losses that the consumer has not seen become one, without the events between them.
        """
        is_second = self.buffer is not None and self.buffer.has_disconnect
        super().disconnect(error, lost)
        if is_second:
            self.fall_behind()

    def drop(self, count: int) -> None:
        """Take note that messages were dropped: none of them is lost."""
        super().drop(0)
        if count and not self._is_forgetting:
            self.fall_behind()

    def forget(self, names: frozenset[bytes], were_active: int, rest: bool) -> None:
        """Drop the queued events about removed names."""
        self._is_forgetting = True
        try:
            super().forget(names, were_active, rest)
        finally:
            self._is_forgetting = False

    def fall_behind(self) -> None:
        """Have what follows read from the stream, once the consumer has handled all that is queued."""
        if self.closed:
            return
        self.is_behind = True
        self.on_behind()
        if self.buffer is None:
            self.context.call_soon(self._catch_up)

    def report_overflow(self) -> None:
        """Report that the consumer is slow, once in an episode: until it has caught up."""
        buffer = self.buffer
        if buffer is None or self.closed:
            return
        if not buffer.overflowing:
            buffer.overflowing = True
            error = SlowConsumer(0, len(buffer), buffer.limit, is_lagging=True)
            self.reporter.report_aside(error, self.context.tasks)
        self.settle_if_empty()

    def settle_if_empty(self) -> None:
        """Become idle if nothing is queued, and no callback is awaited."""
        if self.worker is None:
            self.settle()

    def _delete_buffer(self) -> None:
        super()._delete_buffer()
        if self.is_behind:
            self.context.call_soon(self._catch_up)

    def _catch_up(self) -> None:
        if self.is_behind and self.buffer is None and not self.closed:
            self.is_behind = False
            self.on_caught_up()

    def _report_undecodable(self, channel: bytes, data: bytes, cause: BaseException) -> Report | None:
        self.on_undecodable(channel, data)
        return self.report_undecodable(channel, data.split(b" ", 2)[2], cause)

    def report_undecodable(self, channel: bytes, data: bytes, cause: BaseException) -> Report | None:
        """Report a payload that cannot be decoded: the consumer does not get it."""
        raise_in_loop(cause)
        if self.closed:  # decode did that, before it raised
            return None
        error = DecodeError(channel, data)
        error.__cause__ = cause
        return self.reporter.report(error)


class ObservedStreamInbox(StreamInbox, ObservedInbox):
    """The same, with observers. A message that is read again later is not dropped for them."""

    __slots__ = ()

    def _payload_of(self, data: bytes) -> bytes:
        return data.split(b" ", 2)[2]
