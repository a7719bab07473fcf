"""No connection stays open after the end, wherever the end finds the publisher, a probe or a question."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import pytest
from redis.asyncio import Connection, ConnectionPool, Redis, RedisCluster
from redis.asyncio.sentinel import Sentinel
from redis.credentials import CredentialProvider

from redismpx import Multiplexer, RedisMPXError

from ..helpers.backoffs import QUICK
from ..helpers.cluster import Cluster
from ..helpers.leaks import left_behind, open_sockets
from ..helpers.sentinel import close
from ..helpers.servers import SentinelServer, Server
from ..helpers.waiting import until

pytestmark = pytest.mark.usefixtures("no_leaks")

TICKS = [*range(40), *range(40, 200, 8)]
"""Iterations of the loop from the first call to the end."""


async def end(mpx: Multiplexer, how: str) -> None:
    """End a multiplexer, and wait for nothing."""
    if how == "close":
        mpx.close()
        return
    closing = asyncio.ensure_future(mpx.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await closing


async def leaves_nothing(mpx: Multiplexer, ticks: int, how: str) -> None:
    """Let everything begin that has connections, and end it after some iterations of the loop."""
    before = open_sockets()
    calls = [
        asyncio.ensure_future(call)
        for call in (
            mpx.publish("a", "x"),
            mpx.publish("a", "x", sharded=True),
            mpx.request("nobody", "x", timeout=5),
            mpx.request("nobody", "x", timeout=5, sharded=True),
        )
    ]
    for _ in range(ticks):
        await asyncio.sleep(0)
    await end(mpx, how)
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, (int, RedisMPXError, asyncio.CancelledError)), repr(outcome)
    await until(lambda: open_sockets() <= before and not left_behind())


@pytest.mark.parametrize("how", ["close", "cancelled aclose"])
async def test_a_single_server_keeps_no_connection(url: str, how: str) -> None:
    """Neither the link nor publishing, a probe or a question after a request keeps a connection to a server."""
    for ticks in TICKS:
        await leaves_nothing(Multiplexer(url, delivery_probe=0.001, backoff=QUICK), ticks, how)


@pytest.mark.parametrize("how", ["close", "cancelled aclose"])
async def test_sentinels_keep_no_connection(server: Server, how: str) -> None:
    """Nor does a question keep a connection to a Sentinel."""
    sentinel = SentinelServer(server.binary, server).start()
    try:
        manager = Sentinel([("127.0.0.1", sentinel.port)])
        client: Redis = manager.master_for("main")
        for ticks in TICKS:
            await leaves_nothing(Multiplexer(client, delivery_probe=0.001, backoff=QUICK), ticks, how)
        await close(manager)
    finally:
        sentinel.remove()


@pytest.mark.parametrize("how", ["close", "cancelled aclose"])
async def test_nodes_keep_no_connection(shared_cluster: Cluster, how: str) -> None:
    """Nor does publishing, a probe or the slot map keep a connection to a node."""
    for ticks in TICKS:
        client = RedisCluster.from_url(shared_cluster.url)
        await leaves_nothing(Multiplexer(client, delivery_probe=0.001, backoff=QUICK), ticks, how)


async def test_a_connection_class_that_cannot_disconnect_is_closed(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A connection whose class raises when it disconnects is closed, and disturbs nothing."""

    class Stubborn(Connection):
        async def disconnect(self, *args: Any, **options: Any) -> None:
            await super().disconnect(*args, **options)
            raise ValueError("something else went wrong")

    before = open_sockets()
    client = Redis.from_pool(ConnectionPool.from_url(url, connection_class=Stubborn))
    async with Multiplexer(client, delivery_probe=0.001, backoff=QUICK) as mpx:
        sub = mpx.new_channel_subscription(lambda *_: None)
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        for _ in range(3):
            assert await mpx.publish("a", "x") == 1
            mpx._hub.deployment.publisher.abandon(None)
        await until(lambda: mpx.stats().messages > 10)
        assert mpx.stats().connections == 1
    await until(lambda: open_sockets() <= before)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("number", [1, 2, 3, 4])
async def test_a_credential_provider_may_close_it(url: str, number: int) -> None:
    """A credential provider is called in the middle of a dial: one that closes the multiplexer ends that dial too."""

    class Closing(CredentialProvider):
        calls = 0

        def get_credentials(self) -> tuple[str]:
            self.calls += 1
            if self.calls == number:
                mpx.close()
            return ("no secret",)  # any password will do for a user without one

    before = open_sockets()
    provider = Closing()
    mpx = Multiplexer(url, credential_provider=provider, delivery_probe=0.001, backoff=QUICK)
    sub = mpx.new_channel_subscription(lambda *_: None)
    sub.add("a")
    publishing = asyncio.ensure_future(mpx.publish("a", "x"))
    await until(lambda: mpx.stats().state == "closed")
    (outcome,) = await asyncio.gather(publishing, return_exceptions=True)
    assert isinstance(outcome, (int, RedisMPXError))
    await until(lambda: open_sockets() <= before and not left_behind())
    assert provider.calls <= number + 1  # another dial was on its way
