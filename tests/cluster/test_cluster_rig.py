"""The helpers for clusters and Sentinels do what the tests expect of them."""

from __future__ import annotations

import pytest
from redis.asyncio.sentinel import Sentinel
from redis.exceptions import MovedError

from ..helpers.cluster import SLOTS, Cluster
from ..helpers.sentinel import MASTER, Sentinels, close

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_a_cluster_has_three_primaries_with_replicas(shared_cluster: Cluster) -> None:
    """A new cluster has three primaries, a replica for each, and all slots."""
    primaries = await shared_cluster.primaries()
    assert len(primaries) == 3
    assert [len(await shared_cluster.replicas(primary)) for primary in primaries] == [1, 1, 1]
    slots = [(await primary.word()).slots for primary in primaries]
    assert set().union(*slots) == set(range(SLOTS))
    assert sum(len(some) for some in slots) == SLOTS


async def test_a_slot_moves_with_its_keys(shared_cluster: Cluster) -> None:
    """Moving a slot moves its keys, and all nodes agree about the new owner."""
    source = await shared_cluster.owner("key")
    target = next(node for node in await shared_cluster.primaries() if node is not source)
    await source.admin.set("key", "value")
    await shared_cluster.move_slot("key", target)
    assert await shared_cluster.owner("key") is target
    assert await target.admin.get("key") == b"value"
    with pytest.raises(MovedError):
        await source.admin.get("key")


async def test_subscribers_are_counted_per_node(shared_cluster: Cluster) -> None:
    """The cluster reports which node has subscribers of which names."""
    owner = await shared_cluster.owner(b"news")
    other = next(node for node in shared_cluster.nodes if node is not owner)
    async with owner.admin.pubsub() as shard, other.admin.pubsub() as classic:
        await shard.execute_command("SSUBSCRIBE", b"news")
        await classic.subscribe(b"news")
        await classic.psubscribe(b"n*")
        for _ in range(2):
            await classic.get_message(timeout=5)
        await shard.parse_response()
        assert await shared_cluster.shard_subscribers([b"news", b"olds"]) == {b"news": {owner: 1}, b"olds": {}}
        assert await shared_cluster.shard_channels() == {owner: {b"news"}}
        assert await shared_cluster.subscribers([b"news"]) == {b"news": {other: 1}}
        assert await shared_cluster.channels() == {other: {b"news"}}
        assert await shared_cluster.patterns() == {other: 1}


async def test_a_replica_takes_over_when_asked(cluster: Cluster) -> None:
    """A failover on command promotes the replica, and the old primary becomes its replica."""
    primary = await cluster.owner(0)
    promoted = await cluster.failover(primary)
    assert await cluster.owner(0) is promoted
    assert await cluster.replicas(promoted) == [primary]


async def test_a_replica_takes_over_from_a_dead_primary(cluster: Cluster) -> None:
    """A replica replaces a killed primary, which comes back as its replica when restarted."""
    primary = await cluster.owner(0)
    promoted = await cluster.failover(primary, "kill")
    assert promoted is not primary
    assert await cluster.owner(0) is promoted
    assert primary not in cluster.live
    await cluster.restart(primary)
    assert await cluster.replicas(promoted) == [primary]


async def test_a_node_comes_and_goes(shared_cluster: Cluster) -> None:
    """A node can be added, get slots, and be removed again."""
    node = await shared_cluster.add_node()
    assert (await node.word()).slots == set()
    await shared_cluster.move_slot("news", node)
    assert await shared_cluster.owner("news") is node
    await node.admin.set("news", "today")
    await shared_cluster.remove_node(node)
    assert await (await shared_cluster.owner("news")).admin.get("news") == b"today"
    assert len(shared_cluster.nodes) == 6
    for other in shared_cluster.nodes:
        assert node.id not in await other.words()
    assert not node.folder.exists()


async def test_sentinels_fail_over_and_take_a_master_back(
    sentinels: Sentinels,
) -> None:
    """The Sentinels replace a killed master, take it back as a replica, and fail over on command."""
    old = await sentinels.master()
    new = await sentinels.kill_master()
    assert new is not old
    assert not old.alive
    await sentinels.kill(sentinels.sentinels[0])  # the others go on
    await sentinels.restart(old)
    assert (await old.admin.role())[:3] == [b"slave", b"127.0.0.1", new.port]
    await sentinels.restart(sentinels.sentinels[0])

    other = await sentinels.failover()
    assert [await sentinels.master(), new.alive] == [other, True]
    masters = [server for server in sentinels.servers if (await server.admin.role())[0] == b"master"]
    assert masters == [other] != [new]
    manager = Sentinel(sentinels.addresses, socket_timeout=5)
    assert await manager.discover_master(MASTER) == ("127.0.0.1", other.port)
    await close(manager)
