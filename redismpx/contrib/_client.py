"""The task that sends to a client, beside the task of its request. Knows no framework."""

from __future__ import annotations

__all__ = ["SendTimeout", "beside", "cancel"]

import asyncio
import logging
from asyncio import Timeout
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress

from ._records import log


@asynccontextmanager
async def beside(work: Callable[[Timeout], Coroutine[object, object, None]], name: str) -> AsyncIterator[Timeout]:
    """Run `work(block)` in a task beside the block: the end of the one cancels the other."""
    block = asyncio.timeout(None)
    task = asyncio.create_task(work(block), name=name)
    task.add_done_callback(lambda _: cancel(block))
    try:
        async with block:
            yield block
    except TimeoutError:
        if not block.expired():
            raise
    finally:
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()


def cancel(block: Timeout) -> None:
    """Cancel a block, unless it has ended."""
    with suppress(RuntimeError):  # it has, or is cancelled already
        block.reschedule(0)


class SendTimeout:
    """Cancels the block of a client when a send, `with` this, takes too long: the client does not read.

    One timer serves many messages, because a timer for each would cost more than all else here.
    """

    def __init__(self, block: Timeout, seconds: float, path: str) -> None:
        self._block = block
        self._seconds = seconds
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._began: float | None = None  # when the send in progress began
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        self._began = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._check)

    def __exit__(self, *_: object) -> None:
        self._began = None

    def _check(self) -> None:
        self._timer = None
        if self._began is None:
            return
        rest = self._began + self._seconds - self._loop.time()
        if rest > 0:
            self._timer = self._loop.call_later(rest, self._check)
        else:
            text = "a client of %r has not read for %s s, and is disconnected"
            log(logging.WARNING, text, self._path, self._seconds)
            cancel(self._block)

    def close(self) -> None:
        """Release the timer."""
        if self._timer is not None:
            self._timer.cancel()
