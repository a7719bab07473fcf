"""Cases: threads that read, threads that publish, and calls from one event loop after the other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from redismpx.blocking import Multiplexer

from .harness import Bench, Case
from .publisher import Publisher

MESSAGES, PUBLISHED, CALLS = 100_000, 20_000, 1_000
THREADS = 8
DATA = b"x" * 64


def listen(bench: Bench) -> None:
    messages = bench.count(MESSAGES)
    with (
        Publisher(bench.port, "room:", 1, messages, len(DATA)) as publisher,
        Multiplexer(bench.url, max_pending=messages) as mpx,
        mpx.subscribe("room:0") as sub,
    ):
        left = messages
        with bench.measured(messages):
            bench.publish(publisher, messages)
            for message in sub.listen():
                left -= bool(message.data)
                if not left:
                    break
        assert sub.dropped == 0


def redis_py_listen(bench: Bench) -> None:
    messages = bench.count(MESSAGES)
    with (
        Publisher(bench.port, "room:", 1, messages, len(DATA)) as publisher,
        Redis(port=bench.port) as client,
        client.pubsub() as pubsub,
    ):
        pubsub.subscribe("room:0")
        next(pubsub.listen())
        left = messages
        with bench.measured(messages):
            bench.publish(publisher, messages)
            for message in pubsub.listen():
                left -= bool(message["data"])
                if not left:
                    break


def publish(bench: Bench, call: Callable[[str, bytes], object]) -> None:
    each = bench.count(PUBLISHED) // THREADS

    def work() -> None:
        for _ in range(each):
            call("room:0", DATA)

    call("room:0", DATA)
    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    with bench.measured(THREADS * each):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def publish_here(bench: Bench) -> None:
    with Multiplexer(bench.url) as mpx:
        publish(bench, mpx.publish)


def redis_py_publish(bench: Bench) -> None:
    with Redis(port=bench.port) as client:
        publish(bench, client.publish)


def calls(bench: Bench) -> None:
    """Publish from a loop that lasts for one call, as asgiref's async_to_sync does."""
    with Multiplexer(bench.url) as mpx:
        asyncio.run(mpx.apublish("room:0", DATA))
        count = bench.count(CALLS)
        with bench.measured(count):
            for _ in range(count):
                asyncio.run(mpx.apublish("room:0", DATA))


def redis_py_calls(bench: Bench) -> None:
    """The same with a connection for each call: a client of redis-py belongs to its loop."""

    async def call() -> None:
        async with AsyncRedis(port=bench.port) as client:
            await client.publish("room:0", DATA)

    count = bench.count(CALLS)
    with bench.measured(count):
        for _ in range(count):
            asyncio.run(call())


CASES = [
    Case(
        "threads-listen", "messages of 64 B, read by a thread", "message",
        {"redismpx": listen, "redis-py": redis_py_listen},
    ),
    Case(
        "threads-publish", f"the same, published by {THREADS} threads", "message",
        {"redismpx": publish_here, "redis-py": redis_py_publish},
    ),
    Case(
        "threads-calls", "the same, each from an event loop of its own", "message",
        {"redismpx": calls, "redis-py": redis_py_calls},
    ),
]  # fmt: skip
