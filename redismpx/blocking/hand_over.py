"""Messages on their way from the loop to the threads that read a subscription.

A thread that has no message asks the loop for a batch. So messages wait where they are bounded and counted, in the
buffer of the asyncio subscription; one batch at most is on the way, and only while threads read.
"""

from __future__ import annotations

__all__ = ["Border", "HandOver"]

import asyncio
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Container, Coroutine, Iterable, Iterator
from contextlib import suppress
from time import monotonic
from typing import Any, TypeAlias

from .. import Activation, Disconnect, Message, MessageGap, Overflow, StreamMessage
from ..errors import SubscriptionIsClosed
from .locks import LONG, new_condition
from .portal import Portal
from .workers import Workers

_BATCH = 256  # messages on the way, and a tenth of `max_pending` at most
_BATCH_BYTES = 65_536  # of payloads; beyond, the batch has no further message

_ReadMany: TypeAlias = Callable[[int, int], list[Any]]


class Border:
    """What all blocking subscriptions of one multiplexer share, from its first call to its end."""

    def __init__(self) -> None:
        self.portal: Portal = Portal()
        self.workers: Workers = Workers(self.portal)
        self.hand_overs: set[HandOver] = set()
        """Those of the subscriptions that are read."""
        self.dropped: int = 0
        """The messages that were dropped on the way."""
        self.is_draining: bool = False

    @property
    def pending(self) -> int:
        """The messages on the way."""
        return sum([hand_over.pending for hand_over in self.hand_overs])


class HandOver:
    """The messages of one subscription that are on the way. Several threads may take them: each goes to one.

    The methods up to `take()` are for the thread of the loop.
    """

    def __init__(self, border: Border, max_pending: int, overflow: Overflow) -> None:
        self.border: Border = border
        self.portal: Portal = border.portal
        self.dropped: int = 0
        self.ended: bool = False
        self.reads: str = ""
        """What threads read: `"messages"` or `"events"`."""
        self._source: AsyncIterator[Any] | None = None
        self._count_source: Callable[[], int] = int
        self._read_many: _ReadMany | None = None
        # With `latest`, a newer message may replace each that is not read yet.
        self._size = 1 if overflow is Overflow.LATEST else max(1, min(_BATCH, max_pending // 10))
        self._task: asyncio.Task[None] | None = None
        self._waking: asyncio.Handle | None = None
        self._empty: list[asyncio.Future[None]] = []  # resolved when no message is on the way
        self._late: list[Container[bytes] | None] | None = None  # what a finalizer forgets while messages are added
        self._batch: deque[Any] = deque()  # threads take from its beginning, without the lock
        self._lock = threading.RLock()  # a finalizer may interrupt; for all that follows
        self._changed = new_condition(self._lock)
        self._readers = 0  # threads that wait
        self._is_asked = False  # whether the loop has been asked for a batch

    def read(
        self, reads: str, source: AsyncIterator[Any], count: Callable[[], int], read_many: _ReadMany | None
    ) -> None:
        """Take the messages from here. `count` returns how many are buffered there.

        `read_many` returns some of these at once: at most so many, and none after so many bytes.
        """
        self.reads, self._source, self._count_source, self._read_many = reads, source, count, read_many
        self.border.hand_overs.add(self)

    def release(self) -> None:
        """Drop all references to the subscription: no thread has one any more."""
        if self._task is not None:
            self._task.cancel()
        self._source, self._count_source, self._read_many, self._task = None, int, None, None
        self.end()

    @property
    def pending(self) -> int:
        """The messages on the way."""
        return _count(self._batch.copy())

    def _ask(self) -> None:
        if self._batch:  # another thread has filled it since
            self._is_asked = False
            self._wake()
        elif self._task is None or self._task.done():
            self._task = self.portal.start(self._fill())

    async def _fill(self) -> None:
        batch, source = self._batch, self._source
        assert source is not None
        loop = asyncio.get_running_loop()
        try:
            event = await anext(source)
            batch.append(event)
            left, size = min(self._size - 1, self._count_source()), _size_of(event)
            if left > 0 and size < _BATCH_BYTES and not self._put_many(left, _BATCH_BYTES - size):
                self._waking = loop.call_soon(self._wake_early)
                async for event in source:
                    batch.append(event)
                    left, size = left - 1, size + _size_of(event)
                    if not left or size >= _BATCH_BYTES:
                        break
                    if self._waking is None:
                        self._waking = loop.call_soon(self._wake_early)
        except (StopAsyncIteration, SubscriptionIsClosed):
            self.end()
        finally:
            if self._waking is not None:
                self._waking.cancel()
                self._waking = None
            self._is_asked = False
            self._wake()

    def _put_many(self, most: int, size: int) -> bool:
        """Put buffered messages into the batch, without a step for each. Return False if that is not possible."""
        if self._read_many is None:
            return False
        late: list[Container[bytes] | None] = []
        self._late = late
        try:
            messages = self._read_many(most, size)
            self._batch += messages
        finally:
            self._late = None
        for names in late:
            self.forget(names)
        return bool(messages)

    def _wake_early(self) -> None:
        """Wake the threads when a step is delayed, for example because a payload cannot be decoded."""
        self._waking = None
        self._wake()

    def _wake(self) -> None:
        with self._lock:
            self._changed.notify_all()

    def _stop_asking(self) -> None:
        with self._lock:
            is_needed = self._readers > 0
        if self._task is not None and not is_needed:
            self._task.cancel()

    def fill_now(self, get_nowait: Callable[[], Any]) -> None:
        """Take a batch without a wait, unless there is one."""
        if self._batch or (self._is_asked and self._task is not None and not self._task.done()):
            return  # otherwise nothing is buffered, or another thread is about to get it
        left, size = min(self._size, self._count_source()), 0
        while left > 0 and size < _BATCH_BYTES:
            try:
                event = get_nowait()
            except asyncio.QueueEmpty:
                return
            self._batch.append(event)
            left, size = left - 1, size + _size_of(event)

    async def empty(self) -> None:
        """Wait until no message is on the way."""
        while self._batch:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._empty.append(future)
            self._report_empty()  # a thread may have taken the last message just before it could see the future
            await future

    def then(self, function: Callable[..., object] | None) -> Callable[[Any], Coroutine[Any, Any, object]] | None:
        """Return a coroutine function that calls a callback in a worker, once all messages before it are read."""
        call = self.border.workers.calling(function)
        if call is None:
            return None

        async def call_then(argument: object) -> object:
            await self.empty()
            return await call(argument)

        return call_then

    def forget(self, names: Container[bytes] | None) -> None:
        """Drop the messages of these channels; None: of all."""
        if self._late is not None:
            self._late.append(names)
            return
        with self._lock:  # a thread that finds the batch empty waits
            events: list[Any] = []
            while self._batch:  # from its end, because threads take from its beginning
                with suppress(IndexError):
                    events.append(self._batch.pop())
            events.reverse()
            kept = [event for event in events if not _is_about(event, names)]
            self._batch += kept
            self._drop(_count(events) - _count(kept))
        self._report_empty()

    def end(self) -> None:
        """Wake all readers, for good. What is on the way is dropped; `drain()` leaves it to the threads."""
        if not (self.ended or self.portal.is_exiting):
            with self._lock:
                self.ended = True
                self._changed.notify_all()
            if not self.border.is_draining:
                self.forget(None)
            self._report_empty()

    def _drop(self, count: int) -> None:
        self.dropped += count
        self.border.dropped += count

    def _report_empty(self) -> None:
        if not self._batch:
            waiting, self._empty = self._empty, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)
            if self.ended:
                self.border.hand_overs.discard(self)

    # --- the threads that read

    def take(self, timeout: float | None = None) -> Any:
        """Wait for the next message, and return it; None after so many seconds without one. `EOFError` at the end."""
        event = self._pop()
        return self._wait(timeout) if event is None else event

    def _wait(self, timeout: float | None) -> Any:
        deadline = None if timeout is None else monotonic() + timeout
        asks = False
        with self._lock:
            self._readers += 1
        try:
            while True:
                with self._lock:
                    if (event := self._pop()) is not None:
                        return event
                    if self.ended:
                        raise EOFError
                    left = None if deadline is None else deadline - monotonic()
                    if left is not None and left <= 0:
                        return None
                    if self._is_asked:
                        self._changed.wait(LONG if left is None else min(left, LONG))
                        continue
                    asks = self._is_asked = True
                self.portal.post(self._ask)  # without the lock, as the loop may add a batch at once
                asks = False
        finally:
            with self._lock:
                self._readers -= 1
                if asks:  # Ctrl-C came first: another thread is to ask
                    self._is_asked = False
                    self._changed.notify_all()
                is_over = not self._readers and self._is_asked and not self._batch
            if is_over:
                self.portal.post(self._stop_asking)

    def _pop(self) -> Any:
        """Remove and return the next event; None if there is none."""
        try:
            event = self._batch.popleft()
        except IndexError:
            return None
        if not self._batch:
            self._took_last()
        return event

    def _took_last(self) -> None:
        if self._empty or self.ended:
            self.portal.post(self._report_empty)

    def iterate(self, timeout: float | None) -> Iterator[Any]:
        """Take messages until the end, or until there is none for so many seconds."""
        batch = self._batch
        while True:
            try:
                event = batch.popleft()
            except IndexError:
                event = None
            if event is None:
                try:
                    event = self._wait(timeout)
                except EOFError:
                    return
                if event is None:
                    return
            elif not batch:
                self._took_last()
            yield event
            del event  # before the next one is taken: its finalizer may close the subscription

    def take_nowait(self) -> Any:
        """Return the next message on the way; None if there is none. `EOFError` at the end."""
        event = self._pop()
        if event is None and self.ended:
            raise EOFError
        return event


def _count(events: Iterable[object]) -> int:
    """Return how many of these events are messages."""
    return sum([not isinstance(event, (Activation, Disconnect, MessageGap)) for event in events])


def _size_of(event: object) -> int:
    """Return the bytes of a payload, or about so many, if it is decoded."""
    return sys.getsizeof(event.data) if type(event) is Message or type(event) is StreamMessage else 0


def _is_about(event: object, names: Container[bytes] | None) -> bool:
    if isinstance(event, (Message, MessageGap, StreamMessage)):
        return names is None or event.channel in names
    return isinstance(event, Activation) and (names is None or event.name in names)
