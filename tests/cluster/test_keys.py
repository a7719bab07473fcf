"""Key subscriptions in a cluster: the events of every primary, through failovers and moved slots, and their gaps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest
from redis.asyncio import RedisCluster

from redismpx import Activation, ConnectionLost, Disconnect, KeyEvent, KeyEventsDisabled, Multiplexer
from redismpx._io.deployment import primaries as primaries_module

from ..helpers.backoffs import QUICK
from ..helpers.cluster import Cluster, Node
from ..helpers.logs import warnings
from ..helpers.waiting import eventually, until

pytestmark = pytest.mark.usefixtures("no_leaks")

ALL = b"__keyspace@0__:*"


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slot map is read often."""
    monkeypatch.setattr(primaries_module, "READ_INTERVAL", 0.2)


async def publishing(cluster: Cluster, flags: str = "KA") -> None:
    """Turn on key events at every node."""
    for node in cluster.live:
        await node.ask("CONFIG", "SET", "notify-keyspace-events", flags)


@asynccontextmanager
async def multiplexing(cluster: Cluster, **options: Any) -> AsyncIterator[tuple[Multiplexer, RedisCluster]]:
    """A multiplexer for a cluster that publishes key events, and a client to change keys with."""
    await publishing(cluster)
    theirs, ours = RedisCluster.from_url(cluster.url), RedisCluster.from_url(cluster.url)
    async with theirs, Multiplexer(ours, backoff=QUICK, **options) as mpx:
        yield mpx, theirs


async def set_keys(client: RedisCluster, word: str, count: int = 300) -> list[bytes]:
    """Set so many keys all over the cluster; return them, sorted."""
    keys = [f"{word}-{number}" for number in range(count)]
    for key in keys:
        await client.set(key, 1)
    return sorted(key.encode() for key in keys)


def address_of(node: Node) -> str:
    return f"127.0.0.1:{node.port}"


@pytest.mark.parametrize("how", ["kill", "command"])
async def test_all_events_arrive_through_a_failover(cluster: Cluster, how: Literal["kill", "command"]) -> None:
    """300 of 300 events arrive; a failover is one gap that names the former primary; then 300 of 300 arrive again."""
    events: list[Any] = []
    async with multiplexing(cluster) as (mpx, client):
        sub = mpx.new_key_subscription("*", *[events.append] * 3)
        await sub.wait_for_activation(timeout=10)
        before = await set_keys(client, "before")
        await until(lambda: len(events) == 301)
        assert events[0] == b"*"
        assert sorted(event.key for event in events[1:]) == before
        primary = (await cluster.primaries())[0]
        await cluster.failover(primary, how)
        await publishing(cluster)
        await until(lambda: len(events) == 303, 30)
        gap, activation = events[301:]
        assert isinstance(gap, ConnectionLost)
        assert gap.node == address_of(primary)
        assert address_of(primary) in gap.reason
        assert (activation, sub.active) == (b"*", True)
        after = await set_keys(client, "after")
        await until(lambda: len(events) == 603)
        assert sorted(event.key for event in events[303:]) == after
        assert {type(event) for event in events[303:]} == {KeyEvent}


async def test_the_events_of_the_other_primaries_go_on(cluster: Cluster) -> None:
    """While one primary is gone, the subscription is not active, and yet gets the events of the others."""
    events: list[Any] = []
    async with multiplexing(cluster) as (mpx, client):
        sub = mpx.new_key_subscription("*", *[events.append] * 3)
        await sub.wait_for_activation(timeout=10)
        primary, other = (await cluster.primaries())[:2]
        slots = (await other.word()).slots
        key = next(key for key in (f"key-{number}" for number in range(10_000)) if client.keyslot(key) in slots)
        await primary.ask("CONFIG", "SET", "cluster-node-timeout", 60_000)
        await cluster.kill(primary)
        await until(lambda: len(events) == 2)
        await other.ask("SET", key, 1)
        await until(lambda: len(events) == 3)
        assert events[2] == KeyEvent(key.encode(), b"set", 0)
        assert not sub.active
        with pytest.raises(TimeoutError, match="0/1") as raised:
            await sub.wait_for_activation(timeout=0.05)
        assert isinstance(raised.value.__cause__, ConnectionLost)


async def test_a_gap_is_read_where_it_lies(shared_cluster: Cluster) -> None:
    """`events()` has one activation for all primaries, and each gap with the name of its primary."""
    async with multiplexing(shared_cluster) as (mpx, client):
        sub = mpx.new_key_subscription("*", events={"set"})
        events = sub.events()
        assert await anext(events) == Activation(b"*")
        for node in await shared_cluster.primaries():
            await client.set("key", 1)
            assert await anext(events) == KeyEvent(b"key", b"set", 0)
            await node.ask("CLIENT", "KILL", "TYPE", "pubsub")
            gap = await anext(events)
            assert isinstance(gap, Disconnect)
            assert gap.error.node == address_of(node)
            assert await anext(events) == Activation(b"*")


async def test_gaps_that_become_one_name_no_primary(shared_cluster: Cluster) -> None:
    """A reader that is late gets one gap for those of several primaries, which does not name the first of them only."""
    async with multiplexing(shared_cluster) as (mpx, _):
        sub = mpx.new_key_subscription("late-*")
        events = sub.events()
        assert await anext(events) == Activation(b"late-*")
        connections = mpx.stats().connections
        for primary in await shared_cluster.primaries():
            await primary.ask("CLIENT", "KILL", "TYPE", "pubsub")
        await until(lambda: mpx.stats().connections == connections + 3 and sub.active)
        gap = await anext(events)
        assert isinstance(gap, Disconnect)
        assert gap.error.node is None
        assert gap.error.reason.startswith("several gaps, the first at primary 127.0.0.1:")
        assert await anext(events) == Activation(b"late-*")


async def test_a_key_is_subscribed_at_its_owner_only(shared_cluster: Cluster) -> None:
    """A single key is a channel at one node, and follows its slot, with a gap that names the former owner."""
    events: list[Any] = []
    key = "{moving}key"
    channel = b"__keyspace@0__:" + key.encode()
    async with multiplexing(shared_cluster) as (mpx, client):
        sub = mpx.new_key_subscription(key, *[events.append] * 3, events={"set"})  # a slot that moves deletes its keys
        await sub.wait_for_activation(timeout=10)
        owner = await shared_cluster.owner(key)
        assert await shared_cluster.subscribers([channel]) == {channel: {owner: 1}}
        assert await shared_cluster.patterns() == {}
        target = next(node for node in await shared_cluster.primaries() if node is not owner)
        await shared_cluster.move_slot(key, target)
        await until(lambda: len(events) == 3)
        assert await shared_cluster.subscribers([channel]) == {channel: {target: 1}}
        await client.set(key, 1)
        await until(lambda: len(events) == 4)
        await shared_cluster.move_slot(key, owner)
        await until(lambda: len(events) == 6)
    assert [event.node for event in events if isinstance(event, ConnectionLost)] == [
        address_of(owner),
        address_of(target),
    ]
    assert events[3] == KeyEvent(key.encode(), b"set", 0)


async def test_a_new_primary_is_found(cluster: Cluster) -> None:
    """A node that gets its first slot is listened to from then on; that there was a gap is told, with its name."""
    events: list[Any] = []
    async with multiplexing(cluster) as (mpx, client):
        sub = mpx.new_key_subscription("*", *[events.append] * 3, events={"set"})
        await sub.wait_for_activation(timeout=10)
        node = await cluster.add_node()
        await publishing(cluster)
        await cluster.move_slot("{new}", node)
        await until(lambda: len(events) == 3, 20)
        assert (events[1].node, events[2]) == (address_of(node), b"*")
        await client.set("{new}key", 1)
        await until(lambda: len(events) == 4)


async def test_primaries_are_left_when_nobody_listens(shared_cluster: Cluster) -> None:
    """Subscriptions of the same keys share a connection to each primary, which is closed after the last of them."""
    async with multiplexing(shared_cluster) as (mpx, client):
        subs = [mpx.new_key_subscription("*") for _ in range(3)]
        for sub in subs:
            await sub.wait_for_activation(timeout=10)
        primaries = set(await shared_cluster.primaries())
        assert await shared_cluster.patterns() == dict.fromkeys(primaries, 1)
        assert mpx.stats().patterns == 1
        await client.set("key", 1)
        for sub in subs:
            assert await sub.get(10) == KeyEvent(b"key", b"set", 0)
            sub.close()

        async def left() -> str:
            return repr(await shared_cluster.patterns()) if await shared_cluster.patterns() else ""

        await eventually(left)
        await until(lambda: not mpx._hub.deployment.keyspace.sessions)
        assert mpx.stats().patterns == 0


async def test_a_setting_of_one_node_is_reported_with_its_name(shared_cluster: Cluster) -> None:
    """If one primary does not publish the events, one error names this primary."""
    errors: list[Exception] = []
    async with multiplexing(shared_cluster, on_error=errors.append) as (mpx, _client):
        node = (await shared_cluster.primaries())[1]
        await node.ask("CONFIG", "SET", "notify-keyspace-events", "Kx")
        mpx.new_key_subscription("*", print, events={"expired"})
        mpx.new_key_subscription("*", print, events={"set"})
        await until(lambda: bool(errors))
    assert [(type(error), getattr(error, "node", "")) for error in errors] == [(KeyEventsDisabled, address_of(node))]


@pytest.mark.parametrize("kind", ["pattern", "channel"])
async def test_key_events_by_hand_warn_once(
    shared_cluster: Cluster, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A subscription by hand gets a part of the events only: one record says so, and names the method to call."""
    async with multiplexing(shared_cluster) as (mpx, _client):
        for _ in range(2):
            if kind == "pattern":
                mpx.new_pattern_subscription("__keyspace@0__:*", print)
            else:
                mpx.new_channel_subscription(print).add("news", "__keyevent@0__:expired")
        key = mpx.new_key_subscription("*")
        await key.wait_for_activation(timeout=10)
    (text,) = [text for text in warnings(caplog) if "__key" in text]
    assert "new_key_subscription()" in text


@pytest.mark.parametrize("how", ["close", "drain"])
async def test_key_subscriptions_end_with_the_multiplexer(shared_cluster: Cluster, how: str) -> None:
    """Closing and draining leave nothing subscribed, also while the first slot map is being read."""
    for is_active in (True, False):
        async with multiplexing(shared_cluster) as (mpx, _client):
            sub = mpx.new_key_subscription("*")
            if is_active:
                await sub.wait_for_activation(timeout=10)
            else:
                await asyncio.sleep(0)
            await (mpx.drain(10) if how == "drain" else mpx.aclose())
            assert sub.closed

        async def left() -> str:
            return repr(await shared_cluster.patterns()) if await shared_cluster.patterns() else ""

        await eventually(left)
