"""Cases: a hundred thousand names are subscribed, subscribed again after a loss, held in memory, and unsubscribed."""

from __future__ import annotations

import asyncio
import gc
import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path

from redis.asyncio import Redis

from redismpx import Multiplexer

from . import floor
from .drain import Countdown
from .harness import Bench, Case, Contestant
from .peers import in_background

NAMES = 100_000
ROOMS = 5  # of each client
CLIENTS = 100  # join and leave together
TICK = 0.001  # seconds


def ignore(channel: object, data: object) -> None:
    pass


def names_for(bench: Bench) -> list[bytes]:
    return [b"room:%d" % number for number in range(bench.count(NAMES))]


@contextmanager
def stalls(bench: Bench) -> Iterator[None]:
    """Measure the longest time for which the event loop ran nothing else, in milliseconds."""
    loop = asyncio.get_running_loop()
    worst = 0.0
    is_over = False

    def tick(due: float) -> None:
        nonlocal worst
        worst = max(worst, loop.time() - due)
        if not is_over:
            loop.call_later(TICK, tick, loop.time() + TICK)

    tick(loop.time())
    yield
    is_over = True
    bench.measures["stall"] = worst * 1000


# --- the time until all names are active, and until they are active again after the connection is killed


async def subscribe(again: bool, bench: Bench) -> None:
    names = names_for(bench)
    lost = asyncio.Event()
    async with Multiplexer(bench.url) as mpx:
        await mpx.connect(30)
        sub = mpx.new_channel_subscription(ignore, lambda error: lost.set())
        if not again:
            with bench.measured(len(names)), stalls(bench):
                # Each call blocks the loop, so a caller with many names adds them in parts.
                for start in range(0, len(names), 1000):
                    sub.add(*names[start : start + 1000])
                    await asyncio.sleep(0)
                await sub.wait_for_activation(timeout=60)
        else:
            sub.add(*names)
            await sub.wait_for_activation(timeout=60)
            with floor.connect(bench.port) as admin, bench.measured(len(names)), stalls(bench):
                await asyncio.to_thread(kill, admin)
                await lost.wait()
                await sub.wait_for_activation(timeout=60)
        assert_subscribed(bench, len(names))


def assert_subscribed(bench: Bench, channels: int) -> None:
    with floor.connect(bench.port) as admin:
        answer = admin.command(b"PUBSUB", b"CHANNELS")
        assert isinstance(answer, list)
        assert len(answer) == channels, f"{len(answer)} of {channels} channels are subscribed"


def kill(admin: floor.Raw) -> None:
    """Kill the subscriber's connection. Blocks until the server has removed its names, so call it in a thread."""
    assert admin.command(b"CLIENT", b"KILL", b"TYPE", b"pubsub") == 1


def bare_subscribe(again: bool, bench: Bench) -> None:
    names = names_for(bench)
    with floor.connect(bench.port) as raw:
        if not again:
            with bench.measured(len(names)):
                raw.subscribe(names)
            return
        raw.subscribe(names)
        with floor.connect(bench.port) as admin, bench.measured(len(names)):
            kill(admin)
            assert raw.connection.recv(1) == b""
            with floor.connect(bench.port) as another:
                another.subscribe(names)


async def redis_py_subscribe(again: bool, bench: Bench) -> None:
    names = names_for(bench)
    first, second = Countdown(len(names)), Countdown(2 * len(names))

    async def listen() -> None:
        async for message in pubsub.listen():
            if message["type"] == "subscribe":
                first.function(None, None)
                second.function(None, None)

    async with Redis(port=bench.port) as client, client.pubsub() as pubsub:
        await pubsub.subscribe(b"another")  # redis-py cannot read before the first subscribe()
        await pubsub.get_message(timeout=30)
        async with in_background(listen()):
            if not again:
                with bench.measured(len(names)), stalls(bench):
                    await pubsub.subscribe(*names)
                    await first.done.wait()
            else:
                await pubsub.subscribe(*names)
                await first.done.wait()
                with floor.connect(bench.port) as admin, bench.measured(len(names)), stalls(bench):
                    await asyncio.to_thread(kill, admin)
                    await second.done.wait()


async def coredis_subscribe(bench: Bench) -> None:
    import coredis

    names = names_for(bench)
    async with coredis.Redis(port=bench.port) as client, client.pubsub(subscription_timeout=60) as pubsub:
        with bench.measured(len(names)), stalls(bench):
            await pubsub.subscribe(*names)
        assert_subscribed(bench, len(names))


async def valkey_glide_subscribe(bench: Bench) -> None:
    import glide

    names = {name.decode() for name in names_for(bench)}
    client = await glide.GlideClient.create(
        glide.GlideClientConfiguration([glide.NodeAddress("127.0.0.1", bench.port)], request_timeout=60_000)
    )
    with bench.measured(len(names)), stalls(bench):
        await client.subscribe(names, timeout_ms=60_000)
    assert_subscribed(bench, len(names))
    await client.close()


# --- clients that join rooms of their own and leave them


def client_groups(bench: Bench) -> Iterator[list[list[bytes]]]:
    """Yield the rooms of each client, group by group."""
    for turn in range(bench.count(10_000, least=CLIENTS) // CLIENTS):
        yield [[b"room:%d:%d:%d" % (turn, client, room) for room in range(ROOMS)] for client in range(CLIENTS)]


async def churn(bench: Bench) -> None:
    work = list(client_groups(bench))
    async with Multiplexer(bench.url) as mpx:
        await mpx.connect(30)
        with bench.measured(len(work) * CLIENTS):
            for clients in work:
                subs = []
                for rooms in clients:
                    sub = mpx.new_channel_subscription(ignore)
                    sub.add(*rooms)
                    subs.append(sub)
                for sub in subs:
                    await sub.wait_for_activation(timeout=30)
                for sub in subs:
                    sub.close()


def bare_churn(bench: Bench) -> None:
    work = list(client_groups(bench))
    with floor.connect(bench.port) as raw, bench.measured(len(work) * CLIENTS):
        for clients in work:
            names = [room for rooms in clients for room in rooms]
            raw.subscribe(names)
            raw.subscribe(names, b"UNSUBSCRIBE")


async def redis_py_churn(bench: Bench) -> None:
    work = list(client_groups(bench))
    confirmed = Countdown(0)

    async def listen() -> None:
        async for message in pubsub.listen():
            if message["type"] == "subscribe":
                confirmed.function(None, None)

    async with Redis(port=bench.port) as client, client.pubsub() as pubsub:
        await pubsub.subscribe(b"another")  # listen() ends when nothing is subscribed
        await pubsub.get_message(timeout=30)
        async with in_background(listen()):
            with bench.measured(len(work) * CLIENTS):
                for clients in work:
                    confirmed = Countdown(CLIENTS * ROOMS)
                    for rooms in clients:
                        await pubsub.subscribe(*rooms)
                    await confirmed.done.wait()
                    for rooms in clients:
                        await pubsub.unsubscribe(*rooms)


async def broadcaster_churn(bench: Bench) -> None:
    """broadcaster does not report when a channel is active."""
    from broadcaster import Broadcast

    work = list(client_groups(bench))
    async with Broadcast(bench.url) as broadcast, broadcast.subscribe("another"):
        with bench.measured(len(work) * CLIENTS):
            for clients in work:
                async with AsyncExitStack() as stack:
                    for rooms in clients:
                        for room in rooms:
                            await stack.enter_async_context(broadcast.subscribe(room.decode()))


# --- the memory of an idle subscription with one channel


@contextmanager
def memory(metric: str, count: int, bench: Bench) -> Iterator[None]:
    """Measure by how much the metric grows inside the block, divided by `count`."""
    gc.collect()
    if metric == "traced":
        tracemalloc.start()
    before = MEMORY[metric]()
    yield
    gc.collect()
    bench.measures[metric] = (MEMORY[metric]() - before) / count
    tracemalloc.stop()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


MEMORY: dict[str, Callable[[], int]] = {"traced": lambda: tracemalloc.get_traced_memory()[0], "resident": resident}


async def idle(metric: str, bench: Bench) -> None:
    count = bench.count(NAMES)
    async with Multiplexer(bench.url) as mpx:
        await mpx.connect(30)
        with memory(metric, count, bench):
            subs = []
            for number in range(count):
                sub = mpx.new_channel_subscription(ignore)
                sub.add(b"room:%d" % number)
                subs.append(sub)
            await subs[-1].wait_for_activation(timeout=60)
        assert mpx.stats().channels == len(subs)


async def bare_idle(metric: str, bench: Bench) -> None:
    """The floor: a dictionary with a list of functions for each name."""
    with memory(metric, bench.count(NAMES), bench):
        rooms = {b"room:%d" % number: [ignore] for number in range(bench.count(NAMES))}
    assert len(rooms) == bench.count(NAMES)


async def broadcaster_idle(metric: str, bench: Bench) -> None:
    from broadcaster import Broadcast

    count = bench.count(NAMES // 10)  # the memory of each does not depend on their number

    async def listen(subscriber: object) -> None:
        async for _ in subscriber:  # type: ignore[attr-defined]
            pass

    async with AsyncExitStack() as stack:
        broadcast = await stack.enter_async_context(Broadcast(bench.url))
        with memory(metric, count, bench):
            tasks = []
            for number in range(count):
                subscriber = await stack.enter_async_context(broadcast.subscribe(f"room:{number}"))
                tasks.append(listen(subscriber))
            await stack.enter_async_context(in_background(*tasks))
            await asyncio.sleep(0.1)


def memory_case(name: str, metric: str, title: str) -> Case:
    contestants = {"redismpx": idle, "floor": bare_idle, "broadcaster": broadcaster_idle}
    return Case(
        name,
        f"100,000 idle subscriptions with a channel each: {title}",
        "subscription",
        {name: partial(contestant, metric) for name, contestant in contestants.items()},
        metric,
    )


SUBSCRIBE: dict[str, Contestant] = {
    "redismpx": partial(subscribe, False),
    "floor": partial(bare_subscribe, False),
    "redis-py": partial(redis_py_subscribe, False),
    "valkey-glide": valkey_glide_subscribe,
    "coredis": coredis_subscribe,
}
RESUBSCRIBE: dict[str, Contestant] = {
    "redismpx": partial(subscribe, True),
    "floor": partial(bare_subscribe, True),
    "redis-py": partial(redis_py_subscribe, True),
}
CHURN: dict[str, Contestant] = {
    "redismpx": churn,
    "floor": bare_churn,
    "redis-py": redis_py_churn,
    "broadcaster": broadcaster_churn,
}

CASES = [
    Case("subscribe", "100,000 channels, until all are active", "channel", SUBSCRIBE),
    Case("resubscribe", "100,000 channels after a killed connection, until all are active", "channel", RESUBSCRIBE),
    Case("churn", "a client joins 5 rooms of its own and leaves", "client", CHURN),
    memory_case("memory", "traced", "as Python counts it (tracemalloc)"),
    memory_case("memory-resident", "resident", "as the system counts it"),
]
