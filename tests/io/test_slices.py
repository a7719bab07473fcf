"""Work on very many objects is done in order, a bounded part of it in each iteration of the loop."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial

import pytest

from redismpx._io.runtime.slices import SLICE_STEPS, Slices

variable: ContextVar[str] = ContextVar("variable", default="")


def work(count: int, done: list[int]) -> Iterator[Callable[[], object]]:
    return (partial(done.append, number) for number in range(count))


async def test_a_bounded_part_is_done_in_each_iteration() -> None:
    """At most SLICE_STEPS steps run at once and in each iteration of the loop, and all in order."""
    slices, done = Slices(), list[int]()
    slices.begin(work(5000, done))
    seen = [len(done)]
    loop = asyncio.get_running_loop()

    def look() -> None:
        seen.append(len(done))
        if len(done) < 5000:
            loop.call_soon(look)

    loop.call_soon(look)
    assert len(done) == SLICE_STEPS
    await slices.done()
    await asyncio.sleep(0)
    assert done == list(range(5000))
    assert max(after - before for before, after in itertools.pairwise(seen)) <= SLICE_STEPS
    assert len(seen) > 5000 // SLICE_STEPS


async def test_a_little_work_is_done_at_once() -> None:
    """Nothing is left of a few steps when begin() returns."""
    slices, done = Slices(), list[int]()
    slices.begin(work(10, done))
    assert len(done) == 10


def test_all_work_is_done_at_once_without_a_loop() -> None:
    """Without a running loop, begin() returns when everything is done."""
    slices, done = Slices(), list[int]()
    slices.begin(work(5000, done))
    assert len(done) == 5000


def test_work_of_a_loop_that_has_ended_is_done_elsewhere() -> None:
    """What a loop has left is done by begin() without a loop, and by begin() and done() in another loop."""
    slices, done = Slices(), list[int]()

    async def begin() -> None:
        slices.begin(work(5000, done))

    asyncio.run(begin())
    assert len(done) < 5000
    asyncio.run(slices.done())
    assert len(done) == 5000
    asyncio.run(begin())
    slices.begin(work(1, done))
    assert len(done) == 10_001
    asyncio.run(begin())
    asyncio.run(begin())
    asyncio.run(slices.done())
    assert len(done) == 20_001


async def test_work_is_done_in_the_order_in_which_it_was_begun() -> None:
    """Later work waits for earlier work; finish() does the rest of both."""
    slices, done, later = Slices(), list[int](), list[int]()
    slices.begin(work(5000, done))
    slices.begin(work(10, later))
    assert not later
    slices.finish()
    assert (len(done), len(later)) == (5000, 10)
    await slices.done()


async def test_a_step_may_begin_and_finish_work() -> None:
    """Work that a step begins follows; finish() from inside a step does nothing."""
    slices, done = Slices(), list[int]()

    def step() -> None:
        slices.begin(work(3, done))
        slices.finish()
        assert not done

    slices.begin(iter([step]))
    await slices.done()
    assert done == [0, 1, 2]


async def test_each_step_has_the_context_of_its_beginning() -> None:
    """Steps of later iterations see the context variables of the code that began the work."""
    slices, seen = Slices(), set[str]()
    variable.set("here")
    slices.begin((lambda: seen.add(variable.get())) for _ in range(5000))
    variable.set("there")
    await slices.done()
    assert seen == {"here"}


async def test_a_step_that_fails_does_not_end_the_work(caplog: pytest.LogCaptureFixture) -> None:
    """A fault in one step is logged, and the others run."""
    slices, done = Slices(), list[int]()

    def fail() -> None:
        raise ZeroDivisionError

    slices.begin(iter([fail, *work(3, done)]))
    await slices.done()
    assert done == [0, 1, 2]
    assert [record.levelno for record in caplog.records] == [logging.CRITICAL]
    caplog.clear()
