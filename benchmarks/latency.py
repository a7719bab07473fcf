"""Case: the time of a single message, from the publisher's socket through the server to the callback.

All contestants have the same publisher, in the same process and event loop: a bare socket without replies from the
server. It sends the next message when the last one has arrived and the loop has finished its tick.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from functools import partial
from typing import cast

import hiredis

from redismpx import Multiplexer

from .harness import Bench, Case, Contestant
from .peers import LISTEN, settled
from .publisher import pack

ROUND_TRIPS = 10_000
WARM_UP = 100


class PingPong:
    """Sends one message at a time and measures until it arrives."""

    round_trips = ROUND_TRIPS

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._loop = asyncio.get_running_loop()
        self._command = pack(b"PUBLISH", b"room:0", b"x" * 64)
        self._left = 0
        self._sent = 0.0
        self._times: list[float] = []
        self._done = asyncio.Event()

    async def measure(self) -> None:
        """Warm up, then measure all round trips."""
        transport, _ = await self._loop.create_connection(asyncio.Protocol, "127.0.0.1", self._bench.port)
        self._transport = cast("asyncio.WriteTransport", transport)
        self._transport.write(pack(b"CLIENT", b"REPLY", b"OFF"))
        await self._round_trips(WARM_UP)
        count = self._bench.count(self.round_trips)
        with self._bench.measured(count):
            await self._round_trips(count)
        self._transport.close()
        assert len(self._times) == count
        percentiles = statistics.quantiles(self._times, n=100)
        self._bench.measures |= {"p50": percentiles[49] * 1e6, "p99": percentiles[98] * 1e6}

    async def _round_trips(self, count: int) -> None:
        self._left = count
        self._times.clear()
        self._done.clear()
        self._send()
        await self._done.wait()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self._command)

    def arrive(self, channel: object, data: object) -> None:
        """Record the arrival of the message."""
        self._times.append(time.perf_counter() - self._sent)
        self._left -= 1
        if self._left:
            self._loop.call_soon(self._send)
        else:
            self._done.set()


async def redismpx(bench: Bench) -> None:
    ping_pong = PingPong(bench)
    async with Multiplexer(bench.url) as mpx:
        sub = mpx.new_channel_subscription(ping_pong.arrive)
        sub.add("room:0")
        await sub.wait_for_activation(timeout=30)
        await ping_pong.measure()


class Bare(asyncio.Protocol):
    """The floor: an asyncio protocol, hiredis, and the callback."""

    def __init__(self, ping_pong: PingPong, subscribe: bytes) -> None:
        self._subscribe = subscribe
        self._game = ping_pong
        self._reader = hiredis.Reader(notEnoughData=None)
        self._is_confirmed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.WriteTransport", transport).write(self._subscribe)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not None:
            if self._is_confirmed:
                self._game.arrive(reply[-2], reply[-1])
            self._is_confirmed = True


async def bare_protocol(bench: Bench) -> None:
    ping_pong = PingPong(bench)
    protocol = Bare(ping_pong, pack(b"SUBSCRIBE", b"room:0"))
    transport, _ = await asyncio.get_running_loop().create_connection(lambda: protocol, "127.0.0.1", bench.port)
    await settled(bench.port, 1, 0)
    await ping_pong.measure()
    transport.close()


async def peer(name: str, bench: Bench) -> None:
    ping_pong = PingPong(bench)
    async with LISTEN[name](bench.port, ["room:0"], [], ping_pong.arrive):
        await settled(bench.port, 1, 0)
        await ping_pong.measure()


CONTESTANTS: dict[str, Contestant] = {
    "redismpx": redismpx,
    "floor": bare_protocol,
    **{name: partial(peer, name) for name in LISTEN},
}

CASES = [
    Case(
        "latency",
        "a single message from socket to callback, median of the round trips (p50)",
        "message",
        CONTESTANTS,
        "p50",
    )
]
