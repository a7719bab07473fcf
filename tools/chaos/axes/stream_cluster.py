"""Streams in a cluster: primaries that are killed, restarted and replaced, slots that move, lost connections."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import redis
from redis.asyncio import RedisCluster
from redis.crc import key_slot

from redismpx import Multiplexer
from tests.helpers.cluster import Cluster, Node
from tests.helpers.loops import run
from tests.helpers.servers import Server

from ..scenes import admin_of
from .streams import DURABLE, OPTIONS, Reader, Streams


class StreamCluster(Streams):
    """Streams in a cluster of three primaries and three replicas. Connections are killed, primaries are killed and
    restarted, or replaced by replicas that may lack the last messages, planned failovers happen, and slots move. The
    checks are those of `streams`."""

    is_cluster = True
    max_lengths = (1_000, None)  # a failover takes long, and its losses are looked for afterwards

    def set_up(self) -> None:
        self.cluster = run(self.start_cluster())
        self.servers += self.cluster.nodes
        self.admins: dict[Server, redis.Redis] = {node: admin_of(node) for node in self.cluster.nodes}
        self.owners: dict[bytes, Node] = {}

    async def start_cluster(self) -> Cluster:
        cluster = await Cluster.start(self.flavour, 3, 3, *DURABLE)
        await cluster.release()
        return cluster

    async def begin(self) -> None:
        await self.find_owners()
        for node in await self.cluster.primaries():
            self.admins[node].flushall()

    async def find_owners(self) -> None:
        """Note which primary has which stream."""
        slots = {node: (await node.word()).slots for node in await self.cluster.primaries()}
        for name in self.names:
            (self.owners[name],) = [node for node, owned in slots.items() if key_slot(name) in owned]

    async def new_reader(self, stack: AsyncExitStack) -> Reader:
        return Reader(await stack.enter_async_context(self.multiplexer(await self.new_client(stack), **OPTIONS)))

    async def new_writer(self, stack: AsyncExitStack) -> Multiplexer:
        stack.push_async_callback(self.cluster.release)
        client = await self.new_client(stack)
        return await stack.enter_async_context(self.multiplexer(client, publish_timeout=20.0))

    async def new_client(self, stack: AsyncExitStack) -> RedisCluster:
        client = RedisCluster.from_url(self.cluster.url)
        stack.push_async_callback(client.aclose)
        return client

    def admin_for(self, name: bytes) -> redis.Redis:
        return self.admins[self.owners[name]]

    def faults(self) -> dict[Callable[[], Any], int]:
        return {
            self.kill: 80, self.kill_one: 60, self.trim: 20, self.flush: 5, self.add_foreign: 20, self.come_and_go: 60,
            self.restart: self.size.slow, self.fail_over: self.size.slow, self.fail_over_as_planned: self.size.slow,
            self.move: self.size.slow,
        }  # fmt: skip

    def any_owner(self) -> Node:
        return self.rng.choice(sorted(set(self.owners.values()), key=lambda node: node.port))

    def kill_one(self) -> int:
        return int(self.admins[self.any_owner()].client_kill_filter(_type="pubsub", skipme=True))

    async def restart(self) -> int:
        """Kill a primary, which has everything on disk, and start it again before another one takes over."""
        node = self.any_owner()
        await self.cluster.kill(node)
        await self.start(node)
        await self.cluster.settled()
        return 1

    async def fail_over(self) -> int:
        """Kill a primary and have its replica take over, which lacks the last messages or, with WAIT, none."""
        old = self.any_owner()
        (replica,) = await self.cluster.replicas(old)
        self.replicate(old)
        if is_stale := self.rng.random() < 0.7:
            replica.freeze()
            self.admins[old].client_kill_filter(_type="replica")
            await self.pause(0.1)
        await self.cluster.release()
        tails = self.end(old)
        if not is_stale:
            self.replicate(old)
        old.kill()
        self.admins[old].connection_pool.disconnect()
        if is_stale:
            replica.thaw()
        await self.cluster.failover(old, "kill")
        await self.find_owners()
        self.compare(tails)
        await self.cluster.restart(old)
        self.admins[old].ping()
        return 1

    async def fail_over_as_planned(self) -> int:
        await self.cluster.failover(self.any_owner(), "command")
        await self.find_owners()
        return 1

    async def move(self) -> int:
        """Move the slot of a stream to another primary."""
        name = self.rng.choice(self.names)
        owner = self.owners[name]
        target = self.rng.choice([node for node in await self.cluster.primaries() if node is not owner])
        await self.cluster.move_slot(name, target)
        await self.find_owners()
        return 1
