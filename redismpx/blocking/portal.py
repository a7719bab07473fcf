"""An event loop in a thread of its own, and the calls of other threads that run there. Knows no multiplexer."""

from __future__ import annotations

__all__ = ["JOIN_TIMEOUT", "Begin", "Portal", "Start", "check_may_block", "runs_loop"]

import asyncio
import os
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any, TypeAlias, TypeVar

from .._io.runtime.log import call_late
from ..errors import MultiplexerIsClosed
from .collecting import collects_here
from .locks import are_threads_greenlets
from .outcome import LoopOutcome, Outcome, ThreadOutcome, WakeUps, WorkFuture
from .threads import NativeThread, WakingExecutor

_Returned = TypeVar("_Returned")

Start: TypeAlias = Callable[[], Coroutine[Any, Any, _Returned]]
"""Makes a coroutine, in the thread of the loop."""

Begin: TypeAlias = "Callable[[asyncio.Future[_Returned]], object]"
"""Begins work in the thread of the loop, without a task. The work sets the outcome of the future."""

JOIN_TIMEOUT = 7.0  # seconds until the end of the thread is no longer waited for: one more than aclose() takes
_LATE_LOOK = 0.001  # seconds for which a call may wait for the outcomes of earlier ones before the loop looks at it


class Portal:
    """One event loop, which runs in a daemon thread until `stop()`. Any thread may call the methods."""

    def __init__(self) -> None:
        self.pid: int = os.getpid()
        """The process of the loop. In a forked child there is none."""
        self._calls: deque[_Call] = deque()
        self._wake_ups = WakeUps()
        self._is_woken = True  # whether the loop is going to look at the calls, in its next step
        self._awaits_outcome = False  # whether it does so with the next outcome, or _LATE_LOOK later
        self._late_look: asyncio.TimerHandle | None = None
        self._has_ended = False
        self.is_exiting: bool = False
        """Whether the interpreter exits. The daemon threads that still wait go on waiting: an error would be noise."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop
        self._stopped: asyncio.Future[None]
        self._thread = NativeThread(self._run, "redismpx")

    def _run(self, _: NativeThread) -> None:
        try:
            asyncio.run(self._until_stopped())
        except RuntimeError:  # at exit, no thread can be started that waits for the end of the loop's executor
            if not self.is_exiting:
                raise
        finally:
            self._has_ended = True
            self._fail_calls()

    async def _until_stopped(self) -> None:
        self._loop = asyncio.get_running_loop()  # made in this thread: under gevent, its sockets belong to the thread
        self._stopped = self._loop.create_future()
        if are_threads_greenlets():
            self._loop.set_default_executor(WakingExecutor(self._loop))
        self._run_calls()
        await self._stopped

    def stop(self) -> None:
        """End the loop soon; only in the thread of the loop. Calls that wait for a result raise then."""
        if not self._stopped.done():
            self._stopped.set_result(None)

    def join(self, timeout: float = JOIN_TIMEOUT) -> None:
        """Wait until the thread has ended."""
        self._thread.join(timeout)

    # --- calls

    @property
    def is_here(self) -> bool:
        """Whether the running code is in the thread of the loop."""
        return self._thread.is_here

    def post(self, function: Callable[[], object]) -> None:
        """Have the loop call a function soon, in the order of the calls. Without effect when the loop has ended."""
        self._add(_Call(function, _nothing))

    def call(self, function: Callable[[], _Returned]) -> _Returned:
        """Call a function in the thread of the loop, and return its result.

        The function returns at once. The loop comes to it within a millisecond or so, therefore a thread that runs a
        loop of its own may make such calls too. After the end of the loop, nothing runs there that could interfere, and
        the function is called in this thread. So it is in a finalizer, which must not wait; there, a function that
        changes something raises `RuntimeError`: see `release()`.
        """
        if self.is_here or collects_here():
            return function()
        outcome: ThreadOutcome[_Returned] = ThreadOutcome(self._wake_ups)

        def run() -> None:
            try:
                result = function()
            except BaseException as error:  # noqa: BLE001, for the thread that waits
                outcome.reject(error)
            else:
                outcome.resolve(result)

        self._add(_Call(run, run))
        return outcome.get()

    def release(self, function: Callable[[], object]) -> None:
        """Call a function that ends something in the thread of the loop, as `call()` does; in a finalizer, soon."""
        if collects_here() and not self.is_here:
            self.post(partial(call_late, function))
        else:
            self.call(function)

    def wait(self, start: Start[_Returned]) -> _Returned:
        """Run a coroutine in the loop, wait, and return its result. Ctrl-C ends the wait and cancels the coroutine.

        Raises:
            RuntimeError: an event loop runs in this thread, and the call would block it.
            MultiplexerIsClosed: the loop has ended, or ended during the wait.
        """
        return self._wait(lambda outcome: self._in_task(start, outcome))

    def wait_for(self, begin: Begin[_Returned]) -> _Returned:
        """Begin work in the loop, wait, and return its result: as `wait()`, with less overhead. Ctrl-C cancels it."""
        return self._wait(lambda outcome: self._in_future(begin, outcome), is_patient=True)

    async def forward(self, start: Start[_Returned]) -> _Returned:
        """Run a coroutine in the loop, and await its result in another loop. Cancelled, it cancels the coroutine."""
        if self.is_here:
            return await start()
        return await self._forward(lambda outcome: self._in_task(start, outcome))

    async def forward_for(self, begin: Begin[_Returned]) -> _Returned:
        """Begin work in the loop, and await its result in any loop. Cancelled, it cancels the work."""
        return await self._forward(lambda outcome: self._in_future(begin, outcome))

    def _wait(self, launch: Callable[[Outcome[_Returned]], object], *, is_patient: bool = False) -> _Returned:
        check_may_block()
        if collects_here():
            raise RuntimeError("this call waits, and a finalizer must not: it may have interrupted what it waits for")
        outcome: ThreadOutcome[_Returned] = ThreadOutcome(self._wake_ups)
        try:
            self._add(_Call(partial(launch, outcome), outcome.abandon), is_patient)
            return outcome.get()
        except BaseException:  # the error of the work, or Ctrl-C: then the work has to end, too
            with suppress(RuntimeError):  # in a forked child
                self.post(outcome.cancel)
            raise

    async def _forward(self, launch: Callable[[Outcome[_Returned]], object]) -> _Returned:
        outcome: LoopOutcome[_Returned] = LoopOutcome()
        self._add(_Call(partial(launch, outcome), outcome.abandon))
        try:
            return await outcome.future
        finally:
            if outcome.future.cancelled():
                self.post(outcome.cancel)
            del outcome  # otherwise the exception refers to itself

    def _in_task(self, start: Start[_Returned], outcome: Outcome[_Returned]) -> None:
        """Run a coroutine in a task, up to its outcome."""

        async def run() -> None:
            try:
                result = await start()
            except asyncio.CancelledError:  # the loop has ended, or no caller waits any more
                self._settle(outcome.reject, MultiplexerIsClosed())
            except BaseException as error:  # noqa: BLE001, for the caller
                self._settle(outcome.reject, error)
            else:
                self._settle(outcome.resolve, result)

        outcome.work = self.start(run(), outcome.abandon)

    def _in_future(self, begin: Begin[_Returned], outcome: Outcome[_Returned]) -> None:
        """Begin work that sets the outcome of a future."""
        outcome.work = future = WorkFuture(self._loop, outcome, self._settle)
        self._awaits_outcome = True
        try:
            begin(future)
        except BaseException as error:  # noqa: BLE001, for the caller
            future.set_exception(error)

    def _settle(self, settle: Callable[[Any], object], value: object) -> None:
        """Settle an outcome, unless the interpreter exits; only in the thread of the loop."""
        if self.is_exiting:
            return
        settle(value)
        if not (self._is_woken or self._has_ended):  # the caller may call again soon: look once more before a rest
            self._is_woken = True
            self._loop.call_soon(self._run_calls)
        self._awaits_outcome = False

    def start(self, coroutine: Coroutine[Any, Any, None], abandon: Callable[[], object] | None = None) -> _Task:
        """Run a coroutine in a task; only in the thread of the loop. Its first step runs at once where Python can.

        `abandon` is called if the task is cancelled before its first step, in which the coroutine could not notice it.
        """
        task: _Task
        if sys.version_info >= (3, 12):
            task = asyncio.Task(coroutine, loop=self._loop, eager_start=True)
        else:
            task = asyncio.Task(coroutine, loop=self._loop)
            if abandon is not None:
                task.add_done_callback(lambda task: abandon() if task.cancelled() else None)
        if not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return task

    def check(self) -> None:
        """Raise if this process was forked after the start of the loop, which runs in the parent only."""
        if self.pid != os.getpid():
            raise RuntimeError(
                "this multiplexer was started before the process forked; make a new one in the child, or make this one "
                "before the fork and call it afterwards only"
            )

    def _add(self, call: _Call, is_patient: bool = False) -> None:
        self.check()
        self._calls.append(call)
        if self._has_ended:
            self._fail_calls()
        elif not (self._is_woken or (is_patient and self._awaits_outcome)):  # one wake-up for many calls
            self._is_woken = True
            try:
                self._loop.call_soon_threadsafe(self._run_calls)
            except RuntimeError:  # the loop was closed meanwhile
                self._fail_calls()
            except BaseException:  # a signal handler has raised, as for Ctrl-C, perhaps before the loop was woken
                self._is_woken = False
                with suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self._run_calls)
                raise

    def _run_calls(self) -> None:
        self._is_woken = False  # before the look: each call that is added from now on wakes the loop again
        while self._calls:
            self._calls.popleft().run()
        if self._awaits_outcome and self._late_look is None:
            self._late_look = self._loop.call_later(_LATE_LOOK, self._look_late)

    def _look_late(self) -> None:
        self._late_look, self._awaits_outcome = None, False
        self._run_calls()

    def _fail_calls(self) -> None:
        while self._calls:
            try:
                call = self._calls.popleft()
            except IndexError:  # another thread has failed the last one
                return
            call.fail()


_Task: TypeAlias = asyncio.Task[None]


class _Call:
    """A function that the loop calls, in the context of the thread that calls the portal.

    A callback that closes its subscription, for example, is recognized by its context.
    """

    __slots__ = ("fail", "run")

    def __init__(self, function: Callable[[], object], fail: Callable[[], object]) -> None:
        self.run: Callable[[], object] = partial(copy_context().run, function)
        self.fail = fail
        """Called instead when the loop has ended."""


def _nothing() -> None:
    """Take no note of a call that nobody waits for."""


def runs_loop() -> bool:
    """Tell whether this thread runs an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def check_may_block() -> None:
    """Raise if this thread runs an event loop."""
    if runs_loop():
        raise RuntimeError(
            "this call waits, and would block the event loop that runs in this thread: await apublish() or arequest() "
            "instead, call publish_soon(), or run it in another thread with await asyncio.to_thread(...); code that is "
            "all asyncio uses redismpx.Multiplexer"
        )
