"""Cases: promises that are kept, and promises that time out."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress

from redismpx import Multiplexer, Promise, PromiseTimeout

from .drain import Drain, bare_loop
from .harness import Bench, Case

PROMISES = 50_000
DRAIN = Drain(pattern=True, channels=PROMISES, messages=PROMISES)
"""The messages that keep the promises, each on its own channel; the floor only receives them."""
ROUNDS = 3  # the minimum counts; with and without a timeout alternately, and the timer is the difference


async def kept(bench: Bench) -> None:
    count = bench.count(PROMISES)
    with DRAIN.publisher(bench) as publisher:
        async with Multiplexer(bench.url) as mpx:
            sub = mpx.new_promise_subscription("room:")
            await sub.wait_for_activation(timeout=30)
            least: dict[float | None, float] = {}
            for deadline in (None, 60.0) * ROUNDS:
                # Frees the promises of the last round before this one is measured.
                promises: list[Promise[bytes]] = []
                with bench.measured(count):
                    promises = [sub.new_promise(str(number), deadline) for number in range(count)]
                    bench.publish(publisher, count)
                    for promise in promises:
                        await promise
                least[deadline] = min(bench.measures["cpu"], least.get(deadline, math.inf))
            bench.measures |= {"cpu": least[60.0], "timer": least[60.0] - least[None]}


async def bare_timers(bench: Bench) -> None:
    """Measure asyncio's timers that do not fire."""
    loop = asyncio.get_running_loop()
    least = math.inf
    for _ in range(ROUNDS):
        with bench.measured(count := bench.count(PROMISES)):
            timers = [loop.call_later(60.0, timers_do_not_fire) for _ in range(count)]
            for timer in timers:
                timer.cancel()
            await asyncio.sleep(0)
        least = min(bench.measures["cpu"], least)
    bench.measures["timer"] = least


def timers_do_not_fire() -> None:
    raise AssertionError


def bare_kept(bench: Bench) -> None:
    """The floor: the timer, then the message."""
    asyncio.run(bare_timers(bench))
    bare_loop(DRAIN, bench)


async def expired(bench: Bench) -> None:
    async with Multiplexer(bench.url) as mpx:
        sub = mpx.new_promise_subscription("room:")
        await sub.wait_for_activation(timeout=30)
        with bench.measured(count := bench.count(PROMISES)):
            promises = [sub.new_promise(str(number), 0.001) for number in range(count)]
            with suppress(PromiseTimeout):
                await promises[-1]
        assert all(promise.done() for promise in promises)


async def bare_expired(bench: Bench) -> None:
    """The floor: a future and a timer."""
    loop = asyncio.get_running_loop()
    futures: list[asyncio.Future[bytes]] = []

    def expire(future: asyncio.Future[bytes]) -> None:
        future.set_exception(TimeoutError())
        future.exception()

    with bench.measured(count := bench.count(PROMISES)):
        for _ in range(count):
            future = loop.create_future()
            loop.call_later(0.001, expire, future)
            futures.append(future)
        with suppress(TimeoutError):
            await futures[-1]
    assert all(future.done() for future in futures)


CASES = [
    Case("promise", "created with a timeout, and kept; the floor only receives the message", "promise", {
        "redismpx": kept, "floor": bare_kept,
    }),
    Case("promise-timeout", "created, and timed out", "promise", {
        "redismpx": expired, "floor": bare_expired,
    }),
]  # fmt: skip
