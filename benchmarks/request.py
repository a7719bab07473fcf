"""Cases: the cost of requests for the requester, and for the service. The other side runs in another process."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from redismpx import Multiplexer, Request
from tests.helpers.servers import free_port
from tests.helpers.waiting import DEADLINE

from . import floor
from .drain import Countdown
from .harness import Bench, Case, Contestant
from .peers import in_background, settled
from .publish import Bare, published
from .publisher import Companion, Publisher, pack
from .responder import CONCURRENCY, SERVICE

CALLERS = 100
REQUESTS = 50_000
BODY = b"x" * 64
TIMEOUT = 30.0

SendRequest = Callable[[bytes], Awaitable[bytes]]
Requesting = Callable[[int], AbstractAsyncContextManager[SendRequest]]
"""Takes the port of a server."""


# --- the requester


async def measure(requesting: Requesting, kind: str, port: int, bench: Bench) -> None:
    callers = bench.count(CALLERS, least=10)
    each = bench.count(REQUESTS) // callers

    async def call(times: int) -> None:
        for _ in range(times):
            assert await send_request(BODY) == BODY

    async def all_call(times: int) -> None:
        await asyncio.gather(*(call(times) for _ in range(callers)))

    with Companion(str(Path(__file__).with_name("responder.py")), kind, str(port)) as responder:
        responder.hear()
        async with requesting(port) as send_request:
            await all_call(1)  # opens the connections
            with bench.measured(callers * each):
                await all_call(each)


async def measure_redis(requesting: Requesting, bench: Bench) -> None:
    await measure(requesting, "redismpx", bench.port, bench)


async def measure_nats(bench: Bench) -> None:
    with nats_server() as port:
        await measure(nats_py, "nats", port, bench)


@asynccontextmanager
async def redismpx(port: int) -> AsyncIterator[SendRequest]:
    async with Multiplexer(f"redis://127.0.0.1:{port}") as mpx:
        yield partial(mpx.request, SERVICE, timeout=TIMEOUT)


class BareRequester(Bare):
    """The floor: one connection and one pattern for all replies, no timeouts, and guessable reply channels."""

    def __init__(self) -> None:
        super().__init__()
        self._replies_by_channel: dict[bytes, asyncio.Future[bytes]] = {}
        self._numbers = count()

    async def send_request(self, body: bytes) -> bytes:
        channel = b"reply:%d" % next(self._numbers)
        reply = self._replies_by_channel[channel] = self._loop.create_future()
        self.send(b"PUBLISH", SERVICE.encode(), envelope(body, channel))
        return body_of(await reply)

    def take(self, reply: Any) -> None:
        if isinstance(reply, list) and reply[0] == b"pmessage":
            self._replies_by_channel.pop(reply[2]).set_result(reply[3])
        else:
            super().take(reply)


@asynccontextmanager
async def bare(port: int) -> AsyncIterator[SendRequest]:
    transport, protocol = await asyncio.get_running_loop().create_connection(BareRequester, "127.0.0.1", port)
    await protocol.send(b"HELLO", b"3")
    await protocol.send(b"PSUBSCRIBE", b"reply:*")
    yield protocol.send_request
    transport.close()


class RedisPyRequester:
    """What a user of redis-py writes: a channel for each reply, subscribed before the request is published."""

    def __init__(self, client: Redis, pubsub: PubSub) -> None:
        self._client = client
        self._pubsub = pubsub
        self._subscribed: dict[bytes, asyncio.Future[None]] = {}
        self._replies_by_channel: dict[bytes, asyncio.Future[bytes]] = {}

    async def send_request(self, body: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        channel = b"reply:%b" % str(uuid.uuid4()).encode()
        subscribed = self._subscribed[channel] = loop.create_future()
        reply = self._replies_by_channel[channel] = loop.create_future()
        try:
            async with asyncio.timeout(TIMEOUT):
                await self._pubsub.subscribe(channel)
                await subscribed
                await self._client.publish(SERVICE, envelope(body, channel))
                return body_of(await reply)
        finally:
            del self._subscribed[channel], self._replies_by_channel[channel]
            await self._pubsub.unsubscribe(channel)

    async def listen(self) -> None:
        async for message in self._pubsub.listen():
            kind, channel = message["type"], message["channel"]
            future: asyncio.Future[Any] | None = None
            if kind == "subscribe":
                future = self._subscribed.get(channel)
            elif kind == "message":
                future = self._replies_by_channel.get(channel)
            if future is not None and not future.done():  # on a busy machine the request may have timed out
                future.set_result(message["data"])


@asynccontextmanager
async def redis_py(port: int) -> AsyncIterator[SendRequest]:
    async with (
        Redis(port=port, max_connections=CALLERS + 1, socket_connect_timeout=60) as client,
        client.pubsub() as pubsub,
    ):
        await pubsub.subscribe("another")  # listen() ends when nothing is subscribed
        requester = RedisPyRequester(client, pubsub)
        async with in_background(requester.listen()):
            yield requester.send_request


@asynccontextmanager
async def nats_py(port: int) -> AsyncIterator[SendRequest]:
    import nats

    async with await nats.connect(f"nats://127.0.0.1:{port}") as client:

        async def send_request(body: bytes) -> bytes:
            reply: bytes = (await client.request(SERVICE, body, timeout=TIMEOUT)).data
            return reply

        yield send_request


@contextmanager
def nats_server() -> Iterator[int]:
    """Run the NATS server of the system; yield its port."""
    binary = shutil.which("nats-server")
    if binary is None:
        raise RuntimeError("nats-server is not installed")
    port = free_port()
    with subprocess.Popen([binary, "-a", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL) as process:
        try:
            give_up = time.monotonic() + DEADLINE
            while time.monotonic() < give_up:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.01)
            yield port
        finally:
            process.kill()


# --- the service. The requests are buffered in the socket, like the messages of `drain`.


def envelope(body: bytes, reply_to: bytes = b"") -> bytes:
    """Encode an envelope with the least effort: id and time are constants."""
    space = b" " if reply_to else b""
    first = b"MPX/1 019a1b2c-3d4e-7f60-8a1b-2c3d4e5f6071 2026-01-01T00:00:00.000000Z"
    return b"%b%b%b\r\n\r\n%b" % (first, space, reply_to, body)


def body_of(data: bytes) -> bytes:
    return data.partition(b"\r\n\r\n")[2]


def reply_to_request(data: bytes) -> tuple[bytes, bytes]:
    """Return the reply channel and the reply of a request."""
    head, _, body = data.partition(b"\r\n\r\n")
    return head.split(b" ")[3], envelope(body)


def requests(bench: Bench) -> tuple[Publisher, int]:
    """Return the publisher of the requests, and their number."""
    number = bench.count(REQUESTS)
    return Publisher(bench.port, "room:", 1, number, len(BODY), envelope(b"", b"reply:0").decode()), number


async def serve(bench: Bench) -> None:
    publisher, number = requests(bench)
    countdown = Countdown(number)

    def reply(request: Request) -> bytes:
        countdown.function(request.channel, request.body)
        return request.body

    with publisher:
        async with Multiplexer(bench.url, max_pending=number, max_pending_bytes=None) as mpx:
            await mpx.serve("room:0", reply, concurrency=CONCURRENCY).wait_for_activation(timeout=30)
            with bench.measured(number):
                bench.publish(publisher, number)
                await countdown.done.wait()
                await mpx.drain()  # publishes the last replies
    assert published(bench.port) == 2 * number


def bare_serve(bench: Bench) -> None:
    """Reply to all requests that have arrived, with one write."""
    publisher, number = requests(bench)
    with publisher, floor.connect(bench.port) as raw:
        raw.command(b"HELLO", b"3")  # with RESP2, a subscribed connection must not publish
        raw.subscribe([b"room:0"])
        feed, gets, recv, send = raw.reader.feed, raw.reader.gets, raw.connection.recv, raw.connection.sendall
        with bench.measured(number):
            bench.publish(publisher, number)
            left = number
            while left:
                feed(recv(floor.READ_SIZE))
                replies = []
                while (reply := gets()) is not None:
                    if isinstance(reply, list):
                        replies.append(pack(b"PUBLISH", *reply_to_request(reply[2])))
                    else:  # the number of receivers of a reply
                        left -= 1
                if replies:
                    send(b"".join(replies))
    assert published(bench.port) == 2 * number


async def redis_py_serve(bench: Bench) -> None:
    """Reply to one request after another, which takes the least CPU time."""
    publisher, number = requests(bench)
    with publisher:
        async with Redis(port=bench.port) as client, client.pubsub(ignore_subscribe_messages=True) as pubsub:
            await pubsub.subscribe("room:0")
            await settled(bench.port, 1, 0)
            with bench.measured(number):
                bench.publish(publisher, number)
                left = number
                async for message in pubsub.listen():
                    await client.publish(*reply_to_request(message["data"]))
                    left -= 1
                    if not left:
                        break
    assert published(bench.port) == 2 * number


REQUEST: dict[str, Contestant] = {
    "redismpx": partial(measure_redis, redismpx),
    "floor": partial(measure_redis, bare),
    "redis-py": partial(measure_redis, redis_py),
    "nats-py": measure_nats,
}
SERVE: dict[str, Contestant] = {"redismpx": serve, "floor": bare_serve, "redis-py": redis_py_serve}

CASES = [
    Case("request", "100 callers at once, each sends the next request after its reply", "request", REQUEST),
    Case("serve", "requests that are buffered in the socket get replies, 100 at once", "request", SERVE),
]
