"""Measure how long message delivery keeps other tasks of the event loop waiting.

    $ python -m tools.measure_fairness

A task sleeps 1 ms at a time and records by how much it wakes up late. Meanwhile a million messages are delivered to a
function, to a coroutine function and to a reader; then 20 messages fan out to 100,000 subscriptions each.

Prints the greatest delay in milliseconds for each case. There is no limit; the exit status is 0.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress

from redis.asyncio import Redis

from redismpx import Multiplexer
from tests.helpers.flood import FLOOD
from tests.helpers.loops import run
from tests.helpers.servers import Server
from tests.helpers.waiting import until

from .measuring import running_server

MESSAGES, SUBSCRIPTIONS, FAN_OUTS = 1_000_000, 100_000, 20


async def lateness(work: Callable[[], Awaitable[None]]) -> float:
    """Return the greatest delay, in seconds, of a task that sleeps 1 ms at a time while `work` runs."""
    loop = asyncio.get_running_loop()
    worst = 0.0

    async def tick() -> None:
        nonlocal worst
        while True:
            due = loop.time() + 0.001
            await asyncio.sleep(0.001)
            worst = max(worst, loop.time() - due)

    ticker = asyncio.create_task(tick())
    await work()
    ticker.cancel()
    with suppress(asyncio.CancelledError):
        await ticker
    return worst


async def burst(server: Server, kind: str) -> float:
    received = 0

    def count(*_: object) -> None:
        nonlocal received
        received += 1

    async def count_async(*_: object) -> None:
        count()

    async with Multiplexer(server.url, max_pending=MESSAGES) as mpx:
        sub = mpx.new_channel_subscription({"function": count, "coroutine": count_async, "reader": None}[kind])
        sub.add("a")
        await sub.wait_for_activation(timeout=5)

        async def read() -> None:
            async for _ in sub:
                count()

        async def work() -> None:
            flood = await asyncio.create_subprocess_exec(sys.executable, "-c", FLOOD, str(server.port), str(MESSAGES))
            reading = asyncio.create_task(read()) if kind == "reader" else None
            await until(lambda: received == MESSAGES, 100)
            await flood.wait()
            sub.close()
            if reading is not None:
                await reading

        return await lateness(work)


async def fan_out(server: Server) -> float:
    counts = [0]

    def count(*_: object) -> None:
        counts[0] += 1

    async with Multiplexer(server.url) as mpx, Redis.from_url(server.url) as client:
        subs = [mpx.new_channel_subscription(count) for _ in range(SUBSCRIPTIONS)]
        for sub in subs:
            sub.add("a")
        await subs[-1].wait_for_activation(timeout=60)
        gc.freeze()  # so that garbage collection of these objects is not measured

        async def work() -> None:
            for number in range(1, FAN_OUTS + 1):
                await client.publish("a", number)
                await until(lambda expected=number * SUBSCRIPTIONS: counts[0] == expected, 30)

        return await lateness(work)


def main() -> None:
    with running_server("valkey", "--client-output-buffer-limit", "pubsub", "0", "0", "0") as server:
        for kind in ("function", "coroutine", "reader"):
            worst = run(burst(server, kind))
            print(f"{MESSAGES:,} messages to a {kind}: at most {worst * 1000:.1f} ms late", flush=True)
        worst = run(fan_out(server))
        print(f"{FAN_OUTS} messages to {SUBSCRIPTIONS:,} subscriptions each: at most {worst * 1000:.1f} ms late")


if __name__ == "__main__":
    main()
