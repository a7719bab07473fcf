"""The server in memory replies as real servers do, to each command that it has."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from redismpx import Multiplexer, NoResponders, SubscriptionRefused, blocking
from redismpx.testing import Faults, MemoryServer

from ..helpers.backoffs import QUICK
from ..helpers.flavours import FLAVOURS, start_server
from ..helpers.waiting import DEADLINE

COMMANDS = [
    "PING", "PING x", "ECHO x", "SELECT 0", "PUBLISH a x", "SPUBLISH a x", "PUBSUB CHANNELS", "PUBSUB NUMPAT",
    "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE", "UNSUBSCRIBE never",
    "SUBSCRIBE a b a", "PSUBSCRIBE a* [ab] [^a]", "SSUBSCRIBE a c", "PING", "PING x", "ECHO x", "PUBSUB NUMSUB a",
    "UNSUBSCRIBE b", "PUNSUBSCRIBE [ab] [^a] a*", "UNSUBSCRIBE", "SUNSUBSCRIBE c a", "PING",
    "PUBLISH a", "SUBSCRIBE", "PUBSUB", "CLIENT SETNAME me", "QUIT",
]  # fmt: skip
SECOND = [
    "PUBSUB CHANNELS", "PUBSUB CHANNELS a*", "PUBSUB NUMSUB a never", "PUBSUB NUMPAT", "PUBSUB SHARDCHANNELS",
    "PUBSUB SHARDNUMSUB a", "PUBLISH a 1", "PUBLISH b 2", "SPUBLISH a 3", "PUBLISH ab 4", "PUBLISH c 5",
]  # fmt: skip


async def transcript(server: MemoryServer | str, protocol: int) -> list[Any]:
    """Return what a server replies to COMMANDS, and to SECOND while the first client is subscribed to some."""

    def client() -> Redis:
        options: dict[str, Any] = {"protocol": protocol}
        return Redis.from_url(server, **options) if isinstance(server, str) else server.client(**options)

    said: list[Any] = []

    async def ask(connection: Any, line: str) -> None:
        words = line.split()
        await connection.send_command(*words, check_health=False)
        for _ in words[1:] if words[0].endswith("SUBSCRIBE") and len(words) > 1 else [""]:
            try:
                reply = await connection.read_response(push_request=True)
            except (ResponseError, RedisConnectionError) as error:
                reply = (type(error), str(error).partition(":")[0].lower())
            in_no_order = line.startswith(("PUBSUB CHANNELS", "PUBSUB SHARDCHANNELS"))
            said.append((line, reply if not isinstance(reply, list) else sorted(reply) if in_no_order else [*reply]))

    async with client() as first, client() as second:
        one, two = first.connection_pool.make_connection(), second.connection_pool.make_connection()
        for connection in one, two:
            await connection.connect()
        for line in COMMANDS:
            await ask(one, line)
            if line.startswith("SSUBSCRIBE"):
                for other in SECOND:
                    await ask(two, other)
                messages = [list(await one.read_response(push_request=True)) for _ in range(8)]
                said += sorted(map(repr, messages))  # those of patterns are in no order
        for connection in one, two:
            await connection.disconnect(nowait=True)
    return said


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_the_replies_are_those_of_real_servers(flavour: str, protocol: int) -> None:
    """Each command, also with wrong arguments, and each confirmation and message, in RESP2 and RESP3."""
    real = start_server(flavour)
    try:
        expected = await transcript(real.admin_url, protocol)
    finally:
        real.remove()
    assert await transcript(MemoryServer(), protocol) == expected


@pytest.fixture(params=["memory", *FLAVOURS])
async def mpx(request: pytest.FixtureRequest) -> AsyncIterator[Multiplexer]:
    if request.param == "memory":
        async with MemoryServer().client() as client, Multiplexer(client, backoff=QUICK) as mpx:
            yield mpx
        return
    server = start_server(request.param)
    async with Multiplexer(server.admin_url, backoff=QUICK) as mpx:
        yield mpx
    server.remove()


async def test_everything_without_data_works(mpx: Multiplexer) -> None:
    """Channels, patterns, sharded channels, promises, requests, and requests that nobody hears."""
    sharded = mpx.new_channel_subscription(sharded=True)
    sharded.add("a")
    pattern = mpx.new_pattern_subscription("a:*")
    promises = mpx.new_promise_subscription("p:")
    for each in sharded, pattern, promises:
        await each.wait_for_activation(timeout=DEADLINE)
    assert await mpx.publish("a", "1", sharded=True) == 1
    assert await mpx.publish("a:b", b"\r\n\0" * 50_000) == 1
    assert (await sharded.get(timeout=DEADLINE)).data == b"1"
    message = await pattern.get(timeout=DEADLINE)
    assert (message.channel, message.data, message.pattern) == (b"a:b", b"\r\n\0" * 50_000, b"a:*")
    promise = promises.new_promise("x", 10)
    await mpx.publish("p:x", "kept")
    assert await promise == b"kept"
    with pytest.raises(NoResponders):
        await mpx.request("service", "x", timeout=DEADLINE)
    async with mpx.serve("service", lambda request: request.body[::-1]) as service:
        await service.wait_for_activation(timeout=DEADLINE)
        assert await mpx.request("service", "abc", timeout=DEADLINE) == b"cba"


async def test_many_names_and_refusals_work() -> None:
    """A thousand names are active at once; of a forbidden batch, the permitted names are."""
    with Faults(MemoryServer()) as faults:
        async with faults.client() as client, Multiplexer(client, backoff=QUICK) as mpx:
            many = mpx.new_channel_subscription()
            many.add(*(f"n:{number}" for number in range(1000)))
            await many.wait_for_activation(timeout=DEADLINE)
            faults.deny("resetchannels", "&n:*")
            some = mpx.new_channel_subscription()
            some.add("n:1", "forbidden", "n:2")
            await some.wait_for_activation("n:1", "n:2", timeout=DEADLINE)
            with pytest.raises(SubscriptionRefused):
                await some.wait_for_activation("forbidden", timeout=DEADLINE)


async def test_what_it_does_not_have_says_so() -> None:
    """A stream needs a real server; there is no URL; other rules are rejected."""
    with Faults(MemoryServer()) as faults:
        async with faults.client() as client, Multiplexer(client) as mpx:
            with pytest.raises(ResponseError, match=r"MemoryServer has Pub/Sub only; use redismpx\.embedded\.Server"):
                await mpx.append("a", "x")
            with pytest.raises(ValueError, match="commands and channels only"):
                faults.deny("~keys:*")
            with pytest.raises(RuntimeError, match="has no URL"):
                _ = faults.url


def test_loops_in_several_threads_share_it() -> None:
    """Two blocking multiplexers, each with a loop of its own, exchange messages."""
    server, received = MemoryServer(), threading.Event()
    with blocking.Multiplexer(server.client()) as one, blocking.Multiplexer(server.client()) as two:
        sub = one.new_channel_subscription(lambda channel, data: received.set())
        sub.add("a")
        sub.wait_for_activation(timeout=DEADLINE)
        assert two.publish("a", "x") == 1
        assert received.wait(DEADLINE)


async def test_it_leaves_nothing_behind(no_leaks: None) -> None:
    """No socket while it is used; no task, timer or connection afterwards, also after faults."""
    from ..helpers.leaks import open_sockets

    before, server = open_sockets(), MemoryServer()
    with Faults(server) as faults:
        async with faults.client() as client, Multiplexer(client, backoff=QUICK) as mpx, mpx.subscribe("a"):
            faults.delay(1)
            await mpx.publish("a", "x")
            faults.cut()
            await mpx.connect(timeout=DEADLINE)
            assert open_sockets() == before
            faults.freeze()
    assert not server.transports
    assert not any(server.pubsub.names.values())


async def test_a_second_has_a_thousand_tests() -> None:
    """A subscription, a message and its delivery take less than a millisecond of CPU time."""
    async with MemoryServer().client() as client, Multiplexer(client) as mpx:
        spent = []
        for _ in range(10):  # the best of them: the machine may be busy
            began = time.process_time()
            for _ in range(20):
                async with mpx.subscribe("a") as sub:
                    await mpx.publish("a", "x")
                    assert (await sub.get(timeout=DEADLINE)).data == b"x"
            spent.append((time.process_time() - began) / 20)
    assert min(spent) < 0.001
