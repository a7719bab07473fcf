"""Measure how the time of each operation grows with the number of names, subscriptions or promises.

    $ python -m tools.measure_growth [--sizes 1000 10000 100000] [CASE ...]

Each case runs once for each size, on a Valkey server or cluster of its own. Prints for each step the CPU time of this
process in total and for each item, and the longest step of the event loop: the time for which no other task could run.
A step is linear if an item takes at most MOST_GROWTH times as long with the largest size as with the one before it.

Garbage collection is off while a step is measured: it depends on what else the process has in memory. The exit status
is 1 if a step is not linear.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import selectors
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from redis.asyncio import Redis, RedisCluster

from redismpx import ChannelSubscription, Multiplexer, PromiseInterrupted, StreamSubscription
from tests.helpers.cluster import Cluster
from tests.helpers.waiting import until

from .measuring import running_server

SIZES = (1_000, 10_000, 100_000)
MOST_GROWTH = 2.0  # times that an item may take longer when there are ten times as many
BACKLOG = 10_000  # messages
TIMEOUT = 300.0  # seconds


class Row(NamedTuple):
    """The measurement of one step with one size."""

    case: str
    size: int
    cpu: float  # seconds
    longest: float  # seconds


class Watch(selectors.DefaultSelector):
    """The selector of a loop. Measures the CPU time between two waits: that is one step of the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Row] = []
        self._longest = 0.0
        self._began = time.thread_time()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._end_step()
        ready = super().select(timeout)
        self._began = time.thread_time()
        return ready

    def _end_step(self) -> None:
        self._longest = max(self._longest, time.thread_time() - self._began)

    @contextmanager
    def step(self, case: str, size: int) -> Iterator[None]:
        """Measure what happens inside the block."""
        gc.collect()
        gc.disable()
        self._longest, began = 0.0, time.thread_time()
        self._began = began
        try:
            yield
            self._end_step()
            self.rows.append(Row(case, size, time.thread_time() - began, self._longest))
        finally:
            gc.enable()


class Bench(NamedTuple):
    """What a case needs."""

    watch: Watch
    url: str
    admin: Redis
    names: list[bytes]

    @property
    def size(self) -> int:
        return len(self.names)

    async def kill(self) -> None:
        """End the connections of all subscribers."""
        await self.admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")

    async def publish(self, channel: bytes, count: int) -> None:
        pipe = self.admin.pipeline(transaction=False)
        for _ in range(count):
            pipe.publish(channel, b"x")
        await pipe.execute()

    async def read(self, mpx: Multiplexer) -> None:
        """Wait until no page of a stream is to be read."""
        streams = mpx._hub._streams
        await asyncio.sleep(0.01)
        await until(lambda: not (streams._jobs or streams._running or streams._timers), TIMEOUT)

    async def unsubscribed(self) -> None:
        """Wait until the server has no subscription any more."""
        while any(client["sub"] != "0" for client in await self.admin.client_list(_type="pubsub")):
            await asyncio.sleep(0.01)


async def hang(*_: object) -> None:
    await asyncio.Event().wait()


def ignore(*_: object) -> None:
    pass


async def connected(mpx: Multiplexer, connections: int) -> None:
    """Wait until the multiplexer has made so many connections."""
    await until(lambda: mpx.stats().connections == connections, TIMEOUT)


async def add(sub: ChannelSubscription[bytes] | StreamSubscription[bytes], names: list[bytes]) -> None:
    for start in range(0, len(names), 100):
        sub.add(*names[start : start + 100])
        await asyncio.sleep(0)
    await sub.wait_for_activation(timeout=TIMEOUT)


async def names(bench: Bench) -> None:
    """One subscription joins names, loses them with its connection, and leaves them one by one."""
    async with Multiplexer(bench.url) as mpx:
        sub = mpx.new_channel_subscription(ignore, ignore)
        with bench.watch.step("join names", bench.size):
            await add(sub, bench.names)
        with bench.watch.step("lose and join names again", bench.size):
            await bench.kill()
            await connected(mpx, 2)
            await sub.wait_for_activation(timeout=TIMEOUT)
        with bench.watch.step("leave names one by one", bench.size):
            await leave(sub, bench.names)
        await bench.unsubscribed()


async def calls(bench: Bench) -> None:
    """One subscription gets all names in one call, and half of them leave in another."""
    async with Multiplexer(bench.url) as mpx:
        sub = mpx.new_channel_subscription(ignore)
        await mpx.connect(10)
        with bench.watch.step("add() of all names at once", bench.size):
            sub.add(*bench.names)
            await sub.wait_for_activation(timeout=TIMEOUT)
        with bench.watch.step("remove() of half of the names at once", bench.size):
            sub.remove(*bench.names[::2])
            await until(lambda: mpx.stats().channels == len(sub.channels), TIMEOUT)


async def leave(sub: ChannelSubscription[bytes] | StreamSubscription[bytes], names: list[bytes]) -> None:
    for name in names:
        sub.remove(name)
        await asyncio.sleep(0)


async def backlog(bench: Bench) -> None:
    """The same with a stuck consumer, and a backlog of messages and activations."""
    async with Multiplexer(bench.url, on_error=ignore) as mpx:
        sub = mpx.new_channel_subscription(hang, ignore, ignore, max_pending=BACKLOG)
        sub.add("busy")
        await sub.wait_for_activation(timeout=TIMEOUT)
        await bench.publish(b"busy", BACKLOG + 1)
        await until(lambda: sub.pending == BACKLOG, TIMEOUT)
        with bench.watch.step("join names behind a backlog", bench.size):
            await add(sub, bench.names)
        for number in (2, 3):
            with bench.watch.step(f"lose and join names behind a backlog, {number - 1}", bench.size):
                await bench.kill()
                await connected(mpx, number)
                await sub.wait_for_activation(timeout=TIMEOUT)
        with bench.watch.step("leave names behind a backlog", bench.size):
            await leave(sub, bench.names)


async def end_of_names(bench: Bench) -> None:
    """A subscription with names is cleared, closed, or closed with its multiplexer."""
    for case in ("clear", "close", "close the multiplexer of"):
        async with Multiplexer(bench.url) as mpx:
            sub = mpx.new_channel_subscription(ignore)
            await add(sub, bench.names)
            with bench.watch.step(f"{case} a subscription with names", bench.size):
                {"clear": sub.clear, "close": sub.close}.get(case, mpx.close)()
                await bench.unsubscribed()


async def subscriptions(bench: Bench) -> None:
    """Many subscriptions to one name: activation, a message, a loss, the end."""
    async with Multiplexer(bench.url) as mpx:
        seen = 0

        def on_activation(_: bytes) -> None:
            nonlocal seen
            seen += 1

        subs = [mpx.new_channel_subscription(ignore, ignore, on_activation) for _ in range(bench.size)]
        await mpx.connect(10)
        for sub in subs:
            sub.add("one")
        with bench.watch.step("activate one name for many", bench.size):
            await until(lambda: seen == bench.size, TIMEOUT)
        late = [mpx.new_channel_subscription(ignore, ignore, on_activation) for _ in range(bench.size)]
        for sub in late:
            sub.add("one")
        with bench.watch.step("activate an active name for many", bench.size):
            await until(lambda: seen == 2 * bench.size, TIMEOUT)
        for sub in late:
            sub.close()
        with bench.watch.step("lose and activate one name for many", bench.size):
            await bench.kill()
            await until(lambda: seen == 3 * bench.size, TIMEOUT)
        with bench.watch.step("100 x stats()", bench.size):
            for _ in range(100):
                mpx.stats()
        with bench.watch.step("close a multiplexer", bench.size):
            mpx.close()
        with bench.watch.step("aclose()", bench.size):
            await mpx.aclose()


async def stuck(bench: Bench) -> None:
    """Many subscriptions with a stuck consumer and pending messages."""
    for case in ("close", "drain"):
        async with Multiplexer(bench.url) as mpx:
            waiting: list[asyncio.Future[None]] = []

            def wait(*_: object, waiting: list[asyncio.Future[None]] = waiting) -> asyncio.Future[None]:
                waiting.append(asyncio.get_running_loop().create_future())
                return waiting[-1]

            subs = [mpx.new_channel_subscription(wait) for _ in range(bench.size)]
            for sub in subs:
                sub.add("one")
            for sub in subs:
                await sub.wait_for_activation(timeout=TIMEOUT)
            await bench.publish(b"one", 4)
            await until(lambda: mpx.stats().pending == 3 * bench.size, TIMEOUT)
            with bench.watch.step("100 x stats(), with stuck consumers", bench.size):
                for _ in range(100):
                    mpx.stats()
            if case == "drain":
                draining = asyncio.create_task(mpx.drain())
                with bench.watch.step("drain, with slow consumers", bench.size):
                    while not draining.done():
                        for future in waiting[-100:]:
                            future.set_result(None)
                        del waiting[-100:]
                        await asyncio.sleep(0)
            else:
                with bench.watch.step("close, with stuck consumers", bench.size):
                    mpx.close()
                with bench.watch.step("aclose(), with stuck consumers", bench.size):
                    await mpx.aclose()


async def promises(bench: Bench) -> None:
    """Many promises that fail together."""
    for case in ("lose", "clear", "close", "close the multiplexer of"):
        async with Multiplexer(bench.url, max_promises=None) as mpx:
            sub = mpx.new_promise_subscription("p")
            await sub.wait_for_activation(timeout=TIMEOUT)
            made = [sub.new_promise(name, 1000) for name in bench.names]
            with bench.watch.step(f"{case} promises", bench.size):
                if case == "lose":
                    await bench.kill()
                elif case == "clear":
                    sub.clear()
                elif case == "close":
                    sub.close()
                else:
                    mpx.close()
                await asyncio.wait([made[0], made[-1]])
            for promise in made:
                with suppress(PromiseInterrupted):
                    await promise


async def streams(bench: Bench) -> None:
    """One subscription follows streams, loses them with its connection, looks at their ends, and leaves them."""
    async with Multiplexer(bench.url, tail_interval=None) as mpx:
        sub = mpx.new_stream_subscription(ignore)
        with bench.watch.step("join streams", bench.size):
            await add(sub, bench.names)
        with bench.watch.step("lose and join streams again", bench.size):
            await bench.kill()
            await connected(mpx, 2)
            await sub.wait_for_activation(timeout=TIMEOUT)
            await bench.read(mpx)
        for number in (1, 2):  # the first look takes note of the streams, the second one asks for their ends
            with bench.watch.step(f"look at the ends of streams, {number}", bench.size):
                mpx._hub._streams._look_at_tails()
                await bench.read(mpx)
        with bench.watch.step("leave streams one by one", bench.size):
            await leave(sub, bench.names)
        await bench.unsubscribed()


async def calls_of_streams(bench: Bench) -> None:
    """One subscription gets all streams in one call, falls behind, and loses half of the streams in another call."""
    async with Multiplexer(bench.url, tail_interval=None) as mpx:
        sub = mpx.new_stream_subscription(ignore)
        await mpx.connect(10)
        with bench.watch.step("add() of all streams at once", bench.size):
            sub.add(*bench.names)
            await sub.wait_for_activation(timeout=TIMEOUT)
        await bench.read(mpx)
        with bench.watch.step("fall behind and catch up with streams", bench.size):
            sub._subscriber.inbox.fall_behind()
            await bench.read(mpx)
        with bench.watch.step("remove() of half of the streams at once", bench.size):
            sub.remove(*bench.names[::2])
            await until(lambda: mpx.stats().channels == len(sub.channels), TIMEOUT)


async def positions(bench: Bench) -> None:
    """One subscription loads and saves the positions of its streams, and ends."""
    for case in ("clear", "close", "drain"):
        async with Multiplexer(bench.url, tail_interval=None) as mpx:
            sub = mpx.new_stream_subscription(ignore, durable=case)
            with bench.watch.step(f"join streams with positions, then {case}", bench.size):
                await add(sub, bench.names)
            for cursor in sub._subscriber.cursors.values():
                cursor.handed = b"1-1"
                sub._subscriber.through(cursor)
            with bench.watch.step("save the positions of streams", bench.size):
                await sub.commit()
            for cursor in sub._subscriber.cursors.values():
                sub._subscriber.through(cursor)
            with bench.watch.step(f"{case} streams with positions", bench.size):
                if case == "drain":
                    await mpx.drain()
                else:
                    {"clear": sub.clear, "close": sub.close}[case]()
                    await bench.unsubscribed()


async def end_of_streams(bench: Bench) -> None:
    """A subscription with streams is cleared, closed, or closed with its multiplexer."""
    for case in ("clear", "close", "close the multiplexer of"):
        async with Multiplexer(bench.url, tail_interval=None) as mpx:
            sub = mpx.new_stream_subscription(ignore)
            await add(sub, bench.names)
            with bench.watch.step(f"{case} a subscription with streams", bench.size):
                {"clear": sub.clear, "close": sub.close}.get(case, mpx.close)()
                await bench.unsubscribed()


async def moves(watch: Watch, size: int) -> None:
    """The slot of one sharded channel with many subscriptions moves to another node."""
    cluster = await Cluster.start("valkey", 2, 0)
    try:
        async with RedisCluster.from_url(cluster.url) as client, Multiplexer(client) as mpx:
            seen = 0

            def on_activation(_: bytes) -> None:
                nonlocal seen
                seen += 1

            subs = [mpx.new_channel_subscription(ignore, ignore, on_activation, sharded=True) for _ in range(size)]
            for sub in subs:
                sub.add("one")
            await until(lambda: seen == size, TIMEOUT)
            owner = await cluster.owner("one")
            other = next(node for node in cluster.nodes if node is not owner)
            with watch.step("move one sharded name of many", size):
                await cluster.move_slot("one", other)
                await until(lambda: seen == 2 * size, TIMEOUT)
    finally:
        await cluster.stop()


async def evictions(watch: Watch, size: int) -> None:
    """Sharded names of one slot move to another node; the consumer is busy."""
    cluster = await Cluster.start("valkey", 2, 0)
    try:
        async with RedisCluster.from_url(cluster.url) as client, Multiplexer(client) as mpx:
            sub = mpx.new_channel_subscription(hang, sharded=True)
            names = [b"{tag}:%d" % number for number in range(size)]
            await add(sub, names)
            await mpx.publish(names[0], b"x", sharded=True)
            await until(lambda: not sub._inbox.idle, TIMEOUT)
            owner = await cluster.owner(names[0])
            other = next(node for node in cluster.nodes if node is not owner)
            with watch.step("evict sharded names", size):
                await cluster.move_slot(names[0], other)
                await until(lambda: sub._inbox.active < size, TIMEOUT)
                await sub.wait_for_activation(timeout=TIMEOUT)
            await other.ask("CLIENT", "KILL", "TYPE", "pubsub")
            connections = mpx.stats().connections
            with watch.step("lose sharded names", size):
                await connected(mpx, connections + 1)
                await sub.wait_for_activation(timeout=TIMEOUT)
    finally:
        await cluster.stop()


CASES: dict[str, Callable[[Bench], Awaitable[None]]] = {
    "names": names,
    "calls": calls,
    "backlog": backlog,
    "end": end_of_names,
    "subscriptions": subscriptions,
    "stuck": stuck,
    "promises": promises,
    "streams": streams,
    "calls_of_streams": calls_of_streams,
    "positions": positions,
    "end_of_streams": end_of_streams,
}
IN_CLUSTERS: dict[str, Callable[[Watch, int], Awaitable[None]]] = {
    "evictions": evictions,
    "moves": moves,
}


def measure(case: str, size: int) -> list[Row]:
    """Run a case with one size."""
    watch = Watch()

    async def run(url: str) -> None:
        async with Redis.from_url(url, socket_timeout=None) as admin:
            await CASES[case](Bench(watch, url, admin, [b"name:%d" % number for number in range(size)]))

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(watch)) as runner:
        if case in IN_CLUSTERS:
            runner.run(IN_CLUSTERS[case](watch, size))
        else:
            with running_server("valkey", "--client-output-buffer-limit", "pubsub 0 0 0") as server:
                runner.run(run(server.url))
    return watch.rows


def verdicts(rows: list[Row]) -> dict[str, bool]:
    """Return for each step whether it is linear."""
    costs: dict[str, list[float]] = {}
    for row in sorted(rows, key=lambda row: row.size):
        costs.setdefault(row.case, []).append(row.cpu / row.size)
    return {case: len(cost) < 2 or cost[-1] <= MOST_GROWTH * cost[-2] for case, cost in costs.items()}


def table(rows: list[Row]) -> str:
    """Return the measurements as text, with a verdict for each step."""
    linear = verdicts(rows)
    lines = [f"{'':40} {'items':>8} {'CPU in s':>9} {'us each':>8} {'longest step in ms':>19}"]
    for case in dict.fromkeys(row.case for row in rows):
        for row in (row for row in rows if row.case == case):
            cost, longest = row.cpu / row.size * 1e6, row.longest * 1e3
            lines.append(f"{case:40} {row.size:>8,} {row.cpu:>9.3f} {cost:>8.2f} {longest:>19.1f}")
        lines.append(f"{'':40} {'linear' if linear[case] else 'NOT LINEAR'}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = [*CASES, *IN_CLUSTERS]
    parser.add_argument("cases", metavar="CASE", nargs="*", help=f"one of {', '.join(cases)} (all)")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    arguments = parser.parse_args()
    if unknown := set(arguments.cases).difference(cases):
        parser.error(f"no such case: {', '.join(unknown)}")
    rows = [row for case in arguments.cases or cases for size in arguments.sizes for row in measure(case, size)]
    print(table(rows))
    raise SystemExit(not all(verdicts(rows).values()))


if __name__ == "__main__":
    main()
