"""Observers in a cluster: each connection tells of itself."""

from __future__ import annotations

import pytest
from redis.asyncio import RedisCluster
from redis.crc import key_slot

from redismpx import Multiplexer
from redismpx.observing import Connected, Fact, Lost, Observer, Subscribed

from ..helpers.backoffs import QUICK
from ..helpers.cluster import Cluster
from ..helpers.waiting import until

pytestmark = pytest.mark.usefixtures("no_leaks")


class Notes(Observer):
    def __init__(self) -> None:
        self.facts: list[Fact] = []

    def observe(self, fact: Fact, /) -> None:
        self.facts.append(fact)


async def test_each_node_is_told_with_its_server(shared_cluster: Cluster) -> None:
    """A sharded channel is subscribed at its primary; a loss names the server, and what it has interrupted there."""
    client, notes = RedisCluster.from_url(shared_cluster.url), Notes()
    async with Multiplexer(client, backoff=QUICK, observers=[notes]) as mpx:
        sub = mpx.new_channel_subscription(lambda channel, data: None, sharded=True)
        sub.add("a", "b", "c")
        await sub.wait_for_activation(timeout=20)
        names = {fact.name for fact in notes.facts if isinstance(fact, Subscribed)}
        assert names == {b"a", b"b", b"c"}
        servers = {fact.server for fact in notes.facts if isinstance(fact, Connected)}
        assert len(servers) > 1
        for slot in {key_slot(name) for name in names}:
            node = await shared_cluster.owner(slot)
            for each in await node.admin.client_list():
                if int(each["ssub"]):
                    await node.ask("CLIENT", "KILL", "ID", each["id"])
        await until(lambda: sum([fact.names for fact in notes.facts if isinstance(fact, Lost)]) == 3)
        await sub.wait_for_activation(timeout=20)
        assert {fact.server for fact in notes.facts if isinstance(fact, Lost)} <= servers
        assert mpx.stats().reconnects >= 1
    await client.aclose()
