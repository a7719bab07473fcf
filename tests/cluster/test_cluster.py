"""A cluster: classic names at any node, sharded names at the owner of their slot, while slots move and nodes fail."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import RedisCluster
from redis.backoff import ConstantBackoff
from redis.crc import key_slot
from redis.exceptions import AuthenticationError, NoPermissionError
from redis.exceptions import ConnectionError as RedisConnectionError

from redismpx import ChannelSubscription, ConnectionLost, Multiplexer, PromiseTimeout, Request
from redismpx._core.wire import Kind
from redismpx._io.deployment import shards as shards_module
from redismpx._io.publishing import cluster as publishing_module
from redismpx._io.publishing import publisher as publisher_module
from redismpx._io.publishing.call import PublishCall
from redismpx._io.redispy import connection as connection_module
from redismpx._io.redispy.slot_map import NodePool, SlotMap
from redismpx.testing import Checker, Proxy
from tools.measure_migrations import SEED, Result, Stream, migrate

from ..helpers.acl import set_user
from ..helpers.backoffs import QUICK
from ..helpers.cluster import Cluster, Node
from ..helpers.leaks import left_behind, open_sockets
from ..helpers.monitor import Monitor, calls_of
from ..helpers.new_sub import new_sub
from ..helpers.servers import free_port
from ..helpers.steps import Steps
from ..helpers.waiting import eventually, until

pytestmark = pytest.mark.usefixtures("no_leaks")

# As docs/how-to/secure.md has them. `+role` is not among them: without it, a demoted primary may be taken for a while.
SUBSCRIBER = """
    resetkeys resetchannels &chat:* -@all +cluster|slots
    +subscribe +unsubscribe +psubscribe +punsubscribe +ssubscribe +sunsubscribe +ping
"""
PUBLISHER = "resetkeys resetchannels &chat:* -@all +cluster|slots +publish +spublish"
MINE = "mine"  # the name of the connections to be counted


@asynccontextmanager
async def multiplexing(cluster: Cluster, client_options: dict[str, Any] | None = None) -> AsyncIterator[Multiplexer]:
    """A multiplexer for a cluster; its client was never used, and needs not be closed."""
    client = RedisCluster.from_url(cluster.url, **(client_options or {"client_name": MINE}))
    async with Multiplexer(client, backoff=QUICK) as mpx:
        yield mpx


async def at_their_owners(cluster: Cluster, names: Collection[bytes], *, subscribed: int = 1) -> None:
    """Wait until the nodes themselves say that these shard channels are subscribed where they belong, and no others."""
    expected = {name: {await cluster.owner(name): 1} if subscribed else {} for name in names}

    async def complaint() -> str:
        where = await cluster.shard_subscribers(names)
        if where != expected:
            return f"{where} instead of {expected}"
        found = set().union(*(await cluster.shard_channels()).values())
        return f"{found} instead of {names}" if subscribed and found != set(names) else ""

    await eventually(complaint)


async def gone(cluster: Cluster) -> None:
    """Wait until the nodes themselves say that nobody is subscribed to anything."""

    async def complaint() -> str:
        words = await cluster.shard_channels(), await cluster.channels(), await cluster.patterns()
        return "" if words == ({}, {}, {}) else repr(words)

    await eventually(complaint)


async def connections(cluster: Cluster) -> dict[Node, int]:
    """How many connections of ours each node has; nodes that have none are left out."""
    counts = {node: [c["name"] for c in await node.admin.client_list()].count(MINE) for node in cluster.live}
    return {node: count for node, count in counts.items() if count}


async def at(node: Node, count: int = 1, word: str = "name") -> list[bytes]:
    """Names whose slots are at a node, all different."""
    slots = (await node.word()).slots
    names = (b"%b-%d" % (word.encode(), number) for number in itertools.count())
    return list(itertools.islice((name for name in names if key_slot(name) in slots), count))


async def other_than(cluster: Cluster, node: Node) -> Node:
    """Another primary."""
    return next(primary for primary in await cluster.primaries() if primary is not node)


async def kill_shard_clients(node: Node) -> None:
    for client in await node.admin.client_list():
        if int(client["ssub"]):
            await node.ask("CLIENT", "KILL", "ID", client["id"])


async def asked(nodes: Collection[Node]) -> int:
    """How often nodes were asked for the slot map."""
    return sum([await calls_of(node.admin, "cluster|slots") for node in nodes])


async def refused(cluster: Cluster) -> int:
    """How often nodes refused to subscribe a shard channel, so far."""
    stats = [await node.admin.info("commandstats") for node in cluster.live]
    return sum(each["cmdstat_ssubscribe"]["rejected_calls"] for each in stats if "cmdstat_ssubscribe" in each)


def losses(checker: Checker) -> list[frozenset[bytes] | None]:
    """The names of each disconnect."""
    return [event.names for kind, event in checker.events if kind == "disconnect"]


def quiet(checker: Checker, names: Collection[bytes]) -> bool:
    """Whether all that was heard is that each of these names is active."""
    return sorted(checker.events) == sorted(("activation", name) for name in names)


# --- classic channels


async def test_classic_names_work_at_any_node(shared_cluster: Cluster) -> None:
    """Channels, patterns, promises and requests work whichever node each client is connected to."""
    checkers = [Checker(lambda _: b"p*") for _ in range(8)]
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        mpxs = [await stack.enter_async_context(multiplexing(shared_cluster)) for _ in checkers]
        for mpx, checker in zip(mpxs, checkers, strict=True):
            sub = mpx.new_pattern_subscription("p*", *checker.callbacks, on_error=checker.on_error)
            await sub.wait_for_activation(timeout=10)
        subs = [mpx.new_channel_subscription() for mpx in mpxs]
        for sub in subs:
            sub.add("channel")
            await sub.wait_for_activation(timeout=10)
        where = await shared_cluster.patterns()
        assert len(where) > 1  # they spread over the nodes
        assert await connections(shared_cluster) == Counter(
            {node: len([c for c in await node.admin.client_list() if int(c["psub"])]) for node in where}
        )
        for number in range(20):
            for name, mpx in enumerate(mpxs):
                await mpx.publish(f"p{name}", str(number))
        await mpxs[0].publish("channel", "all")
        await until(lambda: all(checker.messages == 160 for checker in checkers))
        assert [(await sub.get(10)).data for sub in subs] == [b"all"] * 8

        promises = [await mpx.new_promise_subscription(f"{i}-").wait_for_new_promise() for i, mpx in enumerate(mpxs)]
        for promise, mpx in zip(promises, reversed(mpxs), strict=True):
            await mpx.publish(promise.channel, promise.channel)
        assert [await promise for promise in promises] == [promise.channel for promise in promises]

        service = mpxs[0].serve("upper", lambda request: request.body.upper())
        await service.wait_for_activation(timeout=10)
        assert [await mpx.request("upper", "a", timeout=10) for mpx in mpxs] == [b"A"] * 8
        with pytest.raises(PromiseTimeout):  # Redis's count says nothing of other nodes
            await mpxs[0].request("nobody", "a", timeout=0.1)
        for checker in checkers:
            assert checker.kinds.count("activation") == 1
            assert not checker.faults + checker.errors
    await gone(shared_cluster)


async def test_a_lost_link_is_replaced_by_one_to_another_node(shared_cluster: Cluster) -> None:
    """After each lost connection the next one goes to another node, and the gap is reported."""
    async with multiplexing(shared_cluster) as mpx:
        checker = Checker(lambda _: b"p*")
        sub = mpx.new_pattern_subscription("p*", *checker.callbacks, on_error=checker.on_error)
        last = None
        for gaps in range(6):
            await until(lambda gaps=gaps: checker.activations == gaps + 1)
            (node,) = await shared_cluster.patterns()
            assert node is not last
            last = node
            await node.ask("CLIENT", "KILL", "TYPE", "pubsub")
            await until(lambda gaps=gaps: checker.disconnects == gaps + 1)
        await sub.wait_for_activation(timeout=10)
        assert losses(checker) == [None] * 6
        assert not checker.faults


# --- where shard channels are


async def test_links_exist_only_while_they_are_needed(shared_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one link to each primary that owns a subscribed shard channel, and it closes after the last name."""
    monkeypatch.setattr(shards_module, "SHARD_LINGER", 0.2)
    first, second, third = await shared_cluster.primaries()
    async with multiplexing(shared_cluster) as mpx:
        await mpx.connect(10)
        checker = Checker()
        sub = new_sub(mpx, checker)
        expected: Counter[Node] = Counter((await connections(shared_cluster)).keys())
        assert expected.total() == 1
        names = []
        for number, node in enumerate((first, second, third), 1):
            names += await at(node, 5, "many")
            sub.add(*names)
            await sub.wait_for_activation(timeout=10)
            expected[node] += 1
            assert mpx.stats().shards == number
            await at_their_owners(shared_cluster, names)
            assert await connections(shared_cluster) == expected
        for name in names:
            assert await mpx.publish(name, "0", sharded=True) == 1
        await until(lambda: checker.messages == 15)
        made = mpx.stats().connections
        sub.remove(*names[5:9])
        await at_their_owners(shared_cluster, names[:5] + names[9:])
        sub.remove(names[9])
        checker.removed(names[9])
        checker.added(names[9])
        sub.add(names[9])  # before its link is closed
        await sub.wait_for_activation(timeout=10)
        sub.remove(*names[10:])
        await until(lambda: mpx.stats().shards == 2)
        checker.removed(*names[5:9], *names[10:])
        await at_their_owners(shared_cluster, [*names[:5], names[9]])
        assert mpx.stats().connections == made
        assert not checker.faults
        sub.close()
        await until(lambda: mpx.stats().shards == 0)
        assert checker.kinds.count("disconnect") == 0
        await gone(shared_cluster)


async def test_a_link_needed_again_in_time_stays(shared_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link without names stays open if a name of its node is added before it closes."""
    monkeypatch.setattr(shards_module, "SHARD_LINGER", 0.05)
    one, other = await at(await shared_cluster.owner(0), 2)
    async with multiplexing(shared_cluster) as mpx:
        checker = Checker()
        sub = new_sub(mpx, checker, one)
        await sub.wait_for_activation(timeout=10)
        for _ in range(5):
            sub.remove(one)
            checker.removed(one)
            sub.add(other)
            await sub.wait_for_activation(timeout=10)
            sub.remove(other)
            checker.removed(other)
            checker.added(one, other)
            sub.add(one)
            await sub.wait_for_activation(timeout=10)
        loop = asyncio.get_running_loop()
        shards = mpx._hub.deployment.shards
        assert shards is not None
        (shard,) = shards._shards.values()
        assert shard.closing is None
        over = loop.time() + 0.1
        await until(lambda: loop.time() > over)
        assert mpx.stats().shards == 1
        assert not checker.faults
        assert checker.disconnects == 0


async def test_slots_of_names_agree_with_redis(shared_cluster: Cluster) -> None:
    """Names with hash tags and binary names get the slot that Redis computes."""
    tags = [
        b"{}",
        b"{}a",
        b"{a}",
        b"{a}b",
        b"x{a}",
        b"{a}{b}",
        b"{{a}}",
        b"{a",
        b"a}",
        b"}{a}",
        b"{\xff\x00}",
        b"a{}{b}",
    ]
    binary = [bytes([byte]) for byte in range(0, 256, 7)] + [
        b"\xff\xfe\x00",
        b"\r\n",
        b"{\r\n}$3\r\nfoo",
        "ü{ö}".encode(),
        b"",
    ]
    names = tags + binary
    (node, *_) = await shared_cluster.primaries()
    for name in names:
        assert await node.ask("CLUSTER", "KEYSLOT", name) == key_slot(name), name
    before = await refused(shared_cluster)
    async with multiplexing(shared_cluster) as mpx:
        checker = Checker()
        await mpx.connect(10)  # so the slot map has been seen
        await new_sub(mpx, checker, *names).wait_for_activation(timeout=10)
        await at_their_owners(shared_cluster, names)
        assert await refused(shared_cluster) == before  # no node had to lead them elsewhere
        for name in names:
            assert await mpx.publish(name, b"x" + name, sharded=True) == 1
        await until(lambda: checker.messages == len(names))
        assert {event for kind, event in checker.events if kind == "message"} == {(name, b"x" + name) for name in names}


# --- slots that move


async def test_a_moved_slot_is_a_gap_of_its_names_alone(shared_cluster: Cluster) -> None:
    """A slot migration is a disconnect and an activation for the slot's names, and nothing for others."""
    source = await shared_cluster.owner(0)
    target = await other_than(shared_cluster, source)
    moving, *others = await at(source, 3)
    others += await at(target, 2)
    checkers = [Checker() for _ in range(4)]
    async with multiplexing(shared_cluster) as mpx:
        subs = [
            new_sub(mpx, checkers[0], moving),
            new_sub(mpx, checkers[1], moving, *others),
            new_sub(mpx, checkers[2], *others),
            new_sub(mpx, checkers[3], moving, *others, sharded=False),
        ]
        for sub in subs:
            await sub.wait_for_activation(timeout=10)
        made = mpx.stats().connections
        for to in (target, source):
            for checker in checkers[:2]:
                checker.events.clear()
            before = [await calls_of(node.admin, "ssubscribe") for node in shared_cluster.live]
            await shared_cluster.move_slot(moving, to)
            await until(lambda: all(len(checker.events) == 2 for checker in checkers[:2]))
            await at_their_owners(shared_cluster, [moving, *others])
            after = [await calls_of(node.admin, "ssubscribe") for node in shared_cluster.live]
            assert sum(after) < sum(before) + 20  # refused or not
            assert await mpx.publish(moving, "x", sharded=True) == 1
            await until(lambda: all(checker.messages for checker in checkers[:2]))
            for checker in checkers[:2]:
                assert checker.kinds == ["disconnect", "activation", "message"]
                assert losses(checker) == [frozenset({moving})]
                assert checker.events[1][1] == moving
                checker.messages = 0
        for checker in checkers[2:]:
            assert quiet(checker, others if checker is checkers[2] else [moving, *others])
        assert not any(checker.faults + checker.errors for checker in checkers)
        assert mpx.stats().connections == made


@pytest.mark.parametrize("again", [False, True], ids=["removed", "removed and added"])
async def test_removing_a_name_of_a_moving_slot_harms_nobody(shared_cluster: Cluster, again: bool) -> None:
    """A node that lost the slot unsubscribes the name by itself, and then rejects the pending UNSUBSCRIBE."""
    source = await shared_cluster.owner(0)
    target = await other_than(shared_cluster, source)
    moving, *others = await at(source, 6)
    with Proxy(source.port) as proxy:
        ports = {source.port: proxy.port}
        options = {"address_remap": lambda address: (address[0], ports.get(address[1], address[1]))}
        async with multiplexing(shared_cluster, options) as mpx:
            checker, spared = Checker(), Checker()
            sub, other = new_sub(mpx, checker, moving), new_sub(mpx, spared, *others)
            await sub.wait_for_activation(timeout=10)
            await other.wait_for_activation(timeout=10)
            made = mpx.stats().connections
            proxy.to_server.stall = True
            sub.remove(moving)
            checker.removed(moving)
            assert await shared_cluster.shard_subscribers([moving]) == {moving: {source: 1}}
            if again:
                checker.added(moving)
                sub.add(moving)
            await shared_cluster.move_slot(moving, target)
            assert await shared_cluster.shard_subscribers([moving]) == {moving: {}}
            proxy.to_server.stall = False
            await sub.wait_for_activation(timeout=10)
            await at_their_owners(shared_cluster, [*others, *sub.channels])
            assert await mpx.publish(others[0], "x", sharded=True) == 1
            await until(lambda: spared.messages == 1)
            assert checker.kinds == ["activation"] * (1 + again)
            assert spared.kinds == ["activation"] * 5 + ["message"]
            assert mpx.stats().connections == made + again
            assert not checker.faults + spared.faults


async def test_a_name_added_after_a_move_finds_its_node(shared_cluster: Cluster) -> None:
    """A name whose slot has just moved is subscribed at the new owner, without a gap."""
    source = await shared_cluster.owner(0)
    target = await other_than(shared_cluster, source)
    settled, moved = await at(source, 2)
    async with multiplexing(shared_cluster) as mpx:
        first, checker = Checker(), Checker()
        await new_sub(mpx, first, settled).wait_for_activation(timeout=10)  # so the slot map has been seen
        for to in (target, source):
            checker.events.clear()
            await shared_cluster.move_slot(moved, to)
            sub = new_sub(mpx, checker, moved)
            await sub.wait_for_activation(timeout=10)
            await at_their_owners(shared_cluster, [settled, moved])
            assert checker.events == [("activation", moved)]
            sub.close()
            checker.active.clear()
        assert quiet(first, [settled])


async def test_one_slot_map_refresh_serves_all_names(shared_cluster: Cluster) -> None:
    """A hundred names that move together cost a few requests for the slot map, not one each."""
    source = await shared_cluster.owner(0)
    target = await other_than(shared_cluster, source)
    (tag,) = await at(source)
    names = [b"{%b}%d" % (tag, number) for number in range(100)]
    checkers = [Checker() for _ in names]

    async with multiplexing(shared_cluster) as mpx:
        for checker, name in zip(checkers, names, strict=True):
            new_sub(mpx, checker, name)
        await until(lambda: all(checker.active for checker in checkers))
        before = await asked(shared_cluster.live)
        await shared_cluster.move_slot(tag, target)
        await until(lambda: all(checker.activations == 2 for checker in checkers))
        await at_their_owners(shared_cluster, names)
        assert before < await asked(shared_cluster.live) < before + 20
        for checker in checkers:
            assert checker.kinds == ["activation", "disconnect", "activation"]
        await shared_cluster.move_slot(tag, source)


async def test_slots_without_owner_are_waited_for(shared_cluster: Cluster) -> None:
    """Names of a slot without an owner stay pending, and become active when a node takes the slot."""
    source = await shared_cluster.owner(0)
    target = await other_than(shared_cluster, source)
    held, lost, late = await at(source, 3)
    async with multiplexing(shared_cluster) as mpx:
        checker, waiting = Checker(), Checker()
        sub = new_sub(mpx, checker, held, lost)
        await sub.wait_for_activation(timeout=10)
        for name in (lost, late):
            for node in shared_cluster.live:
                await node.ask("CLUSTER", "DELSLOTS", key_slot(name))
        await until(lambda: losses(checker) == [frozenset({lost})])
        other = new_sub(mpx, waiting, late)
        with pytest.raises(TimeoutError):
            await other.wait_for_activation(timeout=0.3)
        assert waiting.events == []
        for name in (lost, late):
            await target.ask("CLUSTER", "ADDSLOTS", key_slot(name))
        await other.wait_for_activation(timeout=20)
        await sub.wait_for_activation(timeout=20)
        await at_their_owners(shared_cluster, [held, lost, late])
        assert checker.kinds == ["activation", "activation", "disconnect", "activation"]
        assert waiting.events == [("activation", late)]
        assert not checker.faults
    await shared_cluster.settled()


# --- links that are lost, and nodes that come and go


async def test_a_lost_link_is_a_gap_of_its_own_names_alone(shared_cluster: Cluster) -> None:
    """A lost link to one node is a gap for the names at that node only."""
    first, second, third = await shared_cluster.primaries()
    here, there = [*await at(first, 3), *await at(second, 3)], await at(third, 3)
    async with multiplexing(shared_cluster) as mpx:
        both, few, spared, classic = (Checker() for _ in range(4))
        subs = [
            new_sub(mpx, both, *here, *there),
            new_sub(mpx, few, there[0]),
            new_sub(mpx, spared, *here),
            new_sub(mpx, classic, *here, *there, sharded=False),
        ]
        for sub in subs:
            await sub.wait_for_activation(timeout=10)
        await kill_shard_clients(third)
        await until(lambda: both.activations == 12 and few.activations == 2)
        await at_their_owners(shared_cluster, here + there)
        assert losses(both) == [frozenset(there)]
        assert losses(few) == [frozenset(there[:1])]
        assert both.kinds == ["activation"] * 9 + ["disconnect"] + ["activation"] * 3
        assert quiet(spared, here)
        assert quiet(classic, here + there)
        assert mpx.stats().connections == 5
        assert not both.faults + few.faults


@pytest.mark.parametrize("how", ["command", "takeover"])
async def test_names_move_to_the_promoted_replica(shared_cluster: Cluster, how: Any) -> None:
    """The demoted node would accept the names again, as a replica of the new owner; but they do not belong there."""
    primary = await shared_cluster.owner(16383 if how == "command" else 8000)
    other = await other_than(shared_cluster, primary)
    moving, staying = await at(primary, 20), await at(other, 5)
    async with multiplexing(shared_cluster) as mpx:
        checker, spared = Checker(), Checker()
        sub, still = new_sub(mpx, checker, *moving, *staying), new_sub(mpx, spared, *staying)
        for each in (sub, still):
            await each.wait_for_activation(timeout=10)
        promoted = await shared_cluster.failover(primary, how)
        await until(lambda: checker.disconnects and checker.active == {*moving, *staying})
        assert await shared_cluster.owner(moving[0]) is promoted
        await at_their_owners(shared_cluster, moving + staying)
        assert set().union(*filter(None, losses(checker))) == set(moving)
        assert quiet(spared, staying)
        assert not checker.faults + checker.errors


async def test_an_outdated_slot_map_does_not_lead_back(shared_cluster: Cluster) -> None:
    """Nodes that have not heard of a failover must not lead names back to the demoted primary.

    As a replica it would accept them, and the outdated slot map would agree.
    """
    primary = await shared_cluster.owner(0)
    (replica,) = await shared_cluster.replicas(primary)
    uninformed = [node for node in shared_cluster.live if node not in (primary, replica)]
    names = await at(primary, 4)
    async with multiplexing(shared_cluster) as mpx:
        checker = Checker()
        sub = new_sub(mpx, checker, *names)
        await sub.wait_for_activation(timeout=10)
        try:
            for node in uninformed:
                await node.ask(
                    "DEBUG", "DROP-CLUSTER-PACKET-FILTER", 1
                )  # PONG, by which a new owner makes itself known
            before = await asked(uninformed)
            await replica.ask("CLUSTER", "FAILOVER", "TAKEOVER")

            async def hardly_asked() -> str:
                return "" if await asked(uninformed) > before + 3 else "they were not asked often enough"

            await until(lambda: checker.disconnects > 0)
            with contextlib.suppress(AssertionError):  # all may be well already: two nodes know
                await eventually(hardly_asked, 1)
        finally:
            for node in uninformed:
                await node.ask("DEBUG", "DROP-CLUSTER-PACKET-FILTER", -1)
        await shared_cluster.settled()
        await sub.wait_for_activation(timeout=10)
        await at_their_owners(shared_cluster, names)
        assert not checker.faults + checker.errors


async def test_names_follow_added_and_removed_nodes(shared_cluster: Cluster) -> None:
    """Names move to a node that is added, and away from a node that is removed."""
    source = await shared_cluster.owner(0)
    names = await at(source, 4)
    async with multiplexing(shared_cluster) as mpx:
        checker = Checker()
        sub = new_sub(mpx, checker, *names)
        await sub.wait_for_activation(timeout=10)
        node = await shared_cluster.add_node()
        for name in names[:2]:
            await shared_cluster.move_slot(name, node)
        await until(lambda: checker.activations == 6)
        await at_their_owners(shared_cluster, names)
        assert [await shared_cluster.owner(name) for name in names] == [node, node, source, source]
        assert mpx.stats().shards == 2
        await shared_cluster.remove_node(node)
        await until(lambda: checker.activations == 8 and len(checker.active) == 4)
        await at_their_owners(shared_cluster, names)
        await until(lambda: mpx.stats().shards == len(set(mpx._hub.deployment.shards._places.values())))  # type: ignore[union-attr]
        assert checker.disconnects == 4
        assert await mpx.publish(names[0], "x", sharded=True) == 1
        assert not checker.faults + checker.errors


async def test_everything_recovers_from_a_dead_primary(cluster: Cluster) -> None:
    """When a primary dies, its shard channels, classic names and publishes move to the others."""
    primary = await cluster.owner(0)
    other = await other_than(cluster, primary)
    here, there = await at(primary, 5), await at(other, 5)
    result = Result()
    checkers = {name: Checker() for name in here + there}
    async with multiplexing(cluster) as mpx, multiplexing(cluster) as publishing:
        classic = Checker(lambda _: b"p*")
        pattern = mpx.new_pattern_subscription("p*", *classic.callbacks, on_error=classic.on_error)
        await pattern.wait_for_activation(timeout=10)
        while primary not in (where := await cluster.patterns()):
            for node in where:
                await node.ask("CLIENT", "KILL", "TYPE", "pubsub")
            gaps = classic.disconnects
            await until(lambda gaps=gaps: classic.activations > gaps and bool(classic.active))
        subs = [new_sub(mpx, checker, name) for name, checker in checkers.items()]
        for sub in subs:
            await sub.wait_for_activation(timeout=10)
        gaps = classic.disconnects
        stream = Stream(publishing, checkers, 500, result)
        streaming = asyncio.create_task(stream.run())
        await until(lambda: all(checker.messages for checker in checkers.values()))

        promoted = await cluster.failover(primary, "kill")
        assert await cluster.owner(here[0]) is promoted
        await until(lambda: bool(classic.active) and all(checkers[name].active for name in here), 30)
        await at_their_owners(cluster, here + there)
        before = {name: checker.messages for name, checker in checkers.items()}
        await until(lambda: all(checkers[name].messages > before[name] + 5 for name in before))
        stream.ended = True
        await streaming
        assert losses(classic)[gaps:] == [None]
        assert await publishing.publish("p1", "x") is not None
        await until(lambda: classic.payloads == [b"x"])
        for name, checker in checkers.items():
            assert checker.disconnects == checker.activations - 1
            assert (
                losses(checker) in ([frozenset({name})], [frozenset({name})] * 2)
                if name in here
                else not losses(checker)
            )
            assert not checker.faults + checker.errors
        assert publishing.stats().published == result.published + 1


@pytest.mark.parametrize("goes_on", [False, True])
async def test_a_frozen_primary_is_left_for_its_replica(cluster: Cluster, goes_on: bool) -> None:
    """A frozen primary is left when it answers no ping, or, without pings, when it hears of its demotion."""
    primary = await cluster.owner(0)
    (replica,) = await cluster.replicas(primary)
    here, there = await at(primary, 5), await at(await other_than(cluster, primary), 5)
    client = RedisCluster.from_url(cluster.url, socket_timeout=1)
    pings = {"ping_interval": None if goes_on else 0.5, "ping_timeout": 3.0}
    async with Multiplexer(client, backoff=QUICK, **pings) as mpx:
        checker, spared = Checker(), Checker()
        sub, still = new_sub(mpx, checker, *here), new_sub(mpx, spared, *there)
        for each in (sub, still):
            await each.wait_for_activation(timeout=10)
        await cluster.give_up_after(1)
        primary.freeze()
        try:

            async def waiting() -> str:
                return "" if "master" in (await replica.word()).flags else "the replica has not taken over"

            await eventually(waiting)
            if not goes_on:
                await until(lambda: checker.disconnects > 0 and checker.active == {*here}, 20)
                assert {*await replica.ask("PUBSUB", "SHARDCHANNELS")} == {*here}
        finally:
            primary.thaw()
        await cluster.settled()
        await until(lambda: checker.disconnects > 0 and checker.active == {*here})
        await at_their_owners(cluster, here + there)
        for name in here:
            assert await mpx.publish(name, "x", sharded=True) == 1
        await until(lambda: checker.messages == 5)
        assert set().union(*filter(None, losses(checker))) == {*here}
        assert quiet(spared, there)
        assert not checker.faults + checker.errors


@pytest.mark.parametrize("awaiting", [False, True])
async def test_callbacks_may_do_anything_when_slots_move(shared_cluster: Cluster, awaiting: bool) -> None:
    """A callback may add, remove, close or raise while slots move."""
    source = await shared_cluster.owner(0)
    target = await other_than(shared_cluster, source)
    (tag, staying), others = await at(source, 2), await at(target, 3)
    names, more = ([b"{%b}%b%d" % (tag, word, number) for number in range(5)] for word in (b"old", b"new"))
    checkers: list[Checker] = []
    async with multiplexing(shared_cluster) as mpx:

        def subscribe(deed: Callable[[ChannelSubscription[bytes], Checker, Collection[bytes]], object]) -> Any:
            def on_disconnect(error: ConnectionLost) -> None:
                checker.on_disconnect(error)
                assert error.names is not None
                deed(sub, checker, error.names)

            async def on_disconnect_later(error: ConnectionLost) -> None:
                await asyncio.sleep(0)
                on_disconnect(error)

            checker = Checker()
            checkers.append(checker)
            sub = mpx.new_channel_subscription(
                checker.on_message,
                on_disconnect_later if awaiting else on_disconnect,
                checker.on_activation,
                on_error=checker.on_error,
                sharded=True,
            )
            sub.add(*names, b"{%b}own%d" % (tag, len(checkers)))  # what all want, and what it alone wants
            return sub

        def remove(sub: ChannelSubscription[bytes], checker: Checker, gone: Collection[bytes]) -> None:
            sub.remove(*gone)
            checker.removed(*gone)

        def renew(sub: ChannelSubscription[bytes], checker: Checker, gone: Collection[bytes]) -> None:
            remove(sub, checker, gone)
            checker.added(*gone)
            sub.add(*gone)

        def close(sub: ChannelSubscription[bytes], checker: Checker, gone: Collection[bytes]) -> None:
            sub.close()
            checker.closed = True

        new_sub(mpx, Checker(), staying)  # and so the link to its node
        subs = [
            subscribe(lambda *_: None),
            subscribe(remove),
            subscribe(renew),
            subscribe(close),
            subscribe(lambda sub, *_: sub.add(*others, *more)),
            subscribe(lambda *_: close(victim, checkers[-2], ())),
            subscribe(lambda *_: close(victim, checkers[-2], ())),
            victim := subscribe(lambda *_: None),
            subscribe(lambda *_: 1 / 0),
        ]
        for sub in subs:
            await sub.wait_for_activation(timeout=10)
        for moves, to in enumerate((target, source, target, source), 1):
            await shared_cluster.move_slot(tag, to)
            await until(lambda moves=moves: checkers[0].disconnects == 6 * moves and all(s._inbox.idle for s in subs))
            still = [sub for sub in subs if not sub.closed]
            for sub in still:
                await sub.wait_for_activation(timeout=10)
            await at_their_owners(shared_cluster, {staying}.union(*(sub.channels for sub in still)))
        for sub, checker in zip(subs, checkers, strict=True):
            assert not checker.faults
            assert checker.closed or checker.active == sub.channels
            assert (checker is checkers[-1]) == any(isinstance(error, ZeroDivisionError) for error in checker.errors)
        assert [len(sub.channels) for sub in still] == [6, 0, 6, 14, 6, 6, 6]
        assert mpx.stats().connections == 2


@pytest.mark.parametrize("more", [0, 300])  # a few channels are removed at once, and many in time slices
async def test_a_callback_removes_a_moving_channel_elsewhere(shared_cluster: Cluster, more: int) -> None:
    """It was active there until then, and is not counted as active any more, so waiting for the next one is no lie."""
    source = await shared_cluster.owner(0)
    target = await other_than(shared_cluster, source)
    (name, _), (another, late, *others) = await at(source, 2), await at(target, 2 + more)
    async with multiplexing(shared_cluster) as mpx:
        disconnects: list[object] = []
        subs: list[ChannelSubscription[bytes]] = []

        def on_disconnect(error: ConnectionLost) -> None:
            disconnects.append(error)
            for sub in subs:
                sub.add(late)  # which is not active yet
                sub.remove(name, late, *others)

        subs += [mpx.new_channel_subscription(print, on_disconnect, sharded=True) for _ in range(2)]
        for sub in subs:
            sub.add(name, *others)
            await sub.wait_for_activation(timeout=10)
        await shared_cluster.move_slot(name, target)
        await until(lambda: not any(sub.channels for sub in subs))
        assert len(disconnects) == 1
        for sub in subs:
            sub.add(another)
            with pytest.raises(TimeoutError):  # no reply can have come
                await sub.wait_for_activation(timeout=0)
            await sub.wait_for_activation(timeout=10)


async def test_many_subscribers_of_a_moving_channel(shared_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are notified a few in each iteration of the loop, each once, while a callback removes, closes and adds."""
    monkeypatch.setattr(shards_module, "TIME_SLICE", 0.0)
    source = await shared_cluster.owner(0)
    target = await other_than(shared_cluster, source)
    (name, staying), count = await at(source, 2), 3 * shards_module.NOTIFIED_AT_ONCE
    checkers, late = [Checker() for _ in range(count)], Checker()
    notified: Counter[int] = Counter()  # by the iteration of the loop
    iteration = 0
    changed: list[int] = []
    async with multiplexing(shared_cluster) as mpx:

        def subscribe(checker: Checker) -> ChannelSubscription[bytes]:
            def on_disconnect(error: ConnectionLost) -> None:
                checker.on_disconnect(error)
                notified[iteration] += 1
                if sum(notified.values()) == count // 3:
                    change()

            sub = mpx.new_channel_subscription(checker.on_message, on_disconnect, checker.on_activation, sharded=True)
            sub.add(name, staying)
            return sub

        def change() -> None:
            """Remove, close and renew three subscriptions that are not notified yet, and make another one."""
            changed.extend([number for number, checker in enumerate(checkers) if not checker.disconnects][-3:])
            for number in changed:
                assert name in subs[number].active
                subs[number].remove(name)
                checkers[number].removed(name)
            subs[changed[1]].close()
            subs[changed[2]].add(name)
            checkers[changed[2]].added(name)
            subs.append(new_sub(mpx, late, name))

        subs = [subscribe(checker) for checker in checkers]
        for sub in subs:
            await sub.wait_for_activation(timeout=10)

        def next_iteration() -> None:
            nonlocal iteration
            iteration += 1
            if not changed or not subs[-1].active:
                asyncio.get_running_loop().call_soon(next_iteration)

        next_iteration()
        await shared_cluster.move_slot(name, target)
        await until(lambda: bool(changed))
        for sub in subs:
            if not sub.closed:
                await sub.wait_for_activation(timeout=10)
        await at_their_owners(shared_cluster, [name, staying])
        assert await mpx.publish(name, "1", sharded=True) == 1
        await until(lambda: late.messages + sum(checker.messages for checker in checkers) == count - 1)
        assert [number for number, checker in enumerate(checkers) if not checker.disconnects] == changed
        assert {checker.disconnects for checker in checkers} == {0, 1}
        assert not any(checker.faults for checker in (late, *checkers))
        assert max(notified.values()) <= 2


async def test_many_channels_survive_moves_and_failovers(cluster: Cluster) -> None:
    """Under load, slot moves and failovers lose and reorder nothing outside the reported gaps.

    The small version of `python -m tools.measure_migrations`.
    """
    result = await migrate(cluster, channels=30, moves=8, failovers=2, rate=500, seed=SEED)
    assert not result.violations
    assert result.disconnects > 8
    assert result.published > 100


# --- publishing


async def test_publishes_follow_a_moving_slot_in_order(shared_cluster: Cluster) -> None:
    """While a slot moves there and back, each message is published once, in the order of the calls."""
    source = await shared_cluster.owner(0)
    target = await other_than(shared_cluster, source)
    (tag,) = await at(source)
    names = [b"{%b}%d" % (tag, number) for number in range(10)] + await at(source, 5, "s") + await at(target, 5, "t")
    checker = Checker()
    sent = 0
    async with (
        multiplexing(shared_cluster) as mpx,
        multiplexing(shared_cluster) as listening,
        Monitor(source.admin) as here,
        Monitor(target.admin) as there,
    ):
        await new_sub(listening, checker, *names).wait_for_activation(timeout=10)

        async def move() -> None:
            for to in (target, source, target, source, target):
                await shared_cluster.move_slot(tag, to)

        moving = asyncio.create_task(move())
        while not moving.done():
            calls = []
            for number in range(sent, sent + 10):  # some are on their way while others wait
                calls += [asyncio.create_task(mpx.publish(name, str(number), sharded=True)) for name in names]
                await asyncio.sleep(0)
            await asyncio.gather(*calls)
            sent += 10
            await asyncio.sleep(0.005)
        await moving
        for monitor in (here, there):
            await monitor.saw("the end")
        assert mpx.stats().published == sent * len(names)
    published: dict[bytes, list[tuple[float, int]]] = {name: [] for name in names}
    for monitor in (here, there):
        for time, command in zip(monitor.times, monitor.commands, strict=True):
            if command.startswith("SPUBLISH "):
                _, channel, number = command.split(" ")
                published[channel.encode()].append((time, int(number)))
    for name, found in published.items():
        assert [number for _, number in sorted(found)] == list(range(sent)), name
    assert not checker.faults


async def test_first_publishes_find_the_owner_in_order(shared_cluster: Cluster) -> None:
    """Calls made before the slot map is known reach the owner of their slot in order."""
    names = [name for node in await shared_cluster.primaries() for name in await at(node, 3)]
    checker = Checker()
    async with multiplexing(shared_cluster) as listening, multiplexing(shared_cluster) as mpx:
        await new_sub(listening, checker, *names).wait_for_activation(timeout=10)
        calls = [mpx.publish(name, str(number), sharded=True) for number in range(50) for name in names]
        assert set(await asyncio.gather(*calls)) == {1}
        await until(lambda: checker.messages == len(calls))
        assert not checker.faults
        assert checker.last == dict.fromkeys(names, 49)
        await mpx.publish(names[0], "50", sharded=True)  # and go there straight from then on


# --- the end


async def _quit(mpx: Multiplexer, how: str) -> None:
    await (mpx.drain(20) if how == "drain" else mpx.aclose())


@pytest.mark.parametrize("how", ["aclose", "drain"])
async def test_the_end_is_clean_at_every_stage(shared_cluster: Cluster, how: str) -> None:
    """Closing or draining after any number of loop ticks leaves no task, socket or subscription."""
    names = [name for node in await shared_cluster.primaries() for name in await at(node, 20)]
    sockets = open_sockets()
    for ticks in (0, 1, 2, 3, 5, 8, 12, 20, 40, 80, 160):
        mpx = Multiplexer(RedisCluster.from_url(shared_cluster.url), backoff=QUICK)
        checker = Checker()
        sub = new_sub(mpx, checker, *names)
        sub.add("classic")
        # No numbers: what the one before this had sent may arrive only now.
        calls = [asyncio.ensure_future(mpx.publish(name, "x", sharded=True)) for name in names]
        for _ in range(ticks):
            await asyncio.sleep(0)
        await _quit(mpx, how)
        checker.closed = True
        await asyncio.gather(*calls, return_exceptions=True)
        assert not left_behind()
        assert not checker.faults
    await gone(shared_cluster)
    assert open_sockets() <= sockets


@pytest.mark.parametrize("how", ["aclose", "drain"])
async def test_the_end_is_clean_while_slots_move_and_links_linger(shared_cluster: Cluster, how: str) -> None:
    """Closing during a slot move, with an unneeded link still open, leaves nothing."""
    source = await shared_cluster.owner(0)
    target = await other_than(shared_cluster, source)
    moving, leaving = (await at(source))[0], (await at(target))[0]
    sockets = open_sockets()
    for ticks in (0, 1, 3, 10, 30, 100):
        client = RedisCluster.from_url(shared_cluster.url)
        mpx = Multiplexer(client, backoff=QUICK)
        checker = Checker()
        sub = new_sub(mpx, checker, moving, leaving)
        await sub.wait_for_activation(timeout=10)
        await mpx.publish(moving, "0", sharded=True)
        sub.remove(leaving)
        checker.removed(leaving)
        to = await other_than(shared_cluster, await shared_cluster.owner(moving))
        move = asyncio.create_task(shared_cluster.move_slot(moving, to))
        await until(lambda checker=checker, move=move: checker.disconnects or move.done())
        for _ in range(ticks):
            await asyncio.sleep(0)
        await _quit(mpx, how)
        assert mpx.stats().shards == mpx.stats().channels == 0
        checker.closed = True
        await move
        assert not left_behind()
        assert not checker.faults
    await shared_cluster.release()
    assert open_sockets() <= sockets
    await gone(shared_cluster)


async def test_a_cancelled_slot_map_refresh_leaves_nothing(shared_cluster: Cluster) -> None:
    """Cancelling a refresh of the slot map at any suspension leaves no connection."""
    sockets = open_sockets()
    for moment in itertools.count(1):
        slot_map = SlotMap(RedisCluster.from_url(shared_cluster.url))
        steps = Steps(slot_map.refresh(), moment, lambda: asyncio.current_task().cancel())  # type: ignore[union-attr]
        await asyncio.wait([asyncio.Task(steps.outcome())])
        await until(lambda: open_sockets() <= sockets)
        if not steps.struck:
            break
    assert moment > 3
    assert slot_map.owner(0) is not None


async def test_drain_delivers_all_received_shard_messages(shared_cluster: Cluster) -> None:
    """drain() delivers every message that some node counted as received."""
    names = [name for node in await shared_cluster.primaries() for name in await at(node, 2)]
    found: list[tuple[bytes, bytes]] = []
    received: list[tuple[bytes, bytes]] = []

    async def on_message(channel: bytes, message: bytes) -> None:
        await asyncio.sleep(0)
        found.append((channel, message))

    async with multiplexing(shared_cluster) as other, multiplexing(shared_cluster) as mpx:
        sub = mpx.new_channel_subscription(on_message, sharded=True)
        sub.add(*names)
        await sub.wait_for_activation(timeout=10)

        async def publish(name: bytes) -> None:
            for number in itertools.count():
                message = b"%d" % number
                if not await other.publish(name, message, sharded=True):
                    break
                received.append((name, message))

        publishing = asyncio.gather(*map(publish, names))
        await until(lambda: len(found) > 200)
        await mpx.drain(20)
        await publishing
        assert Counter(found) == Counter(received)
        await gone(shared_cluster)


# --- the client, its rights and its errors


async def test_the_given_client_stays_untouched(shared_cluster: Cluster) -> None:
    """The multiplexer changes nothing in the client that it was given, and never closes it."""
    name = (await at(await shared_cluster.owner(0)))[0]
    async with RedisCluster.from_url(shared_cluster.url) as client:
        await client.set("key", "before")

        def state() -> list[object]:
            manager = client.nodes_manager
            nodes = list(manager.nodes_cache.values())
            links = [(link, link.is_connected) for node in nodes for link in node._connections]
            return [list(map(id, nodes)), list(manager.startup_nodes), links]

        before = state()
        async with Multiplexer(client) as mpx:
            sub = new_sub(mpx, Checker(), name)
            await sub.wait_for_activation(timeout=10)
            await mpx.publish(name, "x", sharded=True)
            await mpx.publish(name, "x")
            assert state() == before
            assert await client.get("key") == b"before"
        assert state() == before
        assert await client.get("key") == b"before"
        assert await client.delete("key") == 1


async def both_failed(mpx: Multiplexer) -> None:
    """Wait until neither any node nor the slot map could be reached."""
    mpx.new_channel_subscription(print).add("a")
    await until(lambda: mpx.stats().last_error is not None and mpx._hub.outage(Kind.SHARD_CHANNEL) is not None)


async def test_connection_errors_name_their_cause(shared_cluster: Cluster) -> None:
    """A wrong password or unreachable nodes appear in the errors of connect(), activation and publish()."""
    async with multiplexing(shared_cluster, {"username": "nobody", "password": "wrong"}) as mpx:
        sub = new_sub(mpx, Checker(), "name")
        await both_failed(mpx)
        with pytest.raises(TimeoutError, match=r"invalid username-password") as caught:
            await mpx.connect(0.05)
        assert isinstance(caught.value.__cause__, ConnectionLost)
        assert isinstance(caught.value.__cause__.__cause__, AuthenticationError)
        with pytest.raises(TimeoutError, match=r"slot map of the cluster cannot be read.*invalid username-password"):
            await sub.wait_for_activation(timeout=0.05)
    async with Multiplexer(RedisCluster(host="127.0.0.1", port=free_port()), backoff=QUICK, publish_timeout=0.5) as mpx:
        sub = new_sub(mpx, Checker(), "name")
        await both_failed(mpx)
        with pytest.raises(TimeoutError, match="connect") as caught:
            await mpx.connect(0.05)
        assert isinstance(caught.value.__cause__, ConnectionLost)
        assert isinstance(caught.value.__cause__.__cause__, RedisConnectionError)
        with pytest.raises(TimeoutError, match="slot map of the cluster cannot be read"):
            await sub.wait_for_activation(timeout=0.05)
        with pytest.raises(ConnectionLost, match="not sent within") as lost:
            await mpx.publish("name", "x", sharded=True)
        assert not lost.value.sent


@pytest.mark.one_flavour
async def test_publishing_is_back_when_a_shard_session_is(
    shared_cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As soon as a session of sharded channels has connected, publishing connects too, however long its pause is."""
    monkeypatch.setattr("redismpx._io.publishing.current.publish_backoff", lambda: ConstantBackoff(600))
    caplog.set_level(logging.DEBUG, "redismpx")
    owner = await shared_cluster.owner(0)
    other = await other_than(shared_cluster, owner)
    name = (await at(owner))[0]
    try:
        for node in shared_cluster.live:
            await set_user(node.admin, "late", "other" if node is owner else "secret", "&* +@all")
        client = RedisCluster.from_url(other.admin_url, username="late", password="secret")
        async with Multiplexer(client, backoff=QUICK, publish_timeout=10) as mpx:
            call = asyncio.create_task(mpx.publish(name, "x", sharded=True))
            await until(lambda: "publishing fails for now" in caplog.text)
            await set_user(owner.admin, "late", "secret", "&* +@all")
            new_sub(mpx, Checker(), name)
            await call
    finally:
        for node in shared_cluster.live:
            await node.admin.acl_deluser("late")


async def test_least_privilege_users_are_enough(shared_cluster: Cluster) -> None:
    """The users of docs/how-to/secure.md have enough rights to subscribe and publish in a cluster."""
    users = {"listener": SUBSCRIBER, "speaker": PUBLISHER}
    try:
        for node in shared_cluster.live:
            for user, rules in users.items():
                await set_user(node.admin, user, "secret", rules)
        # A name for the connection is for those who watch only, so they do without one.
        listener, speaker = ({"username": user, "password": "secret", "client_name": MINE} for user in users)
        name = next(name for name in await at(await shared_cluster.owner(0), 1, "chat:"))
        async with (
            multiplexing(shared_cluster, listener) as mpx,
            multiplexing(shared_cluster, speaker) as speaking,
        ):
            shard, pattern = Checker(), Checker(lambda _: b"chat:*")
            sub = new_sub(mpx, shard, name)
            other = mpx.new_pattern_subscription("chat:*", *pattern.callbacks, on_error=pattern.on_error)
            for each in (sub, other):
                await each.wait_for_activation(timeout=10)
            assert await connections(shared_cluster) == {}
            await speaking.publish(name, "0", sharded=True)
            await speaking.publish(name, "0")
            await until(lambda: shard.messages == pattern.messages == 1)
            await shared_cluster.move_slot(name, await other_than(shared_cluster, await shared_cluster.owner(name)))
            await until(lambda: shard.activations == 2)
            await speaking.publish(name, "1", sharded=True)
            await until(lambda: shard.messages == 2)
            await at_their_owners(shared_cluster, [name])
            sub.close()
            await at_their_owners(shared_cluster, [name], subscribed=0)
            with pytest.raises(NoPermissionError):
                await mpx.publish(name, "2", sharded=True)
            assert not shard.faults + shard.errors + pattern.faults + pattern.errors
        for node in shared_cluster.live:
            await set_user(node.admin, "listener", "secret", SUBSCRIBER.replace("+cluster|slots", ""))
        async with multiplexing(shared_cluster, listener) as mpx:
            mpx.new_channel_subscription(print).add("a")
            await until(lambda: mpx.stats().last_error is not None)
            with pytest.raises(TimeoutError, match=r"cluster\|slots"):
                await mpx.connect(0.05)
    finally:
        for node in shared_cluster.live:
            await node.ask("ACL", "DELUSER", *users)


async def test_a_former_primarys_zero_count_is_not_trusted(shared_cluster: Cluster) -> None:
    """A demoted primary accepts publishes for its shard but counts only its own clients, so 0 proves nothing."""

    async def answer(request: Request) -> bytes:
        await asyncio.sleep(0.2)  # so that the count is known long before the answer
        return b"answer"

    owner, *_ = await shared_cluster.primaries()
    (served,) = await at(owner)
    async with multiplexing(shared_cluster) as other, multiplexing(shared_cluster) as mpx:
        service = other.serve(served, answer, sharded=True)
        await service.wait_for_activation(timeout=10)
        assert await mpx.request(served, "?", timeout=10, sharded=True) == b"answer"
        await shared_cluster.failover(owner)
        await at_their_owners(shared_cluster, [served])
        assert await mpx.request(served, "?", timeout=10, sharded=True) == b"answer"


async def test_a_zero_count_leads_to_the_new_primary(shared_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A publish without receivers refreshes the slot map, so that the next one reaches the new primary."""
    monkeypatch.setattr(publishing_module, "REFRESH_INTERVAL", 0.0)
    owner, *_ = await shared_cluster.primaries()
    (name,) = await at(owner)
    async with multiplexing(shared_cluster) as other, multiplexing(shared_cluster) as mpx:
        checker = Checker()
        sub = new_sub(other, checker, name)
        await sub.wait_for_activation(timeout=10)
        assert await mpx.publish(name, "0", sharded=True) == 1
        await shared_cluster.failover(owner)
        await at_their_owners(shared_cluster, [name])

        async def complaint() -> str:
            count = await mpx.publish(name, "again", sharded=True)
            return "" if count == 1 else f"{count} heard it"

        await eventually(complaint)


async def test_publishing_leaves_a_demoted_primary_at_once(
    shared_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A demoted primary says so when it is asked for its role: the next sharded message goes to the new primary."""
    monkeypatch.setattr(connection_module, "ROLE_INTERVAL", 0.0)
    owner, *_ = await shared_cluster.primaries()
    (name,) = await at(owner)
    async with multiplexing(shared_cluster) as other, multiplexing(shared_cluster) as mpx:
        checker = Checker()
        await new_sub(other, checker, name).wait_for_activation(timeout=10)
        assert await mpx.publish(name, "0", sharded=True) == 1
        await shared_cluster.failover(owner)
        await at_their_owners(shared_cluster, [name])
        assert await mpx.publish(name, "1", sharded=True) == 1
        await until(lambda: checker.messages == 2)


async def test_an_abandoned_node_is_left_by_publishing_too(shared_cluster: Cluster) -> None:
    """Publishing goes to another node when the node of its connection is abandoned, as the subscriptions do."""
    async with multiplexing(shared_cluster) as mpx:
        deployment = mpx._hub.deployment
        await mpx.connect(10)
        for _ in range(3):
            await mpx.publish("a", "0")
            before = deployment.publisher._pipeline.current.address
            deployment.abandon("a test")
            await mpx.publish("a", "1")
            assert deployment.publisher._pipeline.current.address not in (None, before)


async def test_delivery_probes_go_to_all_nodes(shared_cluster: Cluster) -> None:
    """Delivery probes are published at different nodes, because any of them may be cut off from the others."""
    before = {node: await calls_of(node.admin, "publish") for node in shared_cluster.live}
    client = RedisCluster.from_url(shared_cluster.url)
    async with Multiplexer(client, backoff=QUICK, delivery_probe=0.05):

        async def complaint() -> str:
            asked = [node for node in before if await calls_of(node.admin, "publish") > before[node]]
            return "" if len(asked) > 2 else f"only {asked} were asked"

        await eventually(complaint)


async def test_no_slot_map_refresh_starts_after_closing(
    shared_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A multiplexer that closes while publish() returns starts no refresh of the slot map."""
    monkeypatch.setattr(publishing_module, "REFRESH_INTERVAL", 0.0)
    mpx = Multiplexer(RedisCluster.from_url(shared_cluster.url), backoff=QUICK)

    class Closing(PublishCall):
        """Closes everything when its outcome is there, before its caller gets that."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.outcome.add_done_callback(lambda _: mpx.close())

    monkeypatch.setattr(publisher_module, "PublishCall", Closing)
    assert await mpx.publish("nobody", "", sharded=True) == 0
    assert all(task.cancelling() for task in asyncio.all_tasks() if "redismpx" in task.get_name())
    await mpx.aclose()
    assert not left_behind()


async def stuck(mpx: Multiplexer, channel: bytes, *others: bytes) -> tuple[ChannelSubscription[bytes], list[Any]]:
    """A sharded subscription whose callback hangs at the first message, and the names of its later disconnects."""
    entered, lost = asyncio.Event(), []

    async def hang(channel: bytes, message: bytes) -> None:
        entered.set()
        await gate.wait()

    gate = asyncio.Event()
    sub = mpx.new_channel_subscription(hang, lambda error: lost.append(error.names), sharded=True)
    sub.add(channel, *others)
    await sub.wait_for_activation(timeout=10)
    await mpx.publish(channel, b"x", sharded=True)
    await asyncio.wait_for(entered.wait(), 5)
    lost.append(gate.set)
    return sub, lost


async def test_add_of_a_sharded_channel_makes_no_connection(
    shared_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A channel may need a connection to another primary: it is made soon, and not by add()."""
    names = [name for node in await shared_cluster.primaries() for name in await at(node)]
    made: list[bool] = []
    adding = False
    make = NodePool.make_connection

    def watched(pool: NodePool) -> Any:
        made.append(adding)
        return make(pool)

    monkeypatch.setattr(NodePool, "make_connection", watched)
    async with multiplexing(shared_cluster) as mpx:
        await mpx.connect(10)
        sub = new_sub(mpx, Checker(), names[0])
        await sub.wait_for_activation(timeout=10)
        before = len(made)
        adding = True
        sub.add(*names)
        adding = False
        await sub.wait_for_activation(timeout=10)
        assert made[before:] == [False] * len(names[1:])


async def test_a_backoff_that_cannot_be_copied_is_shared(shared_cluster: Cluster) -> None:
    """Each connection of a cluster has a copy of the backoff, or the same one if it cannot be copied."""

    class Locked(ConstantBackoff):
        def __init__(self) -> None:
            super().__init__(0.01)
            self.lock = threading.Lock()
            self.calls = 0

        def compute(self, failures: int) -> float:
            with self.lock:
                self.calls += 1
                return super().compute(failures)

    backoff = Locked()
    name = (await at(await shared_cluster.owner(0)))[0]
    client = RedisCluster.from_url(shared_cluster.url)
    async with Multiplexer(client, backoff=backoff) as mpx:
        checker = Checker()
        sub = new_sub(mpx, checker, name)
        await sub.wait_for_activation(timeout=10)
        for number in (1, 2):
            await kill_shard_clients(await shared_cluster.owner(0))
            await until(lambda number=number: checker.disconnects == number)  # type: ignore[misc]
            await sub.wait_for_activation(timeout=10)
        assert backoff.calls
        assert not checker.faults


async def test_a_disconnect_loses_the_names_that_are_removed(shared_cluster: Cluster) -> None:
    """Removed one by one: on_disconnect gets the names that are left, and is not called if none is left."""
    node = (await shared_cluster.primaries())[0]
    one, two, three = await at(node, 3)
    async with multiplexing(shared_cluster) as mpx:
        for removed, expected in (((one,), [frozenset({two})]), ((one, two), [])):
            sub, lost = await stuck(mpx, one, two)
            let_go = lost.pop()
            connections = mpx.stats().connections
            await kill_shard_clients(node)
            await until(lambda connections=connections: mpx.stats().connections > connections)  # type: ignore[misc]
            await sub.wait_for_activation(timeout=10)
            sub.add(three)
            for name in removed:
                sub.remove(name)
            await sub.wait_for_activation(timeout=10)
            let_go()
            await until(lambda sub=sub: sub._inbox.idle)
            assert lost == expected
            sub.close()


async def test_disconnects_of_changing_names_do_not_fill_a_buffer(shared_cluster: Cluster) -> None:
    """The disconnects of a stuck subscription merge, though its channels come and go."""
    node = (await shared_cluster.primaries())[0]
    one, two = await at(node, 2)
    async with multiplexing(shared_cluster) as mpx:
        sub, _ = await stuck(mpx, one, two)
        for cycle in range(20):
            if cycle % 2:
                sub.add(two)
            else:
                sub.remove(two)
            await sub.wait_for_activation(timeout=10)
            connections = mpx.stats().connections
            await kill_shard_clients(node)
            await until(lambda before=connections: mpx.stats().connections > before)
            await sub.wait_for_activation(timeout=10)
        buffer = sub._inbox.buffer
        assert buffer is not None
        assert buffer.signals <= 6
