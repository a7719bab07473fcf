"""Credentials that expire, in a cluster: each of its connections logs in again."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import RedisCluster

from redismpx import Multiplexer
from redismpx.testing import Checker

from ..helpers.cluster import Cluster
from ..helpers.new_sub import new_sub
from ..helpers.tokens import Rotating, users_of
from ..helpers.waiting import eventually, until

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_all_connections_log_in_again(cluster: Cluster) -> None:
    """Channels, shard channels at every primary, key events and publishing go on through new credentials, gapless."""
    provider = Rotating()
    admins = [node.admin for node in cluster.live]
    await provider.admit(*admins)
    seeds = RedisCluster.from_url(cluster.url).startup_nodes
    client = RedisCluster(startup_nodes=seeds, credential_provider=provider)
    async with Multiplexer(client) as mpx:
        classic, sharded, keys = Checker(), Checker(), Checker(lambda _: b"chat:*")
        names = [f"chat:{number}".encode() for number in range(20)]
        subs = [new_sub(mpx, classic, *names, sharded=False), new_sub(mpx, sharded, *names)]
        subs.append(mpx.new_key_subscription("chat:*", print, keys.on_disconnect, keys.on_activation))
        for sub in subs:
            await sub.wait_for_activation(timeout=10)
        for number in range(2, 5):
            provider.number = number
            await provider.admit(*admins)
            await asyncio.to_thread(provider.push)

            async def complaint() -> str:
                found = [await users_of(admin) for admin in admins]
                return "" if set().union(*found) == {provider.user} else f"logged in: {found}"

            for name in names:
                await mpx.publish(name, str(number))
                await mpx.publish(name, str(number), sharded=True)
            await eventually(complaint, 10)
            await provider.expire(*admins)
            await until(lambda: classic.messages == sharded.messages == (provider.number - 1) * len(names))
        assert mpx.stats().connections == 7  # one for channels, and two with each primary
        for checker in (classic, sharded, keys):
            assert not checker.faults + checker.errors
            assert checker.disconnects == 0
    await client.aclose()
