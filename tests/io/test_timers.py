"""Deadlines on a simulated clock."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from redismpx._io.runtime.timers import EXPIRED_AT_ONCE, Deadlines

from ..helpers.loops import Clock

steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from([0.0, 1.0, 1.0, 2.5])),
        st.tuples(st.just("remove"), st.integers(0, 30)),
        st.tuples(st.just("wait"), st.just(0.5)),
    ),
    min_size=20,
    max_size=60,
)


@settings(max_examples=100, deadline=None)
@given(steps)
def test_each_deadline_expires_once_unless_removed(script: list[tuple[str, float]]) -> None:
    """In any history, each item expires once, when it is due, unless it was removed."""
    loop = Clock()
    expired: list[int] = []
    left: dict[int, tuple[float, float]] = {}  # seconds and the end of those that are neither expired nor removed

    def expire(item: int) -> None:
        seconds, end = left.pop(item)
        assert end <= loop.now
        expired.append(item)
        deadlines.remove(item, seconds)

    async def make() -> Deadlines[int]:
        return Deadlines(expire)

    deadlines = loop.run_until_complete(make())

    async def add(item: int, seconds: float) -> None:
        left[item] = (seconds, loop.now + seconds)
        deadlines.add(item, seconds)

    for number, (action, argument) in enumerate(script):
        if action == "add":
            loop.run_until_complete(add(number, argument))
        elif action == "remove" and left:
            item = list(left)[int(argument) % len(left)]
            deadlines.remove(item, left.pop(item)[0])
        elif action == "wait":
            loop.now += argument
            due = [item for item, (_, end) in left.items() if end <= loop.now]
            before = len(expired)
            loop.run_ready()
            assert sorted(expired[before:]) == due
    for item in tuple(left):
        deadlines.remove(item, left.pop(item)[0])
    assert deadlines._queues == {}
    assert not [timer for timer in loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
    assert len(expired) == len(set(expired))
    loop.close()


def test_items_with_one_deadline_expire_in_several_iterations() -> None:
    """A thousand items that are due together do not keep the loop to themselves."""
    loop = Clock()
    expired: list[int] = []

    def expire(item: int) -> None:
        expired.append(item)
        deadlines.remove(item, 1.0)

    async def make() -> Deadlines[int]:
        made = Deadlines(expire)
        for number in range(1000):
            made.add(number, 1.0)
        return made

    deadlines = loop.run_until_complete(make())
    loop.now = 2.0
    steps = []
    while len(expired) < 1000:
        before = len(expired)
        loop.call_soon(loop.stop)
        loop.run_forever()
        steps.append(len(expired) - before)
    assert max(steps) == EXPIRED_AT_ONCE
    assert expired == list(range(1000))
    loop.close()


def test_items_may_be_removed_in_any_line() -> None:
    """A finalizer may remove items while others expire: each of these expires once, also those that are due later."""
    at = 1
    while _expires_with_removals(at):
        at += 1
    assert at > EXPIRED_AT_ONCE


def _expires_with_removals(at: int) -> bool:
    """Let items expire, and remove two of them in the n-th line of that; return whether there was such a line."""
    loop = Clock()
    removed = {3, EXPIRED_AT_ONCE}
    expired: list[int] = []
    left = at

    def expire(item: int) -> None:
        if left > 0 or item not in removed:  # as a promise does, which has its outcome then
            expired.append(item)
            deadlines.remove(item, 1.0)

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if frame.f_code.co_name != "_expire_due":
            return None
        left -= event == "line"
        if left == 0:
            sys.settrace(None)
            for item in removed.difference(expired):
                deadlines.remove(item, 1.0)
        return trace

    async def make() -> Deadlines[int]:
        return Deadlines(expire)

    async def add() -> None:
        for item in range(EXPIRED_AT_ONCE + 2):
            deadlines.add(item, 1.0)

    deadlines = loop.run_until_complete(make())
    loop.run_until_complete(add())
    loop.now = 1.5
    sys.settrace(trace)
    try:
        for _ in range(3):
            loop.run_ready()
    finally:
        sys.settrace(None)
    loop.close()
    assert sorted({*expired} | removed) == list(range(EXPIRED_AT_ONCE + 2))
    assert len(expired) == len({*expired})
    assert deadlines._queues == {}
    return left <= 0
