"""What the wire tells one subscription: counted, and handed to its consumer one by one and in order.

Never blocks its caller, never raises.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable, Coroutine
from time import monotonic
from types import CoroutineType
from typing import Any, NamedTuple, Protocol

from ..._core.buffer import FULL, Budget, Buffer, Overflow, QueuedSignal, Signal, new_buffer
from ...errors import ConnectionLost, DecodeError, SlowConsumer, SubscriptionRefused, narrow
from ...stats import Counters
from ...typing import Decode, OnActivation, OnDisconnect, OnError, OnMessage
from ..runtime.notification import Notifier
from ..runtime.tasks import TIME_SLICE, Tasks, is_cancelled, running_task
from ..session.subscriber import Deliver
from .reporter import Report, Reporter

_NO_REFUSALS: dict[bytes, SubscriptionRefused] = {}  # of all who have none; never written to
_EMPTY_BATCH: list[bytes] = []  # likewise


class Consumer(NamedTuple):
    """What a subscription was given to consume its events with. Without `on_message` it is read."""

    on_message: OnMessage[Any] | None = None
    on_disconnect: OnDisconnect | None = None
    on_activation: OnActivation | None = None
    on_error: OnError | None = None
    decode: Decode[Any] | None = None
    max_pending: int = 10_000
    overflow: Overflow = Overflow.DROP_OLDEST
    is_own: bool = False  # on_message and on_disconnect are the library's: nothing that on_error does may hold them up


class Owner(Protocol):
    """What an inbox needs of its subscription."""

    def close(self) -> None:
        """Close the subscription."""


class Host(Protocol):
    """What an inbox needs of its multiplexer."""

    tasks: Tasks
    counters: Counters
    budget: Budget

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Have the loop call something in its next turn."""


class Inbox(Notifier):
    """The events of one subscription, on their way to its consumer.

    A callback that returns nothing is done when it returns: events go straight to it. What a callback returns and can
    be awaited is awaited by a task, the worker; until the worker is through, events wait in the buffer. They also wait
    for the end of the tick when one awaitable follows another, so that one worker serves a burst of them. Messages that
    are to be read wait there until somebody does. So an idle subscription has neither worker nor buffer.

    As a pulse it fires when any of its attributes changed, and when nothing waits any more.
    """

    __slots__ = (
        "_buffer",
        "_consumer",
        "_host",
        "_label",
        "_owner",
        "_reader",
        "_reporting",
        "_reports",
        "_turn",
        "_worker",
        "active",
        "batch",
        "closed",
        "deliver",
        "dropped",
        "refusals",
    )  # fmt: skip

    def __init__(self, consumer: Consumer, label: str, owner: Owner, host: Host) -> None:
        super().__init__()
        self._consumer = consumer
        self._label = label
        self._owner = owner
        self._host = host
        self._reports: Reporter | None = None
        self._buffer: Buffer | None = None
        self._worker: asyncio.Task[object] | None = None
        self._reporting: asyncio.Task[object] | None = None  # awaits on_error beside the queue
        self._reader: asyncio.Future[None] | None = None  # resolves when there may be something to read
        self._turn = 0.0  # when the consumer last let the loop do other things
        self.deliver: Deliver = self._way
        """Takes the channel and the payload of a message; returns what `accept` is to be given."""
        self.batch: list[bytes] = _EMPTY_BATCH
        """The next messages, as the buffer deals them, if a consumer may take them without another look."""
        self.closed: bool = False
        self.dropped: int = 0
        self.active: int = 0
        """How many names are active."""
        self.refusals: dict[bytes, SubscriptionRefused] = _NO_REFUSALS
        """The names that the server refuses, and how it said so."""

    @property
    def is_read(self) -> bool:
        """Whether messages are read, rather than handed to a callback."""
        return self._consumer.on_message is None

    @property
    def pending(self) -> int:
        """Messages waiting."""
        return 0 if self._buffer is None else len(self._buffer)

    @property
    def pending_bytes(self) -> int:
        """The bytes of their channels and payloads."""
        return 0 if self._buffer is None else self._buffer.pending_bytes

    @property
    def idle(self) -> bool:
        """Whether nothing waits, and no callback is being awaited."""
        return self._buffer is None

    @property
    def _reporter(self) -> Reporter:
        if self._reports is None:
            self._reports = Reporter(self._consumer.on_error, self._label)
        return self._reports

    # --- events; what the registry's subscribers are asked for

    def accept(self, result: object) -> None:
        """Await what a callback returned, if that is to be awaited."""
        if result is FULL:
            self.flush()
            return
        if not _is_pending(result):
            return
        self._begin(result)
        if self._buffer is None and not self.closed:  # it was done at once
            now = monotonic()
            if now - self._turn < TIME_SLICE:
                self._hold()
                self._host.call_soon(self._go_on)
            self._turn = now

    def flush(self) -> None:
        """Count the messages that came since the last time, and tell whoever waits for them."""
        buffer = self._buffer
        if buffer is None or not buffer.fresh:
            return
        dropped = buffer.commit()
        if dropped:
            self._overflow(buffer, dropped)
        if self._reader is not None:
            self._wake_reader()

    def failed(self, error: BaseException) -> None:
        """Report what `deliver` raised."""
        self.accept(self._reporter.failed(error, "on_message", self.closed))

    def activate(self, name: bytes) -> None:
        """Tell that a name is active."""
        self.active += 1
        if self.refusals:
            self.refusals.pop(name, None)
        if self._event is not None:
            self.notify()
        if self._buffer is not None or self._consumer.on_activation is not None:
            self._signal(Signal.ACTIVATION, name, name)

    def disconnect(self, error: ConnectionLost) -> None:
        """Tell that a connection was lost, or one name on it."""
        self.active = 0 if error.names is None else self.active - len(error.names)
        self.flush()
        if self._buffer is not None:
            self._drop(self._buffer.disconnect(error, error.names))
        elif not self.closed:  # as it may have been by what had no room
            self.accept(self._call(Signal.DISCONNECT, error))

    def refuse(self, error: SubscriptionRefused) -> None:
        """Tell that the server refused a name."""
        if not self.refusals:
            self.refusals = {}
        self.refusals[error.name] = error
        self.notify()
        if self._consumer.is_own:
            self._tell_beside(error)
        else:
            self._signal(Signal.ERROR, error, error.name)

    def forget(self, names: frozenset[bytes], were_active: int, rest: bool) -> None:
        """Drop all that waits about names that are wanted no more; tell whether there is a rest of others."""
        self.active -= were_active
        for name in names & self.refusals.keys():
            del self.refusals[name]
        self.notify()
        self._discard(names if rest else None)

    def close(self) -> None:
        """Drop what waits, call nothing more, and cancel the callback that is being awaited, unless it calls this."""
        self.closed = True
        self.notify()
        self._discard(None)
        self._wake_reader()
        for task in (self._worker, self._reporting):
            if task is not None and task is not running_task() and not task.get_loop().is_closed():
                task.cancel()

    # --- reading

    async def read(self) -> tuple[bytes, Any]:
        """Wait for the next message; return its channel and its payload, decoded.

        Raises `RuntimeError` if somebody else is reading, and `EOFError` when closed. Cancelled, it has taken nothing.
        """
        self._check_reader()
        loop = asyncio.get_running_loop()
        if self._buffer is not None and monotonic() - self._turn > TIME_SLICE:
            self._buffer.recall()  # another reader is to be told that there is one
            self._reader = loop.create_future()
            try:
                await asyncio.sleep(0)
            finally:
                self._reader = None
            self._turn = monotonic()
        while (message := self.read_nowait()) is None:
            if self.closed:
                raise EOFError
            self._reader = loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
            self._turn = monotonic()
        return message

    def read_in_turn(self) -> tuple[bytes, Any] | None:
        """Do as read_nowait(), but return None also when it is the loop's turn to do other things: read() lets it."""
        if self._buffer is None or monotonic() - self._turn > TIME_SLICE:
            return None
        return self.read_nowait()

    def read_nowait(self) -> tuple[bytes, Any] | None:
        """Return the next message, if one waits and nothing is ahead of it; raise `RuntimeError` as read() does."""
        if self._reader is not None:
            self._check_reader()
        decode = self._consumer.decode
        while (buffer := self._buffer) is not None and self._worker is None:
            message = buffer.pop_message()
            if message is None and buffer.fresh:
                self.flush()
                continue
            if message is None:
                break  # a signal is ahead, and its turn comes at the end of this tick
            if buffer.signals:
                if buffer.signal_is_next:
                    self._host.call_soon(self._go_on)
            elif not buffer:
                self._rest()
            if decode is None:
                return message
            channel, data = message
            try:
                return channel, decode(data)
            except Exception as error:  # noqa: BLE001, users' code
                self.accept(self._undecodable(channel, data, error))
        return None

    def _check_reader(self) -> None:
        if self._reader is not None:
            raise RuntimeError("another task is reading this subscription; it has one reader at a time")

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # --- calling

    def _signal(self, signal: Signal, argument: object, name: bytes) -> None:
        self.flush()
        if self._buffer is not None:
            self._buffer.signal(signal, argument, name)
        elif not self.closed:  # as it may have been by what had no room
            self.accept(self._call(signal, argument))

    @property
    def _way(self) -> Deliver:
        """What a message goes to while nothing waits before it."""
        consumer = self._consumer
        if consumer.on_message is None:
            return self._queue
        return consumer.on_message if consumer.decode is None else self._decode

    def _decode(self, channel: bytes, data: Any) -> object:
        """Deliver on_message with what decode makes of the payload."""
        on_message, decode = self._consumer.on_message, self._consumer.decode
        assert on_message is not None
        assert decode is not None
        try:
            data = decode(data)
        except Exception as error:  # noqa: BLE001, users' code
            return self._undecodable(channel, data, error)
        return on_message(channel, data)

    def _queue(self, channel: bytes, data: bytes) -> object:
        """Let messages wait from now on, and this one first."""
        return self._hold().put(channel, data)

    def _call(self, signal: Signal, argument: Any) -> object:
        """Deliver the callback of a signal; return what is to be awaited, if anything."""
        if signal is Signal.ERROR:
            return self._reporter.tell(argument)
        callback: Callable[[Any], object] | None
        if signal is Signal.ACTIVATION:
            name, callback = "on_activation", self._consumer.on_activation
        else:
            name, callback = "on_disconnect", self._consumer.on_disconnect
        if callback is None:
            return None
        try:
            return callback(argument)
        except BaseException as error:  # noqa: BLE001, users' code
            return self._reporter.failed(error, name, self.closed)

    def _go_on(self) -> None:
        """Let the worker hand over what waits, if it does not do so already."""
        if self._worker is None and self._buffer is not None:
            if self._buffer:
                self._begin(None)
            else:
                self._rest()

    def _begin(self, result: object) -> None:
        worker = self._start(self._work(result), result)
        if not worker.done() and not self.closed:
            self._worker = worker
            if self._buffer is None:
                self._hold()

    async def _work(self, result: object) -> None:
        """Await what a callback returned, and hand over what waits."""
        task = asyncio.current_task()
        assert task is not None
        on_message, is_read = self._way, self.is_read
        turn_ends = monotonic() + TIME_SLICE
        try:
            while True:
                if result is not None:
                    before = task.cancelling()
                    try:
                        await (result if type(result) is CoroutineType else self._settle(result))
                    except BaseException as error:
                        if is_cancelled(error, before) or running_task() is not task:  # or it ends with its loop
                            raise
                        result = self._reporter.failed(error, "a callback", self.closed)
                        continue
                if (batch := self.batch) and not is_read:
                    channel, data = batch.pop(), batch.pop()
                else:
                    if monotonic() > turn_ends:
                        await asyncio.sleep(0)
                        turn_ends = monotonic() + TIME_SLICE
                    buffer = self._buffer
                    if buffer is None:
                        break
                    message = None if is_read else buffer.pop_message()
                    if message is None:
                        signal = buffer.pop_signal()
                        if signal is None:
                            break
                        result = self._call(signal.kind, _remaining(signal))
                        continue
                    channel, data = message
                try:
                    result = on_message(channel, data)
                except BaseException as error:  # noqa: BLE001, users' code
                    result = self._reporter.failed(error, "on_message", self.closed)
        finally:
            self._worker = None
            if self.closed:
                self._discard(None)
            elif self._buffer and (not self.is_read or self._buffer.signal_is_next):
                self._host.call_soon(self._go_on)  # it was cancelled; another one goes on
            else:
                self._rest()

    async def _settle(self, result: object) -> None:
        """Await what a callback or on_error returned, if that is to be awaited; what on_error raises is only logged."""
        if not isinstance(result, Report):
            if inspect.isawaitable(result):
                await result
            return
        task = asyncio.current_task()
        assert task is not None
        before = task.cancelling()
        try:
            await result.awaitable
        except BaseException as error:
            if is_cancelled(error, before) or running_task() is not task:
                raise
            self._reporter.log(error, "on_error")

    def _start(self, coroutine: Coroutine[object, object, object], result: object) -> asyncio.Task[object]:
        task = self._host.tasks.start(coroutine, f"redismpx {self._label}")
        if sys.version_info < (3, 12):  # where it has not begun yet, and may be cancelled before it does
            task.add_done_callback(lambda _: _close_unbegun(result))
        return task

    # --- what waits

    def _hold(self) -> Buffer:
        """Let events wait from now on."""
        consumer = self._consumer
        self._buffer = buffer = new_buffer(consumer.max_pending, consumer.overflow, self._host.budget)
        if not (self.is_read and consumer.decode):
            self.batch = buffer.batch
        self.deliver = buffer.put
        return buffer

    def _rest(self) -> None:
        """End a burst: either nothing waits any more, or what waits is to be read."""
        if self._buffer:
            self._wake_reader()
        else:
            self._buffer = None
            self.batch = _EMPTY_BATCH
            self.deliver = self._way
            self.notify()

    def _discard(self, names: frozenset[bytes] | None) -> None:
        if not self.closed:
            self.flush()
        if self._buffer is not None:
            self._drop(self._buffer.clear() if names is None else self._buffer.remove(names))
            if self._worker is None:
                self._rest()

    def _drop(self, count: int) -> None:
        """Count what was dropped; a signal that waited for it has its turn now."""
        self.dropped += count
        self._host.counters.dropped += count
        if self._worker is None and self._buffer is not None and self._buffer.signal_is_next:
            self._host.call_soon(self._go_on)

    def _overflow(self, buffer: Buffer, dropped: int) -> None:
        self._drop(dropped)
        is_latest = self._consumer.overflow is Overflow.LATEST
        if buffer.overflowing or (is_latest and self._reader is not None):  # who waits is not slow, and runs soon
            return
        buffer.overflowing = True
        # At once, beside the queue: a consumer that is stuck would never come to hear of it.
        self._tell_beside(SlowConsumer(self.dropped, len(buffer)))
        if self._consumer.overflow is Overflow.CLOSE:
            self._owner.close()

    def _undecodable(self, channel: bytes, data: bytes, cause: Exception) -> Report | None:
        """Report a payload that cannot be decoded; return what is to be awaited, if anything."""
        self._drop(1)
        error = DecodeError(channel, data)
        error.__cause__ = cause
        return self._reporter.tell(error)

    def _tell_beside(self, error: Exception) -> None:
        """Report beside the queue. While on_error is busy with an earlier such report, the log has to do."""
        if self._reporting is not None and not self._reporting.done():
            self._reporter.log(error)
            return
        report = self._reporter.tell(error)
        if report is not None:
            self._reporting = self._start(self._settle(report), report)


def _remaining(signal: QueuedSignal) -> object:
    """Return the argument of a signal's callback; a disconnect names only the names that are still subscribed to."""
    error, names = signal.argument, signal.names
    if isinstance(error, ConnectionLost) and names is not None and error.names is not None:
        return error if len(names) == len(error.names) else narrow(error, frozenset(names))
    return error


def _is_pending(result: object) -> bool:
    if result is None or type(result) is CoroutineType:  # the two that come most, and inspect is slow
        return result is not None
    return isinstance(result, Report) or inspect.isawaitable(result)


def _close_unbegun(result: object) -> None:
    """Spare a coroutine that will never run the warning that it was never awaited."""
    coroutine = result.awaitable if isinstance(result, Report) else result
    if inspect.iscoroutine(coroutine) and inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
        coroutine.close()
