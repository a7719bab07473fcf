"""Check that opening and closing multiplexers leaks nothing.

    $ python -m tools.measure_cycles [--cycles 20000]

Each cycle opens a multiplexer and activates a subscription. In every second cycle the server kills the connection. The
cycle then closes the multiplexer with `aclose()` or with `close()`, either at once or after a reconnect. All eight
combinations take turns.

Prints the numbers of file descriptors and tasks and the memory, before and after, every 2,000 cycles. The exit status
is 1 if file descriptors or tasks are left, or if memory has grown by more than 5 MB.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import logging
import os

from redis.asyncio import Redis

from redismpx import Multiplexer
from tests.helpers.waiting import until

from .measuring import resident_memory, running_server

WARM_UP = 500  # cycles before the first measurement, so that imports and caches do not count as leaks
MAX_GROWTH = 5_000_000  # bytes


def figures() -> tuple[int, int, int]:
    """Return the numbers of file descriptors and tasks, and the bytes of memory in use."""
    gc.collect()
    return len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks()), resident_memory()


async def cycle(url: str, admin: Redis, kill: bool, wait: bool, graceful: bool) -> None:
    """Open; kill the connection if `kill`; wait for the reconnect if `wait`; close with `aclose()` if `graceful`."""
    mpx = Multiplexer(url)
    sub = mpx.new_channel_subscription(lambda *_: None)
    sub.add("a")
    await sub.wait_for_activation(timeout=10)
    if kill:
        await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        if wait:
            await until(lambda: mpx.stats().connections == 2)
            await sub.wait_for_activation(timeout=10)
    if graceful:
        await mpx.aclose()
    else:
        mpx.close()


async def measure(url: str, cycles: int) -> int:
    """Run the cycles; return the exit status."""
    kinds = itertools.cycle(itertools.product((True, False), repeat=3))
    admin = Redis.from_url(url)
    await admin.ping()
    before = (0, 0, 0)
    for number in range(WARM_UP + cycles):
        if number == WARM_UP:
            await asyncio.sleep(0.1)
            before = figures()
        await cycle(url, admin, *next(kinds))
        done = number + 1 - WARM_UP
        if done > 0 and done % 2000 == 0:
            print(f"{done:6} cycles: {describe(before, figures())}", flush=True)
    await asyncio.sleep(0.1)
    after = figures()
    await admin.aclose()
    ok = after[:2] == before[:2] and after[2] - before[2] < MAX_GROWTH
    print(f"{cycles:,} cycles: {describe(before, after)}: {'OK' if ok else 'LEAK'}")
    return int(not ok)


def describe(before: tuple[int, int, int], after: tuple[int, int, int]) -> str:
    return (
        f"descriptors {before[0]} -> {after[0]}, tasks {before[1]} -> {after[1]}, "
        f"memory {before[2] / 1e6:.1f} -> {after[2] / 1e6:.1f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=20_000)
    cycles = parser.parse_args().cycles
    logging.disable()
    with running_server() as server:
        raise SystemExit(asyncio.run(measure(server.url, cycles)))


if __name__ == "__main__":
    main()
