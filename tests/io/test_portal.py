"""The calls of other threads, and how they wake the loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from redismpx.blocking.portal import Portal

from ..helpers.interrupts import interrupted


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


class PatientCalls:
    """Calls of threads that wait for the outcome of work without a task."""

    def __init__(self, portal: Portal) -> None:
        self.portal = portal
        self.futures: list[asyncio.Future[int]] = []
        self.threads: list[threading.Thread] = []
        self.results: list[int] = []

    def begin(self) -> None:
        """Make a call in a new thread, and wait until the portal has it."""
        number = len(self.threads)
        thread = threading.Thread(target=lambda: self.results.append(self.portal.wait_for(self.futures.append)))
        self.threads.append(thread)
        thread.start()
        wait_until(lambda: len(self.futures) + len(self.portal._calls) > number)


def wait_until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.001)


@pytest.fixture
def calls(portal: Portal, monkeypatch: pytest.MonkeyPatch) -> Iterator[PatientCalls]:
    """One call that waits for its outcome, while the loop waits for this outcome or for another kind of call."""
    monkeypatch.setattr("redismpx.blocking.portal._LATE_LOOK", 60.0)
    calls = PatientCalls(portal)
    calls.begin()
    wait_until(lambda: portal._awaits_outcome and not portal._is_woken)
    yield calls
    for future in calls.futures:
        portal.post(partial(settle_late, future))
    for thread in calls.threads:
        thread.join(5)


def settle_late(future: asyncio.Future[int]) -> None:
    if not future.done():
        future.set_result(0)


def test_a_call_that_waits_for_outcomes_wakes_nothing(
    portal: Portal, calls: PatientCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While an outcome is awaited, a call of the same kind waits for it, and is looked at before the loop rests."""
    loop = calls.futures[0].get_loop()
    wake = loop.call_soon_threadsafe
    woken: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr(loop, "call_soon_threadsafe", woken.append)
        calls.begin()
        wake(calls.futures[0].set_result, 1)
        wait_until(lambda: len(calls.futures) == 2)
        wake(calls.futures[1].set_result, 2)
        for thread in calls.threads:
            thread.join(5)
    assert sorted(calls.results) == [1, 2]
    assert not woken


def test_a_call_that_waits_for_no_outcome_wakes_the_loop(portal: Portal, calls: PatientCalls) -> None:
    """While an outcome is awaited, any other call is looked at without delay."""
    calls.begin()
    assert portal.call(lambda: 1) == 1
    assert len(calls.futures) == 2


def test_a_call_is_looked_at_although_no_outcome_comes(portal: Portal) -> None:
    """A call that waits for the outcome of another one does not wait for long."""
    calls = PatientCalls(portal)
    for count in range(1, 10):
        calls.begin()
        wait_until(lambda: len(calls.futures) == count)  # noqa: B023, it is called here only
    for future in calls.futures:
        portal.post(partial(settle_late, future))
    for thread in calls.threads:
        thread.join(5)
    assert calls.results == [0] * 9


@pytest.mark.parametrize("kind", ["post", "call", "wait_for"])
def test_an_interrupted_call_disturbs_no_other(kind: str) -> None:
    """Ctrl-C may come in any step of a call: the calls of other threads do not wait for ever, and its own work ends."""
    at = 1
    while _answers_after_an_interrupted_call(kind, at):
        at += 1
    assert at > 10


def _answers_after_an_interrupted_call(kind: str, at: int) -> bool:
    """Interrupt a call in the n-th step, and let another thread call then; return whether there was such a step."""
    portal = Portal()
    futures: list[asyncio.Future[int]] = []

    def begin(future: asyncio.Future[int]) -> None:
        futures.append(future)
        asyncio.get_running_loop().call_soon(settle_late, future)

    portal.call(lambda: None)
    wait_until(lambda: not portal._is_woken)
    calls: dict[str, Callable[[], object]] = {
        "post": lambda: portal.post(lambda: None),
        "call": lambda: portal.call(lambda: None),
        "wait_for": lambda: portal.wait_for(begin),
    }
    was_interrupted = interrupted(at, calls[kind])
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(portal.call(lambda: all(map(is_done, futures)))))
    thread.daemon = True
    thread.start()
    thread.join(5)
    assert answers == [True]
    portal.post(portal.stop)
    portal.join()
    return was_interrupted


def is_done(future: asyncio.Future[int]) -> bool:
    return future.done()
