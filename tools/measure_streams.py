"""Measure what a lost connection costs very many subscriptions to some streams.

    $ python -m tools.measure_streams

10,000 subscriptions share 100 streams, on each installed server (Valkey, Redis). The connection is lost, 10 messages
are appended to each stream meanwhile, and the connection comes back.

Prints the number of range reads, the time from the new connection until each subscription has all messages, and the
longest step of the event loop, in CPU time. There is no limit; the exit status is 0.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

import redis

from redismpx import Multiplexer, blocking
from redismpx.testing import Proxy
from tests.helpers.servers import Server
from tests.helpers.waiting import until

from .measure_growth import Watch
from .measuring import installed_flavours, running_server

MISSED = 10  # messages of each stream


def append(url: str, names: list[bytes], count: int) -> None:
    with blocking.Multiplexer(url) as mpx:
        for number in range(count):
            for name in names:
                mpx.append(name, b"%d" % number)


async def measure(server: Server, watch: Watch, subscriptions: int, streams: int) -> None:
    names = [b"stream-%d" % number for number in range(streams)]
    got = [0]

    def on_message(_: object) -> None:
        got[0] += 1

    with Proxy(server.port) as proxy, redis.Redis(port=server.port) as admin:
        async with Multiplexer(proxy.url) as mpx:
            with watch.step("subscribe", subscriptions):
                subs = []
                for number in range(subscriptions):
                    subs.append(mpx.new_stream_subscription(on_message))
                    subs[-1].add(names[number % streams])
                    if number % 10 == 0:
                        await asyncio.sleep(0)
                for number, sub in enumerate(subs):
                    await sub.wait_for_activation(timeout=60)
                    if number % 100 == 0:
                        await asyncio.sleep(0)
            with watch.step("live messages", subscriptions):
                await asyncio.to_thread(append, server.url, names, 1)
                await until(lambda: got[0] == subscriptions)
            proxy.refusing = True
            with watch.step("disconnect", subscriptions):
                proxy.reset()
                await asyncio.to_thread(append, server.url, names, MISSED)
            admin.config_resetstat()
            with watch.step("catch up", subscriptions):
                proxy.refusing = False
                await until(lambda: mpx.connected)
                began = time.monotonic()
                await until(lambda: got[0] == subscriptions * (1 + MISSED), 60)
                taken = time.monotonic() - began
            stats: Any = admin.info("commandstats")
            reads = stats["cmdstat_xrange"]["calls"]
    steps = ", ".join(f"{row.case} {row.longest * 1e3:.1f} ms" for row in watch.rows)
    print(
        f"{subscriptions:,} subscriptions to {streams} streams: {reads} range reads, complete {taken:.2f} s after the "
        f"new connection; the longest step: {steps}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.measure_streams",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--subscriptions", type=int, default=10_000, help="(10,000)")
    parser.add_argument("--streams", type=int, default=100, help="(100)")
    options = parser.parse_args()
    for flavour in installed_flavours():
        with running_server(flavour) as server:
            print(flavour, end=": ")
            watch = Watch()
            with asyncio.Runner(loop_factory=lambda watch=watch: asyncio.SelectorEventLoop(watch)) as runner:  # type: ignore[misc]
                runner.run(measure(server, watch, options.subscriptions, options.streams))


if __name__ == "__main__":
    main()
