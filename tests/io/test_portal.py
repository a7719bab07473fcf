"""The calls of other threads, and how they wake the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from redismpx.blocking.portal import Portal


@pytest.fixture
def portal() -> Iterator[Portal]:
    portal = Portal()
    yield portal
    portal.post(portal.stop)
    portal.join()


def test_no_call_after_an_outcome_wakes_the_loop(portal: Portal, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an outcome, the loop looks for calls before it rests: a caller that calls again need not wake it."""
    loop = portal.call(asyncio.get_running_loop)
    wake = loop.call_soon_threadsafe
    woken: list[object] = []

    def count(callback: Callable[[], object]) -> asyncio.Handle:
        woken.append(callback)
        return wake(callback)

    def begin(future: asyncio.Future[int]) -> None:
        woken.clear()
        loop.call_soon(settle, future)

    def settle(future: asyncio.Future[int]) -> None:
        future.set_result(1)
        portal.post(lambda: seen.append(2))

    seen: list[int] = []
    monkeypatch.setattr(loop, "call_soon_threadsafe", count)
    assert portal.wait_for(begin) == 1
    assert not woken
    assert portal.call(lambda: seen) == [2]
