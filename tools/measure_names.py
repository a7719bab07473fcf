"""What very many names cost: `python -m tools.measure_names`.

For 100,000, 700,000 and a million channels of one subscription, on a server with its default limits: the time until
all are active, until all are active again after the connection was killed, the longest that the loop stood still
meanwhile, and the memory of this process and of the server. One SUBSCRIBE with 700,000 names makes a server close the
connection before the first confirmation.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from redis.asyncio import Redis

from redismpx import Multiplexer
from tests.helpers.servers import Server, find_binary
from tests.helpers.waiting import until

DEADLINE = 300.0


class Stalls:
    """Looks, every millisecond, how late the loop is."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._task = asyncio.ensure_future(self._look())

    async def _look(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.001)
            self.longest = max(self.longest, time.monotonic() - began - 0.001)

    def take(self) -> float:
        longest, self.longest = self.longest, 0.0
        return longest * 1000


def resident() -> float:
    """Megabytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


async def measure(url: str, count: int) -> None:
    names = [b"channel-%d" % number for number in range(count)]
    before = resident()
    stalls = Stalls()
    async with Redis.from_url(url, socket_timeout=None) as admin, Multiplexer(url) as mpx:
        active = 0

        def on_activation(name: bytes) -> None:
            nonlocal active
            active += 1

        sub = mpx.new_channel_subscription(lambda *_: None, None, on_activation)
        await mpx.connect(10)
        server_before = int((await admin.info("memory"))["used_memory"])
        stalls.take()
        began = time.monotonic()
        for start in range(0, count, 1000):
            sub.add(*names[start : start + 1000])
            await asyncio.sleep(0)
        added = time.monotonic() - began
        await sub.wait_for_activation(DEADLINE)
        took, stall = time.monotonic() - began, stalls.take()
        memory, server = resident() - before, (int((await admin.info("memory"))["used_memory"]) - server_before) / 1e6
        began = time.monotonic()
        await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await until(lambda: active == 2 * count, DEADLINE)
        again, stall_again = time.monotonic() - began, stalls.take()
        assert mpx.stats().connections == 2
        print(
            f"{count:>9,} names: active after {took:.2f} s (added in {added:.2f} s), again {again:.2f} s after a kill; "
            f"the loop stood still for {stall:.0f} and {stall_again:.0f} ms at most; "
            f"{memory:.0f} MB here, {server:.0f} MB at the server",
            flush=True,
        )


def main() -> None:
    for flavour in ("valkey", "redis"):
        binary = find_binary(flavour)
        if binary is None:
            continue
        server = Server(binary).start()
        try:
            print(flavour)
            for count in (100_000, 700_000, 1_000_000):
                asyncio.run(measure(server.url, count))
        finally:
            server.remove()


if __name__ == "__main__":
    main()
