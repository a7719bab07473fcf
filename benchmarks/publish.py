"""Cases: publish from many callers at once, and from one caller. There are no subscribers."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import hiredis
from redis.asyncio import Redis

from redismpx import Multiplexer

from . import floor
from .harness import Bench, Case, Contestant

MESSAGES = 100_000
CALLERS = 500
CHANNEL = b"room:0"
DATA = b"x" * 64

Publish = Callable[[bytes, bytes], Awaitable[object]]
Publishing = Callable[[int, int], AbstractAsyncContextManager[Publish]]
"""Takes the port of a server and the number of concurrent callers."""


@asynccontextmanager
async def redismpx(port: int, callers: int) -> AsyncIterator[Publish]:
    async with Multiplexer(f"redis://127.0.0.1:{port}") as mpx:
        yield mpx.publish


class Bare(asyncio.Protocol):
    """The floor: a connection, hiredis, and a future for each command.

    Commands of one tick of the event loop are written together.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=None)
        self._commands: list[bytes] = []
        self._replies: deque[asyncio.Future[object]] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def send(self, *words: bytes) -> asyncio.Future[object]:
        if not self._commands:
            self._loop.call_soon(self._write)
        self._commands.append(hiredis.pack_command(words))  # type: ignore[arg-type]
        reply: asyncio.Future[object] = self._loop.create_future()
        self._replies.append(reply)
        return reply

    async def publish(self, channel: bytes, data: bytes) -> object:
        return await self.send(b"PUBLISH", channel, data)

    def _write(self) -> None:
        self._transport.write(b"".join(self._commands))
        self._commands.clear()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not None:
            self.take(reply)

    def take(self, reply: object) -> None:
        self._replies.popleft().set_result(reply)


@asynccontextmanager
async def bare(port: int, callers: int) -> AsyncIterator[Publish]:
    transport, protocol = await asyncio.get_running_loop().create_connection(Bare, "127.0.0.1", port)
    yield protocol.publish
    transport.close()


@asynccontextmanager
async def redis_py(port: int, callers: int) -> AsyncIterator[Publish]:
    """Each call takes a connection of the pool, and fails if none is left."""
    async with Redis(port=port, max_connections=callers, socket_connect_timeout=60) as client:
        yield client.publish


@asynccontextmanager
async def coredis(port: int, callers: int) -> AsyncIterator[Publish]:
    import coredis

    async with coredis.Redis(port=port) as client:
        yield client.publish


@asynccontextmanager
async def valkey_glide(port: int, callers: int) -> AsyncIterator[Publish]:
    import glide

    client = await glide.GlideClient.create(glide.GlideClientConfiguration([glide.NodeAddress("127.0.0.1", port)]))
    yield lambda channel, data: client.publish(data, channel)
    await client.close()


def published(port: int) -> int:
    """Return the number of PUBLISH commands that the server has run."""
    with floor.connect(port) as admin:
        answer = admin.command(b"INFO", b"commandstats")
    found = re.search(r"cmdstat_publish:calls=(\d+)", str(answer))
    return int(found[1]) if found else 0


async def publish(publishing: Publishing, full: int, messages: int, bench: Bench) -> None:
    callers = bench.count(full, least=min(full, 10))
    each = bench.count(messages) // callers

    async def call(publish: Publish, count: int) -> None:
        for _ in range(count):
            await publish(CHANNEL, DATA)

    async def all_call(count: int) -> None:
        await asyncio.gather(*(call(publish, count) for _ in range(callers)))

    async with publishing(bench.port, callers) as publish:
        await all_call(1)  # opens the connections
        with bench.measured(callers * each):
            await all_call(each)
    assert published(bench.port) == callers * (each + 1)


PUBLISHING: dict[str, Publishing] = {
    "redismpx": redismpx,
    "floor": bare,
    "redis-py": redis_py,
    "valkey-glide": valkey_glide,
    "coredis": coredis,
}


def new_case(name: str, title: str, callers: int, messages: int) -> Case:
    contestants: dict[str, Contestant] = {
        name: partial(publish, publishing, callers, messages) for name, publishing in PUBLISHING.items()
    }
    return Case(name, title, "message", contestants)


CASES = [
    new_case("publish-500", "messages of 64 B, published by 500 callers at once", CALLERS, MESSAGES),
    new_case("publish-1", "the same by one caller", 1, MESSAGES // 5),
]
