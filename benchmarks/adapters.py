"""Cases: a burst of messages through the adapters for broadcaster and Litestar, and through what they replace."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

from .drain import Countdown
from .harness import Bench, Case
from .peers import in_background, settled
from .publisher import Publisher

CHANNEL = "room:0"
DELIVERIES = 10_000  # in one burst
BURSTS = 10


def redismpx(url: str) -> Any:
    from redismpx.contrib.broadcaster import Broadcast

    return Broadcast(url)


def backend(url: str) -> Any:
    """Broadcast of broadcaster with our backend, which also has the queues of broadcaster."""
    from broadcaster import Broadcast

    from redismpx.contrib.broadcaster import MultiplexerBackend

    return Broadcast(backend=MultiplexerBackend(url))


def broadcaster(url: str) -> Any:
    from broadcaster import Broadcast

    return Broadcast(url)


async def broadcast(new: Callable[[str], Any], subscribers: int, bench: Bench) -> None:
    """Read each subscriber in a task of its own."""
    countdown, ready = Countdown(0), Countdown(1)

    async def listen() -> None:
        async with broadcast.subscribe(CHANNEL) as subscriber:
            ready.function(None, None)
            async for event in subscriber:
                countdown.function(event.channel, event.message)

    # One before the others: of several first subscribers of broadcaster at once, only the last gets messages.
    async with new(bench.url) as broadcast, in_background(listen()):
        await ready.done.wait()
        ready.restart(subscribers - 1)
        async with in_background(*(listen() for _ in range(subscribers - 1))):
            if subscribers > 1:
                await ready.done.wait()
            await measure(subscribers, countdown, bench)


def redismpx_backend(url: str) -> tuple[Any, Callable[[], Awaitable[None]]]:
    from redismpx.contrib.litestar import MultiplexerChannelsBackend

    async def close() -> None: ...

    return MultiplexerChannelsBackend(url), close


def litestar_backend(url: str) -> tuple[Any, Callable[[], Awaitable[None]]]:
    from litestar.channels.backends.redis import RedisChannelsPubSubBackend
    from redis.asyncio import Redis

    client = Redis.from_url(url)
    return RedisChannelsPubSubBackend(redis=client), client.aclose


async def litestar(
    new: Callable[[str], tuple[Any, Callable[[], Awaitable[None]]]], subscribers: int, bench: Bench
) -> None:
    """Read each subscriber of the channels plugin in a task of its own."""
    from litestar.channels import ChannelsPlugin

    channels_backend, close = new(bench.url)
    countdown = Countdown(0)

    async def listen(events: AsyncIterator[bytes]) -> None:
        async for data in events:
            countdown.function(CHANNEL, data)

    async with ChannelsPlugin(channels_backend, channels=[CHANNEL]) as plugin:
        events = [(await plugin.subscribe(CHANNEL)).iter_events() for _ in range(subscribers)]
        async with in_background(*map(listen, events)):
            await measure(subscribers, countdown, bench)
    await close()


async def measure(subscribers: int, countdown: Countdown, bench: Bench) -> None:
    await settled(bench.port, 1, 0)
    messages, bursts = bench.count(DELIVERIES // subscribers, least=2), bench.count(BURSTS, least=2)
    with (
        Publisher(bench.port, "room:", 1, messages, 64) as publisher,
        bench.measured(subscribers * messages * bursts),
    ):
        for _ in range(bursts):
            countdown.restart(subscribers * messages)
            assert publisher.publish() == messages  # the loop stands still: they wait in the socket
            await countdown.done.wait()


def new_cases(subscribers: int) -> list[Case]:
    title = f"a burst of messages to {subscribers} subscriber{'s' * (subscribers > 1)} of"
    return [
        Case(f"broadcaster-{subscribers}", f"{title} broadcaster", "delivery", {
            "redismpx": partial(broadcast, redismpx, subscribers),
            "backend": partial(broadcast, backend, subscribers),
            "broadcaster": partial(broadcast, broadcaster, subscribers),
        }),
        Case(f"litestar-{subscribers}", f"{title} Litestar's channels", "delivery", {
            "redismpx": partial(litestar, redismpx_backend, subscribers),
            "litestar": partial(litestar, litestar_backend, subscribers),
        }),
    ]  # fmt: skip


CASES = [*new_cases(1), *new_cases(100)]
