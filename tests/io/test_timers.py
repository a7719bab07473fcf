"""Deadlines on a simulated clock."""

from __future__ import annotations

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
