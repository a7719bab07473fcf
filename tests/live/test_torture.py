"""One test for each fault at the top of docs/explanation/what-can-go-wrong.md."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.backoff import ConstantBackoff

from redismpx import (
    ConnectionLost,
    Multiplexer,
    PromiseInterrupted,
    SlowConsumer,
    SubscriptionRefused,
)
from redismpx._core.sync_queue import SUBSCRIBE_BATCH
from redismpx.testing import Checker, Proxy

from ..helpers.acl import limited, set_limited_user
from ..helpers.backoffs import QUICK
from ..helpers.leaks import open_sockets
from ..helpers.monitor import calls_of, kill_clients, settled
from ..helpers.servers import Server
from ..helpers.waiting import eventually, until

pytestmark = [pytest.mark.one_flavour, pytest.mark.usefixtures("no_leaks")]


async def test_killed_connection_is_visible(server: Server, admin: Redis) -> None:
    """One disconnect for each subscription that had something to lose, then an activation for each name."""
    async with Multiplexer(server.url) as mpx:
        checker, other = Checker(), Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks)
        sub.add("a", "b")
        idle = mpx.new_channel_subscription(*other.callbacks)  # wants nothing: has nothing to lose
        await sub.wait_for_activation(timeout=5)
        await kill_clients(admin)
        await until(lambda: checker.kinds == ["activation"] * 2 + ["disconnect"] + ["activation"] * 2)
        await admin.publish("a", "1")
        await until(lambda: checker.payloads == [b"1"])
        error = checker.events[2][1]
        assert isinstance(error, ConnectionLost)
        assert isinstance(error, ConnectionError)
        assert error.names is None
        assert "closed" in error.reason
        assert other.events == []
        assert not idle.closed
        assert mpx.stats().connections == 2


async def test_frozen_server_is_noticed(server: Server, admin: Redis) -> None:
    """A server that keeps its connections open, and says nothing any more, is left and found again."""
    async with Multiplexer(
        server.url, backoff=ConstantBackoff(0.05), socket_timeout=0.5, ping_interval=0.3, ping_timeout=0.3
    ) as mpx:
        checker = Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks)
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        server.freeze()
        await until(lambda: checker.kinds == ["activation", "disconnect"])
        assert "PING" in checker.events[1][1].reason
        await until(lambda: mpx.stats().state == "backing off")
        server.thaw()
        await sub.wait_for_activation(timeout=10)
        await settled(admin, {b"a"})
        await admin.publish("a", "1")
        await until(lambda: checker.kinds == ["activation", "disconnect", "activation", "message"])


@pytest.mark.parametrize("delay", [0, 0.002, 0.02])
@pytest.mark.parametrize("pause", [0, 0.003])
async def test_add_remove_add_in_flight(shared_server: Server, admin: Redis, delay: float, pause: float) -> None:
    """Every history of ten wishes ends as it was wished, however late confirmations come: each on a name of its own."""
    wishes = 10
    names = [b"flap-%d" % history for history in range(2**wishes)]
    with Proxy(shared_server.port) as proxy:
        proxy.to_client.delay = delay
        async with Multiplexer(proxy.url) as mpx:
            checker = Checker()
            sub = mpx.new_channel_subscription(*checker.callbacks)
            await mpx.connect(5)
            for wish in range(wishes):
                for history, name in enumerate(names):
                    if history >> wish & 1:
                        sub.add(name)
                    else:
                        sub.remove(name)
                        checker.active.discard(name)  # silence from here on, and no disconnect
                await asyncio.sleep(pause)
            wanted = {name for history, name in enumerate(names) if history >> (wishes - 1) & 1}
            assert sub.channels == wanted
            await sub.wait_for_activation(timeout=10)
            await settled(admin, wanted)
            assert not checker.faults  # such as an activation that came twice
            assert checker.active == wanted
            assert mpx.stats().connections == 1
    await settled(admin, set())


async def test_remove_in_flight_does_not_come_back(server: Server, admin: Redis) -> None:
    """A name whose UNSUBSCRIBE was lost with the connection is not subscribed on the next one."""
    async with Multiplexer(server.url, backoff=QUICK) as mpx:
        sub = mpx.new_channel_subscription(lambda *_: None)
        sub.add("stays", "goes")
        await sub.wait_for_activation(timeout=5)
        server.freeze()
        sub.remove("goes")
        state = mpx._hub.deployment.main.registry.channels[b"goes"]
        await until(lambda: state.state.value == "leaving")  # the command is in the server's socket, and never read
        server.kill()
        server.start()
        await until(lambda: mpx.stats().connections == 2)
        await sub.wait_for_activation(timeout=10)
        await settled(admin, {b"stays"})


async def test_one_forbidden_name_of_many(server: Server, admin: Redis) -> None:
    """Ten forbidden of ten thousand: those ten are refused by name, the others work, at the price of a search."""
    await set_limited_user(admin, "&ok:*")
    async with limited(server) as mpx:
        good, bad = Checker(), Checker()
        allowed = [b"ok:%d" % number for number in range(9_990)]
        forbidden = [b"no:%d" % number for number in range(10)]
        sub = mpx.new_channel_subscription(*good.callbacks, on_error=good.on_error)
        denied = mpx.new_channel_subscription(*bad.callbacks, on_error=bad.on_error)
        for number, name in enumerate(allowed):
            sub.add(name)
            if number % 1000 == 500:
                denied.add(forbidden[number // 1000])
        await sub.wait_for_activation(timeout=10)
        await until(lambda: len(bad.errors) == 10)
        await settled(admin, set(allowed))
        assert mpx.stats().connections == 1
        assert good.errors == []
        assert bad.kinds == ["error"] * 10
        refusals = [e for e in bad.errors if isinstance(e, SubscriptionRefused)]
        assert {e.name for e in refusals} == set(forbidden)
        assert all(e.kind == "channel" and "NOPERM" in e.reason for e in refusals)
        with pytest.raises(SubscriptionRefused):
            await denied.wait_for_activation(timeout=5)
        commands = await calls_of(admin, "subscribe")
        assert commands <= math.ceil(10_000 / SUBSCRIBE_BATCH) + 10 * (math.log2(SUBSCRIBE_BATCH) + 2)
        await admin.publish("ok:77", "1")
        await until(lambda: good.messages == 1)


@pytest.mark.parametrize("shared_server", ["valkey"], indirect=True)
async def test_seven_hundred_thousand_names(url: str, admin: Redis) -> None:
    """One SUBSCRIBE with so many makes a server of default limits cut the connection, each time."""
    total = 700_000
    async with Multiplexer(url) as mpx:
        checker = Checker()
        sub = mpx.new_channel_subscription(checker.on_message)
        for start in range(0, total, 10_000):
            sub.add(*(b"%d" % number for number in range(start, start + 10_000)))
            await asyncio.sleep(0)
        await sub.wait_for_activation(timeout=100)
        assert mpx.stats().connections == 1
        for number in range(0, total, 99_999):
            assert await admin.publish(b"%d" % number, "1") == 1
        await until(lambda: checker.messages == 8)

    async def busy() -> str:
        await admin.ping()
        return ""

    await eventually(busy, 60)  # it frees the names of the closed connection, and must be idle for the next test


@pytest.mark.parametrize("shared_server", ["valkey"], indirect=True)
async def test_one_of_two_leaves(url: str, admin: Redis) -> None:
    """Ten thousand joins and leaves beside it cost a subscription not one message, and the server no command."""
    async with Multiplexer(url) as mpx:
        checker = Checker()
        stays = mpx.new_channel_subscription(*checker.callbacks)
        stays.add("a")
        await stays.wait_for_activation(timeout=5)
        before = await calls_of(admin, "subscribe", "unsubscribe")
        published = 0
        comes_and_goes = mpx.new_channel_subscription(lambda *_: None)
        for turn in range(10_000):
            comes_and_goes.add("a")
            if turn % 3:
                await asyncio.sleep(0)
            comes_and_goes.remove("a")
            if turn % 10 == 0:
                assert await admin.publish("a", published) == 1
                published += 1
        await until(lambda: checker.messages == published)
        assert checker.kinds == ["activation"] + ["message"] * published
        assert not checker.faults
        assert await calls_of(admin, "subscribe", "unsubscribe") == before


NAMES = [
    b"",
    b"\r\n",
    b"a\r\n$3\r\nfoo",
    b"\x00",
    bytes(range(256)),
    b"\xff\xfe",
    "čau".encode(),
    b"x" * 65536,
    b"*",
    b" ",
]


async def test_any_bytes_as_a_name(url: str, admin: Redis) -> None:
    """Line ends, NUL, what looks like a command, all 256 bytes, none at all: a name is data."""
    async with Multiplexer(url) as mpx:

        @settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(st.binary(max_size=30), max_size=10))
        def random_names(names: list[bytes]) -> None:
            several.append(names)

        several = [[name] for name in NAMES]
        random_names()
        for names in several:
            checker = Checker()
            sub = mpx.new_channel_subscription(*checker.callbacks)
            sub.add(*names)
            await sub.wait_for_activation(timeout=5)
            await settled(admin, set(names))
            for name in names:
                assert await admin.publish(name, b"\x00\r\n" + name) == 1
            expected = [("message", (name, b"\x00\r\n" + name)) for name in names]
            await until(lambda: [e for e in checker.events if e[0] == "message"] == expected)  # noqa: B023
            assert not checker.faults
            sub.close()
            await settled(admin, set())
        assert mpx.stats().connections == 1


async def test_slow_consumer_is_bounded_and_counted(url: str, admin: Redis) -> None:
    """A callback that does not come back costs its own subscription messages, counted, and nobody else any."""
    gate = asyncio.Event()
    seen: list[int] = []
    errors: list[Exception] = []

    async def slow(channel: bytes, message: bytes) -> None:
        seen.append(int(message))
        await gate.wait()

    async with Multiplexer(url) as mpx:
        checker = Checker()
        sub = mpx.new_channel_subscription(slow, max_pending=10, on_error=errors.append)
        fast = mpx.new_channel_subscription(*checker.callbacks)
        for each in (sub, fast):
            each.add("a")
            await each.wait_for_activation(timeout=5)
        for number in range(100):
            await admin.publish("a", number)
            assert len(seen) + sub.pending + sub.dropped <= number + 1
        await until(lambda: checker.messages == 100)
        assert (len(seen), sub.pending, sub.dropped) == (1, 10, 89)
        assert mpx.stats().dropped == 89
        assert mpx.stats().pending == 10
        assert [type(e) for e in errors] == [SlowConsumer]
        assert isinstance(errors[0], SlowConsumer)
        assert (errors[0].dropped, errors[0].pending) == (1, 10)
        gate.set()
        await until(lambda: sub.pending == 0)
        assert seen == [0, *range(90, 100)]  # the oldest went
        gate.clear()
        for number in range(100, 120):
            await admin.publish("a", number)
        await until(lambda: checker.messages == 120)
        assert len(errors) == 2  # armed again
        assert not checker.faults
        gate.set()


@pytest.mark.parametrize("event", ["message", "activation", "disconnect", "error"])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("how", ["close", "aclose", "sub", "task"])
async def test_closing_inside_a_callback(url: str, admin: Redis, event: str, is_async: bool, how: str) -> None:
    """From any callback, plain or async, the subscription or the whole: nothing hangs, and nothing is called after."""
    mpx = Multiplexer(url, backoff=ConstantBackoff(0.01))
    done = asyncio.Event()
    after: list[str] = []
    tasks: list[asyncio.Task[None]] = []

    def end() -> Awaitable[None] | None:
        if how == "close":
            mpx.close()
        elif how == "sub":
            sub.close()
        elif how == "task" or not is_async:
            tasks.append(asyncio.ensure_future(mpx.aclose()))
        else:
            return mpx.aclose()
        return None

    def callback(name: str) -> Callable[..., Any]:
        async def act_async(*_: object) -> None:
            if name == event:
                await asyncio.sleep(0)
                waiting = end()
                if waiting is not None:
                    await waiting
                done.set()

        def act(*_: object) -> None:
            if done.is_set() and (mpx.stats().state == "closed" or sub.closed):
                after.append(name)
            if name == event:
                end()
                done.set()
            if name == "message" and event == "error":
                raise ValueError

        if is_async and name == event:
            return act_async
        return act

    sub = mpx.new_channel_subscription(
        callback("message"), callback("disconnect"), callback("activation"), on_error=callback("error")
    )
    sub.add("a")
    other = mpx.new_channel_subscription(lambda *_: None)
    other.add("a")
    if event != "activation":
        await sub.wait_for_activation(timeout=5)
    if event in ("message", "error"):
        await admin.publish("a", "1")
    if event == "disconnect":
        await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    await asyncio.wait_for(done.wait(), 2)
    await asyncio.wait_for(asyncio.gather(*tasks), 2)
    assert sub.closed
    assert other.closed == (how != "sub")
    if how == "sub":
        assert not other.closed
        await other.wait_for_activation(timeout=5)
    await mpx.aclose()
    assert after == []


@pytest.mark.parametrize("ticks", range(41))
async def test_closing_while_dialling(url: str, ticks: int) -> None:
    """In the dial, in the handshake, in the middle of subscribing: after so many ticks of the loop."""
    before = open_sockets()
    mpx = Multiplexer(url, backoff=ConstantBackoff(0))
    sub = mpx.new_channel_subscription(lambda *_: None)
    sub.add(*map(str, range(2000)))
    for _ in range(ticks):
        await asyncio.sleep(0)
    if ticks % 2:
        mpx.close()  # what is left ends by itself, and soon
        await until(lambda: not [t for t in asyncio.all_tasks() if "redismpx" in t.get_name()])
    await asyncio.wait_for(mpx.aclose(), 5)
    assert mpx._hub.deployment.main._link is None
    assert not [t for t in asyncio.all_tasks() if "redismpx" in t.get_name()]
    assert open_sockets() <= before


async def test_promises_at_a_disconnect(server: Server, admin: Redis) -> None:
    """A hundred thousand promises fail in time slices, say why, and cancel nobody who awaits them."""
    total = 100_000
    async with Multiplexer(server.url, backoff=QUICK) as mpx:
        promises = mpx.new_promise_subscription("p-")
        await promises.wait_for_activation(timeout=5)
        several = [promises.new_promise(str(number), 100) for number in range(total)]
        left: list[int] = []
        several[0].add_done_callback(lambda _: left.append(sum(not promise.done() for promise in several)))

        async def wait() -> str:
            try:
                await several[-1]
            except PromiseInterrupted as error:
                return f"interrupted: {error.reason}"
            return "kept"

        waiting = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        await kill_clients(admin)
        await until(lambda: several[-1].done())
        assert left[0] > total // 2  # the callback of the first one did not wait for all others
        assert all(promise.done() for promise in several)
        assert await waiting == "interrupted: connection lost"
        assert waiting.cancelling() == 0
        errors = [promise.exception() for promise in several]
        assert {type(error) for error in errors} == {PromiseInterrupted}
        assert all(isinstance(error.__cause__, ConnectionLost) for error in errors if error)
        again = await promises.wait_for_new_promise("1", 10)
        await admin.publish("p-1", "now")
        assert await again == b"now"


PREFIXES = [b"user[1]:", b"a*", b"a?", b"\\", b"[a-z]", b"\r\n", b"\x00", b"\xff", b"*", b"^", b"-", b"]", b""]


async def test_glob_characters_in_a_prefix(url: str, admin: Redis) -> None:
    """A prefix matches itself and nothing else, whatever characters it has."""
    async with Multiplexer(url) as mpx:

        @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.text("\\*?[]^-ab", max_size=6).map(str.encode) | st.binary(max_size=8))
        def random_prefixes(prefix: bytes) -> None:
            prefixes.append(prefix)

        prefixes = list(PREFIXES)
        random_prefixes()
        for prefix in prefixes:
            promises = mpx.new_promise_subscription(prefix)
            promise = await promises.wait_for_new_promise(b"s*\xff", 10)
            await settled(admin, set(), 1)
            for other in (b"user1:s*\xff", b"abs*\xff", b"a1s*\xff", b"zs*\xff", b"s*\xfe", b"\\s*"):
                if not other.startswith(prefix):
                    assert await admin.publish(other, "no") == 0, other
            assert await admin.publish(prefix + b"s*\xff", "yes") == 1
            assert await promise == b"yes"
            promises.close()
            await settled(admin, set())
