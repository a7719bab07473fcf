"""The cluster of our own does what tests ask of it, by the word of its nodes."""

from __future__ import annotations

import pytest
from redis.crc import key_slot
from redis.exceptions import MovedError

from .cluster import SLOTS, Cluster

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_a_cluster_has_three_primaries_a_replica_each_and_all_slots(shared_cluster: Cluster) -> None:
    primaries = await shared_cluster.primaries()
    assert len(primaries) == 3
    assert [len(await shared_cluster.replicas(primary)) for primary in primaries] == [1, 1, 1]
    slots = [(await primary.word()).slots for primary in primaries]
    assert set().union(*slots) == set(range(SLOTS))
    assert sum(len(some) for some in slots) == SLOTS


async def test_a_slot_moves_with_its_keys(shared_cluster: Cluster) -> None:
    source = await shared_cluster.owner("key")
    target = next(node for node in await shared_cluster.primaries() if node is not source)
    await source.admin.set("key", "value")
    await shared_cluster.move_slot("key", target)
    assert await shared_cluster.owner("key") is target
    assert await target.admin.get("key") == b"value"
    with pytest.raises(MovedError):
        await source.admin.get("key")


async def test_who_is_subscribed_where(shared_cluster: Cluster) -> None:
    owner = await shared_cluster.owner(b"news")
    other = next(node for node in shared_cluster.nodes if node is not owner)
    async with owner.admin.pubsub() as shard, other.admin.pubsub() as classic:
        await shard.ssubscribe(b"news")
        await classic.subscribe(b"news")
        await classic.psubscribe(b"n*")
        for _ in range(2):
            await classic.get_message(timeout=5)
        await shard.get_message(timeout=5)
        assert await shared_cluster.shard_subscribers([b"news", b"olds"]) == {b"news": {owner: 1}, b"olds": {}}
        assert await shared_cluster.shard_channels() == {owner: {b"news"}}
        assert await shared_cluster.subscribers([b"news"]) == {b"news": {other: 1}}
        assert await shared_cluster.channels() == {other: {b"news"}}
        assert await shared_cluster.patterns() == {other: 1}


async def test_a_replica_takes_over_when_asked(shared_cluster: Cluster) -> None:
    primary = await shared_cluster.owner(0)
    promoted = await shared_cluster.failover(primary)
    assert await shared_cluster.owner(0) is promoted
    assert await shared_cluster.replicas(promoted) == [primary]


async def test_a_replica_takes_over_from_the_dead_which_comes_back_as_its_replica(cluster: Cluster) -> None:
    primary = await cluster.owner(0)
    promoted = await cluster.failover(primary, "kill")
    assert promoted is not primary
    assert await cluster.owner(0) is promoted
    assert primary not in cluster.live
    await cluster.restart(primary)
    assert await cluster.replicas(promoted) == [primary]


async def test_a_node_comes_and_goes(cluster: Cluster) -> None:
    slot = key_slot(b"news")
    before = await cluster.owner(slot)
    node = await cluster.add_node()
    assert (await node.word()).slots == set()
    await cluster.move_slot(slot, node)
    assert await cluster.owner(slot) is node
    await cluster.remove_node(node)
    assert await cluster.owner(slot) in [before, *await cluster.primaries()]
    for other in cluster.nodes:
        assert node.id not in await other.words()
    assert len(cluster.nodes) == 6
