"""Names that the server rejects: exactly these names are refused."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis
from redis.backoff import ConstantBackoff

from redismpx import Multiplexer, SubscriptionRefused
from redismpx._io.session import dispatcher as dispatch_module
from redismpx.testing import Checker

from ..helpers.acl import limited, set_limited_user
from ..helpers.fake_server import FakeServer, read_command, shake_hands
from ..helpers.monitor import calls_of, settled
from ..helpers.servers import Server
from ..helpers.waiting import eventually, until

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_a_later_grant_activates_a_refused_name(
    server: Server, admin: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused name is retried, reported once, and becomes active when it is permitted."""
    monkeypatch.setattr(dispatch_module, "RETRY_REFUSED", 0.05)
    await set_limited_user(admin)
    async with limited(server) as mpx:
        checker = Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks, on_error=checker.on_error)
        sub.add("a")
        await until(lambda: checker.kinds == ["error"])
        tries = await calls_of(admin, "subscribe")

        async def not_retried() -> str:
            more = await calls_of(admin, "subscribe") - tries
            return "" if more >= 2 else f"the name was sent {more} times again"

        await eventually(not_retried)
        assert checker.kinds == ["error"]
        await set_limited_user(admin, "&a")
        await until(lambda: checker.kinds == ["error", "activation"])
        await sub.wait_for_activation(timeout=1)


async def test_a_refused_name_may_be_removed_and_added_again(server: Server, admin: Redis) -> None:
    """Each subscription of a refused name is notified; adding the name anew sends it again."""
    await set_limited_user(admin)
    async with limited(server) as mpx:
        first, second = Checker(), Checker()
        sub = mpx.new_channel_subscription(*first.callbacks, on_error=first.on_error)
        sub.add("a")
        await until(lambda: first.kinds == ["error"])
        other = mpx.new_channel_subscription(*second.callbacks, on_error=second.on_error)
        other.add("a")
        await until(lambda: second.kinds == ["error"])
        assert first.kinds == ["error"]
        sub.remove("a")
        await sub.wait_for_activation(timeout=1)  # nothing is wanted any more
        await set_limited_user(admin, "&a")
        other.remove("a")
        other.add("a")  # a new wish is a new question
        await other.wait_for_activation(timeout=5)
        assert mpx.stats().connections == 1


async def test_a_pattern_needs_permission_for_its_exact_text(server: Server, admin: Redis) -> None:
    """Redis permits a pattern by its exact text, and the error says so."""
    await set_limited_user(admin, "&ok:*")
    async with limited(server) as mpx:
        permitted = mpx.new_pattern_subscription("ok:*", lambda *_: None)
        await permitted.wait_for_activation(timeout=5)
        for pattern in ("ok:a*", "*"):
            refused = mpx.new_pattern_subscription(pattern, lambda *_: None)
            with pytest.raises(SubscriptionRefused, match="letter for letter") as caught:
                await refused.wait_for_activation(timeout=5)
            assert caught.value.kind == "pattern"


async def test_promises_of_a_refused_prefix_raise(server: Server, admin: Redis) -> None:
    """wait_for_new_promise() with a refused prefix raises SubscriptionRefused."""
    await set_limited_user(admin)
    errors: list[Exception] = []
    async with limited(server, on_error=errors.append) as mpx:
        promises = mpx.new_promise_subscription("p-")
        with pytest.raises(SubscriptionRefused):
            await promises.wait_for_new_promise("x", 5)
        assert [type(e) for e in errors] == [SubscriptionRefused]


async def test_a_revoked_permission_refuses_its_name_alone(server: Server, admin: Redis) -> None:
    """The server closes the connection at a revoked permission: the name is refused, the others return."""
    await set_limited_user(admin, "&a", "&b")
    async with limited(server) as mpx:
        one, two = Checker(), Checker()
        subs = []
        for checker, name in ((one, "a"), (two, "b")):
            sub = mpx.new_channel_subscription(*checker.callbacks, on_error=checker.on_error)
            sub.add(name)
            await sub.wait_for_activation(timeout=5)
            subs.append(sub)
        await set_limited_user(admin, "&b")  # the server closes the connection without a word
        await until(lambda: one.kinds == ["activation", "disconnect", "error"])
        await until(lambda: two.kinds == ["activation", "disconnect", "activation"])
        await settled(admin, {b"b"})
        with pytest.raises(SubscriptionRefused):
            await subs[0].wait_for_activation(timeout=5)


async def test_a_busy_server_is_retried_at_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transient error such as -BUSY refuses no name: the command is repeated at intervals."""
    monkeypatch.setattr(dispatch_module, "RETRY_TRANSIENT", 0.1)
    asked: list[list[bytes]] = []
    busy = True

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        command = await shake_hands(reader, writer)
        while busy:
            asked.append(command)
            writer.write(b"-BUSY a script is running\r\n")
            command = await read_command(reader)
        for name in command[1:]:
            writer.write(b"*3\r\n$9\r\nsubscribe\r\n$1\r\n%b\r\n:1\r\n" % name)
        await reader.read()

    async with FakeServer(script).run() as url:
        mpx = Multiplexer(url)
        checker = Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks, on_error=checker.on_error)
        sub.add("a", "b")
        await asyncio.sleep(0.5)  # how often it asks in this time is what is measured
        assert 2 <= len(asked) <= 6
        busy = False
        await sub.wait_for_activation(timeout=5)
        assert asked == [[b"SUBSCRIBE", b"a", b"b"]] * len(asked)
        assert checker.kinds == ["activation", "activation"]
        await mpx.aclose()


async def test_noauth_fails_the_connection() -> None:
    """-NOAUTH refuses no name: the connection failed."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await shake_hands(reader, writer)
        writer.write(b"-NOAUTH Authentication required.\r\n")
        await reader.read()

    fake = FakeServer(script)
    async with fake.run() as url:
        mpx = Multiplexer(url, backoff=ConstantBackoff(0.01))
        checker = Checker()
        mpx.new_channel_subscription(*checker.callbacks, on_error=checker.on_error).add("a")
        await until(lambda: fake.accepted >= 2)
        assert checker.events == []
        assert "NOAUTH" in str(mpx.stats().last_error)
        await mpx.aclose()


async def test_a_rejected_unsubscribe_leaves_the_name_usable(server: Server, admin: Redis) -> None:
    """After a rejected UNSUBSCRIBE the name's messages are ignored, and it can be added again."""
    await set_limited_user(admin, "&*", "-unsubscribe")
    async with limited(server) as mpx:
        checker = Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks, on_error=checker.on_error)
        sub.add("a", "b")
        await sub.wait_for_activation(timeout=5)
        sub.remove("a")
        await until(
            lambda: (
                not mpx._hub.deployment.main.registry.oldest_command and not mpx._hub.deployment.main.registry.has_work
            )
        )
        await admin.publish("a", "ignored")
        await admin.publish("b", "1")
        await until(lambda: checker.payloads == [b"1"])
        sub.add("a")
        checker.active.discard(b"a")
        await sub.wait_for_activation(timeout=5)
        await admin.publish("a", "2")
        await until(lambda: checker.payloads == [b"1", b"2"])
        assert mpx.stats().connections == 1
        assert not checker.faults + checker.errors
