"""Shard channels at a single server: the same promises as for channels, over the same connection."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import NoPermissionError, ResponseError

from redismpx import ConnectionLost, Multiplexer, SubscriptionRefused, TooManyChannels
from redismpx.testing import Checker

from ..helpers.acl import set_user
from ..helpers.cluster import Cluster
from ..helpers.flavours import FLAVOURS, start_server
from ..helpers.new_sub import new_sub
from ..helpers.servers import Server
from ..helpers.waiting import eventually, until

pytestmark = pytest.mark.usefixtures("no_leaks")


async def shard_channels(admin: Redis) -> set[bytes]:
    """The server's own word."""
    return set(await admin.execute_command("PUBSUB", "SHARDCHANNELS"))


async def settled(admin: Redis, channels: set[bytes]) -> None:
    """Wait until the server's own word is what it should be."""

    async def complaint() -> str:
        word = await shard_channels(admin)
        return "" if word == channels else f"{word} instead of {channels}"

    await eventually(complaint)


async def shard_clients(admin: Redis) -> list[int]:
    """How many shard channels each client has that has any."""
    counts = [int(client["ssub"]) for client in await admin.client_list()]
    return sorted(count for count in counts if count)


async def test_a_shard_channel_and_a_channel_are_two_names(url: str, admin: Redis) -> None:
    """A shard channel and a classic channel of the same name are independent."""
    async with Multiplexer(url) as mpx:
        shard, classic = Checker(), Checker()
        one, other = new_sub(mpx, shard, "a"), new_sub(mpx, classic, "a", sharded=False)
        for sub in (one, other):
            await sub.wait_for_activation(timeout=5)
        for number in range(300):
            assert await mpx.publish("a", str(number), sharded=True) == 1
            assert await mpx.publish("a", str(1000 + number)) == 1
        await until(lambda: shard.messages == classic.messages == 300)
        assert shard.payloads == [b"%d" % number for number in range(300)]
        assert classic.payloads == [b"%d" % number for number in range(1000, 1300)]
        one.close()
        await settled(admin, set())
        assert await mpx.publish("a", "nobody", sharded=True) == 0
        assert await mpx.publish("a", "1300") == 1
        await until(lambda: classic.messages == 301)
        assert not shard.faults + classic.faults


async def test_names_of_many_slots_share_one_connection(url: str, admin: Redis) -> None:
    """At a single server, names of many slots share one connection, and are unsubscribed exactly when removed."""
    names = [b"name-%d" % number for number in range(600)] + [b"{tag}%d" % number for number in range(600)]
    assert len({key_slot(name) for name in names}) > 500
    async with Multiplexer(url) as mpx:
        checker, other = Checker(), Checker()
        sub, keeper = new_sub(mpx, checker, *names), new_sub(mpx, other, names[0], names[-1])
        classic = new_sub(mpx, Checker(), *names[:10], sharded=False)
        for each in (sub, keeper, classic):
            await each.wait_for_activation(timeout=10)
        await settled(admin, set(names))
        assert await shard_clients(admin) == [1200]
        assert (mpx.stats().connections, mpx.stats().shards) == (1, 0)
        for name in names:
            await admin.execute_command("SPUBLISH", name, "0")
        await until(lambda: checker.messages == 1200)
        sub.remove(*names[:1000])
        checker.removed(*names[:1000])
        await settled(admin, {names[0], *names[1000:]})
        sub.clear()
        checker.removed(*names)
        await settled(admin, {names[0], names[-1]})
        sub.add("again")
        await sub.wait_for_activation(timeout=5)
        sub.close()
        checker.closed = True
        await settled(admin, {names[0], names[-1]})
        await admin.execute_command("SPUBLISH", names[-1], "1")
        await until(lambda: other.payloads[-1] == b"1")
        keeper.close()
        await settled(admin, set())
        assert not checker.faults + other.faults
        assert checker.disconnects == other.disconnects == 0
        assert mpx.stats().channels == 10


async def test_a_late_subscriber_of_an_active_name_is_activated(url: str, admin: Redis) -> None:
    """A subscription that adds an active shard channel is activated soon, without traffic."""
    async with Multiplexer(url) as mpx:
        first, late = Checker(), Checker()
        await new_sub(mpx, first, "a").wait_for_activation(timeout=5)
        sub = new_sub(mpx, late, "a")
        assert late.events == []  # not inside add()
        await sub.wait_for_activation(timeout=5)
        assert await mpx.publish("a", "0", sharded=True) == 1  # one connection, whatever the number of subscribers
        await until(lambda: first.messages == late.messages == 1)
        assert first.kinds == late.kinds == ["activation", "message"]


async def test_a_lost_connection_is_one_disconnect(url: str, admin: Redis) -> None:
    """A lost connection is one disconnect for each subscription, then an activation for each name."""
    async with Multiplexer(url) as mpx:
        one, two, classic = Checker(), Checker(), Checker()
        subs = [
            new_sub(mpx, one, "a", "b"),
            new_sub(mpx, two, "b", "c"),
            new_sub(mpx, classic, "b", sharded=False),
        ]
        for sub in subs:
            await sub.wait_for_activation(timeout=5)
        for number in range(3):
            await mpx.publish("b", str(number), sharded=True)
        await admin.client_kill_filter(_type="pubsub")
        await until(lambda: one.activations == two.activations == 4 and classic.activations == 2)
        await mpx.publish("b", "7", sharded=True)
        await until(lambda: one.messages == two.messages == 4)
        for checker in (one, two):
            assert [kind for kind in checker.kinds if kind != "message"] == [
                *["activation"] * 2, "disconnect", *["activation"] * 2
            ]  # fmt: skip
            (lost,) = [event for kind, event in checker.events if kind == "disconnect"]
            assert isinstance(lost, ConnectionLost)
            assert lost.names is None
            assert not checker.faults
        assert classic.kinds == ["activation", "disconnect", "activation"]


async def test_shard_channels_can_be_read(url: str) -> None:
    """get(), get_nowait(), iteration and decode work for shard channels."""
    async with Multiplexer(url) as mpx:
        sub = mpx.new_channel_subscription(decode=int, sharded=True)
        sub.add("a", "b")
        await sub.wait_for_activation(timeout=5)
        for number in range(10):
            await mpx.publish("ab"[number % 2], str(number), sharded=True)
        assert (await sub.get(5)).channel == b"a"
        found = [1]
        await until(lambda: sub.pending == 9)
        assert sub.get_nowait().data == 1
        async for message in sub:
            assert message.channel == b"ab"[message.data % 2 : message.data % 2 + 1]
            assert message.pattern is None
            found.append(message.data)
            if message.data == 9:
                sub.close()
        assert found == list(range(1, 10))


async def test_max_channels_counts_both_kinds(url: str) -> None:
    """max_channels counts shard channels and classic channels together."""
    async with Multiplexer(url, max_channels=3) as mpx:
        shard, classic = mpx.new_channel_subscription(sharded=True), mpx.new_channel_subscription()
        shard.add("a", "b")
        classic.add("a")
        for sub in (shard, classic):
            with pytest.raises(TooManyChannels, match="max_channels=3"):
                sub.add("c")
        shard.add("a", "b")  # what is wanted already costs nothing
        assert mpx.stats().channels == 3
        classic.close()
        shard.add("c")
        await shard.wait_for_activation(timeout=5)


async def test_one_forbidden_name_of_many_is_refused_alone(server: Server, admin: Redis) -> None:
    """Forbidden shard channels are refused alone, among names of their slot too."""
    least = "resetkeys resetchannels &{tag}* &free* -@all +ssubscribe +sunsubscribe +ping"
    await set_user(admin, "chat", "secret", least)
    names = [b"{tag}%d" % number for number in range(300)] + [b"free%d" % number for number in range(50)]
    forbidden = [b"no{tag}", b"other"]  # among names of its slot, and alone in its own
    async with Multiplexer(server.url, username="chat", password="secret") as mpx:
        checker = Checker()
        sub = new_sub(mpx, checker, *names[:200], *forbidden, *names[200:])
        await until(lambda: checker.active == set(names) and len(checker.errors) == 2)
        await settled(admin, set(names))
        with pytest.raises(SubscriptionRefused) as caught:
            await sub.wait_for_activation(timeout=5)
        assert caught.value.kind == "shard channel"
        assert {error.name for error in checker.errors if isinstance(error, SubscriptionRefused)} == set(forbidden)
        assert "NOPERM" in str(caught.value)
        assert "&channel +ssubscribe +sunsubscribe" in str(caught.value)
        with pytest.raises(NoPermissionError):
            await mpx.publish(names[0], "0", sharded=True)
        sub.remove(*forbidden)
        checker.removed(*forbidden)
        await sub.wait_for_activation(timeout=5)
        assert (mpx.stats().connections, checker.faults) == (1, [])


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_a_server_before_redis_7_is_named_in_the_error(flavour: str) -> None:
    """A server without SSUBSCRIBE refuses the names, and the error says what to do."""
    server = start_server(flavour, "--rename-command", "SSUBSCRIBE", "", "--rename-command", "SPUBLISH", "")
    try:
        async with Multiplexer(server.url) as mpx:
            shard, classic = Checker(), Checker()
            other = new_sub(mpx, classic, "a", sharded=False)
            sub = new_sub(mpx, shard, "a", "b")
            with pytest.raises(SubscriptionRefused, match=r"needs Redis 7 or Valkey: .*sharded=True"):
                await sub.wait_for_activation(timeout=5)
            await other.wait_for_activation(timeout=5)
            await until(lambda: len(shard.errors) == 2)
            with pytest.raises(ResponseError, match="unknown command"):
                await mpx.publish("a", "0", sharded=True)
            assert await mpx.publish("a", "0") == 1
            await until(lambda: classic.kinds == ["activation", "message"])
            sub.close()
            assert mpx.stats().connections == 1
            assert shard.kinds == ["error", "error"]
    finally:
        server.remove()


async def test_a_single_client_at_a_cluster_is_told_so(shared_cluster: Cluster) -> None:
    """With a client for one server, names of other nodes are refused, and the error names RedisCluster."""
    names = [b"name-%d" % number for number in range(20)]
    node = await shared_cluster.owner(names[0])
    slots = (await node.word()).slots
    here = {name for name in names if key_slot(name) in slots}
    assert 0 < len(here) < 20
    async with Multiplexer(node.admin_url) as mpx:
        checker = Checker()
        sub = new_sub(mpx, checker, *names)
        with pytest.raises(SubscriptionRefused, match=r"MOVED .*RedisCluster") as caught:
            await sub.wait_for_activation(timeout=5)
        assert caught.value.name not in here
        await until(lambda: len(checker.errors) == 20 - len(here) and checker.active == here)
        assert not checker.faults


async def test_drain_delivers_received_shard_messages(url: str, admin: Redis) -> None:
    """drain() unsubscribes shard channels and delivers what was received."""
    mpx = Multiplexer(url)
    sub = mpx.new_channel_subscription(sharded=True)
    names = [b"name-%d" % number for number in range(100)]
    sub.add(*names)
    await sub.wait_for_activation(timeout=5)
    for number in range(10):
        await mpx.publish(names[0], str(number), sharded=True)
    await until(lambda: sub.pending == 10)
    found = []

    async def read() -> None:
        async for message in sub:
            found.append(message.data)
            if len(found) == 1:
                # Draining, and everything is unsubscribed before it is read.
                await settled(admin, set())

    async with mpx:
        reading = asyncio.create_task(read())
        await mpx.drain(10)
        await reading
    assert found == [b"%d" % number for number in range(10)]
