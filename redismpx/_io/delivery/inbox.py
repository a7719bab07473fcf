"""One subscription's side of the registry: takes events, and passes them to the consumer in order.

Blocks no caller. Raises only what a plain `on_message` raises, which the dispatcher catches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

from ..._core.buffer import FULL, Buffer
from ..._core.events import QueuedSignal, Signal
from ...errors import ConnectionLost, DecodeError, SubscriptionRefused, narrow
from ...typing import Decode
from ..runtime.awaitable import is_awaitable
from ..runtime.tasks import TIME_SLICE, belongs_to
from ..session.subscriber import Deliver
from .consumer import Consumer, DeliveryContext
from .event_queue import EventQueue, QueueState
from .reader import Reader
from .reporter import Report, raise_in_loop, start
from .worker import call, work

_NO_NAMES: frozenset[bytes] = frozenset()
_NO_REFUSALS: dict[bytes, SubscriptionRefused] = {}  # of all inboxes without a rejected name; never written to


class Inbox(EventQueue):
    """The events of one subscription on their way to its consumer. Implements `Subscriber`.

    An event goes straight to its callback while the queue is idle. If the callback returns an awaitable, a task, the
    worker, awaits it; later events are queued, and the worker calls their callbacks before it ends. When one awaitable
    follows another within a time slice, events are queued until the end of the tick, so that one worker serves a burst
    of them. Messages of a subscription without on_message are queued until they are read.

    Notifies also when a name becomes active or rejected, or is removed.
    """

    __slots__ = ("_awaited", "_forgotten", "active", "refusals")

    def __init__(
        self, consumer: Consumer, label: str, context: DeliveryContext, close_subscription: Callable[[], object] | None
    ) -> None:
        super().__init__(consumer, label, context, close_subscription)
        self._awaited = 0.0  # when the last awaitable of a callback was done
        self._forgotten: frozenset[bytes] | None = None  # the names that `decode` removes; None while it does not run
        self.active: int = 0
        """The number of active names."""
        self.refusals: dict[bytes, SubscriptionRefused] = _NO_REFUSALS
        """The names that the server rejects, each with its error."""

    # --- events of the dispatcher

    def accept(self, result: object) -> None:
        """Take the result of `deliver`, or of another callback, and have it awaited if it is an awaitable."""
        if result is FULL:
            if self.buffer is None:  # a finalizer has removed it, after the message was on its way into it
                self.drop(1)
            self.flush()
            return
        if type(result) is not Report and not is_awaitable(result):
            return
        self._start(result)
        if self.state is QueueState.IDLE:  # the awaitable is done already
            now = monotonic()
            if now - self._awaited < TIME_SLICE:
                self.hold()
                self.context.call_soon(self.resume)
            self._awaited = now

    def failed(self, error: BaseException) -> None:
        """Report the exception that `deliver` raised."""
        self.accept(self.reporter.failed(error, "on_message", self.closed))

    def activate(self, name: bytes) -> None:
        """Take note that a name is active."""
        if name in self.leaving:
            return
        self.active += 1
        was_refused = False
        if self.refusals:
            was_refused = self.refusals.pop(name, None) is not None
        if self._event is not None:
            self.notify()
        if self.consumer.on_activation is not None or self.reads_events:
            self._signal(Signal.ACTIVATION, name, name)
        elif self.buffer is not None and (was_refused or self.is_read):
            # The rejection before it is outdated then; and the consumer may ask for the events later.
            self._signal(Signal.ACTIVATION, name, name)

    def disconnect(self, error: ConnectionLost, lost: Iterable[bytes] | None = None) -> None:
        """Take note that the connection is lost, or some names on it."""
        if self.leaving:
            if error.names is not None:
                error = narrow(error, error.names - self.leaving)
            if not (self.active if error.names is None else error.names):
                return
            lost = None if lost is None else [name for name in tuple(lost) if name not in self.leaving]
        self.active = 0 if error.names is None else self.active - len(error.names)
        self.flush()
        buffer = self._event_buffer()
        if buffer is not None:
            was_merging = buffer.is_merging
            self.drop(buffer.disconnect(error, error.names, lost))
            if buffer.is_merging and not was_merging:
                self.context.call_soon(self.merge)
            self._wake_reader_of_events()
        elif not self.closed:  # the flush may have closed the subscription
            self.accept(call(self, Signal.DISCONNECT, error))

    def refuse(self, error: SubscriptionRefused) -> None:
        """Take note that the server rejected a name."""
        if self.closed or error.name in self.leaving:
            return
        if not self.refusals:
            self.refusals = {}
        self.refusals[error.name] = error
        self.notify()
        if self.consumer.is_own:
            self.reporter.report_aside(error, self.context.tasks)
        else:
            self._signal(Signal.ERROR, error, error.name)

    def _signal(self, kind: Signal, argument: object, name: bytes) -> None:
        self.flush()
        buffer = self._event_buffer()
        if buffer is not None:
            buffer.signal(kind, argument, name)
            self._wake_reader_of_events()
        elif not self.closed:  # the flush may have closed the subscription
            self.accept(call(self, kind, argument))

    def _event_buffer(self) -> Buffer | None:
        """Return the buffer for an event that is not a message, if it must be queued."""
        if self.buffer is None and (self.reads_events or self.hand is not None) and not self.closed:
            self.hold()
        return self.buffer

    def _wake_reader_of_events(self) -> None:
        if self.reads_events and self.reader is not None:
            self.reader.wake()

    # --- calls of the subscription

    def forget(self, names: frozenset[bytes], were_active: int, rest: bool) -> None:
        """Drop the queued events about removed names; `rest` tells whether the subscription has other names."""
        self.active -= were_active
        if self._forgotten is not None:
            self._forgotten |= names
        for name in names.intersection(self.refusals):  # much faster than & with very many names
            del self.refusals[name]
        self.notify()
        self.discard(names if rest else None)

    def close(self, reason: str | None) -> None:
        """Drop all events, call no callback any more, and cancel the callback that is awaited, unless it calls this.

        If the consumer did not close the subscription itself, `reason` says why it ends, and on_close is called.
        """
        if self.state is QueueState.CLOSED:
            return
        self.end()
        for task in (self.worker, None if self._reporter is None else self._reporter.aside):
            if task is not None and not belongs_to(task) and not task.get_loop().is_closed():
                task.cancel()
        if self.consumer.on_close is not None and reason is not None:
            try:
                self.consumer.on_close(reason)
            except BaseException as error:  # noqa: BLE001, users' code
                self.reporter.failed(error, "on_close", closed=True)

    def read_events(self, active: Iterable[bytes]) -> set[bytes]:
        """Let the reader get all events from now on; return the names that were active before the queued events."""
        self.flush()
        self.reads_events = True
        return set(active) if self.buffer is None else self.buffer.active_before(active)

    async def read(self) -> tuple[bytes, Any] | QueuedSignal:
        """Wait for the next event of the reader, most often a message: its channel and its decoded payload.

        Raises `RuntimeError` if another task is reading, and `EOFError` when closed. Cancelled, it has popped nothing.
        """
        reader = self.reader
        if reader is None:
            self.reader = reader = Reader()
        reader.check()
        if self.buffer is not None and reader.is_due_to_yield:
            self.buffer.recall()  # another reader must not pop from the batch: it gets an error
            await reader.yield_to_loop()
        event: tuple[bytes, Any] | QueuedSignal | None
        while self.idle or (event := self._read_event_nowait() if self.reads_events else self.read_nowait()) is None:
            if self.closed:
                raise EOFError
            try:
                await reader.wait()
            except asyncio.CancelledError:
                if self.hand is not None:
                    self.hold()  # for the next reader
                raise
        return event

    def read_in_turn(self) -> tuple[bytes, Any] | QueuedSignal | None:
        """Return the next event without a wait, but None when the reader is due to yield: read() does that."""
        buffer, reader = self.buffer, self.reader
        if buffer is None or reader is None:
            return None
        if (decode := self.consumer.decode) is not None and (batch := buffer.batch):
            message = self._read_decoded(decode, batch.pop(), batch.pop())
            if message is not None:
                return message
        if reader.is_due_to_yield:
            return None
        return self._read_event_nowait() if self.reads_events else self.read_nowait()

    def _read_event_nowait(self) -> tuple[bytes, Any] | QueuedSignal | None:
        """Return the next message, activation or disconnect, if one is queued. Reports the errors before it."""
        while (event := self.read_nowait()) is None and self.buffer is not None and self.state is QueueState.BUFFERING:
            signal = self.buffer.pop_signal()
            if signal is None:
                return None
            if not self.buffer:
                self.settle()
            if signal.kind is not Signal.ERROR:
                return signal
            self.accept(call(self, signal.kind, signal.argument))
        return event

    def read_nowait(self, most: int = 0) -> tuple[bytes, Any] | None:
        """Return the next message, if one is queued and no signal is ahead; raise `RuntimeError` as read() does.

        If no message is lent, up to `most` are, as `Buffer.pop_message()` does it.
        """
        if self.reader is not None:
            self.reader.check()
        decode = self.consumer.decode
        while self.state is QueueState.BUFFERING or self.hand is not None:
            buffer = self.buffer
            if not (buffer and buffer.batch) and self.context.tasks.is_ending:
                break
            if buffer is None:
                if (handed := self.take_hand()) is None:
                    continue
                message = handed
            elif (popped := buffer.pop_message(most)) is not None:
                message = popped
                if buffer.signals:
                    if self.signal_is_next:
                        self.context.call_soon(self.resume)
                elif not buffer:
                    self.settle()
            elif buffer.fresh:
                self.flush()
                continue
            else:
                break  # a signal is ahead, and its callback is called at the end of this tick
            if decode is None:
                return message
            if (decoded := self._read_decoded(decode, *message)) is not None:
                return decoded
        return None

    def _read_decoded(self, decode: Decode[Any], channel: bytes, data: bytes) -> tuple[bytes, Any] | None:
        """Return a message with its decoded payload; None if it is dropped: `decode` failed, or removed its channel."""
        self._forgotten = _NO_NAMES
        try:
            decoded = decode(data)
        except BaseException as error:  # noqa: BLE001, users' code
            self.accept(self._report_undecodable(channel, data, error))
            return None
        finally:
            forgotten, self._forgotten = self._forgotten, None
        if not (self.closed or (forgotten and channel in forgotten)):  # decode did that
            return channel, decoded
        self.drop(1)
        return None

    # --- delivery

    @property
    def straight(self) -> Deliver:
        """The function that takes messages while no event is queued: often the very function that the user gave."""
        consumer = self.consumer
        if consumer.on_message is None:
            return self._queue
        return consumer.on_message if consumer.decode is None else self._decode

    def _decode(self, channel: bytes, data: Any) -> object:
        """Call on_message with the decoded payload."""
        on_message, decode = self.consumer.on_message, self.consumer.decode
        assert on_message is not None
        assert decode is not None
        self._forgotten = _NO_NAMES
        try:
            decoded = decode(data)
        except BaseException as error:  # noqa: BLE001, users' code
            return self._report_undecodable(channel, data, error)
        finally:
            forgotten, self._forgotten = self._forgotten, None
        if self.closed or (forgotten and channel in forgotten):  # decode did that
            self.drop(1)
            return None
        return on_message(channel, decoded)

    def _queue(self, channel: bytes, data: bytes) -> object:
        """Hand a message to the reader that waits; or queue it, and all that follow."""
        reader = self.reader
        if reader is not None and reader.is_waiting:
            self._move(QueueState.HANDING)
            self.hand = (channel, data)
            reader.wake()
            return None
        buffer = self.hold()
        if buffer is not self.buffer:  # the message that was in the hand has cost it its room: overflow is close
            self.drop(1)
            return None
        return buffer.put(channel, data)

    def resume(self) -> None:
        """Start a worker for the queued events, if there is none."""
        if self.state is QueueState.BUFFERING and not self.closed:
            if self.buffer and not self.reads_events:
                self._start(None)
            else:
                self.settle()

    def _start(self, result: object) -> None:
        worker = start(work(self, result), result, self.context.tasks, self._label)
        if not worker.done() and not self.closed:
            self.begin_calling(worker)

    def _report_undecodable(self, channel: bytes, data: bytes, cause: BaseException) -> Report | None:
        self.drop(1)
        raise_in_loop(cause)
        if self.closed:  # decode did that, before it raised
            return None
        error = DecodeError(channel, data)
        error.__cause__ = cause
        return self.reporter.report(error)
