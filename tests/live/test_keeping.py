"""Faults of an established connection: each is noticed, reported once and recovered from; harmless ones are ignored."""

from __future__ import annotations

import asyncio
import logging
import os
import socket

import pytest
from redis.asyncio import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from redismpx import Multiplexer, PromiseInterrupted
from redismpx._io.session import session as session_module
from redismpx.testing import Checker, Proxy

from ..helpers.acl import limited, set_limited_user
from ..helpers.backoffs import QUICK
from ..helpers.fake_server import FakeServer, read_command, shake_hands
from ..helpers.logs import warnings
from ..helpers.monitor import kill_clients, settled
from ..helpers.servers import Server
from ..helpers.waiting import until

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.mark.one_flavour
async def test_a_thousand_kills_are_a_thousand_disconnects(server: Server, admin: Redis) -> None:
    """Each of a thousand lost connections is reported: a silent reconnect would hide what was missed."""
    async with Multiplexer(server.url, backoff=NoBackoff()) as mpx:
        checker = Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks)
        sub.add("a")
        for kills in range(1000):
            await until(lambda expected=kills + 1: checker.activations == expected)
            await kill_clients(admin)
        await until(lambda: checker.activations == 1001)
        assert checker.disconnects == 1000
        assert not checker.faults
        assert mpx.stats().connections == 1001


@pytest.mark.one_flavour
async def test_a_restarted_server_gets_all_names_each_time(server: Server) -> None:
    """After each restart of the server all names are subscribed again, and promises were interrupted."""
    async with Multiplexer(server.url, backoff=QUICK) as mpx:
        checker = Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks)
        sub.add("a")
        promises = mpx.new_promise_subscription("p-")
        for deaths in range(10):
            await sub.wait_for_activation(timeout=10)
            promise = await promises.wait_for_new_promise("x", 60)
            async with Redis.from_url(server.url) as admin:
                await settled(admin, {b"a"}, 1)
            server.kill()
            with pytest.raises(PromiseInterrupted, match="connection lost"):
                await promise
            await until(lambda expected=deaths + 1: checker.disconnects == expected)
            server.start()
        await sub.wait_for_activation(timeout=10)
        assert (checker.activations, checker.disconnects) == (11, 10)
        assert not checker.faults


@pytest.mark.one_flavour
async def test_pings_keep_a_firewall_from_dropping_the_connection(server: Server, admin: Redis) -> None:
    """Firewalls silently drop connections that are idle for minutes; pings keep them open."""
    with Proxy(server.port) as proxy:
        proxy.idle_limit = 1.4
        loop = asyncio.get_running_loop()
        silent = Multiplexer(proxy.url, ping_interval=None)
        pinging = Multiplexer(proxy.url, ping_interval=0.05, ping_timeout=2)
        async with silent, pinging:
            lost, kept = Checker(), Checker()
            for mpx, checker in ((silent, lost), (pinging, kept)):
                sub = mpx.new_channel_subscription(*checker.callbacks)
                sub.add("a")
                await sub.wait_for_activation(timeout=5)
            began = loop.time()
            await until(lambda: loop.time() > began + 1.9)
            assert await admin.publish("a", "1") == 2
            await until(lambda: kept.payloads == [b"1"])
            assert lost.payloads == []
            assert kept.kinds == ["activation", "message"]


@pytest.mark.one_flavour
async def test_an_idle_timeout_closes_no_pinging_connection(
    server: Server, admin: Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's `timeout` spares a connection that pings; the loss of one without names is no warning."""
    monkeypatch.setattr(session_module, "IDLE_DELAY", 60.0)
    await admin.config_set("timeout", 2)
    async with (
        Multiplexer(server.url, ping_interval=0.2) as pinging,
        Multiplexer(server.url, ping_interval=None) as idle,
    ):
        for mpx in (pinging, idle):
            await mpx.connect(5)
        await until(lambda: not idle.connected)
        assert idle.stats().state == "backing off"
        assert pinging.connected
        assert pinging.stats().connections == 1
        checker = Checker()
        sub = idle.new_channel_subscription(*checker.callbacks)
        sub.add("a")  # a reason to connect again, at once
        await sub.wait_for_activation(timeout=5)
        assert checker.kinds == ["activation"]
    assert warnings(caplog) == []


@pytest.mark.one_flavour
async def test_a_lost_connection_without_names_is_restored(
    server: Server, admin: Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without names a lost connection is restored for connect() or after a while; a real outage is warned of."""
    monkeypatch.setattr(session_module, "IDLE_DELAY", 60.0)

    async def kill() -> None:
        name = "the-one"
        connections = mpx.stats().connections
        await admin.client_kill_filter(_id=next(c["id"] for c in await admin.client_list() if c["name"] == name))
        await until(lambda: not mpx.connected or mpx.stats().connections > connections)

    async with Multiplexer(server.url, client_name="the-one", backoff=QUICK) as mpx:
        await mpx.connect(5)
        await kill()
        await mpx.connect(5)
        monkeypatch.setattr(session_module, "IDLE_DELAY", 0.05)
        await kill()
        await until(lambda: mpx.connected)
        assert mpx.stats().connections == 3
        assert warnings(caplog) == []
        server.kill()
        await until(lambda: len(warnings(caplog)) == 1)
        assert "cannot connect" in warnings(caplog)[0]


@pytest.mark.one_flavour
async def test_a_pause_longer_than_ping_timeout_is_one_outage(
    server: Server, admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """CLIENT PAUSE also blocks the handshake: a pause within ping_timeout is ignored, a longer one is one outage."""
    with Proxy(server.port) as patiently, Proxy(server.port) as hastily:
        patient = Multiplexer(patiently.url, ping_interval=0.1, ping_timeout=5)
        hasty = Multiplexer(hastily.url, ping_interval=0.1, ping_timeout=0.1, socket_timeout=0.4, backoff=QUICK)
        async with patient, hasty:
            kept, lost = Checker(), Checker()
            for mpx, checker in ((patient, kept), (hasty, lost)):
                sub = mpx.new_channel_subscription(*checker.callbacks)
                sub.add("a")
                await sub.wait_for_activation(timeout=5)
            began = asyncio.get_running_loop().time()
            await admin.client_pause(1000)
            await until(lambda: len(lost.events) == 3)
            assert lost.kinds == ["activation", "disconnect", "activation"]
            assert kept.kinds == ["activation"]
            vain = len(hastily.accepted) - 2  # all but the first and the last
            assert asyncio.get_running_loop().time() - began >= 0.4 * vain
            assert len(patiently.accepted) == 1
    assert len(warnings(caplog)) == 1


async def test_a_server_busy_with_a_script_is_kept(server: Server, admin: Redis) -> None:
    """A busy server first sends nothing, then -BUSY: the connection stays, with one ping in flight."""
    await admin.config_set("lua-time-limit", 500)
    async with Multiplexer(server.url, ping_interval=0.05, ping_timeout=5) as mpx:
        checker = Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks)
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        link = mpx._hub.deployment.main._link
        assert link is not None
        script = asyncio.create_task(admin.eval("while true do end", 0))
        await until(lambda: link.liveness.state.value == "pinged")
        most = 0

        def answered() -> bool:  # by -BUSY
            nonlocal most
            most = max(most, len(mpx._hub.deployment.main.registry._in_flight.commands))
            return link.liveness.state.value == "live"

        await until(answered)
        assert most == 1  # one PING at a time, in ten intervals
        assert not script.done()
        async with Redis.from_url(server.url) as other:
            await other.script_kill()
        with pytest.raises(ResponseError):
            await script
        await admin.publish("a", "1")
        await until(lambda: checker.kinds == ["activation", "message"])
        assert mpx.stats().connections == 1


async def test_a_user_without_the_ping_right_stays_connected(server: Server, admin: Redis) -> None:
    """-NOPERM is a reply as well: the connection stays."""
    await set_limited_user(admin, "&*", "-ping")
    async with limited(server, ping_interval=0.02, ping_timeout=5) as mpx:
        checker = Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks, on_error=checker.on_error)
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        link = mpx._hub.deployment.main._link
        assert link is not None
        for _ in range(5):
            await until(lambda: link.liveness.state.value == "pinged")
            await until(lambda: link.liveness.state.value == "live")
        assert checker.kinds == ["activation"]
        assert mpx.stats().connections == 1


async def test_a_stream_cut_at_any_byte_delivers_complete_frames() -> None:
    """Half a message is not delivered, and is not continued on the next connection."""
    frames = [b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"]
    frames += [
        b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$%d\r\n%b\r\n" % (len(each), each) for each in (b"one", b"", b"3\r\n")
    ]
    stream = b"".join(frames)
    handshake = len(b"+OK\r\n") * 2  # CLIENT SETINFO, twice
    cuts = iter(range(1, len(stream) + 1))

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        cut = next(cuts, None)
        proxy.to_client.limit = None if cut is None else handshake + cut
        await shake_hands(reader, writer)
        if cut is not None:
            writer.write(stream)
        await reader.read()

    async with FakeServer(script).run() as url:
        port = int(url.partition("?")[0].rpartition(":")[2])
        with Proxy(port) as proxy:
            async with Multiplexer(f"{proxy.url}?protocol=2", backoff=NoBackoff()) as mpx:
                checker = Checker()
                mpx.new_channel_subscription(*checker.callbacks).add("a")
                await until(lambda: mpx.stats().connections == len(stream) + 1)
    expected: list[str] = []
    payloads: list[bytes] = []
    ends = [sum(map(len, frames[: count + 1])) for count in range(len(frames))]
    for cut in range(1, len(stream) + 1):
        complete = sum(end <= cut for end in ends)
        if complete:
            expected += ["activation", *["message"] * (complete - 1), "disconnect"]
            payloads += [b"one", b"", b"3\r\n"][: complete - 1]
    assert checker.kinds == expected
    assert checker.payloads == payloads
    assert not checker.faults


async def test_a_half_closed_connection_is_left_quietly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """asyncio would log each write to a connection whose outgoing half is closed: it is left at once."""
    caplog.set_level(logging.WARNING)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        command = await shake_hands(reader, writer)
        while True:  # it goes on sending when we are at our end
            writer.write(b"".join(b"*3\r\n$9\r\nsubscribe\r\n$%d\r\n%b\r\n:1\r\n" % (len(n), n) for n in command[1:]))
            try:
                command = await read_command(reader)
            except ValueError:
                await asyncio.Event().wait()

    fake = FakeServer(script)
    async with fake.run() as url, Multiplexer(url, backoff=QUICK) as mpx:
        checker = Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks)
        sub.add("first")
        await sub.wait_for_activation(timeout=5)
        link = mpx._hub.deployment.main._link
        assert link is not None
        assert link._transport is not None
        with socket.socket(fileno=os.dup(link._transport.get_extra_info("socket").fileno())) as same:
            same.shutdown(socket.SHUT_WR)
        for number in range(10_000):
            sub.add(str(number))
            if number % 100 == 0:
                await asyncio.sleep(0)
        await until(lambda: fake.accepted == 2)
        await sub.wait_for_activation(timeout=10)
        assert checker.disconnects == 1
    assert [r.getMessage() for r in caplog.records if r.name == "asyncio"] == []
    assert len(warnings(caplog)) == 1


@pytest.mark.one_flavour
async def test_a_reset_among_ten_thousand_adds_is_one_outage(
    server: Server, admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Each write after a reset fails: there is one disconnect and one warning."""
    with Proxy(server.port) as proxy:
        async with Multiplexer(proxy.url, backoff=QUICK) as mpx:
            checker = Checker()
            sub = mpx.new_channel_subscription(*checker.callbacks)
            sub.add("first")
            await sub.wait_for_activation(timeout=5)
            names = [b"%d" % number for number in range(10_000)]
            for number, name in enumerate(names):
                sub.add(name)
                if number == 1000:
                    proxy.reset()
                if number % 10 == 0:
                    await asyncio.sleep(0)
            await sub.wait_for_activation(timeout=10)
            await settled(admin, {b"first", *names})
            assert checker.disconnects == 1
            assert not checker.faults
    assert [r.getMessage() for r in caplog.records if r.name == "asyncio"] == []
    assert len(warnings(caplog)) == 1


@pytest.mark.one_flavour
async def test_a_peer_that_stops_reading_is_found_by_ping(server: Server, admin: Redis) -> None:
    """add() and reading go on while our buffers are full, and the ping timeout ends the connection."""
    with Proxy(server.port) as proxy:
        async with Multiplexer(proxy.url, backoff=QUICK, ping_interval=0.4, ping_timeout=0.8, socket_timeout=1) as mpx:
            checker = Checker()
            sub = mpx.new_channel_subscription(*checker.callbacks)
            sub.add("a")
            await sub.wait_for_activation(timeout=5)
            link = mpx._hub.deployment.main._link
            assert link is not None
            assert link._transport is not None
            proxy.to_server.stall = True
            link._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            names = [b"%d-" % number + b"x" * 2000 for number in range(5000)]
            sub.add(*names)
            await until(lambda: link._transport.get_write_buffer_size() > 0)
            for number in range(5):
                await admin.publish("a", str(number))
            await until(lambda: checker.messages == 5)
            await until(lambda: checker.disconnects == 1)
            assert "no reply" in checker.events[-1][1].reason
            proxy.heal()
            await sub.wait_for_activation(timeout=10)
            await settled(admin, {b"a", *names})
            assert not checker.faults
            assert checker.disconnects == 1
