"""Cases: the channel layers for Django Channels: messages from synchronous code, and to a thousand consumers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import msgpack
from asgiref.sync import async_to_sync
from redis import Redis

from .harness import Bench, Case
from .publisher import Companion

CALLS = 500
CONSUMERS, GROUPS = 1000, 10
ROUNDS = 50  # of one message to each group; the next round starts when all consumers have their message
MESSAGE = {"type": "chat.message", "text": "x" * 64}

PUBLISHER = """
import sys
from redis import Redis

port, groups, data = int(sys.argv[1]), int(sys.argv[2]), bytes.fromhex(sys.argv[3])
with Redis(port=port).pipeline(transaction=False) as pipe:
    print(0, flush=True)
    while sys.stdin.readline():
        for number in range(groups):
            pipe.publish(f"asgi__group__room{number}", data)
        print(sum(pipe.execute()), flush=True)
"""

NewLayer = Callable[[list[str]], Any]


def redismpx(hosts: list[str]) -> Any:
    from redismpx.contrib.channels import ChannelLayer

    return ChannelLayer(hosts)


def channels_redis(hosts: list[str]) -> Any:
    from channels_redis.pubsub import RedisPubSubChannelLayer

    return RedisPubSubChannelLayer(hosts)


def send(new_layer: NewLayer, bench: Bench) -> None:
    """Call async_to_sync(group_send) in a thread without an event loop, as a Django view does."""
    layer, calls = new_layer([bench.url]), bench.count(CALLS)
    group_send = async_to_sync(layer.group_send)
    group_send("room", MESSAGE)
    with Redis(port=bench.port) as admin:
        before = admin.info("stats")["total_connections_received"]
        with bench.measured(calls):
            for _ in range(calls):
                group_send("room", MESSAGE)
        opened = admin.info("stats")["total_connections_received"] - before
    bench.measures["connections"] = opened / calls
    async_to_sync(layer.flush)()


def send_nothing(bench: Bench) -> None:
    """The floor: the call of a coroutine that does nothing."""

    async def do_nothing() -> None: ...

    call = async_to_sync(do_nothing)
    call()
    calls = bench.count(CALLS)
    with bench.measured(calls):
        for _ in range(calls):
            call()


async def receive(new_layer: NewLayer, bench: Bench) -> None:
    """Receive in a task for each consumer, as Channels does."""
    layer, rounds = new_layer([bench.url]), bench.count(ROUNDS, least=2)
    consumers = bench.count(CONSUMERS, least=2 * GROUPS)
    left, heard = 0, asyncio.Event()

    async def consume(channel: str) -> None:
        nonlocal left
        while True:
            assert await layer.receive(channel) == MESSAGE
            left -= 1
            if not left:
                heard.set()

    names = [await layer.new_channel() for _ in range(consumers)]
    for number, name in enumerate(names):
        await layer.group_add(f"room{number % GROUPS}", name)
    tasks = [asyncio.create_task(consume(name)) for name in names]
    data: bytes = msgpack.packb(MESSAGE)
    with Companion("-c", PUBLISHER, str(bench.port), str(GROUPS), data.hex()) as publisher:
        await asyncio.to_thread(publisher.hear)
        with bench.measured(consumers * rounds):
            for _ in range(rounds):
                left = consumers
                heard.clear()
                publisher.tell()
                await heard.wait()
                assert publisher.hear() == GROUPS
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await layer.flush()


CASES = [
    Case("channels-send", "async_to_sync(group_send) of Django Channels", "call", {
        "redismpx": partial(send, redismpx),
        "floor": send_nothing,
        "channels_redis": partial(send, channels_redis),
    }),
    Case("channels-receive", "1,000 consumers of Django Channels in 10 groups", "message to a consumer", {
        "redismpx": partial(receive, redismpx),
        "channels_redis": partial(receive, channels_redis),
    }),
]  # fmt: skip
