"""The tasks of one multiplexer: each has a name, an owner and an end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context, ContextVar
from functools import partial
from itertools import islice
from time import monotonic
from typing import Any

from ..._core.raised import is_a
from .log import RECORDS, logger

TIME_SLICE = (
    0.001  # seconds that anything here may keep the loop to itself, as long as it is not a user's callback that does
)
LOOK_AFTER = 16  # messages or deliveries between two looks at the clock
END_TIMEOUT = 5.0  # seconds until closing no longer waits for a cancelled task
WAITED_AT_ONCE = 256  # tasks, of those whose end is awaited
CANCEL_AGAIN = 0.5  # seconds until a task of the library that has not ended is cancelled again

_caller: ContextVar[object] = ContextVar("redismpx callback", default=None)
"""The coroutine of the task of the callback that the running code belongs to. A task that a callback starts inherits
it. Not the task itself, which would refer to itself by its context."""


class Tasks:
    """Starts tasks, keeps them until they end, and ends them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[object]] = set()
        self._own: set[asyncio.Task[object]] = set()  # the tasks that await no callback
        self._again: asyncio.TimerHandle | None = None  # cancels the tasks in `_own` once more
        self.is_ending: bool = False
        """Whether the multiplexer is closed. No callback is called then, and a new task of the library is cancelled."""
        self._starting = 0  # tasks whose first step runs right now, inside start()

    def start(
        self, coroutine: Coroutine[object, object, object], name: str, context: Context | None = None
    ) -> asyncio.Task[object]:
        """Run `coroutine` in a task.

        A task of the library gets a context. Its first step runs later: it may dial, and so load certificates, which is
        not to happen inside `add()`. A callback's task gets none, and runs in a copy of the current one; from Python
        3.12 on its first step runs before this returns.
        """
        loop = asyncio.get_running_loop()
        is_own = context is not None
        task: asyncio.Task[object]
        if sys.version_info >= (3, 12) and not is_own:
            self._starting += 1
            try:
                task = asyncio.Task(coroutine, loop=loop, name=name, context=context, eager_start=True)
            finally:
                self._starting -= 1
        else:  # not create_task(): the loop may have a factory that makes eager tasks
            task = asyncio.Task(coroutine, loop=loop, name=name, context=context)
        if task.done():
            self._end(task)
        else:
            self._tasks.add(task)
            if is_own:
                self._own.add(task)
                if self.is_ending:
                    task.cancel()
            task.add_done_callback(self._end)
        return task

    def _end(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        self._own.discard(task)
        if self._again is not None and not self._own:
            self._again.cancel()
            self._again = None
        if not task.cancelled() and task.exception() is not None:  # a fault of this library; never a silent end
            logger.critical("internal error in %s", task.get_name(), exc_info=task.exception())

    @property
    def count(self) -> int:
        """How many tasks have not ended."""
        return len(self._tasks)

    @property
    def are_running(self) -> bool:
        """Whether the running code belongs to one of the tasks."""
        if self._starting > 0 or running_task() in self._tasks:
            return True
        caller = _caller.get()
        return caller is not None and any(task.get_coro() is caller for task in [*self._tasks])

    def cancel(self) -> Iterator[Callable[[], object]]:
        """Cancel the tasks of the library; return, for each callback that is awaited, a function that cancels it.

        The tasks that the running code belongs to are left out, or, if they are of the library, cancelled in the next
        iteration. Python 3.11's wait_for, with which redis-py writes, swallows a cancellation that comes just as it is
        done; the read that follows may take long. So a task of the library is cancelled each CANCEL_AGAIN. A callback
        is cancelled once: it may be cleaning up.
        """
        self.is_ending = True
        for task in [*self._own]:
            _cancel_once(task)
            if belongs_to(task):  # it runs a log handler, or a credential provider
                task.get_loop().call_soon(task.cancel)
        self._cancel_later()
        return (partial(_cancel_once, task) for task in [*self._tasks])

    def _cancel_later(self) -> None:
        if self._own and self._again is None:
            self._again = next(iter(self._own)).get_loop().call_later(CANCEL_AGAIN, self._cancel_again)

    def _cancel_again(self) -> None:
        self._again = None
        for task in [*self._own]:
            task.cancel()
        self._cancel_later()

    async def ended(self) -> None:
        """Wait until the cancelled tasks have ended, for END_TIMEOUT at most; cancel() comes first."""
        give_up = monotonic() + END_TIMEOUT
        stuck: list[asyncio.Task[object]] = []
        tasks = iter([*self._tasks])
        while some := list(islice(tasks, WAITED_AT_ONCE)):
            if others := [task for task in some if not belongs_to(task)]:
                _, late = await asyncio.wait(others, timeout=max(0.0, give_up - monotonic()))
                stuck += late
        for task in stuck[:RECORDS]:
            name = task.get_name()
            logger.error("%s did not end within %g s after its cancellation; it is left running", name, END_TIMEOUT)
        if len(stuck) > RECORDS:
            logger.error("%d more tasks did not end; they are left running", len(stuck) - RECORDS)


def _cancel_once(task: asyncio.Task[object]) -> None:
    if not (task.cancelling() or belongs_to(task)):
        task.cancel()


def check_asyncio() -> None:
    """Raise `RuntimeError` if no event loop of asyncio runs: under trio, for example."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "redismpx needs asyncio, and no event loop of asyncio runs here; start the program with asyncio.run(), or "
            'with anyio.run(main, backend="asyncio")'
        ) from None


def running_task() -> asyncio.Task[object] | None:
    """Return the task that runs now; None also outside any loop."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def belongs_to(task: asyncio.Task[object]) -> bool:
    """Tell whether the running code belongs to a task: the task runs, or has started the task that runs.

    A callback must not be waited for by code that it may wait for. `await asyncio.gather(mpx.aclose())`, for example,
    runs `aclose()` in a task of its own.
    """
    return task is running_task() or task.get_coro() is _caller.get()


def mark_callback(task: asyncio.Task[object]) -> None:
    """Note that the running task, given as `task`, runs a callback: the tasks that it starts belong to it."""
    _caller.set(task.get_coro())


def adopt(awaitable: Any) -> None:
    """Let a task that a callback returned belong to the running task, which awaits it.

    Not on Python 3.11, where a task does not tell its context.
    """
    if issubclass(type(awaitable), asyncio.Task) and sys.version_info >= (3, 12):
        awaitable.get_context().run(_caller.set, _caller.get())


def is_cancelling() -> bool:
    """Tell whether the running task was cancelled, even if Python 3.11's wait_for has swallowed the exception."""
    task = running_task()
    return task is not None and task.cancelling() > 0


def is_cancelled(error: BaseException, before: int = 0) -> bool:
    """Tell whether `error` is a cancellation of the running task, and not one that a callback raised by itself.

    `before` is the task's `cancelling()` count when the callback began.
    """
    task = running_task()
    return is_a(error, asyncio.CancelledError) and task is not None and task.cancelling() > before
