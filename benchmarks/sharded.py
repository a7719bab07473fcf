"""Cases: sharded Pub/Sub in a cluster, and classic Pub/Sub in the same cluster.

`sharded-N` and `cluster-classic` measure what a message costs the receiver, like `drain`. `throughput-N` measures what
a message costs the servers, and the messages per second, while the servers, the publisher and the subscriber all work
at once.
"""

from __future__ import annotations

import asyncio
import re
import selectors
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from redis.asyncio import RedisCluster

from redismpx import Multiplexer

from . import floor
from .drain import Countdown
from .harness import Bench, Case, Contestant
from .peers import in_background
from .publisher import Publisher, owner

CHANNELS = 300
MESSAGES = 200_000
POLL_INTERVAL = 0.001  # seconds, after a poll without a message
FORWARD_TIMEOUT = 30.0  # seconds, until the primaries have forwarded all messages to each other


@dataclass(frozen=True)
class Load:
    """What is published: sharded or classic messages. Both go to the primary that owns the slot of the channel."""

    sharded: bool

    @property
    def names(self) -> list[str]:
        return [f"room:{number}" for number in range(CHANNELS)]

    def publisher(self, bench: Bench) -> Publisher:
        verb = "SPUBLISH" if self.sharded else "PUBLISH"
        return Publisher(bench.ports, "room:", CHANNELS, bench.count(MESSAGES), 64, verb=verb)


Wait = Callable[[], Awaitable[object]]
Listening = Callable[[Load, Bench, Countdown], AbstractAsyncContextManager[Wait]]
"""Subscribes to all channels and counts the messages; yields a function that waits until all have arrived."""


# --- the subscribers


@asynccontextmanager
async def redismpx(load: Load, bench: Bench, countdown: Countdown) -> AsyncIterator[Wait]:
    async with RedisCluster.from_url(bench.url) as client, Multiplexer(client) as mpx:
        sub = mpx.new_channel_subscription(countdown.function, sharded=load.sharded)
        sub.add(*load.names)
        await sub.wait_for_activation(timeout=30)
        yield countdown.done.wait


@asynccontextmanager
async def bare(load: Load, bench: Bench, countdown: Countdown) -> AsyncIterator[Wait]:
    """The floor: a socket for each primary; for classic channels a single one."""
    verb, ports = (b"SSUBSCRIBE", bench.ports) if load.sharded else (b"SUBSCRIBE", bench.ports[:1])
    channels = [name.encode() for name in load.names]
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for port in ports:
            raw = stack.enter_context(floor.connect(port))
            selector.register(raw.connection, selectors.EVENT_READ, raw)
            theirs = [channel for channel in channels if owner(channel, ports) == port]
            # The names in one command must have the same slot.
            for batch in [[channel] for channel in theirs] if load.sharded else [theirs]:
                raw.subscribe(batch, verb)

        async def read() -> None:
            callback = countdown.function
            while not countdown.done.is_set():
                for key, _ in selector.select():
                    raw: floor.Raw = key.data
                    gets = raw.reader.gets
                    raw.reader.feed(raw.connection.recv(floor.READ_SIZE))
                    while (reply := gets()) is not None:
                        callback(reply[1], reply[2])

        yield read


@asynccontextmanager
async def redis_py(load: Load, bench: Bench, countdown: Countdown) -> AsyncIterator[Wait]:
    """Poll for sharded messages. With a timeout, redis-py waits for one shard while other shards have messages."""

    async def listen() -> None:
        async for message in pubsub.listen():
            if message["type"] == "message":
                countdown.function(message["channel"], message["data"])

    async def poll() -> None:
        while True:
            message = await pubsub.get_sharded_message(ignore_subscribe_messages=True)
            if message is None:
                await asyncio.sleep(POLL_INTERVAL)
            else:
                countdown.function(message["channel"], message["data"])

    async with RedisCluster.from_url(bench.url) as client, client.pubsub() as pubsub:
        await (pubsub.ssubscribe if load.sharded else pubsub.subscribe)(*load.names)
        async with in_background(poll() if load.sharded else listen()):
            yield countdown.done.wait


@asynccontextmanager
async def coredis(load: Load, bench: Bench, countdown: Countdown) -> AsyncIterator[Wait]:
    import coredis

    async def listen() -> None:
        async for message in pubsub:
            countdown.function(message["channel"], message["data"])

    async with (
        coredis.RedisCluster("127.0.0.1", bench.port) as client,
        (client.sharded_pubsub if load.sharded else client.pubsub)(
            channels=load.names, ignore_subscribe_messages=True
        ) as pubsub,
        in_background(listen()),
    ):
        yield countdown.done.wait


# --- counters of the servers


def command_all(bench: Bench, *command: bytes) -> list[Any]:
    """Send a command to each primary; return the replies."""
    replies: list[Any] = []
    for port in bench.ports:
        with floor.connect(port) as admin:
            replies.append(admin.command(*command))
    return replies


def total(replies: list[Any], field: str) -> float:
    """Return the sum of a field of INFO or CLUSTER INFO replies. A primary without the field counts as 0."""
    return sum(float(found) for reply in replies for found in re.findall(rf"{field}:([\d.]+)", str(reply)))


async def settled(load: Load, bench: Bench) -> None:
    """Wait until each channel has one subscriber."""
    command = (b"PUBSUB", b"SHARDNUMSUB" if load.sharded else b"NUMSUB", *(name.encode() for name in load.names))
    while sum(sum(reply[1::2]) for reply in command_all(bench, *command)) != CHANNELS:
        await asyncio.sleep(0.01)


class ForwardedMessages:
    """Counts the classic messages that the primaries forward to each other. Sharded messages are not forwarded."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._before = self._count()

    def _count(self) -> float:
        return total(command_all(self._bench, b"CLUSTER", b"INFO"), "cluster_stats_messages_publish_received")

    def wait(self, messages: int) -> None:
        """Block this thread until all primaries have received this many messages."""
        give_up = time.monotonic() + FORWARD_TIMEOUT
        expected = messages * (len(self._bench.ports) - 1)
        while (passed := self._count() - self._before) < expected:
            assert time.monotonic() < give_up, f"{passed:g} of {expected} messages were forwarded"
            time.sleep(0.01)


def servers_cpu(bench: Bench) -> float:
    """Return the seconds of CPU time that all primaries have used."""
    return total(command_all(bench, b"INFO", b"CPU"), r"used_cpu_(?:user|sys)")


# --- the measurements


async def drain(listening: Listening, load: Load, bench: Bench) -> None:
    messages = bench.count(MESSAGES)
    countdown = Countdown(messages)
    with load.publisher(bench) as publisher:
        async with listening(load, bench, countdown) as wait:
            await settled(load, bench)
            forwarded = ForwardedMessages(bench)
            with bench.measured(messages):
                if load.sharded:
                    bench.publish(publisher, messages)
                else:
                    publisher.publish()  # its result counts only the subscribers at the primary that it publishes to
                    forwarded.wait(messages)
                    bench.start_clock()
                await wait()


async def throughput(listening: Listening, load: Load, bench: Bench) -> None:
    messages = bench.count(MESSAGES)
    countdown = Countdown(messages)
    with load.publisher(bench) as publisher:
        async with listening(load, bench, countdown) as wait:
            await settled(load, bench)
            forwarded = ForwardedMessages(bench)
            before = servers_cpu(bench)
            with bench.measured(messages):
                publisher.tell()
                await wait()
            received = publisher.hear()
            if load.sharded:
                assert received == messages
            else:
                forwarded.wait(messages)
            bench.measures["servers"] = (servers_cpu(bench) - before) * 1e6 / messages
            bench.measures["rate"] = 1e6 / bench.measures["wall"]


def new_drain(name: str, title: str, load: Load, primaries: int) -> Case:
    listening: dict[str, Listening] = {"redismpx": redismpx, "floor": bare, "redis-py": redis_py, "coredis": coredis}
    contestants: dict[str, Contestant] = {name: partial(drain, each, load) for name, each in listening.items()}
    return Case(name, title, "message", contestants, primaries=primaries)


def new_throughput(primaries: int) -> Case:
    contestants: dict[str, Contestant] = {
        "redismpx": partial(throughput, redismpx, Load(sharded=True)),
        "floor": partial(throughput, bare, Load(sharded=True)),
        "classic": partial(throughput, redismpx, Load(sharded=False)),
    }
    title = f"CPU of all servers while messages pass through {shards(primaries)}"
    return Case(f"throughput-{primaries}", title, "message", contestants, "servers", primaries)


def shards(primaries: int) -> str:
    return f"{primaries} shard{'s' * (primaries > 1)}"


CASES = [
    *(
        new_drain(f"sharded-{n}", f"messages of 64 B on {CHANNELS} sharded channels, {shards(n)}", Load(True), n)
        for n in (1, 2, 3)
    ),
    new_drain("cluster-classic", "the same on classic channels, in a cluster of 3 primaries", Load(False), 3),
    *map(new_throughput, (1, 2, 3)),
]
