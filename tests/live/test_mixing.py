"""A cancelled call leaves nothing behind that another call could take for its reply."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random

import pytest
from redis.asyncio import Redis

from redismpx import Multiplexer, Request
from redismpx.testing import Proxy

from ..helpers.monitor import settled
from ..helpers.servers import Server
from ..helpers.waiting import until

pytestmark = [pytest.mark.one_flavour, pytest.mark.usefixtures("no_leaks")]

TIMEOUT = 20.0


async def test_cancelled_calls_mix_up_no_replies(shared_server: Server, admin: Redis) -> None:
    """Of 1,200 calls over a slow line half are cancelled at random; each other call gets its own reply."""
    random = Random(13)
    outcomes: Counter[str] = Counter()
    with Proxy(shared_server.port) as proxy:
        async with Multiplexer(proxy.url) as mpx:
            promises = mpx.new_promise_subscription("storm-promise-")

            def echo(request: Request) -> bytes:
                return request.body

            service = mpx.serve("storm-service", echo)

            async def keep(token: bytes) -> bytes | None:
                promise = promises.new_promise(token, TIMEOUT)
                try:
                    await mpx.publish(promise.channel, token)
                    return await promise
                finally:
                    promise.cancel()

            async def ask(token: bytes) -> bytes:
                return await mpx.request("storm-service", token, timeout=TIMEOUT)

            async def subscribe(token: bytes) -> bytes:
                name = b"storm-" + token
                async with mpx.new_channel_subscription() as sub:
                    sub.add(name)
                    await sub.wait_for_activation(timeout=TIMEOUT)
                    count = await mpx.publish(name, token)
                    message = await sub.get(TIMEOUT)
                return message.data if (message.channel, count) == (name, 1) else b"%r" % [message, count]

            async def shout(token: bytes) -> bytes:
                count = await mpx.publish(b"storm-nobody-" + token, token)
                return token if count == 0 else b"%d" % count

            calls: list[Callable[[bytes], Awaitable[bytes | None]]] = [keep, ask, subscribe, shout]
            await promises.wait_for_activation(timeout=TIMEOUT)
            await service.wait_for_activation(timeout=TIMEOUT)
            await mpx.request("storm-service", b"", timeout=TIMEOUT)  # its promise subscription stands from here on

            async def make(token: bytes) -> None:
                call = random.choice(calls)
                task = asyncio.ensure_future(call(token))
                if random.random() < 0.5:
                    await asyncio.sleep(random.random() * 0.02)
                    task.cancel()
                await asyncio.wait([task])
                if task.cancelled():
                    outcomes["cancelled"] += 1
                else:
                    outcomes["right" if task.result() == token else f"{call.__name__}: {task.result()!r}"] += 1

            proxy.to_server.delay = proxy.to_client.delay = 0.005
            for wave in range(12):
                await asyncio.gather(*(make(b"%d-%d" % (wave, number)) for number in range(100)))
            assert set(outcomes) == {"cancelled", "right"}, outcomes
            assert min(outcomes.values()) > 100, outcomes
            stats = mpx.stats()
            assert (stats.connections, stats.promises, stats.ignored) == (1, 0, 0)
            proxy.heal()
            await until(lambda: mpx.stats().channels == 1)
            await settled(admin, {b"storm-service"}, 2)
