"""Case: the time of a single key event in a cluster, from the command that changes the key to the callback.

The publisher is that of the case `latency`. It changes keys of all primaries, in an order that nobody can foresee:
redis-py polls one primary after the other.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from typing import cast

from redis.asyncio import RedisCluster

from redismpx import KeyEvent, Multiplexer

from .harness import Bench, Case, Contestant
from .latency import Bare, PingPong
from .peers import in_background
from .publisher import owner, pack
from .sharded import command_all

PATTERN = b"__keyspace@0__:key:*"


class KeyPingPong(PingPong):
    """Changes one key at a time and measures until its event arrives."""

    round_trips = 500  # redis-py takes a tenth of a second for each

    async def measure(self) -> None:
        loop = asyncio.get_running_loop()
        connections = [await loop.create_connection(asyncio.Protocol, "127.0.0.1", port) for port in self._bench.ports]
        self._transports = [cast("asyncio.WriteTransport", transport) for transport, _ in connections]
        for transport in self._transports:
            transport.write(pack(b"CLIENT", b"REPLY", b"OFF"))
        self._turns = self._take_turns()
        await super().measure()
        for transport in self._transports:
            transport.close()

    def _take_turns(self) -> Iterator[tuple[asyncio.WriteTransport, bytes]]:
        names = [b"key:%d" % number for number in range(1_000)]
        ports = self._bench.ports
        keys = [next(name for name in names if owner(name, ports) == port) for port in ports]
        turns = list(zip(self._transports, [pack(b"SET", key, b"1") for key in keys], strict=True))
        choose = random.Random(0).choice  # the same in each turn
        while True:
            yield choose(turns)

    def _send(self) -> None:
        transport, command = next(self._turns)
        self._sent = time.perf_counter()
        transport.write(command)


async def publishing(bench: Bench) -> KeyPingPong:
    command_all(bench, b"CONFIG", b"SET", b"notify-keyspace-events", b"K$")
    return KeyPingPong(bench)


async def settled(bench: Bench) -> None:
    """Wait until each primary has the pattern."""
    while command_all(bench, b"PUBSUB", b"NUMPAT") != [1] * len(bench.ports):
        await asyncio.sleep(0.01)


async def redismpx(bench: Bench) -> None:
    ping_pong = await publishing(bench)

    def on_event(event: KeyEvent) -> None:
        ping_pong.arrive(event.key, event.event)

    async with RedisCluster.from_url(bench.url) as client, Multiplexer(client) as mpx:
        sub = mpx.new_key_subscription("key:*", on_event)
        await sub.wait_for_activation(timeout=30)
        await ping_pong.measure()


async def bare_protocols(bench: Bench) -> None:
    """The floor: an asyncio protocol for each primary, hiredis, and the callback."""
    ping_pong = await publishing(bench)
    loop = asyncio.get_running_loop()
    command = pack(b"PSUBSCRIBE", PATTERN)
    connections = [
        await loop.create_connection(lambda: Bare(ping_pong, command), "127.0.0.1", port) for port in bench.ports
    ]
    await settled(bench)
    await ping_pong.measure()
    for transport, _ in connections:
        transport.close()


async def redis_py(bench: Bench) -> None:
    ping_pong = await publishing(bench)

    async def listen() -> None:
        async for notification in notifications.listen():
            ping_pong.arrive(notification.key, notification.event_type)

    async with RedisCluster.from_url(bench.url) as client, client.keyspace_notifications() as notifications:
        await notifications.subscribe_keyspace("key:*")
        await settled(bench)
        async with in_background(listen()):
            await ping_pong.measure()


CONTESTANTS: dict[str, Contestant] = {"redismpx": redismpx, "floor": bare_protocols, "redis-py": redis_py}

CASES = [
    Case(
        "key-events",
        "a key event of a cluster from the command to the callback, median of the round trips (p50)",
        "event",
        CONTESTANTS,
        "p50",
        primaries=3,
    )
]
