"""`async with mpx.subscribe(...)`: active when the block begins, closed when it ends."""

from __future__ import annotations

import asyncio
import json

import pytest
from redis.asyncio import Redis, RedisCluster

from redismpx import (
    Message,
    Multiplexer,
    MultiplexerIsClosed,
    SubscriptionIsClosed,
    SubscriptionRefused,
    TooManyChannels,
)

from ..helpers.acl import limited, set_limited_user
from ..helpers.cluster import Cluster
from ..helpers.monitor import settled
from ..helpers.servers import Server
from ..helpers.waiting import until

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_a_block_misses_nothing(url: str, admin: Redis) -> None:
    """A message that is published as soon as the block begins arrives; nothing is subscribed after it."""
    async with Multiplexer(url) as mpx:
        async with mpx.subscribe("news", b"weather", decode=json.loads) as sub:
            assert sub.active == {b"news", b"weather"}
            assert await admin.publish("weather", '{"sun": true}') == 1
            assert await sub.get(5) == Message(b"weather", {"sun": True}, None)
        assert sub.closed
        assert sub.active == frozenset()
        await settled(admin, set())


async def test_the_callbacks_of_a_block_are_called(url: str, admin: Redis) -> None:
    """The options are those of new_channel_subscription()."""
    got: list[object] = []
    async with Multiplexer(url) as mpx:
        async with mpx.subscribe("a", on_message=lambda *message: got.append(message), on_activation=got.append):
            await admin.publish("a", "x")
            await until(lambda: len(got) == 2)
        assert got == [b"a", (b"a", b"x")]
        with pytest.raises(TypeError, match="bogus"):
            async with mpx.subscribe("a", bogus=1):  # type: ignore[call-overload]
                pass


async def test_an_error_in_a_block_closes_the_subscription(url: str, admin: Redis) -> None:
    """Also an exception and a cancellation leave nothing subscribed."""
    async with Multiplexer(url) as mpx:
        for error in (ValueError, asyncio.CancelledError):
            with pytest.raises(error):
                async with mpx.subscribe("a") as sub:
                    raise error
            assert sub.closed
        await settled(admin, set())


async def test_a_block_that_cannot_begin_leaves_nothing(server: Server, admin: Redis) -> None:
    """Refused, too many, closed, cancelled offline: the error is raised, and nothing stays subscribed."""
    await set_limited_user(admin, "&ok")
    async with limited(server, max_channels=2) as mpx:
        with pytest.raises(SubscriptionRefused):
            async with mpx.subscribe("ok", "forbidden"):
                pytest.fail("the block began")
        with pytest.raises(TooManyChannels):
            async with mpx.subscribe("a", "b", "c"):
                pytest.fail("the block began")
        server.kill()
        await until(lambda: not mpx.connected)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2), mpx.subscribe("ok"):
                pytest.fail("the block began")
        waiting = asyncio.create_task(mpx.subscribe("ok").__aenter__())
        await asyncio.sleep(0)
        assert mpx.stats().subscriptions == 1
        mpx.close()
        with pytest.raises(SubscriptionIsClosed):
            await waiting
        assert mpx.stats().subscriptions == 0
    with pytest.raises(MultiplexerIsClosed):
        async with mpx.subscribe("ok"):
            pytest.fail("the block began")


async def test_active_names_are_those_that_redis_confirmed(server: Server, admin: Redis) -> None:
    """`active` follows confirmations, refusals, removals and the connection, for all kinds of subscription."""
    await set_limited_user(admin, "&ok*", "&p*", "&prefix*")
    async with limited(server) as mpx:
        refused: list[Exception] = []
        sub = mpx.new_channel_subscription(lambda channel, data: None, on_error=refused.append)
        sub.add("ok1", "ok2", "forbidden")
        assert sub.active == frozenset()
        pattern = mpx.new_pattern_subscription("p*")
        promises = mpx.new_promise_subscription("prefix")
        await pattern.wait_for_activation(timeout=10)
        await promises.wait_for_activation(timeout=10)
        await until(lambda: len(refused) == 1 and len(sub.active) == 2)
        assert sub.active == {b"ok1", b"ok2"}
        assert (pattern.active, promises.active) == ({b"p*"}, {b"prefix*"})
        sub.remove("ok1")
        assert sub.active == {b"ok2"}
        server.kill()
        await until(lambda: not sub.active)
        assert (pattern.active, promises.active) == (frozenset(), frozenset())


async def test_shard_channels_have_active_names(shared_cluster: Cluster) -> None:
    """Each channel is active at the primary that owns its slot."""
    async with (
        RedisCluster.from_url(shared_cluster.url) as client,
        Multiplexer(client) as mpx,
        mpx.subscribe("a", "b", "c", sharded=True) as sub,
    ):
        assert sub.active == {b"a", b"b", b"c"}
        sub.remove("b")
        assert sub.active == {b"a", b"c"}
