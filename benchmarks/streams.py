"""Cases: append to a stream, get its live messages, read its history, and share it among very many subscriptions."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import redis
from redis.asyncio import Redis

from redismpx import Multiplexer

from .harness import Bench, Case, Contestant
from .publisher import pack

STREAM = b"stream"
DATA = b"x" * 64
CALLERS = 500
APPENDED, LIVE, HISTORY, SHARED = 50_000, 100_000, 200_000, 200
READS = 5  # of the same history
SUBSCRIPTIONS = 1_000
PAGE = 1_000


def send(bench: Bench, commands: list[bytes]) -> None:
    """Send commands, without a wait for replies."""
    with socket.create_connection(("127.0.0.1", bench.port)) as connection:
        connection.sendall(pack(b"CLIENT", b"REPLY", b"OFF") + b"".join(commands))
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)  # until the server has done all of them


# --- append


async def by_callers(bench: Bench, append: Callable[[], Awaitable[object]], full: int) -> None:
    """Append from many callers at once."""
    count = bench.count(full, CALLERS)
    turns = iter(range(count))

    async def call() -> None:
        for _ in turns:
            await append()

    with bench.measured(count):
        await asyncio.gather(*[call() for _ in range(CALLERS)])


async def append_redismpx(bench: Bench) -> None:
    async with Multiplexer(bench.url) as mpx:
        await mpx.append(STREAM, DATA)
        await by_callers(bench, lambda: mpx.append(STREAM, DATA), APPENDED)


async def append_publish(bench: Bench) -> None:
    async with Multiplexer(bench.url) as mpx:
        await mpx.publish(STREAM, DATA)
        await by_callers(bench, lambda: mpx.publish(STREAM, DATA), APPENDED)


async def append_redis_py(bench: Bench) -> None:
    async with Redis.from_url(bench.url, max_connections=2 * CALLERS, socket_connect_timeout=60) as client:

        async def append() -> None:
            async with client.pipeline(transaction=False) as pipeline:
                pipeline.xadd(STREAM, {"data": DATA}, maxlen=1_000)
                pipeline.publish(STREAM, DATA)
                await pipeline.execute()

        await by_callers(bench, append, APPENDED // 5)


# --- live messages


def frames(count: int) -> list[bytes]:
    """Live messages of which each follows the one before it. They are published, and not appended."""
    ids = [b"0-0", *(b"1-%d" % number for number in range(1, count + 1))]
    return [pack(b"PUBLISH", STREAM, b"%b %b %b" % (ids[n], ids[n + 1], DATA)) for n in range(count)]


async def live(bench: Bench, *, is_stream: bool) -> None:
    """Get live messages with one consumer."""
    count = bench.count(LIVE)
    left, done = [count], asyncio.Event()

    def on_message(*_: object) -> None:
        left[0] -= 1
        if not left[0]:
            done.set()

    async with Multiplexer(bench.url, tail_interval=None) as mpx:
        sub: Any = (mpx.new_stream_subscription if is_stream else mpx.new_channel_subscription)(on_message)
        sub.add(STREAM)
        await sub.wait_for_activation(timeout=30)
        await asyncio.sleep(0.1)
        commands = frames(count)
        with bench.measured(count):
            send(bench, commands)
            await done.wait()


# --- history


def fill(bench: Bench, count: int) -> None:
    """Append entries."""
    ids = [b"0-0", *(b"1-%d" % number for number in range(1, count + 1))]
    send(bench, [pack(b"XADD", STREAM, ids[n + 1], b"prev", ids[n], b"data", DATA) for n in range(count)])


async def history_redismpx(bench: Bench) -> None:
    count = bench.count(HISTORY)
    fill(bench, count)
    async with Multiplexer(bench.url) as mpx:
        await mpx.history(STREAM, limit=1)
        got = 0
        with bench.measured(READS * count):
            for _ in range(READS):
                after = b"0"
                while messages := await mpx.history(STREAM, after=after, limit=PAGE):
                    got, after = got + len(messages), messages[-1].id
    assert got == READS * count


async def history_subscription(bench: Bench) -> None:
    count = bench.count(HISTORY)
    fill(bench, count)
    got, done = [0], asyncio.Event()

    def on_message(_: object) -> None:
        got[0] += 1
        if got[0] == count:
            done.set()

    async with Multiplexer(bench.url) as mpx:
        await mpx.connect(30)
        with bench.measured(count):
            mpx.new_stream_subscription(on_message).add(STREAM, after="0")
            await done.wait()


async def history_redis_py(bench: Bench) -> None:
    count = bench.count(HISTORY)
    fill(bench, count)
    async with Redis.from_url(bench.url) as client:
        await client.ping()
        got = 0
        with bench.measured(READS * count):
            for _ in range(READS):
                after = b"-"
                while entries := await client.xrange(STREAM, min=after, count=PAGE):
                    got, after = got + len(entries), b"(" + entries[-1][0]
    assert got == READS * count


# --- many subscriptions


async def shared_redismpx(bench: Bench) -> None:
    messages = bench.count(SHARED, 2)
    total = messages * SUBSCRIPTIONS
    got, done = [0], asyncio.Event()

    def on_message(_: object) -> None:
        got[0] += 1
        if got[0] == total:
            done.set()

    async with Multiplexer(bench.url) as mpx, Multiplexer(bench.url) as writer:
        subs = [mpx.new_stream_subscription(on_message) for _ in range(SUBSCRIPTIONS)]
        for sub in subs:
            sub.add(STREAM)
        for sub in subs:
            await sub.wait_for_activation(timeout=30)
        with bench.measured(total):
            for _ in range(messages):
                await writer.append(STREAM, DATA)
            await done.wait()


async def shared_redis_py(bench: Bench) -> None:
    """A loop of XREAD for each client."""
    messages, clients = bench.count(SHARED, 2), bench.count(SUBSCRIPTIONS)
    total = messages * clients
    got, done, ready = [0], asyncio.Event(), [0]
    async with Redis.from_url(bench.url, max_connections=2 * clients, socket_connect_timeout=60) as client:

        async def read() -> None:
            last: Any = b"0"
            while not done.is_set():
                ready[0] += 1
                reply: Any = await client.xread({STREAM: last}, block=500)
                for _, entries in reply.items() if isinstance(reply, dict) else reply or ():
                    for entry_id, _ in entries[0] if isinstance(reply, dict) else entries:
                        last = entry_id
                        got[0] += 1
                if got[0] == total:
                    done.set()

        readers = [asyncio.create_task(read()) for _ in range(clients)]
        while ready[0] < clients:
            await asyncio.sleep(0.01)
        with bench.measured(total), redis.Redis(port=bench.port) as writer:
            for _ in range(messages):
                writer.xadd(STREAM, {"data": DATA})
                await asyncio.sleep(0)
            await done.wait()
        await asyncio.gather(*readers)


async def shared_replayrail(bench: Bench) -> None:
    """A loop of `read()` for each client, as its own WebSocket endpoint has."""
    from replayrail import ReplayRail
    from replayrail.stores.redis import RedisStreamStore

    messages, clients = bench.count(SHARED, 2), bench.count(SUBSCRIPTIONS)
    total = messages * clients
    got, done, ready = [0], asyncio.Event(), [0]
    # It reads the replies of RESP2 only.
    options: Any = {"decode_responses": True, "protocol": 2, "socket_connect_timeout": 60}
    async with Redis.from_url(bench.url, max_connections=2 * clients, **options) as client:
        rail = ReplayRail(store=RedisStreamStore(client))

        async def read() -> None:
            last = "0-0"
            while not done.is_set():
                ready[0] += 1
                for event in await rail.read("stream", after=last, block_ms=500):
                    last = event.id
                    got[0] += 1
                if got[0] == total:
                    done.set()

        readers = [asyncio.create_task(read()) for _ in range(clients)]
        while ready[0] < clients:
            await asyncio.sleep(0.01)
        with bench.measured(total):
            for _ in range(messages):
                await rail.publish(channel="stream", event_type="message", payload={"data": DATA.decode()})
            await done.wait()
        await asyncio.gather(*readers)


def new_case(name: str, title: str, operation: str, **contestants: Contestant) -> Case:
    return Case(name, title, operation, {key.replace("_", "-"): each for key, each in contestants.items()})


CASES = [
    new_case(
        "append-500",
        f"messages of 64 B, appended to a stream by {CALLERS} callers at once; `publish` only publishes them, redis-py "
        "adds and publishes in a pipeline per call",
        "message",
        redismpx=append_redismpx,
        publish=append_publish,
        redis_py=append_redis_py,
    ),
    new_case(
        "stream-live",
        "live messages of a stream of 64 B, buffered in the socket, to a plain function; `channel` is a channel",
        "message",
        redismpx=partial(live, is_stream=True),
        channel=partial(live, is_stream=False),
    ),
    new_case(
        "stream-history",
        f"entries of 64 B, read back in pages of {PAGE}; `subscription` gets them one by one, redis-py by XRANGE",
        "entry",
        redismpx=history_redismpx,
        subscription=history_subscription,
        redis_py=history_redis_py,
    ),
    new_case(
        "stream-shared",
        f"messages of one stream to {SUBSCRIPTIONS} subscriptions; redis-py and replayrail have a loop of XREAD each",
        "delivery",
        redismpx=shared_redismpx,
        redis_py=shared_redis_py,
        replayrail=shared_replayrail,
    ),
]
