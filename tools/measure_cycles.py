"""What opening, losing and closing leave behind: `python -m tools.measure_cycles [--cycles 20000]`.

Each cycle makes a multiplexer, activates a subscription, has its connection killed by the server (every second one),
and closes: with `aclose()`, or with `close()` alone, at once after the kill or when it has reconnected. In the end file
descriptors and tasks must be as many as in the beginning, and less than GROWTH more memory be in use.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import logging
import os
from pathlib import Path

from redis.asyncio import Redis

from redismpx import Multiplexer
from tests.helpers.servers import Server, find_binary
from tests.helpers.waiting import until

WARM_UP = 500  # cycles after which the beginning is measured: what is imported and cached once is no leak
GROWTH = 5_000_000  # bytes


def figures() -> tuple[int, int, int]:
    """File descriptors, tasks, and bytes of memory in use."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks()), pages * os.sysconf("SC_PAGE_SIZE")


async def cycle(url: str, admin: Redis, kill: bool, wait: bool, gently: bool) -> None:
    """Open; kill the connection or not; wait for the next one or not; close gently or at once."""
    mpx = Multiplexer(url)
    sub = mpx.new_channel_subscription(lambda *_: None)
    sub.add("a")
    await sub.wait_for_activation(10)
    if kill:
        await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        if wait:
            await until(lambda: mpx.stats().connections == 2)
            await sub.wait_for_activation(10)
    if gently:
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
    well = after[:2] == before[:2] and after[2] - before[2] < GROWTH
    print(f"{cycles:,} cycles: {describe(before, after)}: {'well' if well else 'SOMETHING IS LEFT'}")
    return int(not well)


def describe(before: tuple[int, int, int], after: tuple[int, int, int]) -> str:
    return (
        f"descriptors {before[0]} -> {after[0]}, tasks {before[1]} -> {after[1]}, "
        f"memory {before[2] / 1e6:.1f} -> {after[2] / 1e6:.1f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cycles", type=int, default=20_000)
    cycles = parser.parse_args().cycles
    logging.disable()
    binary = find_binary("valkey")
    assert binary is not None
    server = Server(binary).start()
    try:
        raise SystemExit(asyncio.run(measure(server.url, cycles)))
    finally:
        server.remove()


if __name__ == "__main__":
    main()
