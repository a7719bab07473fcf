"""Subscribed names and the commands for them: nothing is sent twice or without need, and nothing is left out."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from redis.asyncio import Redis

from redismpx import Multiplexer
from redismpx.testing import Checker, Proxy

from ..helpers.backoffs import QUICK
from ..helpers.fake_server import FakeServer, shake_hands
from ..helpers.lengths import at_length
from ..helpers.loops import LOOPS
from ..helpers.monitor import Monitor, calls_of, settled
from ..helpers.servers import Server
from ..helpers.waiting import until

pytestmark = pytest.mark.usefixtures("no_leaks")


def names_in(monitor: Monitor, command: str) -> Counter[str]:
    """How often a server was sent each name, by some command."""
    return Counter(name for line in monitor.commands if line.startswith(command + " ") for name in line.split(" ")[1:])


async def test_changes_while_offline_become_one_subscribe(shared_server: Server, admin: Redis) -> None:
    """After an outage one SUBSCRIBE has the names that are subscribed by then."""
    with Proxy(shared_server.port) as proxy:
        async with Monitor(admin) as monitor, Multiplexer(proxy.url, backoff=QUICK) as mpx:
            sub = mpx.new_channel_subscription(lambda *_: None)
            sub.add("old", "kept")
            await sub.wait_for_activation(timeout=5)
            proxy.refusing = True
            proxy.reset()
            await until(lambda: mpx.stats().state != "connected")
            await monitor.saw("disconnected")
            monitor.commands.clear()
            sub.remove("old")
            sub.add("new", "never", "kept")
            sub.remove("never")
            for _ in range(10):
                sub.remove("flap")
                sub.add("flap")
                await asyncio.sleep(0)
            proxy.refusing = False
            await sub.wait_for_activation(timeout=10)
            await settled(admin, {b"new", b"kept", b"flap"})
            await monitor.saw("connected")
            assert monitor.count("SUBSCRIBE") == 1
            assert names_in(monitor, "SUBSCRIBE") == {"new": 1, "kept": 1, "flap": 1}


@pytest.mark.parametrize("shared_server", ["valkey"], indirect=True)
async def test_names_added_during_a_resubscribe_are_sent_once(url: str, admin: Redis) -> None:
    """Ten thousand names that are added while a hundred thousand are being sent are sent once each."""
    first, later = [f"c{number}" for number in range(100_000)], [f"d{number}" for number in range(10_000)]
    async with Monitor(admin) as monitor, Multiplexer(url, backoff=QUICK) as mpx:
        sub = mpx.new_channel_subscription(lambda *_: None)
        late = mpx.new_channel_subscription(lambda *_: None)
        for sweep in (1, 2):
            if sweep == 1:
                sub.add(*first)
            else:
                await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await until(
                lambda expected=sweep: mpx.stats().connections == expected and 0 < sub._inbox.active < 50_000, 30
            )
            for start in range(0, len(later), 100):
                late.add(*later[start : start + 100])
                await asyncio.sleep(0)
            for each in (sub, late):
                await each.wait_for_activation(timeout=30)
            await monitor.saw(f"sweep {sweep}")
            sent = names_in(monitor, "SUBSCRIBE")
            assert sent == dict.fromkeys((*first, *later), 1)
            assert max(line.count(" ") for line in monitor.commands if line.startswith("SUBSCRIBE")) <= 512
            if sweep == 1:
                late.clear()
                await until(
                    lambda: (
                        not mpx._hub.deployment.main.registry.oldest_command
                        and not mpx._hub.deployment.main.registry.has_work
                    )
                )
                await monitor.saw("cleared")
                monitor.commands.clear()
    await settled(admin, set())


@pytest.mark.parametrize("shared_server", ["valkey"], indirect=True)
async def test_a_flapping_name_costs_few_commands(url: str, admin: Redis) -> None:
    """Very many adds and removes of one name cost the server at most 1 % as many commands."""
    async with Multiplexer(url) as mpx:
        checker = Checker()
        sub = mpx.new_channel_subscription(checker.on_message)
        await mpx.connect(5)
        before = await calls_of(admin, "subscribe", "unsubscribe")
        rounds = at_length(2500, 500)
        for _ in range(rounds):
            for _ in range(200):
                sub.add("a")
                sub.remove("a")
            await asyncio.sleep(0)
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        await admin.publish("a", "1")
        await until(lambda: checker.messages == 1)
        await settled(admin, {b"a"})
        assert await calls_of(admin, "subscribe", "unsubscribe") - before <= rounds * 4  # 1 % of the calls


@pytest.mark.parametrize("kind", ["asyncio", "eager", "uvloop"])
def test_a_late_subscriber_is_activated_after_add_returns(url: str, kind: str) -> None:
    """A late subscriber is activated once, before its first message, also in loops with eager tasks."""
    if kind == "uvloop":
        pytest.importorskip("uvloop")

    async def main() -> None:
        async with Redis.from_url(url) as admin, Multiplexer(url) as mpx:
            early = mpx.new_channel_subscription(lambda *_: None)
            early.add("a")
            await early.wait_for_activation(timeout=5)
            await admin.publish("a", 0)
            for is_async in (False, True):
                checker = Checker()
                inside = False

                def on_activation(name: bytes, checker: Checker = checker) -> None:
                    assert not inside  # noqa: B023
                    checker.on_activation(name)

                async def on_activation_later(name: bytes, act: object = on_activation) -> None:
                    on_activation(name)

                late = mpx.new_channel_subscription(
                    checker.on_message, checker.on_disconnect, on_activation_later if is_async else on_activation
                )
                inside = True
                late.add("a")
                inside = False
                assert checker.events == []
                await late.wait_for_activation(timeout=5)
                await until(lambda: len(checker.events) == 1)  # noqa: B023
                await admin.publish("a", 1)
                await until(lambda: checker.messages == 1)  # noqa: B023
                assert checker.kinds == ["activation", "message"]
                assert not checker.faults

    with asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
        runner.run(main())


async def test_each_matching_subscription_gets_a_message_once(url: str, admin: Redis) -> None:
    """Each subscription that matches a channel gets a message once."""
    async with Multiplexer(url) as mpx:
        subs = [mpx.new_channel_subscription(), mpx.new_channel_subscription()]
        for sub in subs:
            sub.add("abc")
        patterns = [mpx.new_pattern_subscription(pattern) for pattern in ("a*", "*c", "?b?")]
        for each in (*subs, *patterns):
            await each.wait_for_activation(timeout=5)
        assert await admin.publish("abc", "1") == 4  # names that match, not subscribers
        for each in (*subs, *patterns):
            message = await each.get(5)
            assert (message.channel, message.data) == (b"abc", b"1")
        await admin.publish("abc", "2")
        assert [(await each.get(5)).data for each in (*subs, *patterns)] == [b"2"] * 5


async def test_the_pattern_for_all_does_not_match_the_empty_channel(url: str, admin: Redis) -> None:
    """The pattern * does not match the empty channel name, as Redis has it."""
    async with Multiplexer(url) as mpx:
        everything, nameless = mpx.new_pattern_subscription("*"), mpx.new_channel_subscription()
        nameless.add("")
        for each in (everything, nameless):
            await each.wait_for_activation(timeout=5)
        assert await admin.publish("", "nameless") == 1
        await admin.publish("a", "named")
        assert (await everything.get(5)).data == b"named"
        assert (await nameless.get(5)).data == b"nameless"


async def test_without_names_nothing_is_sent(server: Server, admin: Redis) -> None:
    """Without names no command is sent: a SUBSCRIBE without arguments would be an error."""
    async with Multiplexer(server.url, backoff=QUICK) as mpx:
        sub = mpx.new_channel_subscription()
        for call in (sub.add, sub.remove, sub.clear):
            call()
            await asyncio.sleep(0)
        sub.remove("never")
        sub.add("a")
        sub.remove("a")
        await mpx.connect(5)
        for _ in range(2):
            connections = mpx.stats().connections
            await admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")  # it has no subscriptions
            await until(lambda since=connections: mpx.stats().connections > since)
        sub.add("b")
        await sub.wait_for_activation(timeout=5)
        assert await calls_of(admin, "subscribe") == 1
        assert await calls_of(admin, "unsubscribe", "psubscribe", "punsubscribe") == 0


def confirmation(verb: bytes, name: bytes) -> bytes:
    return b"*3\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n:1\r\n" % (len(verb), verb, len(name), name)


@pytest.mark.parametrize(
    "answer",
    [
        confirmation(b"subscribe", b"other"),
        confirmation(b"subscribe", b"b") + confirmation(b"subscribe", b"a"),
        confirmation(b"psubscribe", b"a"),
        confirmation(b"subscribe", b"a") + confirmation(b"subscribe", b"a"),
        b"+PONG\r\n",
    ],
    ids=["never-asked", "order", "kind", "twice", "pong"],
)
async def test_an_unexpected_confirmation_ends_the_connection(answer: bytes) -> None:
    """After a confirmation of no pending command the server's state is unknown, so a new connection is opened."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await shake_hands(reader, writer) == [b"SUBSCRIBE", b"a", b"b"]
        writer.write(answer)
        await reader.read()

    fake = FakeServer(script)
    async with fake.run() as url:
        mpx = Multiplexer(url, backoff=QUICK)
        checker = Checker()
        mpx.new_channel_subscription(*checker.callbacks).add("a", "b")
        await until(lambda: fake.accepted >= 3)
        assert not checker.faults
        assert b"b" not in checker.active
        assert "protocol error" in str(mpx.stats().last_error)
        await mpx.aclose()
