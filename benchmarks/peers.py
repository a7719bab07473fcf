"""The other libraries, used as their documentation says: subscribe, and pass each message to `consume`."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from redis.asyncio import Redis

Consume = Callable[[Any, Any], Any]
"""Called with channel and payload; a function or a coroutine function."""


@asynccontextmanager
async def in_background(*coroutines: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


@asynccontextmanager
async def redis_py(
    port: int, channels: Sequence[str], patterns: Sequence[str], consume: Consume
) -> AsyncIterator[None]:
    async def listen() -> None:
        async for message in pubsub.listen():
            if message["type"] in ("message", "pmessage"):
                result = consume(message["channel"], message["data"])
                if result is not None:
                    await result

    async with Redis(port=port) as client, client.pubsub() as pubsub:
        if channels:
            await pubsub.subscribe(*channels)
        if patterns:
            await pubsub.psubscribe(*patterns)
        async with in_background(listen()):
            yield


@asynccontextmanager
async def coredis(port: int, channels: Sequence[str], patterns: Sequence[str], consume: Consume) -> AsyncIterator[None]:
    import coredis

    async def listen() -> None:
        async for message in pubsub:
            result = consume(message["channel"], message["data"])
            if result is not None:
                await result

    async with (
        coredis.Redis(port=port) as client,
        client.pubsub(ignore_subscribe_messages=True, channels=channels, patterns=patterns) as pubsub,
        in_background(listen()),
    ):
        yield


@asynccontextmanager
async def broadcaster(
    port: int, channels: Sequence[str], patterns: Sequence[str], consume: Consume
) -> AsyncIterator[None]:
    from broadcaster import Broadcast

    async def listen(subscriber: Any) -> None:
        async for event in subscriber:
            result = consume(event.channel, event.message)
            if result is not None:
                await result

    assert not patterns, "broadcaster has no patterns"
    async with Broadcast(f"redis://127.0.0.1:{port}") as broadcast, AsyncExitStack() as stack:
        subscribers = [await stack.enter_async_context(broadcast.subscribe(channel)) for channel in channels]
        async with in_background(*map(listen, subscribers)):
            yield


@asynccontextmanager
async def valkey_glide(
    port: int, channels: Sequence[str], patterns: Sequence[str], consume: Consume
) -> AsyncIterator[None]:
    import glide

    async def listen() -> None:
        while True:
            message = await client.get_pubsub_message()
            await consume(message.channel, message.message)

    modes = glide.GlideClientConfiguration.PubSubChannelModes
    has_callback = not inspect.iscoroutinefunction(consume)  # valkey-glide does not await the result of a callback
    subscriptions = glide.GlideClientConfiguration.PubSubSubscriptions(
        {modes.Exact: set(channels), modes.Pattern: set(patterns)},
        (lambda message, context: consume(message.channel, message.message)) if has_callback else None,
        None,
    )
    client = await glide.GlideClient.create(
        glide.GlideClientConfiguration([glide.NodeAddress("127.0.0.1", port)], pubsub_subscriptions=subscriptions)
    )
    try:
        async with in_background(*([] if has_callback else [listen()])):
            yield
    finally:
        await client.close()


LISTEN = {"redis-py": redis_py, "valkey-glide": valkey_glide, "broadcaster": broadcaster, "coredis": coredis}
"""By the names of the libraries."""


async def settled(port: int, channels: int, patterns: int) -> None:
    """Wait until this many channels and patterns are subscribed on the server."""
    async with Redis(port=port) as admin:
        while (len(await admin.pubsub_channels()), await admin.pubsub_numpat()) != (channels, patterns):
            await asyncio.sleep(0.01)
