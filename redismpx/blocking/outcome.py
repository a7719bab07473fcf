"""The outcome of work in the loop of a portal, for a caller that waits in a thread or in another loop."""

from __future__ import annotations

__all__ = ["LoopOutcome", "Outcome", "ThreadOutcome", "WakeUps", "WorkFuture"]

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeAlias, TypeVar

from ..errors import MultiplexerIsClosed
from .locks import LONG, new_held_lock

_FIRST_WAIT = 0.05  # seconds after which a thread that waits wakes the next one itself; from then on after LONG

_Settled = TypeVar("_Settled")

_Settle: TypeAlias = Callable[[Callable[[Any], object], object], object]
"""Calls a method of an outcome with a value, unless no caller is to get it any more."""


class Outcome(ABC, Generic[_Settled]):
    """The outcome of work in the loop, for a caller that waits elsewhere. It is settled once."""

    __slots__ = ("work",)

    def __init__(self) -> None:
        self.work: asyncio.Future[Any] | None = None
        """The task or future of the work, once it has begun."""

    @abstractmethod
    def resolve(self, result: _Settled) -> None:
        """Let the caller return a result."""

    @abstractmethod
    def reject(self, error: BaseException) -> None:
        """Let the caller raise an error."""

    def abandon(self) -> None:
        """Settle work that the loop does not do any more."""
        self.reject(MultiplexerIsClosed())

    def cancel(self) -> None:
        """Cancel work that no caller waits for."""
        if self.work is not None:
            self.work.cancel()

    def forget(self) -> None:
        """Release the work."""
        self.work = None


class WakeUps:
    """Wakes the threads whose outcomes are settled, one after the other: each thread that is awake wakes the next one.

    If all of them woke up together, all but one would go to sleep again at once, until they get the global interpreter
    lock. Each call would cost twice as many switches between threads.
    """

    def __init__(self) -> None:
        self._settled: deque[ThreadOutcome[Any]] = deque()
        self._is_next_due = False  # whether a thread was woken up that has not woken the next one yet

    def add(self, outcome: ThreadOutcome[Any]) -> None:
        """Wake the thread of an outcome, after the threads of the outcomes that were added before it."""
        self._settled.append(outcome)
        if not self._is_next_due:
            self.wake_next()

    def wake_next(self) -> None:
        """Wake one thread. A call too many does no harm: two threads are awake then."""
        while True:
            self._is_next_due = True
            try:
                if self._settled.popleft().wake():
                    return
            except IndexError:
                self._is_next_due = False  # before the look: an outcome that is added from now on wakes its thread
                if not self._settled:
                    return


class ThreadOutcome(Outcome[_Settled]):
    """The outcome for a thread that waits for it."""

    __slots__ = ("_error", "_has_left", "_is_set", "_is_settled", "_result", "_wake_ups")

    _result: _Settled

    def __init__(self, wake_ups: WakeUps) -> None:
        super().__init__()
        self._wake_ups = wake_ups
        self._error: BaseException | None = None
        self._is_settled = False
        self._has_left = False  # whether the thread does not wait any more
        self._is_set = new_held_lock()

    def resolve(self, result: _Settled) -> None:
        self._result = result
        self._is_settled = True
        self._wake_ups.add(self)

    def reject(self, error: BaseException) -> None:
        self._error = error
        self._is_settled = True
        self._wake_ups.add(self)

    def wake(self) -> bool:
        """Wake the thread, and return whether it is going to wake the next one."""
        if self._has_left:
            return False
        self._is_set.release()
        return True

    def get(self) -> _Settled:
        """Wait for the outcome. Ctrl-C interrupts the main thread here."""
        timeout = _FIRST_WAIT
        try:
            # The thread whose turn it is to wake this one may be in a signal handler, or may have left by Ctrl-C.
            while not (self._is_set.acquire(timeout=timeout) or self._is_settled):
                self._wake_ups.wake_next()
                timeout = LONG
        finally:
            self._has_left = True
            self._wake_ups.wake_next()
        if self._error is None:
            return self._result
        try:
            raise self._error
        finally:
            self._error = None
            self.forget()  # otherwise the exception refers to itself: traceback, frame, exception


class LoopOutcome(Outcome[_Settled]):
    """The outcome for a coroutine in another loop, the one that runs when this is made."""

    __slots__ = ("_loop", "future")

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[_Settled] = self._loop.create_future()

    def resolve(self, result: _Settled) -> None:
        self._settle_soon(self.future.set_result, result)

    def reject(self, error: BaseException) -> None:
        self._settle_soon(self.future.set_exception, error)

    def _settle_soon(self, settle: Callable[[Any], object], value: object) -> None:
        with suppress(RuntimeError):  # the other loop was closed
            self._loop.call_soon_threadsafe(self._settle, settle, value)

    def _settle(self, settle: Callable[[Any], object], value: object) -> None:
        if not self.future.done():
            settle(value)


class WorkFuture(asyncio.Future[_Settled]):
    """A future of the loop that settles an outcome at once: a callback would come in the next iteration."""

    __slots__ = ("_outcome", "_settle")

    def __init__(self, loop: asyncio.AbstractEventLoop, outcome: Outcome[_Settled], settle: _Settle) -> None:
        super().__init__(loop=loop)
        self._outcome = outcome
        self._settle = settle

    def set_result(self, result: _Settled, /) -> None:
        super().set_result(result)
        self._settle(self._outcome.resolve, result)
        del self._outcome  # the two refer to each other

    def set_exception(self, exception: type[BaseException] | BaseException, /) -> None:
        super().set_exception(exception)
        error = self.exception()  # which the outcome has from now on: the loop is not to log it
        assert error is not None
        self._settle(self._outcome.reject, error)
        del self._outcome
