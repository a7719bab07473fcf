"""Request and reply: the cost for who asks, and for who answers, the other being another process."""

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
from .responder import AT_ONCE, SERVICE

CALLERS = 100
REQUESTS = 50_000
BODY = b"x" * 64
TIMEOUT = 30.0

Ask = Callable[[bytes], Awaitable[bytes]]
Asking = Callable[[int], AbstractAsyncContextManager[Ask]]
"""Given the port of a server."""


# --- who asks


async def measure(asking: Asking, kind: str, port: int, bench: Bench) -> None:
    callers = bench.count(CALLERS, least=10)
    each = bench.count(REQUESTS) // callers

    async def call(times: int) -> None:
        for _ in range(times):
            assert await ask(BODY) == BODY

    async def all_call(times: int) -> None:
        await asyncio.gather(*(call(times) for _ in range(callers)))

    with Companion(str(Path(__file__).with_name("responder.py")), kind, str(port)) as responder:
        responder.hear()
        async with asking(port) as ask:
            await all_call(1)  # connections are made
            with bench.measured(callers * each):
                await all_call(each)


async def ask_redis(asking: Asking, bench: Bench) -> None:
    await measure(asking, "redismpx", bench.port, bench)


async def ask_nats(bench: Bench) -> None:
    with nats_server() as port:
        await measure(nats_py, "nats", port, bench)


@asynccontextmanager
async def redismpx(port: int) -> AsyncIterator[Ask]:
    async with Multiplexer(f"redis://127.0.0.1:{port}") as mpx:
        yield partial(mpx.request, SERVICE, timeout=TIMEOUT)


class BareAsker(Bare):
    """One connection and one pattern for all answers. No deadlines, and channels that can be guessed."""

    def __init__(self) -> None:
        super().__init__()
        self._answers: dict[bytes, asyncio.Future[bytes]] = {}
        self._numbers = count()

    async def ask(self, body: bytes) -> bytes:
        channel = b"reply:%d" % next(self._numbers)
        answer = self._answers[channel] = self._loop.create_future()
        self.send(b"PUBLISH", SERVICE.encode(), envelope(body, channel))
        return body_of(await answer)

    def take(self, reply: Any) -> None:
        if isinstance(reply, list) and reply[0] == b"pmessage":
            self._answers.pop(reply[2]).set_result(reply[3])
        else:
            super().take(reply)


@asynccontextmanager
async def bare(port: int) -> AsyncIterator[Ask]:
    transport, protocol = await asyncio.get_running_loop().create_connection(BareAsker, "127.0.0.1", port)
    await protocol.send(b"HELLO", b"3")
    await protocol.send(b"PSUBSCRIBE", b"reply:*")
    yield protocol.ask
    transport.close()


class ByHand:
    """What one writes on redis-py: a channel for each answer, subscribed before the request is published."""

    def __init__(self, client: Redis, pubsub: PubSub) -> None:
        self._client = client
        self._pubsub = pubsub
        self._subscribed: dict[bytes, asyncio.Future[None]] = {}
        self._answers: dict[bytes, asyncio.Future[bytes]] = {}

    async def ask(self, body: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        channel = b"reply:%b" % str(uuid.uuid4()).encode()
        subscribed = self._subscribed[channel] = loop.create_future()
        answer = self._answers[channel] = loop.create_future()
        try:
            async with asyncio.timeout(TIMEOUT):
                await self._pubsub.subscribe(channel)
                await subscribed
                await self._client.publish(SERVICE, envelope(body, channel))
                return body_of(await answer)
        finally:
            del self._subscribed[channel], self._answers[channel]
            await self._pubsub.unsubscribe(channel)

    async def listen(self) -> None:
        async for message in self._pubsub.listen():
            kind, channel = message["type"], message["channel"]
            if kind == "subscribe" and channel in self._subscribed:
                self._subscribed[channel].set_result(None)
            elif kind == "message" and channel in self._answers:
                self._answers[channel].set_result(message["data"])


@asynccontextmanager
async def redis_py(port: int) -> AsyncIterator[Ask]:
    async with Redis(port=port, max_connections=CALLERS + 1) as client, client.pubsub() as pubsub:
        await pubsub.subscribe("another")  # listen() ends when nothing is subscribed
        hand = ByHand(client, pubsub)
        async with in_background(hand.listen()):
            yield hand.ask


@asynccontextmanager
async def nats_py(port: int) -> AsyncIterator[Ask]:
    import nats

    async with await nats.connect(f"nats://127.0.0.1:{port}") as client:

        async def ask(body: bytes) -> bytes:
            answer: bytes = (await client.request(SERVICE, body, timeout=TIMEOUT)).data
            return answer

        yield ask


@contextmanager
def nats_server() -> Iterator[int]:
    """Run a server of NATS, which comes from the system's packages; yield its port."""
    binary = shutil.which("nats-server")
    if binary is None:
        raise RuntimeError("there is no nats-server on PATH")
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


# --- who answers: the requests wait in the socket, as messages do in `drain`


def envelope(body: bytes, reply_to: bytes = b"") -> bytes:
    """Write one with as little as possible: the id and the time are always the same."""
    space = b" " if reply_to else b""
    first = b"MPX/1 019a1b2c-3d4e-7f60-8a1b-2c3d4e5f6071 2026-01-01T00:00:00.000000Z"
    return b"%b%b%b\r\n\r\n%b" % (first, space, reply_to, body)


def body_of(data: bytes) -> bytes:
    return data.partition(b"\r\n\r\n")[2]


def answer_to(data: bytes) -> tuple[bytes, bytes]:
    """Return the channel for the answer, and the answer."""
    head, _, body = data.partition(b"\r\n\r\n")
    return head.split(b" ")[3], envelope(body)


def requests(bench: Bench) -> tuple[Publisher, int]:
    """Return who publishes them, and how many there are."""
    number = bench.count(REQUESTS)
    return Publisher(bench.port, "room:", 1, number, len(BODY), envelope(b"", b"reply:0").decode()), number


async def serve(bench: Bench) -> None:
    publisher, number = requests(bench)
    countdown = Countdown(number)

    def answer(request: Request) -> bytes:
        countdown.function(request.channel, request.body)
        return request.body

    with publisher:
        async with Multiplexer(bench.url, max_pending=number, max_pending_bytes=None) as mpx:
            await mpx.serve("room:0", answer, concurrency=AT_ONCE).wait_for_activation(30)
            with bench.measured(number):
                bench.publish(publisher, number)
                await countdown.done.wait()
                await mpx.drain()  # the last answers are published
    assert published(bench.port) == 2 * number


def bare_serve(bench: Bench) -> None:
    """As much as has arrived is answered at once."""
    publisher, number = requests(bench)
    with publisher, floor.connect(bench.port) as raw:
        raw.command(b"HELLO", b"3")  # in RESP2, who is subscribed may not publish
        raw.subscribe([b"room:0"])
        feed, gets, recv, send = raw.reader.feed, raw.reader.gets, raw.connection.recv, raw.connection.sendall
        with bench.measured(number):
            bench.publish(publisher, number)
            left = number
            while left:
                feed(recv(floor.READ_SIZE))
                answers = []
                while (reply := gets()) is not None:
                    if isinstance(reply, list):
                        answers.append(pack(b"PUBLISH", *answer_to(reply[2])))
                    else:  # how many received an answer
                        left -= 1
                if answers:
                    send(b"".join(answers))
    assert published(bench.port) == 2 * number


async def redis_py_serve(bench: Bench) -> None:
    """One after another, which takes least CPU time."""
    publisher, number = requests(bench)
    with publisher:
        async with Redis(port=bench.port) as client, client.pubsub(ignore_subscribe_messages=True) as pubsub:
            await pubsub.subscribe("room:0")
            await settled(bench.port, 1, 0)
            with bench.measured(number):
                bench.publish(publisher, number)
                left = number
                async for message in pubsub.listen():
                    await client.publish(*answer_to(message["data"]))
                    left -= 1
                    if not left:
                        break
    assert published(bench.port) == 2 * number


REQUEST: dict[str, Contestant] = {
    "redismpx": partial(ask_redis, redismpx),
    "floor": partial(ask_redis, bare),
    "redis-py": partial(ask_redis, redis_py),
    "nats-py": ask_nats,
}
SERVE: dict[str, Contestant] = {"redismpx": serve, "floor": bare_serve, "redis-py": redis_py_serve}

CASES = [
    Case("request", "100 callers at once, each of whom asks again when it has its answer", "request", REQUEST),
    Case("serve", "requests that wait in the socket are answered, 100 at once", "request", SERVE),
]
