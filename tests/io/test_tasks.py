"""The tasks of a multiplexer end, whatever happens to their cancellation."""

from __future__ import annotations

import asyncio
from contextvars import Context

import pytest

from redismpx._io.runtime import tasks as tasks_module
from redismpx._io.runtime.tasks import Tasks

from ..helpers.waiting import until

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_a_swallowed_cancellation_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of the library that swallowed its cancellation, as wait_for of Python 3.11 may, is cancelled again."""
    monkeypatch.setattr(tasks_module, "CANCEL_AGAIN", 0.01)
    swallowed = asyncio.Event()

    async def swallow() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed.set()
        await asyncio.Event().wait()

    tasks = Tasks()
    task = tasks.start(swallow(), "stubborn", Context())
    await asyncio.sleep(0)
    tasks.cancel()
    await swallowed.wait()
    await until(task.done)
    assert task.cancelled()


async def test_a_task_of_the_library_ends_at_once_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of the library that is started after cancel(), or that calls it, is cancelled too."""
    monkeypatch.setattr(tasks_module, "CANCEL_AGAIN", 60.0)
    tasks = Tasks()

    async def wait(closes: bool) -> None:
        if closes:
            tasks.cancel()
        await asyncio.Event().wait()

    closing = tasks.start(wait(closes=True), "closing", Context())
    await asyncio.sleep(0)
    late = tasks.start(wait(closes=False), "late", Context())
    await until(lambda: closing.done() and late.done())
    assert closing.cancelled()
    assert late.cancelled()
    await tasks.ended()
