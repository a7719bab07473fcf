"""Measure one subscription with very many channels.

    $ python -m tools.measure_names

Subscribes to 100,000, 700,000 and a million channels, on each installed server (Valkey, Redis) with its default limits.
Then kills the connection. (The number 700,000: a single SUBSCRIBE with so many names makes a server close the
connection before the first confirmation.)

Prints the time until all channels are active, the same after the kill, the longest time for which the event loop stood
still, and the memory of this process and of the server. There is no limit; the exit status is 0.
"""

from __future__ import annotations

import asyncio
import time

from redis.asyncio import Redis

from redismpx import Multiplexer
from tests.helpers.waiting import until

from .measuring import installed_flavours, resident_memory, running_server

ACTIVATION_TIMEOUT = 300.0  # seconds


class Stalls:
    """Measures, every millisecond, how late the event loop wakes a task."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._task = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.001)
            self.longest = max(self.longest, time.monotonic() - began - 0.001)

    def take(self) -> float:
        """Return the greatest delay since the last call, in milliseconds."""
        longest, self.longest = self.longest, 0.0
        return longest * 1000


async def measure(url: str, count: int) -> None:
    names = [b"channel-%d" % number for number in range(count)]
    before = resident_memory()
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
        await sub.wait_for_activation(timeout=ACTIVATION_TIMEOUT)
        took, stall = time.monotonic() - began, stalls.take()
        memory = (resident_memory() - before) / 1e6
        server = (int((await admin.info("memory"))["used_memory"]) - server_before) / 1e6
        began = time.monotonic()
        await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await until(lambda: active == 2 * count, ACTIVATION_TIMEOUT)
        took_again, stall_again = time.monotonic() - began, stalls.take()
        assert mpx.stats().connections == 2
        print(
            f"{count:>9,} names: active after {took:.2f} s (added in {added:.2f} s), "
            f"active again {took_again:.2f} s after a kill; "
            f"the loop stood still for at most {stall:.0f} and {stall_again:.0f} ms; "
            f"{memory:.0f} MB here, {server:.0f} MB at the server",
            flush=True,
        )


def main() -> None:
    for flavour in installed_flavours():
        with running_server(flavour) as server:
            print(flavour)
            for count in (100_000, 700_000, 1_000_000):
                asyncio.run(measure(server.url, count))


if __name__ == "__main__":
    main()
