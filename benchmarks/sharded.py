"""Sharded Pub/Sub in a cluster, and classic Pub/Sub in the same.

`sharded-N` and `cluster-classic` are drains: what a message costs whoever receives it. `throughput-N` is what the
servers pay, and how many messages pass in a second, while all of them, the publisher and the subscriber work at once.
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
POLL = 0.001  # seconds between two looks for messages, when there were none
TIMEOUT = 30.0  # seconds until the primaries have passed on to each other what they have


@dataclass(frozen=True)
class Load:
    """What is published: sharded or classic. Both go to the primary that has the slot of the channel."""

    sharded: bool

    @property
    def names(self) -> list[str]:
        return [f"room:{number}" for number in range(CHANNELS)]

    def publisher(self, bench: Bench) -> Publisher:
        verb = "SPUBLISH" if self.sharded else "PUBLISH"
        return Publisher(bench.ports, "room:", CHANNELS, bench.count(MESSAGES), 64, verb=verb)


Wait = Callable[[], Awaitable[object]]
Listening = Callable[[Load, Bench, Countdown], AbstractAsyncContextManager[Wait]]
"""Subscribes to all channels, and hands each message to a function; gives what waits until that has got all."""


# --- who listens


@asynccontextmanager
async def redismpx(load: Load, bench: Bench, countdown: Countdown) -> AsyncIterator[Wait]:
    async with RedisCluster.from_url(bench.url) as client, Multiplexer(client) as mpx:
        sub = mpx.new_channel_subscription(countdown.function, sharded=load.sharded)
        sub.add(*load.names)
        await sub.wait_for_activation(30)
        yield countdown.done.wait


@asynccontextmanager
async def bare(load: Load, bench: Bench, countdown: Countdown) -> AsyncIterator[Wait]:
    """A socket for each primary; only one if all come from one."""
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
    """Sharded messages are polled for. With a timeout, it would wait for those of one shard while others have some."""

    async def listen() -> None:
        async for message in pubsub.listen():
            if message["type"] == "message":
                countdown.function(message["channel"], message["data"])

    async def poll() -> None:
        while True:
            message = await pubsub.get_sharded_message(ignore_subscribe_messages=True)
            if message is None:
                await asyncio.sleep(POLL)
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


# --- what the servers know


def ask_all(bench: Bench, *command: bytes) -> list[Any]:
    """Return what each primary answers."""
    answers: list[Any] = []
    for port in bench.ports:
        with floor.connect(port) as admin:
            answers.append(admin.command(*command))
    return answers


def total(answers: list[Any], field: str) -> float:
    """Add up a field of what INFO or CLUSTER INFO says; a primary that does not have it yet has counted nothing."""
    return sum(float(found) for answer in answers for found in re.findall(rf"{field}:([\d.]+)", str(answer)))


async def settled(load: Load, bench: Bench) -> None:
    """Wait until each channel has one subscriber."""
    command = (b"PUBSUB", b"SHARDNUMSUB" if load.sharded else b"NUMSUB", *(name.encode() for name in load.names))
    while sum(sum(answer[1::2]) for answer in ask_all(bench, *command)) != CHANNELS:
        await asyncio.sleep(0.01)


class Bus:
    """Classic messages go from the primary that they are published to, to each other one. Sharded ones stay."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._before = self._count()

    def _count(self) -> float:
        return total(ask_all(self._bench, b"CLUSTER", b"INFO"), "cluster_stats_messages_publish_received")

    def wait(self, messages: int) -> None:
        """Wait, with the whole thread, until as many have reached all."""
        give_up = time.monotonic() + TIMEOUT
        expected = messages * (len(self._bench.ports) - 1)
        while (passed := self._count() - self._before) < expected:
            assert time.monotonic() < give_up, f"{passed:g} of {expected} messages were passed on"
            time.sleep(0.01)


def servers_cpu(bench: Bench) -> float:
    """Seconds that all primaries have used."""
    return total(ask_all(bench, b"INFO", b"CPU"), r"used_cpu_(?:user|sys)")


# --- what is measured


async def drain(listening: Listening, load: Load, bench: Bench) -> None:
    messages = bench.count(MESSAGES)
    countdown = Countdown(messages)
    with load.publisher(bench) as publisher:
        async with listening(load, bench, countdown) as wait:
            await settled(load, bench)
            bus = Bus(bench)
            with bench.measured(messages):
                if load.sharded:
                    bench.publish(publisher, messages)
                else:
                    publisher.publish()  # it only counts who is subscribed where it publishes
                    bus.wait(messages)
                    bench.start_clock()
                await wait()


async def throughput(listening: Listening, load: Load, bench: Bench) -> None:
    messages = bench.count(MESSAGES)
    countdown = Countdown(messages)
    with load.publisher(bench) as publisher:
        async with listening(load, bench, countdown) as wait:
            await settled(load, bench)
            bus = Bus(bench)
            before = servers_cpu(bench)
            with bench.measured(messages):
                publisher.tell()
                await wait()
            received = publisher.hear()
            if load.sharded:
                assert received == messages
            else:
                bus.wait(messages)
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
