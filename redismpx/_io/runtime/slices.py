"""Work on very many objects: some of it at once, the rest in time slices. Knows no object."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import Context, copy_context
from itertools import islice, repeat
from typing import Any, TypeAlias

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
        self._loop: asyncio.AbstractEventLoop | None = None  # the loop that does the rest, if there is any
        self._is_busy = False  # whether a step runs; it may run a finalizer, which may begin other work

    def begin(self, work: Iterator[Step]) -> None:
        """Do some of the work at once, and the rest in the next iterations of the loop. Without a loop, do it all."""
        self._works.append((work, copy_context()))
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.finish()
        else:
            if loop is not self._loop:  # otherwise the work that was begun before comes first
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
        """Wait until all work is done, also that of an earlier loop, which has ended."""
        loop = asyncio.get_running_loop()
        while self._works:
            if loop is self._loop:
                await self._done.wait()
            else:
                self._continue(loop)

    def _continue(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        left = SLICE_STEPS
        while left and self._works:
            left -= self._do(left)
        if self._works:
            loop.call_soon(self._continue, loop, context=Context())
        else:
            self._loop = None
            self._done.notify()

    def _do(self, count: int) -> int:
        """Do at most so many steps of the oldest work; return how many were done."""
        work, context = self._works[0]
        self._is_busy = True
        try:
            steps = list(islice(work, count))
            context.run(_do_each, steps)
        finally:
            self._is_busy = False
        if len(steps) < count:
            self._works.popleft()
        return len(steps)


def freeing(objects: list[Any]) -> Iterator[Step]:
    """Return the steps that free objects to which only this list refers."""
    return repeat(objects.pop, len(objects))


def _do_each(steps: list[Step]) -> None:
    for step in steps:
        try:
            step()
        except RuntimeError:  # most often its loop is closed, and so no task waits for it
            logger.debug("a step of closing failed, most often because its event loop is closed", exc_info=True)
        except Exception:  # noqa: BLE001, a fault of this library; never a silent end
            logger.critical("internal error", exc_info=True)
