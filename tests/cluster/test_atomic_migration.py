"""Slots that the servers move by themselves: with CLUSTER MIGRATESLOTS on Valkey 9, CLUSTER MIGRATION on Redis 8.4.

A server that is older has no such test.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import subprocess

import pytest
from redis.asyncio import RedisCluster

from redismpx import Multiplexer
from redismpx.testing import Checker

from ..helpers.cluster import Cluster, Node, slot_of
from ..helpers.servers import find_binary
from ..helpers.waiting import eventually, until

pytestmark = pytest.mark.usefixtures("no_leaks")


def version(flavour: str) -> tuple[int, ...]:
    """Return the version of a server; nothing if it is not installed."""
    binary = find_binary(flavour)
    text = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout if binary else ""
    found = re.search(r"v=(\d+)\.(\d+)", text)
    return tuple(map(int, found.groups())) if found else ()


FLAVOURS = [flavour for flavour, least in (("valkey", (9, 0)), ("redis", (8, 4))) if version(flavour) >= least]


async def move_atomically(flavour: str, slot: int, source: Node, target: Node) -> None:
    if flavour == "valkey":
        await source.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target.id)
    else:
        await target.ask("CLUSTER", "MIGRATION", "IMPORT", slot, slot)


if FLAVOURS:

    @pytest.mark.parametrize(("cluster", "flavour"), [(each, each) for each in FLAVOURS], indirect=["cluster"])
    async def test_an_atomic_migration_is_one_gap(cluster: Cluster, flavour: str) -> None:
        """A slot that moves atomically is one gap, active again at once, and no message is lost outside it."""
        async with RedisCluster.from_url(cluster.url) as client, Multiplexer(client) as mpx:
            checker = Checker()
            sub = mpx.new_channel_subscription(*checker.callbacks, sharded=True)
            sub.add("news")
            await sub.wait_for_activation(timeout=5)

            async def feed() -> None:
                for number in itertools.count():
                    await mpx.publish("news", b"%d" % number, sharded=True)
                    await asyncio.sleep(0.002)

            feeding = asyncio.create_task(feed())
            source = await cluster.owner("news")
            target = next(node for node in await cluster.primaries() if node is not source)
            await until(lambda: checker.messages >= 50)
            await move_atomically(flavour, slot_of("news"), source, target)

            async def not_moved() -> str:
                return "" if await cluster.owner("news") is target else "the slot has not moved"

            await eventually(not_moved)
            await until(lambda: checker.kinds.count("activation") == 2)
            before = checker.messages
            await until(lambda: checker.messages >= before + 50)
            feeding.cancel()
            assert [kind for kind, _ in itertools.groupby(checker.kinds)] == [
                "activation", "message", "disconnect", "activation", "message",
            ]  # fmt: skip
            numbers = list(map(int, checker.payloads))
            jumps = [second for first, second in itertools.pairwise(numbers) if second != first + 1]
            gap = checker.kinds.index("disconnect") - 1  # messages before it; one activation comes first
            assert len(jumps) <= 1
            assert not jumps or numbers.index(jumps[0]) == gap
            assert not checker.faults
