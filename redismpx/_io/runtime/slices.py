"""Work on very many objects: some of it at once, the rest in time slices. Knows no object."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import Context, copy_context
from itertools import islice
from typing import TypeAlias

from .log import logger
from .notification import Notifier

Step: TypeAlias = Callable[[], object]

SLICE_STEPS = 256  # about a millisecond; each step may wake a task, and these tasks run together


class Slices:
    """Does work in the order in which it was begun.

    A piece of work is an iterator that yields steps: functions that take a few microseconds each.
    """

    def __init__(self) -> None:
        self._works: deque[tuple[Iterator[Step], Context]] = deque()
        self._done = Notifier()
        self._is_busy = False  # whether a step runs; it may run a finaliser, which may begin other work

    def begin(self, work: Iterator[Step]) -> None:
        """Do some of the work at once, and the rest in the next iterations of the loop. Without a loop, do it all."""
        self._works.append((work, copy_context()))
        if len(self._works) > 1:
            return  # the work that was begun before comes first
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.finish()
        else:
            self._continue(loop)

    @property
    def are_pending(self) -> bool:
        """Whether work is left, and finish() can do it now."""
        return bool(self._works) and not self._is_busy

    def finish(self) -> None:
        """Do the rest of all work at once, unless a step calls this."""
        while self.are_pending:
            self._do(SLICE_STEPS)

    async def done(self) -> None:
        """Wait until all work is done."""
        while self._works:
            await self._done.wait()

    def _continue(self, loop: asyncio.AbstractEventLoop) -> None:
        left = SLICE_STEPS
        while left and self._works:
            left -= self._do(left)
        if self._works:
            loop.call_soon(self._continue, loop, context=Context())
        else:
            self._done.notify()

    def _do(self, count: int) -> int:
        """Do at most so many steps of the oldest work; return how many were done."""
        work, context = self._works[0]
        steps = list(islice(work, count))
        self._is_busy = True
        try:
            context.run(_do_each, steps)
        finally:
            self._is_busy = False
        if len(steps) < count:
            self._works.popleft()
        return len(steps)


def _do_each(steps: list[Step]) -> None:
    for step in steps:
        try:
            step()
        except RuntimeError:  # most often its loop is closed, and so no task waits for it
            logger.debug("ended after its loop", exc_info=True)
        except Exception:  # noqa: BLE001, a fault of this library; never a silent end
            logger.critical("internal error", exc_info=True)
