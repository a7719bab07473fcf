"""The tasks of one multiplexer: each has a name, an owner and an end."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Coroutine

logger = logging.getLogger("redismpx")

END_TIMEOUT = 5.0  # seconds that a cancelled task has to end, before closing goes on without it


class Tasks:
    """Starts tasks, keeps them until they end, and ends them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[object]] = set()

    def start(self, coroutine: Coroutine[object, object, object], name: str) -> asyncio.Task[object]:
        """Run `coroutine` in a task; where Python can (3.12), its first step runs before this returns."""
        loop = asyncio.get_running_loop()
        task: asyncio.Task[object]
        if sys.version_info >= (3, 12):
            task = asyncio.Task(coroutine, loop=loop, name=name, eager_start=True)
            if task.done():
                return task
        else:
            task = asyncio.Task(coroutine, loop=loop, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def cancel(self) -> None:
        """Cancel all tasks but the one that calls."""
        for task in self._others():
            task.cancel()

    async def ended(self) -> None:
        """Wait until all tasks but the one that calls have ended, for END_TIMEOUT at most."""
        others = self._others()
        if not others:
            return
        _, stuck = await asyncio.wait(others, timeout=END_TIMEOUT)
        for task in stuck:
            logger.error("%s did not end within %g s of being cancelled; left behind", task.get_name(), END_TIMEOUT)

    def _others(self) -> list[asyncio.Task[object]]:
        current = running_task()
        return [task for task in self._tasks if task is not current]


def running_task() -> asyncio.Task[object] | None:
    """Return the task that runs now; None also outside any loop."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
