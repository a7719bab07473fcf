"""The queued events of one subscription: whether there is a buffer, and what happens to it. Calls no callback."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable

from ..._core.buffer import Buffer, Losses
from ..._core.latest import new_buffer
from ..._core.overflow import Overflow
from ..._core.wire import IdentityEnum
from ...errors import SlowConsumer, quote
from ..runtime.notification import Notifier
from ..session.subscriber import Deliver
from .consumer import Consumer, DeliveryContext
from .reader import Reader, ReaderState
from .reporter import Reporter

_EMPTY_BATCH: list[bytes] = []  # of all queues without a buffer; never written to
_NONE_LEAVING: set[bytes] = set()  # never written to either


class QueueState(IdentityEnum):
    """What a subscription does with its events."""

    IDLE = "idle"  # no event is queued, no callback is awaited: a message goes straight to on_message
    HANDING = "handing"  # a reader that waited was woken for a message, which is the only queued event
    BUFFERING = "buffering"  # events are queued for a reader, or until the end of the tick
    CALLING = "calling"  # events are queued while the worker awaits a callback
    CLOSED = "closed"  # nothing is delivered any more


QUEUE_TRANSITIONS: dict[QueueState, frozenset[QueueState]] = {
    QueueState.IDLE: frozenset({QueueState.HANDING, QueueState.BUFFERING, QueueState.CLOSED}),
    QueueState.HANDING: frozenset({QueueState.IDLE, QueueState.BUFFERING, QueueState.CLOSED}),
    QueueState.BUFFERING: frozenset({QueueState.IDLE, QueueState.CALLING, QueueState.CLOSED}),
    QueueState.CALLING: frozenset({QueueState.BUFFERING, QueueState.CLOSED}),
    QueueState.CLOSED: frozenset({QueueState.CLOSED}),  # a finalizer may close at the beginning of close()
}


class EventQueue(Notifier, ABC):
    """Owns the buffer of one subscription, counts what is dropped, and reports overflow.

    There is a buffer only in the states BUFFERING and CALLING, so an idle subscription has none. Notifies when the
    subscription becomes idle or closed.
    """

    __slots__ = ("_close_subscription", "_label", "_reporter", "batch", "buffer", "consumer", "context", "deliver",
                 "dropped", "hand", "leaving", "reader", "reads_events", "state", "worker")  # fmt: skip

    def __init__(
        self, consumer: Consumer, label: str, context: DeliveryContext, close_subscription: Callable[[], object] | None
    ) -> None:
        super().__init__()
        self.consumer = consumer
        self.context = context
        self.state = QueueState.IDLE
        self.buffer: Buffer | None = None
        self.hand: tuple[bytes, bytes] | None = None
        """The message for a reader that was woken, in the state HANDING. It does not count as pending."""
        self.batch: list[bytes] = _EMPTY_BATCH
        """The next messages, from the buffer. The consumer may pop them without a look at anything else."""
        self.leaving: set[bytes] = _NONE_LEAVING
        """Names that were removed and are still registered. Their events are ignored."""
        self.deliver: Deliver = self.straight
        """Takes the channel and the payload of a message; its result goes to `Inbox.accept`."""
        self.worker: asyncio.Task[object] | None = None
        """The task that awaits a callback, in the state CALLING."""
        self.reader: Reader | None = None
        """The task that reads; made when the subscription is read for the first time."""
        self.reads_events: bool = False
        """Whether the reader gets all events, rather than messages only."""
        self.dropped: int = 0
        self._label = label
        self._reporter: Reporter | None = None  # made for the first error, as most subscriptions have none
        self._close_subscription = close_subscription

    @property
    @abstractmethod
    def straight(self) -> Deliver:
        """The function that takes messages while no event is queued."""

    @abstractmethod
    def resume(self) -> None:
        """Call the callbacks of the queued events, if no worker does so."""

    @property
    def closed(self) -> bool:
        """Whether the subscription, or its multiplexer, is closed."""
        return self.context.tasks.is_ending or self.state is QueueState.CLOSED

    @property
    def idle(self) -> bool:
        """Whether no event is queued, and no callback is awaited."""
        return self.buffer is None and self.hand is None

    @property
    def is_read(self) -> bool:
        """Whether messages are read, rather than passed to a callback."""
        return self.consumer.on_message is None

    @property
    def pending(self) -> int:
        """The number of queued messages."""
        return 0 if self.buffer is None else len(self.buffer)

    @property
    def title(self) -> str:
        """What it is called, with the channel of its next message."""
        channel = None if self.buffer is None else self.buffer.next_channel
        return self._label if channel is None else f"{self._label}, next on {quote(channel)}"

    @property
    def signal_is_next(self) -> bool:
        """Whether the oldest queued event is a signal."""
        with self.context.budget.critical:
            return self.buffer is not None and self.buffer.signal_is_next

    @property
    def reporter(self) -> Reporter:
        """Reports the errors of the subscription."""
        if self._reporter is None:
            self._reporter = Reporter(self.consumer.on_error, self._label, self.context.record_limit)
        return self._reporter

    def hold(self) -> Buffer:
        """Queue all events from now on. A finalizer may close the subscription at the beginning, or at the end."""
        consumer = self.consumer
        with self.context.budget.critical:
            buffer = new_buffer(consumer.max_pending, consumer.overflow, self.context.budget, self)
            if self.state is QueueState.CLOSED:
                return buffer
            self._move(QueueState.BUFFERING)
            self.buffer = buffer
            if not (self.is_read and consumer.decode):  # a reader pops decoded messages only
                self.batch = buffer.batch
            self.deliver = buffer.put if not self.leaving else self._without_leaving(buffer.put)
            hand, self.hand = self.hand, None
            if hand is not None:
                buffer.put(*hand)
        if hand is not None:
            self.flush()
        return buffer

    def take_hand(self) -> tuple[bytes, bytes] | None:
        """Remove and return the message that was meant for a reader; None if a finalizer has dropped it."""
        with self.context.budget.critical:
            message, self.hand = self.hand, None
            if message is not None:
                self._move(QueueState.IDLE)
                self.notify()
        return message

    def flush(self) -> None:
        """Count the messages that arrived since the last call, and wake the reader."""
        buffer = self.buffer
        if buffer is None or not buffer.fresh:
            return
        losses = buffer.commit()
        if losses:
            _report(losses)
        if self.reader is not None:
            self.reader.wake()

    def drop(self, count: int) -> None:
        """Count dropped messages. The signal behind them may be next now."""
        self.dropped += count
        self.context.counters.dropped += count
        if self.state is QueueState.BUFFERING and self.signal_is_next:
            self.context.call_soon(self.resume)

    def discard(self, names: frozenset[bytes] | None) -> None:
        """Drop all queued events about these names, or, for None, all events. `flush()` comes first."""
        buffer, hand = self.buffer, self.hand
        if buffer is not None:
            self.drop(buffer.clear() if names is None else buffer.remove(names))
            if self.state is QueueState.BUFFERING:
                self.settle()
        elif hand is not None and (names is None or hand[0] in names) and self.take_hand() is not None:
            self.drop(1)

    def merge(self) -> None:
        """Merge the queued disconnects of the same names, some in each iteration of the loop."""
        buffer = self.buffer
        if buffer is not None and buffer.is_merging:
            self.drop(buffer.merge_some())
            if buffer.is_merging:
                self.context.call_soon(self.merge)

    def begin_calling(self, worker: asyncio.Task[object]) -> None:
        """Queue all events until the worker ends."""
        with self.context.budget.critical:
            if self.buffer is None:
                self.hold()
            if self.state is not QueueState.CLOSED:
                self.worker = worker
                self._move(QueueState.CALLING)

    def end_calling(self) -> None:
        """Go on after the end of a worker, which may have been cancelled by a stranger."""
        with self.context.budget.critical:
            self.worker = None
            if self.state is QueueState.CALLING:
                self._move(QueueState.BUFFERING)
        if self.state is QueueState.BUFFERING:
            if self.buffer and (not self.is_read or self.signal_is_next):
                self.context.call_soon(self.resume)
            else:
                self.settle()

    def settle(self) -> None:
        """Become idle if no event is queued any more; otherwise wake the reader."""
        with self.context.budget.critical:
            buffer = self.buffer
            if buffer is None:
                return  # a finalizer has closed the subscription
            if not buffer:
                self._move(QueueState.IDLE)
                self._delete_buffer()
                self.notify()
                return
        if self.reader is not None:
            self.reader.wake()

    def end(self) -> None:
        """Drop all events, for good."""
        with self.context.budget.critical:
            self._move(QueueState.CLOSED)
            buffer = self.buffer
            if buffer is not None:
                self._delete_buffer()
                self.drop(buffer.close())
            elif self.hand is not None:
                self.hand = None
                self.drop(1)
            self.deliver = ignore  # the names may still be registered
            self.notify()
        if self.reader is not None:
            self.reader.wake()

    def _delete_buffer(self) -> None:
        if self.buffer is not None:
            self.buffer.detach()
        self.buffer = None
        self.batch = _EMPTY_BATCH
        self.deliver = self.straight if not self.leaving else self._without_leaving(self.straight)

    def leave(self, names: set[bytes]) -> None:
        """Ignore the events of names that were removed, until left() is called with each. Takes over the set."""
        if self.leaving:
            self.leaving |= names
        else:
            self.leaving = names
        self.deliver = self._without_leaving(self.straight if self.buffer is None else self.buffer.put)

    def left(self, name: bytes) -> None:
        """Take note that a name is not registered any more."""
        self.leaving.discard(name)
        if not self.leaving and not self.closed:
            self.leaving = _NONE_LEAVING
            self.deliver = self.straight if self.buffer is None else self.buffer.put

    def _without_leaving(self, deliver: Deliver) -> Deliver:
        return lambda channel, data: None if channel in self.leaving else deliver(channel, data)

    def report_overflow(self) -> None:
        """Report the first messages of an episode that are dropped for lack of room."""
        buffer = self.buffer
        if buffer is None or self.closed:
            return  # closed by the report of another subscription
        is_latest = self.consumer.overflow is Overflow.LATEST
        # A reader that waits is not slow: it runs soon.
        if not (buffer.overflowing or (is_latest and self._is_reader_waiting)):
            buffer.overflowing = True
            error = SlowConsumer(self.dropped, len(buffer), buffer.limit)
            self.reporter.report_aside(error, self.context.tasks)
            if self._close_subscription is not None:
                self._close_subscription()
        if self.state is QueueState.BUFFERING:
            self.settle()

    @property
    def _is_reader_waiting(self) -> bool:
        return self.reader is not None and self.reader.state is not ReaderState.AWAY

    def _move(self, state: QueueState) -> None:
        if state not in QUEUE_TRANSITIONS[self.state]:
            raise AssertionError(f"{self.state} to {state}")
        self.state = state


def _report(losses: Losses) -> None:
    """Count the messages that were dropped for lack of room, then report them: counters are exact in each report."""
    for queue, dropped in losses.items():
        queue.drop(dropped)
    for queue in losses:
        queue.report_overflow()


def ignore(channel: bytes, data: bytes) -> None:
    """Take a message of a subscription that is closed."""
