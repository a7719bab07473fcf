"""Streams in a cluster and behind Sentinels: each stream has one slot, and no failover is silent."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from redis.asyncio import RedisCluster
from redis.crc import key_slot

from redismpx import ConnectionLost, MessageGap, Multiplexer, StreamMessage
from redismpx._core.scripts import once_key, positions_key

from ..helpers.backoffs import QUICK
from ..helpers.cluster import Cluster, Node
from ..helpers.flavours import FLAVOURS, binary_of
from ..helpers.sentinel import MASTER, Sentinels
from ..helpers.servers import free_port
from ..helpers.waiting import eventually, until

pytestmark = pytest.mark.usefixtures("no_leaks")

NAMES = [b"room:1", b"room:2", b"{tag}x", b"a{b", b"a}b", b"{}", b"{}x{y}", b"}{", b""]


@pytest.mark.parametrize("name", NAMES)
def test_all_keys_of_a_stream_share_its_slot(name: bytes) -> None:
    """Whatever braces the name has; and the keys of two streams differ."""
    others = (positions_key(name, key_slot), once_key(name, b"k{x}", key_slot))
    assert {key_slot(key) for key in others} == {key_slot(name)}
    assert len({positions_key(name, key_slot) for name in NAMES}) == len(NAMES)


async def test_streams_of_all_slots_work_in_a_cluster(shared_cluster: Cluster) -> None:
    """Each subscription gets the messages of its streams, whatever slots they have, and keeps its positions."""
    client = RedisCluster.from_url(shared_cluster.url)
    got: list[StreamMessage[bytes]] = []
    async with Multiplexer(client, backoff=QUICK) as mpx:
        sub = mpx.new_stream_subscription(got.append, durable="d")
        sub.add(*NAMES)
        await sub.wait_for_activation(timeout=20)
        ids = await asyncio.gather(*[mpx.append(name, name + b"!", key="k") for name in NAMES])
        await until(lambda: len(got) == len(NAMES))
        assert {(m.channel, m.data, m.id) for m in got} == {(n, n + b"!", i) for n, i in zip(NAMES, ids, strict=True)}
        await sub.commit()
        for name in NAMES:
            assert await mpx.delete_position(name, "d")
            assert [m.data for m in await mpx.history(name)] == [name + b"!"]
            await client.delete(name)
    await client.aclose()


@pytest.mark.parametrize("how", ["move", "command", "kill"])
async def test_nothing_is_lost_when_slots_move_and_nodes_fail(cluster: Cluster, how: Any) -> None:
    """All messages arrive in order, once; what a failover has lost is reported as a gap."""
    client = RedisCluster.from_url(cluster.url)
    got: list[Any] = []
    name = b"room:1"
    async with Multiplexer(client, backoff=QUICK, tail_interval=1.0, publish_timeout=20.0) as mpx:
        sub = mpx.new_stream_subscription(got.append, got.append)
        sub.add(name)
        await sub.wait_for_activation(timeout=20)
        stop = False
        appended: list[tuple[bytes, bytes]] = []

        async def publish() -> None:
            while not stop:
                data = b"%d" % len(appended)
                try:
                    appended.append((await mpx.append(name, data, key=data), data))
                except ConnectionLost:
                    await asyncio.sleep(0.01)

        publisher = asyncio.create_task(publish())
        await until(lambda: len(got) > 50)
        owner = await cluster.owner(name)
        if how == "move":
            (target, *_) = [node for node in await cluster.primaries() if node is not owner]
            await cluster.move_slot(name, target)
        else:
            await cluster.failover(owner, how)
        count = len(appended)
        await until(lambda: len(appended) > count + 50, 60)
        stop = True
        await publisher
        last = await mpx.append(name, b"last")
        await until(lambda: isinstance(got[-1], StreamMessage) and got[-1].id == last, 30)
        check(got, appended)
    await client.aclose()


def check(got: list[Any], appended: list[tuple[bytes, bytes]]) -> None:
    """Check that each message follows the one that was appended before it, or a gap."""
    gaps = [event for event in got if isinstance(event, MessageGap)]
    messages = [event.data for event in got if isinstance(event, StreamMessage)]
    assert len(set(messages)) == len(messages)
    if not gaps:
        assert messages[:-1] == [data for _, data in appended]
    for before, after in pairwise(got):
        if isinstance(before, StreamMessage) and isinstance(after, StreamMessage) and after.data != b"last":
            assert int(after.data) == int(before.data) + 1


async def test_a_failover_that_loses_messages_is_a_gap(sentinels: Sentinels) -> None:
    """A replica that lacks the last messages takes over: the loss is reported, and delivery goes on."""
    got: list[Any] = []
    hosts = ",".join(f"{host}:{port}" for host, port in sentinels.addresses)
    async with Multiplexer(f"redis+sentinel://{hosts}/{MASTER}", backoff=QUICK) as mpx:
        sub = mpx.new_stream_subscription(got.append, got.append)
        sub.add("s")
        await sub.wait_for_activation(timeout=20)
        await mpx.append("s", b"0")
        await until(lambda: len(got) == 1)
        master = await sentinels.master()
        assert await master.admin.wait(2, 5000) == 2
        for replica in (server for server in sentinels.servers if server is not master):
            await replica.admin.replicaof("127.0.0.1", free_port())  # they get nothing any more
        last = await mpx.append("s", b"lost")
        await until(lambda: len(got) == 2)
        await sentinels.kill_master()
        await until(lambda: len(got) == 3, 60)
        assert isinstance(got[2], MessageGap)
        assert (got[2].after, got[2].reason) == (last, "restarted")
        await mpx.append("s", b"1")
        await until(lambda: len(got) == 4)
        assert got[3].data == b"1"


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_a_cluster_that_is_down_rejects_no_stream(flavour: str) -> None:
    """While no node serves its slot, a subscription waits: that is no error. Its messages arrive afterwards."""
    node = Node(binary_of(flavour)).start()
    try:
        errors: list[Exception] = []
        got: list[StreamMessage[bytes]] = []
        async with Multiplexer(node.admin_url, backoff=QUICK) as mpx:
            for durable in (None, "d"):
                mpx.new_stream_subscription(got.append, durable=durable, on_error=errors.append).add("s", after="0")
            async with asyncio.timeout(20):
                while (await node.admin.info("errorstats")).get("errorstat_CLUSTERDOWN", {"count": 0})["count"] < 4:
                    await asyncio.sleep(0.02)
            await node.ask("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
            await eventually(node.complaint)
            await mpx.append("s", "x")
            await until(lambda: len(got) == 2)
        assert not errors
    finally:
        await node.release()
        node.remove()
