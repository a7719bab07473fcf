"""A master that Sentinel names, and its subscriptions across failovers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import ConstantBackoff, NoBackoff
from redis.exceptions import ResponseError

from redismpx import ConnectionLost, Multiplexer, PromiseInterrupted
from redismpx._io.deployment import sentinel as master_module
from redismpx._io.redispy import dial as dial_module
from redismpx._io.redispy import sentinels as sentinels_module
from redismpx._io.session.link import LinkState
from redismpx.testing import Checker

from ..helpers.flavours import FLAVOURS, binary_of, start_server
from ..helpers.logs import warnings
from ..helpers.monitor import settled
from ..helpers.sentinel import MASTER, Sentinels, close
from ..helpers.servers import Server
from ..helpers.waiting import eventually, until

pytestmark = pytest.mark.usefixtures("no_leaks")

QUICK = ConstantBackoff(0.02)
PATIENCE = 30.0  # seconds for what Sentinels do among themselves
AT_ONCE: dict[str, Any] = {"socket_connect_timeout": 1, "socket_timeout": 1, "retry": Retry(NoBackoff(), 0)}
HELLO = b"__sentinel__:hello"  # the channel of the Sentinels themselves, at each server


@dataclass
class Word:
    """What all Sentinels say."""

    master: Server
    replica: Server | None
    asked: int = 0
    answers: Callable[[], Awaitable[None]] | None = None
    """Done before each answer, if it is set."""


class OneWord(Sentinel):
    """Sentinels that all name the master, or a replica, that they are told to name."""

    def __init__(self, master: Server, replica: Server | None = None) -> None:
        super().__init__([])
        self.said = Word(master, replica)  # not of this object, which the multiplexer copies

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        self.said.asked += 1
        if self.said.answers is not None:
            await self.said.answers()
        return "127.0.0.1", self.said.master.port

    async def discover_slaves(self, service_name: str) -> list[tuple[str, int]]:  # type: ignore[override]
        return [] if self.said.replica is None else [("127.0.0.1", self.said.replica.port)]


@asynccontextmanager
async def multiplexer(
    manager: Sentinel, *, service: Callable[[Sentinel], Redis] | None = None, **options: Any
) -> AsyncIterator[Multiplexer]:
    """A multiplexer for the master that a manager finds, or for what `service` makes of the manager."""
    client: Redis = manager.master_for(MASTER) if service is None else service(manager)
    options.setdefault("backoff", QUICK)
    try:
        async with Multiplexer(client, **options) as mpx:
            yield mpx
    finally:
        await client.aclose()
        await close(manager)


@asynccontextmanager
async def listening(manager: Sentinel, **options: Any) -> AsyncIterator[tuple[Multiplexer, Checker]]:
    """One that has the channel `a`, active already, and the checker of what is told of it."""
    async with multiplexer(manager, **options) as mpx:
        checker = Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks)
        sub.add("a")
        await sub.wait_for_activation(timeout=PATIENCE)
        yield mpx, checker


@pytest.fixture(scope="module", params=FLAVOURS)
def servers(request: pytest.FixtureRequest) -> Iterator[tuple[Server, Server]]:
    """Two servers of each flavour, for `pair`."""
    servers = tuple(start_server(request.param, "--repl-diskless-sync-delay", "0") for _ in range(2))
    yield servers[0], servers[1]
    for server in servers:
        server.remove()


@pytest.fixture
async def pair(servers: tuple[Server, Server]) -> AsyncIterator[tuple[Server, Server]]:
    """A master and its replica. Which is which is as the last test left it."""
    master, replica = servers
    if (await master.admin.role())[0] != b"master":
        master, replica = replica, master
    await replica.admin.execute_command("REPLICAOF", "127.0.0.1", master.port)
    await in_sync(replica, master)
    yield master, replica
    for server in servers:
        await server.admin.config_set("min-replicas-to-write", 0)
        await server.release()


async def in_sync(replica: Server, master: Server) -> None:
    """Wait until a server is the replica of another one, by the word of both."""

    async def complaint() -> str:
        below, above = await replica.admin.role(), await master.admin.role()
        good = below[2:4] == [master.port, b"connected"] and above[0] == b"master" and above[2]
        return "" if good else f"{replica} is {below}, {master} is {above}"

    await eventually(complaint)


async def swap(master: Server, replica: Server) -> None:
    """Make the replica the master, and the master its replica. Nobody is disconnected."""
    await replica.admin.execute_command("REPLICAOF", "NO", "ONE")
    await master.admin.execute_command("REPLICAOF", "127.0.0.1", replica.port)
    await in_sync(master, replica)


async def kill_subscribers(server: Server) -> None:
    await server.admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")


# --- failover


async def test_all_names_follow_each_failover(sentinels: Sentinels, caplog: pytest.LogCaptureFixture) -> None:
    """After commanded failovers and a crash, every name is active at the new master and each gap was reported."""
    async with multiplexer(Sentinel(sentinels.addresses, sentinel_kwargs=AT_ONCE)) as mpx:
        channels, pattern = Checker(), Checker(lambda _: b"x*")
        sub = mpx.new_channel_subscription(*channels.callbacks)
        sub.add("a", "b")
        listener = mpx.new_pattern_subscription("x*", *pattern.callbacks)
        promises = mpx.new_promise_subscription("promise-")
        for each in sub, listener, promises:
            await each.wait_for_activation(timeout=PATIENCE)
        broken = promises.new_promise("broken", PATIENCE)
        failovers: list[Callable[[], Awaitable[Server]]] = [
            sentinels.failover,
            sentinels.kill_master,
            sentinels.failover,
        ]
        for number, fail_over in enumerate(failovers, 1):
            old = await sentinels.master()
            master = await fail_over()
            assert master is not old
            await until(lambda n=number: channels.disconnects == pattern.disconnects == n, PATIENCE)
            for each in sub, listener, promises:
                await each.wait_for_activation(timeout=PATIENCE)
            with pytest.raises(PromiseInterrupted):
                await broken
            await settled(master.admin, {b"a", b"b", HELLO}, 2)
            kept, broken = promises.new_promise("kept", PATIENCE), promises.new_promise("broken", PATIENCE)
            assert await master.admin.publish("a", str(number)) == 1  # by the server, ...
            assert await mpx.publish("xy", str(number)) == 1  # ... and by ourselves, where the publisher went
            assert await mpx.publish(kept.channel, "kept") == 1
            assert await kept == b"kept"
            await until(lambda n=number: channels.messages == pattern.messages == n)
            assert (channels.disconnects, pattern.disconnects) == (number, number)
        assert channels.activations == 2 * (1 + len(failovers))
        assert not channels.faults + pattern.faults
        outages = [warning for warning in warnings(caplog) if "reconnecting" in warning]
        assert len(outages) <= len(failovers)


async def test_a_dead_or_frozen_sentinel_is_skipped(sentinels: Sentinels, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead or frozen Sentinel is skipped, at the latest with the attempt to connect after the one that timed out."""
    frozen, dead, _ = sentinels.sentinels
    await sentinels.kill(dead)
    frozen.freeze()
    try:
        async with multiplexer(Sentinel(sentinels.addresses, sentinel_kwargs=AT_ONCE)) as mpx:
            await mpx.connect(PATIENCE)
        monkeypatch.setattr(dial_module, "DIAL_TIMEOUT", 1.0)
        async with multiplexer(Sentinel(sentinels.addresses)) as mpx:
            await mpx.connect(PATIENCE)
            assert "not connected after 1 s" in str(mpx.stats().last_error)
    finally:
        frozen.thaw()


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_passwords_of_servers_and_sentinels_stay_secret(flavour: str, caplog: pytest.LogCaptureFixture) -> None:
    """Servers and Sentinels may have different passwords, and none appears in a log, error or repr."""
    binary_of(flavour)
    sentinels = await Sentinels.start(flavour, passwords=("servers-secret", "sentinels-secret"))

    def service(manager: Sentinel) -> Redis:
        client: Redis = manager.master_for(MASTER, password="servers-secret")
        return client

    try:
        good = Sentinel(sentinels.addresses, sentinel_kwargs={**AT_ONCE, "password": "sentinels-secret"})
        wrong = Sentinel(sentinels.addresses, sentinel_kwargs={**AT_ONCE, "password": "no-secret"})
        async with multiplexer(good, service=service) as mpx, multiplexer(wrong, service=service) as stranger:
            checker = Checker()
            sub = mpx.new_channel_subscription(*checker.callbacks)
            sub.add("a")
            await sub.wait_for_activation(timeout=PATIENCE)
            master = await sentinels.failover()
            await until(lambda: checker.activations == 2, PATIENCE)
            await settled(master.admin, {b"a", HELLO})
            await until(lambda: stranger.stats().last_error is not None)
            error = str(stranger.stats().last_error)
        assert f"No master found for '{MASTER}'" in error
        assert "AuthenticationError" in error
        assert not checker.faults
        assert "secret" not in error + caplog.text
    finally:
        await sentinels.stop()


# --- what the Sentinels say


def hello(master: Server, service: str = MASTER) -> str:
    """What a Sentinel tells the others, and all who listen there."""
    return f"127.0.0.1,26379,{'0' * 40},1,{service},127.0.0.1,{master.port},1"


async def test_a_former_master_is_left_before_it_is_demoted(sentinels: Sentinels) -> None:
    """A master that the Sentinels replaced is left although it still answers.

    It is never demoted here, because the Sentinels lack the right to do so, and no message arrives at it.
    """
    old = await sentinels.master()
    await old.admin.execute_command("ACL", "SETUSER", "default", "-client|kill")
    async with listening(Sentinel(sentinels.addresses, sentinel_kwargs=AT_ONCE)) as (mpx, checker):
        assert await mpx.publish("a", "old") == 1
        await sentinels.sentinels[0].admin.execute_command("SENTINEL", "FAILOVER", MASTER)
        await until(lambda: checker.activations == 2, PATIENCE)
        new = await sentinels.master()
        assert new is not old
        assert (await old.admin.role())[0] == b"master"
        await new.release()  # who became a master has disconnected its clients
        await settled(new.admin, {b"a", HELLO})
        assert await mpx.publish("a", "new") == 1  # the publisher has left, too
        await until(lambda: checker.payloads == [b"old", b"new"])
        (lost,) = [event for kind, event in checker.events if kind == "disconnect"]
    assert isinstance(lost, ConnectionLost)
    assert lost.reason == f"the Sentinels name another master, 127.0.0.1:{new.port}"
    assert not checker.faults


async def test_announcements_of_a_failover_are_verified(
    pair: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody with the right can publish on the Sentinels' channels, so an announcement makes the client ask them.

    An announcement about another master is ignored.
    """
    monkeypatch.setattr(master_module, "QUESTION_PAUSE", 0)
    monkeypatch.setattr(master_module, "QUESTIONS", 1)
    old, new = pair
    word = OneWord(old)
    async with listening(word) as (mpx, checker):

        async def asked_after(*texts: str | bytes) -> int:
            """How often they were asked because of texts, each of which was heard."""
            before, heard = word.said.asked, checker.messages
            for text in texts:
                await old.admin.publish(HELLO, text)
                await old.admin.publish("a", "")
                heard += 1
                await until(lambda heard=heard: checker.messages == heard)  # type: ignore[misc]
                for _ in range(5):
                    await asyncio.sleep(0)
            return word.said.asked - before

        assert (
            await asked_after(hello(old), hello(new, "other"), hello(new, "ma"), "", "main", ",,,,", b"\xff,\0" * 9)
            == 0
        )
        assert await asked_after(hello(new), hello(new).rsplit(",", 2)[0], f",,,,{MASTER}", f"{hello(new)},more") == 4

        async def nobody_answers() -> None:
            raise MasterNotFoundError

        word.said.answers = nobody_answers
        assert await asked_after(hello(new)) == 1
        monkeypatch.setattr(sentinels_module, "DIAL_TIMEOUT", 0)
        manager = mpx._hub.deployment._endpoint._pool.sentinel_manager  # type: ignore[attr-defined]
        frozen, other = manager.sentinels = [Redis(), Redis()]
        word.said.answers = asyncio.get_running_loop().create_future
        assert await asked_after(hello(new)) == 1
        await until(lambda: manager.sentinels == [other, frozen])
        link = mpx._hub.deployment.main._link
        assert link is not None
        assert (mpx.stats().connections, link.state) == (1, LinkState.LIVE)

        monkeypatch.undo()
        word.said.answers = None
        word.said.master = new
        await new.admin.execute_command("REPLICAOF", "NO", "ONE")
        await old.admin.publish(HELLO, hello(new))
        await until(lambda: checker.activations == 2)
        await settled(new.admin, {b"a", HELLO})
    assert not checker.faults


async def test_forged_announcements_cost_few_questions(
    pair: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Announcements that prove false are ignored for longer and longer; a true one is heard after that pause."""
    for name, value in (("QUESTIONS", 2), ("QUESTION_PAUSE", 0.001), ("LONGEST_PAUSE", 0.2)):
        monkeypatch.setattr(master_module, name, value)
    old, new = pair
    word = OneWord(old)
    async with listening(word) as (_, checker):
        loop = asyncio.get_running_loop()
        before, end = word.said.asked, loop.time() + 1
        forged = 0
        while loop.time() < end:
            forged += 1
            await old.admin.publish(HELLO, f"{'f' * 40},{forged},x,1,{MASTER},127.0.0.1,{forged % 65_000},1")
            await asyncio.sleep(0)
        assert forged > 100
        assert word.said.asked - before < 50
        word.said.master = new
        await new.admin.execute_command("REPLICAOF", "NO", "ONE")
        while checker.activations < 2:
            await old.admin.publish(HELLO, hello(new))
            await asyncio.sleep(0.02)
    assert not checker.faults


async def test_a_huge_announcement_is_ignored(pair: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch) -> None:
    """An announcement that is longer than any real one, or has any number of parts, is not taken apart."""
    monkeypatch.setattr(master_module, "QUESTION_PAUSE", 0)
    old, new = pair
    word = OneWord(old)
    async with listening(word) as (_, checker):
        asked = word.said.asked
        for text in (hello(new) + "," * 1_000_000, hello(new) + "x" * 1024, "," * 1_000_000):
            await old.admin.publish(HELLO, text)
        await old.admin.publish("a", "after them")
        await until(lambda: checker.payloads == [b"after them"])
        assert word.said.asked == asked
        await old.admin.publish(HELLO, hello(new) + "," * 500)
        await until(lambda: word.said.asked > asked)


async def test_a_forced_host_is_not_taken_for_another_master(
    pair: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `force_master_ip` Sentinels announce another host than is dialled: the port tells whether it is the same."""

    class Forced(OneWord):
        def __init__(self, master: Server) -> None:
            super().__init__(master)
            self._force_master_ip = "localhost"

        async def discover_master(self, service_name: str) -> tuple[str, int]:
            _, port = await super().discover_master(service_name)
            return "localhost", port

    monkeypatch.setattr(master_module, "QUESTION_PAUSE", 0)
    old, new = pair
    word = Forced(old)
    async with listening(word) as (mpx, checker):
        asked = word.said.asked
        for number in range(3):
            await old.admin.publish(HELLO, hello(old))
            await old.admin.publish("a", str(number))
        await until(lambda: checker.messages == 3)
        assert word.said.asked == asked
        word.said.master = new
        await new.admin.execute_command("REPLICAOF", "NO", "ONE")
        await old.admin.publish(HELLO, hello(new))
        await until(lambda: checker.activations == 2)
        assert mpx._hub.deployment.main.address == ("localhost", new.port)
    assert not checker.faults


async def test_publishing_alone_at_a_former_master_is_noticed(pair: tuple[Server, Server]) -> None:
    """A Sentinel that missed a failover may send publishing to the former master: the next announcement shows it."""
    old, new = pair
    word = OneWord(new)
    await new.admin.execute_command("REPLICAOF", "NO", "ONE")
    async with listening(word) as (mpx, checker):
        word.said.master = old
        assert await mpx.publish("a", "lost") == 0
        word.said.master = new
        await new.admin.publish(HELLO, hello(new))
        await until(lambda: mpx._hub.deployment.addresses == {("127.0.0.1", new.port)})
        assert await mpx.publish("a", "found") == 1
        await until(lambda: checker.kinds == ["activation", "message"])
    assert not checker.faults


async def test_a_missing_right_to_listen_is_warned_of_once(
    pair: tuple[Server, Server], caplog: pytest.LogCaptureFixture
) -> None:
    """Without the right to subscribe at the Sentinels, one warning says so and the connection works."""
    caplog.set_level(logging.INFO, "redismpx")
    master, _ = pair
    await master.admin.execute_command(
        "ACL", "SETUSER", "narrow", "on", ">secret", "&a", "-@all", "+subscribe", "+unsubscribe", "+ping"
    )
    options = {"username": "narrow", "password": "secret"}
    async with multiplexer(OneWord(master), service=lambda word: word.master_for(MASTER, **options)) as mpx:
        checker = Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks)
        sub.add("a")
        for number in range(1, 3):
            await until(lambda number=number: checker.activations == number)  # type: ignore[misc]
            await settled(master.admin, {b"a"})
            await kill_subscribers(master)
        await until(lambda: checker.activations == 3)
    await master.admin.execute_command("ACL", "DELUSER", "narrow")
    (line,) = [r.getMessage() for r in caplog.records if "__sentinel__" in r.getMessage()]
    assert line.startswith(
        "the Sentinels cannot announce a new master, so a former master is left late: Redis rejected"
    )
    assert not checker.faults


async def test_a_replica_named_as_master_is_not_used(
    pair: tuple[Server, Server], caplog: pytest.LogCaptureFixture
) -> None:
    """A Sentinel that missed a failover may name the old master, now a replica: the client connects again until it is
    named a master.
    """
    old, new = pair
    word = OneWord(old)
    await swap(old, new)
    async with multiplexer(word) as mpx:
        sub = mpx.new_channel_subscription()
        sub.add("a")
        await until(lambda: word.said.asked >= 4)
        stats = mpx.stats()
        assert (stats.state == "connected", stats.connections) == (False, 0)
        assert f"127.0.0.1:{old.port} is not a master" in str(stats.last_error)
        word.said.master = new
        await sub.wait_for_activation(timeout=5)
        await settled(new.admin, {b"a", HELLO})
        await settled(old.admin, set())
        assert mpx.stats().connections == 1
    (warning,) = warnings(caplog)
    assert f"no connection to Redis at {MASTER}; reconnecting" in warning
    assert f"127.0.0.1:{old.port} is not a master" in warning


async def test_a_demoted_master_is_not_reconnected_to(
    pair: tuple[Server, Server], caplog: pytest.LogCaptureFixture
) -> None:
    """A demoted master that a Sentinel still names is not used again."""
    old, new = pair
    word = OneWord(old)
    async with listening(word) as (mpx, checker):
        await swap(old, new)
        asked = word.said.asked
        await kill_subscribers(old)
        await until(lambda: word.said.asked >= asked + 4)
        assert not mpx.connected
        assert checker.kinds == ["activation", "disconnect"]
        word.said.master = new
        await until(lambda: checker.activations == 2)
        await settled(new.admin, {b"a", HELLO})
    assert not checker.faults
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("role", ["forbidden", "unknown"])
async def test_without_the_right_to_role_it_connects(
    server: Server, role: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A user without the right to ROLE connects without the check."""
    options: dict[str, Any] = {}
    if role == "unknown":
        server.kill()
        server.options = ("--rename-command", "ROLE", "")
        server.start()
    else:
        options = {"username": "least", "password": "secret"}
    async with multiplexer(OneWord(server), service=lambda word: word.master_for(MASTER, **options)) as mpx:
        sub = mpx.new_channel_subscription()
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        await settled(server.admin, {b"a", HELLO})
        assert mpx.stats().connections == 1
    await server.release()
    assert not warnings(caplog)


# --- at a replica


async def test_slave_for_subscribes_at_a_replica(
    pair: tuple[Server, Server],
) -> None:
    """With `slave_for` the multiplexer subscribes and publishes at a replica.

    Messages published at the master arrive there; those published at the replica reach only its own subscribers.
    """
    master, replica = pair
    word = OneWord(master, replica)
    async with (
        multiplexer(word) as at_master,
        multiplexer(word, service=lambda word: word.slave_for(MASTER)) as at_replica,
    ):
        above, below = Checker(), Checker()
        for mpx, checker in (at_master, above), (at_replica, below):
            sub = mpx.new_channel_subscription(*checker.callbacks)
            sub.add("a")
            await sub.wait_for_activation(timeout=5)
        await settled(master.admin, {b"a", HELLO})
        await settled(replica.admin, {b"a"})
        assert await at_replica.publish("a", "below") == 1
        assert await at_master.publish("a", "for all") == 1  # whom it reaches at the replica is not counted
        await until(lambda: [above.payloads, below.payloads] == [[b"for all"], [b"below", b"for all"]])
    assert not above.faults + below.faults


async def test_a_planned_failover_keeps_the_connection(
    pair: tuple[Server, Server],
) -> None:
    """`FAILOVER` closes no connection, and messages from the new master reach its replica, the old master.

    The next connection goes to the new master.
    """
    old, new = pair
    word = OneWord(old)
    async with listening(word) as (mpx, checker):
        await old.admin.execute_command("FAILOVER", "TO", "127.0.0.1", new.port)
        await in_sync(old, new)
        word.said.master = new
        for number in range(3):
            assert await new.admin.publish("a", str(number)) == 0
        await until(lambda: checker.kinds == ["activation"] + 3 * ["message"])
        assert mpx.stats().connections == 1
        await settled(old.admin, {b"a", HELLO})
        await kill_subscribers(old)
        await until(lambda: checker.kinds[4:] == ["disconnect", "activation"])
        await settled(new.admin, {b"a", HELLO})
    assert not checker.faults


@pytest.mark.parametrize("probe", [0.1, None], ids=["probe", "no probe"])
async def test_a_partitioned_master_is_left_with_a_probe(pair: tuple[Server, Server], probe: float | None) -> None:
    """In a partition the Sentinels name another master while the old one still answers: a delivery probe finds out."""
    old, new = pair
    word = OneWord(old)
    async with listening(word, ping_interval=0.05, delivery_probe=probe) as (mpx, checker):
        await new.admin.execute_command("REPLICAOF", "NO", "ONE")
        word.said.master = new
        if probe is None:
            link = mpx._hub.deployment.main._link
            assert link is not None
            for _ in range(10):  # it goes on answering pings, each sent after the last was heard
                heard = link.liveness._last_reply
                await until(lambda heard=heard: link.liveness._last_reply > heard)  # type: ignore[misc]
            assert await new.admin.publish("a", "starved") == 0
            await old.admin.config_set("min-replicas-to-write", 1)
            with pytest.raises(ResponseError, match="NOREPLICAS"):
                await old.admin.set("key", "value")
            assert await old.admin.publish("a", "nobody's") == 1  # for publishing is not writing
            await until(lambda: checker.payloads == [b"nobody's"])
            assert checker.kinds == ["activation", "message"]
        else:
            await until(lambda: checker.kinds == ["activation", "disconnect", "activation"])
            (lost,) = [event for kind, event in checker.events if kind == "disconnect"]
            assert isinstance(lost, ConnectionLost)
            assert "delivery probe" in lost.reason
            assert await new.admin.publish("a", "found") == 1
            await until(lambda: checker.payloads == [b"found"])
    assert not checker.faults
