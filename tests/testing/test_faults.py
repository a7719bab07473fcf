"""Each fault does what its name says, to an asyncio multiplexer and to a blocking one, and ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from redismpx import ChannelSubscription, ConnectionLost, Multiplexer, SubscriptionRefused, blocking
from redismpx.embedded import Server
from redismpx.testing import Faults, GivenServer, MemoryServer

from ..helpers.backoffs import QUICK
from ..helpers.waiting import DEADLINE, until


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    with Server(port=0) as server:
        yield server


@pytest.fixture(params=["memory", "embedded", "given"])
def faults(request: pytest.FixtureRequest) -> Iterator[Faults]:
    """The contract holds for all three: a server in this process, one that the test starts, and one that runs."""
    kind = request.param
    server: Any = MemoryServer() if kind == "memory" else request.getfixturevalue("own_server")
    with Faults(GivenServer(server.url) if kind == "given" else server) as faults:
        yield faults


@pytest.fixture
async def mpx(faults: Faults) -> AsyncIterator[Multiplexer]:
    async with faults.client() as client, Multiplexer(client, backoff=QUICK) as mpx:
        yield mpx


@pytest.fixture
async def sub(mpx: Multiplexer) -> AsyncIterator[ChannelSubscription[bytes]]:
    async with mpx.subscribe("a") as sub:
        yield sub


async def lost(mpx: Multiplexer, before: int) -> None:
    """Wait until the connection is another one than the one with number `before`, however short the outage is."""
    await until(lambda: mpx.stats().connections > before)


async def works(mpx: Multiplexer, sub: ChannelSubscription[bytes]) -> None:
    """Check that a message arrives."""
    await sub.wait_for_activation(timeout=DEADLINE)
    await mpx.publish("a", "works")
    assert (await sub.get(timeout=DEADLINE)).data == b"works"


async def test_a_cut_ends_each_connection(faults: Faults, mpx: Multiplexer, sub: ChannelSubscription[bytes]) -> None:
    """`cut()` closes the connections and returns their number; the multiplexer is back at once."""
    await works(mpx, sub)
    assert faults.cut() == 2  # one that subscribes, one that publishes
    await lost(mpx, 1)
    await works(mpx, sub)


async def test_a_refusal_keeps_the_server_away(
    faults: Faults, mpx: Multiplexer, sub: ChannelSubscription[bytes]
) -> None:
    """`refuse()` closes connections and refuses new ones until its block ends."""
    with faults.refuse():
        await until(lambda: not sub.active)
        with pytest.raises(TimeoutError):
            await mpx.connect(timeout=0.1)
    await works(mpx, sub)


async def test_a_frozen_server_says_nothing(faults: Faults, mpx: Multiplexer, sub: ChannelSubscription[bytes]) -> None:
    """`freeze()` holds everything back, also from new connections, and passes it on at its end."""
    with faults.freeze():
        publishing = asyncio.create_task(mpx.publish("a", "later"))
        async with faults.client(socket_timeout=0.05, retry=Retry(NoBackoff(), 0)) as client:
            with pytest.raises(RedisTimeoutError):
                await client.ping()
        assert not sub.pending
        assert not publishing.done()
    assert (await sub.get(timeout=DEADLINE)).data == b"later"
    assert await publishing == 1
    assert mpx.connected


async def test_a_delay_and_a_limit_take_their_time(
    faults: Faults, mpx: Multiplexer, sub: ChannelSubscription[bytes]
) -> None:
    """`delay()` counts for each direction, `limit()` for each connection; neither loses anything."""
    await works(mpx, sub)
    for fault, least in ((lambda: faults.delay(30), 0.06), (lambda: faults.limit(2000), 0.1)):
        began = time.monotonic()
        with fault():
            await mpx.publish("a", b"x" * 200)
        assert (await sub.get(timeout=DEADLINE)).data == b"x" * 200
        assert time.monotonic() - began >= least
    began = time.monotonic()
    await works(mpx, sub)
    assert time.monotonic() - began < 0.06


async def test_a_reset_comes_in_the_middle_of_a_message(
    faults: Faults, mpx: Multiplexer, sub: ChannelSubscription[bytes]
) -> None:
    """`reset_after()` ends a connection in a message, which is lost; the next connection stays."""
    faults.reset_after(20)
    await mpx.publish("a", b"x" * 1000)
    await lost(mpx, 1)
    await works(mpx, sub)
    await mpx.publish("a", b"x" * 1000)
    assert len((await sub.get(timeout=DEADLINE)).data) == 1000


async def test_dropped_messages_leave_no_sign(
    faults: Faults, mpx: Multiplexer, sub: ChannelSubscription[bytes]
) -> None:
    """`drop()` loses the messages of a channel, for patterns too, and no others."""
    async with mpx.subscribe("b") as other:
        pattern = mpx.new_pattern_subscription("[ab]")
        await pattern.wait_for_activation(timeout=DEADLINE)
        with faults.drop("a"):
            assert await mpx.publish("a", "lost") == 2
            assert await mpx.publish("b", "kept") == 2
            assert (await other.get(timeout=DEADLINE)).data == b"kept"
        await works(mpx, sub)
        assert [(await pattern.get(timeout=DEADLINE)).data for _ in range(2)] == [b"kept", b"works"]


@pytest.mark.parametrize("faults", ["embedded"], indirect=True)
async def test_a_stream_survives_what_is_dropped(faults: Faults, mpx: Multiplexer) -> None:
    """A stream subscription gets a message whose live copy was dropped."""
    stream = mpx.new_stream_subscription()
    stream.add("log")
    await stream.wait_for_activation(timeout=DEADLINE)
    with faults.drop("log"):
        await mpx.append("log", "1")
    await mpx.append("log", "2")
    assert [(await stream.get(timeout=DEADLINE)).data for _ in range(2)] == [b"1", b"2"]


async def test_denied_rights_come_back(faults: Faults, mpx: Multiplexer, sub: ChannelSubscription[bytes]) -> None:
    """`deny()` takes rights until its block ends; the test itself keeps its rights."""
    with faults.deny("resetchannels", "&a"):
        other = mpx.new_channel_subscription()
        other.add("b")
        with pytest.raises(SubscriptionRefused):
            await other.wait_for_activation(timeout=DEADLINE)
        with faults.deny("-publish"), pytest.raises(NoPermissionError):
            await mpx.publish("a", "x")
    await works(mpx, sub)
    with pytest.raises(ValueError, match="rejects the rules \\+nonsense"):
        faults.deny("+nonsense")


@pytest.mark.parametrize("faults", ["memory", "embedded"], indirect=True)
async def test_a_restart_and_a_failover_end_connections(
    faults: Faults, mpx: Multiplexer, sub: ChannelSubscription[bytes]
) -> None:
    """After `arestart()` and `afailover()`, the subscription is active again."""
    for count, fault in enumerate((faults.arestart, faults.afailover), 1):
        await works(mpx, sub)
        await fault()
        await lost(mpx, count)
    await works(mpx, sub)


@pytest.mark.parametrize("faults", ["embedded"], indirect=True)
async def test_a_restarted_server_is_empty(faults: Faults, mpx: Multiplexer) -> None:
    """`arestart()` loses the data; the URL stays."""
    url = faults.url
    await mpx.append("log", "1")
    await faults.arestart()
    assert faults.url == url
    await mpx.connect(timeout=DEADLINE)
    assert await mpx.history("log") == []


@pytest.mark.parametrize("faults", ["embedded"], indirect=True)
async def test_a_failover_keeps_the_data(mpx: Multiplexer, faults: Faults) -> None:
    """`afailover()` replaces the server by its replica, which has the data; the subscription is active again."""
    await mpx.append("log", "1")
    async with mpx.subscribe("a") as sub:
        await faults.afailover()
        await lost(mpx, 1)
        await works(mpx, sub)
    assert [message.data for message in await mpx.history("log")] == [b"1"]


@pytest.mark.parametrize("faults", ["memory", "embedded"], indirect=True)
def test_a_blocking_multiplexer_sees_the_faults(faults: Faults) -> None:
    """The same object serves threads: a cut, an outage, a restart, a failover, one after the other."""
    disconnects: list[ConnectionLost] = []
    with blocking.Multiplexer(faults.client(), backoff=QUICK) as mpx:
        sub = mpx.new_channel_subscription(None, disconnects.append)
        sub.add("a")
        for number, fault in enumerate((faults.cut, lambda: faults.refuse().end(), faults.restart, faults.failover)):
            sub.wait_for_activation(timeout=DEADLINE)
            fault()
            give_up = time.monotonic() + DEADLINE
            while len(disconnects) == number and time.monotonic() < give_up:
                time.sleep(0.002)
            sub.wait_for_activation(timeout=DEADLINE)
            mpx.publish("a", str(number))
            assert sub.get(timeout=DEADLINE).data == str(number).encode()


async def test_healing_ends_all_faults(faults: Faults, mpx: Multiplexer, sub: ChannelSubscription[bytes]) -> None:
    """`heal()` ends every fault that goes on, in any number and order."""
    faults.delay(50)
    faults.drop("a")
    faults.limit(1)
    faults.deny("-publish")
    faults.freeze()
    faults.heal()
    await works(mpx, sub)
    faults.refuse()
    faults.heal()
    await lost(mpx, 1)
    await works(mpx, sub)


def test_a_given_server_can_be_neither_restarted_nor_replaced(own_server: Server) -> None:
    """Faults of the network and of rights work with any server; those of its process say what they need."""
    with Faults(GivenServer(own_server.url)) as faults, Redis.from_url(faults.url) as client:
        assert client.ping()
        for impossible in (faults.restart, faults.failover):
            with pytest.raises(RuntimeError, match=r"needs a redismpx\.embedded\.Server"):
                impossible()
        with faults.deny("-ping"), pytest.raises(NoPermissionError):
            client.ping()
    with Redis.from_url(own_server.url) as admin:
        assert admin.acl_users() == ["default"]


def test_what_faults_need_is_said() -> None:
    """A server without a port is rejected; outside the block there is no URL."""
    with Server() as server, pytest.raises(ValueError, match=r"needs a server with a port"):
        Faults(server).__enter__()
    with pytest.raises(RuntimeError, match=r"with Faults\(\) as faults"):
        _ = Faults().url


async def test_faults_without_a_server_have_their_own(no_leaks: None) -> None:
    """`Faults()` starts a server, and stops it and its own thread at the end."""
    async with Faults() as faults, faults.client() as client:
        assert await client.ping()
        url = faults.url
    async with AsyncRedis.from_url(url) as client:
        with pytest.raises(RedisConnectionError):
            await client.ping()
