"""Lost connections and absent servers: every gap is reported, and all names are subscribed again."""

from __future__ import annotations

import asyncio
import logging

import pytest
from redis.asyncio import Redis
from redis.backoff import AbstractBackoff

from redismpx import ConnectionLost, Multiplexer
from redismpx._io.session import outage
from redismpx._io.session import reconnect as retries_module
from redismpx._io.session.reconnect import FALLBACK_DELAY
from redismpx.testing import Checker, Proxy

from ..helpers.backoffs import QUICK
from ..helpers.fake_server import FakeServer, read_command, shake_hands
from ..helpers.lengths import at_length
from ..helpers.logs import loud
from ..helpers.monitor import kill_clients, settled, subscribed
from ..helpers.servers import Server
from ..helpers.waiting import until

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_a_thousand_subscriptions_survive_many_kills(server: Server, admin: Redis) -> None:
    """Under load, lost connections lose and reorder nothing outside the reported gaps."""
    async with Multiplexer(server.url, backoff=QUICK, client_name="the-one") as mpx:
        checkers = [Checker() for _ in range(1000)]
        subs = [mpx.new_channel_subscription(*c.callbacks, on_error=c.on_error) for c in checkers]
        names = [b"channel-%d" % number for number in range(1000)]
        for sub, name in zip(subs, names, strict=True):
            sub.add(name)
        for sub in subs:
            await sub.wait_for_activation(timeout=5)
        assert [c["sub"] for c in await admin.client_list() if c["name"] == "the-one"] == ["1000"]

        published = 0
        stop = asyncio.Event()

        async def load() -> None:
            nonlocal published
            number = 0
            while not stop.is_set():
                for start in range(0, len(names), 50):  # few at once, or a handshake waits behind them
                    pipe = admin.pipeline(transaction=False)
                    for name in names[start : start + 50]:
                        pipe.publish(name, number)
                    await pipe.execute()
                    published += 50
                number += 1

        publisher = asyncio.create_task(load())
        kills = at_length(100, 40)
        for kill in range(kills):
            connections = mpx.stats().connections
            await kill_clients(admin)
            await until(lambda since=connections: mpx.stats().connections > since)
            messages = mpx.stats().messages
            await until(lambda since=messages: mpx.stats().messages > since + 500)  # the load goes on
            if kill % 10 == 0:
                for sub in subs[::100]:
                    await sub.wait_for_activation(timeout=5)
        for sub in subs:
            await sub.wait_for_activation(timeout=5)
        await settled(admin, set(names))  # I3
        stop.set()
        await publisher
        for sub, checker, name in zip(subs, checkers, names, strict=True):
            assert not checker.faults, checker.faults[:3]  # I1, I2
            assert checker.activations == checker.disconnects + 1
            assert checker.active == {name}
            assert checker.errors == []
            assert checker.messages > 0
            assert sub.dropped == 0
        assert published > 500 * kills
    events = [len(c.events) for c in checkers]
    await asyncio.sleep(0)
    assert [len(c.events) for c in checkers] == events  # I6, with no_leaks


@pytest.mark.parametrize("kept", [b"", b"b"], ids=["none", "one"])
async def test_a_disconnect_is_not_reported_for_removed_names(url: str, admin: Redis, kept: bytes) -> None:
    """A queued disconnect is reported only while one of the names that were active then is subscribed to."""
    gate, entered = asyncio.Event(), asyncio.Event()
    lost: list[ConnectionLost] = []

    async def on_message(*_: bytes) -> None:
        entered.set()
        await gate.wait()

    async with Multiplexer(url, backoff=QUICK) as mpx:
        sub = mpx.new_channel_subscription(on_message, lost.append)
        sub.add("a", "b")
        await sub.wait_for_activation(timeout=5)
        await admin.publish("a", "x")
        await entered.wait()
        await kill_clients(admin)
        await until(lambda: mpx.stats().connections == 2)
        sub.add("new")
        for name in {b"a", b"b"} - {kept}:
            sub.remove(name)
        await sub.wait_for_activation(timeout=5)
        gate.set()
        await until(lambda: sub._inbox.idle)
    assert len(lost) == bool(kept)


async def test_a_restarted_server_gets_all_names_again(server: Server, admin: Redis) -> None:
    """After a restart of the server, the names of that moment are subscribed and get messages."""
    async with Multiplexer(server.url, backoff=QUICK) as mpx:
        checker, pattern_checker = Checker(), Checker(lambda _: b"p*")
        sub = mpx.new_channel_subscription(*checker.callbacks)
        sub.add("a", "gone")
        pattern = mpx.new_pattern_subscription("p*", *pattern_checker.callbacks)
        await sub.wait_for_activation(timeout=5)
        await pattern.wait_for_activation(timeout=5)
        server.kill()
        await until(lambda: "disconnect" in checker.kinds)
        sub.remove("gone")
        sub.add("new")
        await until(lambda: mpx.stats().state == "backing off")
        assert not mpx.connected
        server.start()
        await sub.wait_for_activation(timeout=10)
        await pattern.wait_for_activation(timeout=10)
        assert await subscribed(admin) == ({b"a", b"new"}, 1)
        assert await admin.publish("a", "1") == 1
        assert await admin.publish("px", "2") == 1
        await until(lambda: checker.messages == pattern_checker.messages == 1)
        assert checker.kinds == ["activation", "activation", "disconnect", "activation", "activation", "message"]
        assert pattern_checker.kinds == ["activation", "disconnect", "activation", "message"]


async def test_a_server_may_be_absent_at_the_start(
    server: Server, admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a server calls time out with the reason; all starts when the server does, after one warning."""
    caplog.set_level(logging.INFO, "redismpx")
    server.kill()
    mpx = Multiplexer(server.url, backoff=QUICK)
    checker = Checker()
    sub = mpx.new_channel_subscription(*checker.callbacks)
    sub.add("a", "b")
    sub.remove("b")
    promises = mpx.new_promise_subscription("p-")
    with pytest.raises(TimeoutError) as caught:
        await mpx.connect(0.3)
    assert isinstance(caught.value.__cause__, ConnectionLost)
    assert str(server.port) in str(caught.value)
    with pytest.raises(TimeoutError):
        await sub.wait_for_activation(timeout=0.05)
    assert checker.events == []  # no disconnect before the first connection
    server.start()
    await mpx.connect(10)
    await sub.wait_for_activation(timeout=10)
    await promises.wait_for_activation(timeout=10)
    await settled(admin, {b"a"}, 1)
    assert checker.kinds == ["activation"]
    assert len(loud(caplog)) == 1
    await mpx.aclose()


class Recorded(AbstractBackoff):
    """A backoff that writes down what it was asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1

    def compute(self, failures: int) -> float:
        self.asked.append(failures)
        return 0.001


async def test_the_backoff_counts_until_a_connection_is_stable(
    monkeypatch: pytest.MonkeyPatch, server: Server, admin: Redis
) -> None:
    """The first retry is immediate; then the backoff grows until a connection has lasted for a while."""
    backoff = Recorded()
    async with Multiplexer(server.url, backoff=backoff) as mpx:
        sub = mpx.new_channel_subscription(lambda *_: None)
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        for losses in range(1, 5):
            await kill_clients(admin)
            await until(lambda expected=losses + 1: mpx.stats().connections == expected)
            await sub.wait_for_activation(timeout=5)
        assert backoff.asked == [0, 1, 2]  # none of the connections proved stable
        assert backoff.resets == 0
        monkeypatch.setattr(retries_module, "STABLE_AFTER", 0.0)
        await kill_clients(admin)
        await until(lambda: mpx.stats().connections == 6)
        assert backoff.resets == 1
        assert backoff.asked == [0, 1, 2]  # at once again


async def test_a_server_that_hangs_up_causes_no_hot_loop() -> None:
    """A server that closes after the handshake is retried with backoff."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await shake_hands(reader, writer)

    fake = FakeServer(hang_up)
    async with fake.run() as url:
        mpx = Multiplexer(url)
        sub = mpx.new_channel_subscription(lambda *_: None)
        sub.add("a")
        await asyncio.sleep(1.0)  # how often it dials in this time is what is measured
        assert fake.accepted <= 25
        await until(lambda: fake.accepted >= 3)
        await mpx.aclose()


async def test_the_backoff_survives_any_number_of_failures() -> None:
    """redis-py computes 2 to the power of the failures as a float, which overflows after a long outage."""
    mpx = Multiplexer("redis://127.0.0.1:1")
    mpx.new_channel_subscription(print)
    mpx._hub.deployment.main._policy.failures = 5000
    assert 0 <= mpx._hub.deployment.main._policy.failed() < FALLBACK_DELAY
    await mpx.aclose()


async def test_an_outage_is_warned_of_once(server: Server, admin: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """An outage of twenty attempts logs one warning."""
    caplog.set_level(logging.DEBUG, "redismpx")
    async with Multiplexer(server.url, backoff=QUICK) as mpx:
        sub = mpx.new_channel_subscription(lambda *_: None)
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        server.kill()
        await until(lambda: sum("attempt" in r.getMessage() for r in caplog.records) > 20)
        server.start()
        await sub.wait_for_activation(timeout=10)
    assert len(loud(caplog)) == 1


async def test_a_flapping_connection_is_warned_of_once_a_minute(
    server: Server, admin: Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is lost again and again logs one warning a minute."""

    async def lose(times: int) -> int:
        for _ in range(times):
            connections = mpx.stats().connections
            await kill_clients(admin)
            await until(lambda since=connections: mpx.stats().connections > since)
            await sub.wait_for_activation(timeout=5)
        return len(loud(caplog))

    async with Multiplexer(server.url, backoff=QUICK) as mpx:
        sub = mpx.new_channel_subscription(lambda *_: None)
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        assert await lose(5) == 1
        monkeypatch.setattr(outage, "WARN_INTERVAL", 0.0)  # the minute is over
        assert await lose(2) == 3


async def test_an_unrequested_unsubscribe_is_a_gap_of_its_name() -> None:
    """An unsubscribe that nobody requested is a disconnect of that name, which is subscribed again."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        command = await shake_hands(reader, writer)
        assert command == [b"SUBSCRIBE", b"a", b"b"]
        for name in (b"a", b"b"):
            writer.write(b"*3\r\n$9\r\nsubscribe\r\n$1\r\n%b\r\n:1\r\n" % name)
        writer.write(b"*3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:1\r\n")
        assert await read_command(reader) == [b"SUBSCRIBE", b"a"]
        writer.write(b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n")
        await reader.read()

    async with FakeServer(script).run() as url:
        mpx = Multiplexer(url)
        checker = Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks)
        sub.add("a", "b")
        await until(lambda: len(checker.events) == 4)
        assert checker.kinds == ["activation", "activation", "disconnect", "activation"]
        assert checker.events[2][1].names == {b"a"}
        assert checker.active == {b"a", b"b"}
        await sub.wait_for_activation(timeout=1)
        assert mpx.stats().connections == 1
        await mpx.aclose()


@pytest.mark.parametrize(
    "garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"*3\r\n:x\r\n", b"$-5\r\n", b"\x15\x03\x01\x00\x02"]
)
async def test_garbage_ends_the_connection(garbage: bytes) -> None:
    """Bytes that are no protocol end the connection, and a new one is opened."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await shake_hands(reader, writer)
        writer.write(garbage)
        await reader.read()

    fake = FakeServer(script)
    async with fake.run() as url:
        mpx = Multiplexer(url, backoff=QUICK, ping_interval=0.2, ping_timeout=0.2)
        mpx.new_channel_subscription(lambda *_: None).add("a")
        await until(lambda: fake.accepted >= 3)
        await mpx.aclose()


async def test_a_server_without_hello_gets_resp2() -> None:
    """Messages arrive from a server that has no HELLO."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (command := await read_command(reader))[0] != b"SUBSCRIBE":
            writer.write(b"-ERR unknown command 'HELLO'\r\n" if command[0] == b"HELLO" else b"+OK\r\n")
        writer.write(b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n")
        await reader.read()

    async with FakeServer(script).run() as url:
        mpx = Multiplexer(url.partition("?")[0])
        checker = Checker()
        mpx.new_channel_subscription(*checker.callbacks).add("a")
        await until(lambda: checker.payloads == [b"hi"])
        await mpx.aclose()


async def publish_many(admin: Redis, payload: bytes) -> list[int]:
    """Publish it a hundred times; return how many heard each."""
    pipe = admin.pipeline(transaction=False)
    for _ in range(100):
        pipe.publish("a", payload)
    heard: list[int] = await pipe.execute()
    return heard


async def test_a_client_over_the_output_limit_gets_a_disconnect(
    server: Server, admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """When the network is too slow, the server closes the connection at its client-output-buffer-limit: one gap."""
    await admin.config_set("client-output-buffer-limit", "pubsub 1mb 1mb 1")
    with Proxy(server.port) as proxy:
        async with Multiplexer(proxy.url, backoff=QUICK) as mpx:
            checker = Checker()
            sub = mpx.new_channel_subscription(*checker.callbacks)
            sub.add("a")
            await sub.wait_for_activation(timeout=5)
            proxy.to_client.stall = True
            published = 0
            while all(await publish_many(admin, b"x" * 8000)):
                published += 100
                assert published < 20_000
            proxy.to_client.stall = False
            await sub.wait_for_activation(timeout=10)
            await until(lambda: checker.activations == 2)
            kinds = checker.kinds
            assert kinds == ["activation"] + ["message"] * (len(kinds) - 3) + ["disconnect", "activation"]
            assert len(kinds) - 3 < published + 100
            assert checker.events[-2][1].reason == "the server closed the connection"
            assert await admin.publish("a", "small") == 1
            await until(lambda: checker.payloads[-1] == b"small")
    assert len(loud(caplog)) == 1


@pytest.mark.parametrize("server", ["redis"], indirect=True)  # Valkey 9.1 does not count what is so big
async def test_repeated_disconnects_by_the_server_back_off(
    server: Server, admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A large message, published again and again, ends each connection: the backoff grows, with one warning."""
    await admin.config_set("client-output-buffer-limit", "pubsub 100kb 0 0")
    backoff = Recorded()
    with Proxy(server.port) as proxy:
        proxy.to_client.delay = 0.05  # so that it waits at the server
        async with Multiplexer(proxy.url, backoff=backoff) as mpx:
            checker = Checker()
            sub = mpx.new_channel_subscription(*checker.callbacks)
            sub.add("a")
            for losses in range(1, 6):
                await sub.wait_for_activation(timeout=10)
                while mpx.stats().connections == losses and checker.disconnects < losses:
                    await admin.publish("a", b"x" * 5_000_000)
                    await asyncio.sleep(0.01)
                await until(lambda expected=losses: checker.disconnects == expected)
            assert backoff.asked == [0, 1, 2, 3]  # at once after the first only
            assert not checker.faults
    assert len(loud(caplog)) == 1
