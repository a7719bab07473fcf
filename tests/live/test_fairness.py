"""A burst of messages leaves time for the other tasks of the loop."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from redismpx import Multiplexer

from ..helpers.waiting import until

pytestmark = [pytest.mark.one_flavour, pytest.mark.usefixtures("no_leaks")]


class Ticks:
    """How often other tasks of the loop got their turn."""

    count = 0


@asynccontextmanager
async def ticking() -> AsyncIterator[Ticks]:
    ticks = Ticks()

    async def tick() -> None:
        while True:
            await asyncio.sleep(0)
            ticks.count += 1

    task = asyncio.create_task(tick())
    yield ticks
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("how", ["sync", "async", "suspending", "read"])
async def test_a_burst_leaves_time_for_other_tasks(url: str, admin: Redis, how: str) -> None:
    """With consumers of some 20 us for each message, a burst is consumed in many time slices."""
    total = 5000
    received = most = run = since = 0
    async with Multiplexer(url, max_pending=total) as mpx, ticking() as ticks:

        def consume(*_: Any) -> None:
            nonlocal received, most, run, since
            received += 1
            run = run + 1 if ticks.count == since else 1
            since = ticks.count
            most = max(most, run)
            until_then = time.perf_counter() + 20e-6
            while time.perf_counter() < until_then:
                pass

        async def at_once(*_: Any) -> None:
            consume()

        async def suspending(*_: Any) -> None:
            consume()
            if received % 1000 == 1:
                await asyncio.sleep(0.05)  # so that the others wait in the queue

        on_message = {"sync": consume, "async": at_once, "suspending": suspending, "read": None}[how]
        sub = mpx.new_channel_subscription(on_message)
        sub.add("a")
        await sub.wait_for_activation(timeout=5)

        async def read() -> None:
            async for _ in sub:
                consume()

        pipe = admin.pipeline(transaction=False)
        for number in range(total):
            pipe.publish("a", number)
        await pipe.execute()
        if how == "read":
            await until(lambda: sub.pending == total)
            reading = asyncio.create_task(read())
        await until(lambda: received == total, 60)
        sub.close()
        if how == "read":
            await reading
    assert most < 600, f"{most} messages in one go"


async def test_a_fan_out_to_a_hundred_thousand_leaves_time_for_others(url: str, admin: Redis) -> None:
    """One message to 100,000 subscribers takes many time slices and reaches each subscriber."""
    total = 100_000
    counts = [0] * total
    runs: list[int] = []
    since = run = 0
    async with Multiplexer(url) as mpx, ticking() as ticks:

        def receive(number: int) -> Any:
            def on_message(channel: bytes, message: bytes) -> None:
                nonlocal since, run
                counts[number] += 1
                if ticks.count != since:
                    since = ticks.count
                    runs.append(run)
                    run = 0
                run += 1

            return on_message

        subs = [mpx.new_channel_subscription(receive(number)) for number in range(total)]
        for sub in subs:
            sub.add("a")
        for sub in subs:
            await sub.wait_for_activation(timeout=30)
        gc.disable()  # a collection of all this is no fault of the fan-out
        for number in range(1, 4):
            await admin.publish("a", number)
            await until(lambda: mpx.stats().messages == number, 30)  # noqa: B023
            await until(lambda: counts[-1] == number, 30)  # noqa: B023
        gc.enable()
        assert counts == [3] * total
        assert len(runs) > 10
        assert max(runs) < total // 2
