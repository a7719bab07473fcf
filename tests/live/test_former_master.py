"""What one connection shows about a server, all others learn: none stays at a former master or at a dead server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from redis.exceptions import ReadOnlyError

from redismpx import ConnectionLost, Multiplexer
from redismpx._io.redispy import connection as connection_module
from redismpx.testing import Checker, Proxy

from ..helpers.backoffs import QUICK
from ..helpers.fake_server import FakeServer, read_command, shake_hands
from ..helpers.monitor import calls_of, kill_clients
from ..helpers.new_sub import new_sub
from ..helpers.servers import Server
from ..helpers.waiting import eventually, until

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
async def admins(no_leaks: None, successor: Server, server: Server) -> AsyncIterator[None]:
    """Close the clients of both servers at the end."""
    yield
    await server.release()
    await successor.release()


async def replicates(replica: Server, master: Server) -> None:
    """Wait until a server is the replica of another one."""

    async def complaint() -> str:
        role = await replica.admin.role()
        return "" if role[2:4] == [master.port, b"connected"] else repr(role)

    await eventually(complaint)


async def fail_over(master: Server, successor: Server) -> None:
    """Make the replica of a server the master, and that server its replica, as planned: nobody is disconnected."""

    async def complaint() -> str:
        await master.admin.execute_command("FAILOVER", "TO", "127.0.0.1", successor.port)
        return ""

    await eventually(complaint)
    await replicates(master, successor)


async def connections_of(server: Server) -> int:
    """Ask a server how many clients it has, apart from replicas and from the client that asks."""
    return sum(client["flags"] not in ("S", "M") for client in await server.admin.client_list()) - 1


@pytest.mark.usefixtures("admins")
async def test_publishing_follows_a_delivery_probe(successor: Server, service: Proxy, server: Server) -> None:
    """When a delivery probe finds a former master, publishing and requests leave it as the subscriptions do."""
    checker = Checker()
    async with Multiplexer(service.url, delivery_probe=0.2, backoff=QUICK) as mpx:
        await new_sub(mpx, checker, b"a", sharded=False).wait_for_activation(timeout=5)
        async with mpx.serve("echo", lambda request: request.body) as echo:
            await echo.wait_for_activation(timeout=5)
            assert await mpx.publish("a", "0") == 1
            await successor.admin.execute_command("REPLICAOF", "NO", "ONE")
            service.target = successor.port
            await until(lambda: checker.activations == 2)
            await echo.wait_for_activation(timeout=5)
            assert await mpx.publish("a", "1") == 1
            assert await mpx.request("echo", "?", timeout=5) == b"?"
            await until(lambda: checker.payloads == [b"0", b"1"])
        assert await connections_of(server) == 0
    assert not checker.faults


@pytest.mark.usefixtures("admins")
async def test_publishing_leaves_a_demoted_master(
    successor: Server, service: Proxy, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planned FAILOVER closes no connection: publishing asks for the role now and then, and dials again."""
    monkeypatch.setattr(connection_module, "ROLE_INTERVAL", 0.0)
    old, new = Checker(), Checker()
    async with Multiplexer(service.url) as mpx, Multiplexer(successor.url) as other:
        await replicates(successor, server)
        await new_sub(mpx, old, b"a", sharded=False).wait_for_activation(timeout=5)
        await new_sub(other, new, b"a", sharded=False).wait_for_activation(timeout=5)
        assert await mpx.publish("a", "0") == 1
        await fail_over(server, successor)
        service.target = successor.port
        assert await mpx.publish("a", "1") == 1
        await until(lambda: [old.payloads, new.payloads] == 2 * [[b"0", b"1"]])
        assert old.kinds == new.kinds == ["activation", "message", "message"]


async def test_the_role_is_asked_for_now_and_then_only(url: str, admin: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of publish() in quick succession ask for the role of the server once in ROLE_INTERVAL."""

    async def questions() -> int:
        return int((await admin.info("commandstats"))["cmdstat_hello"]["calls"])

    async with Multiplexer(url) as mpx:
        await mpx.publish("a", "0")
        before = await questions()
        monkeypatch.setattr(connection_module, "ROLE_INTERVAL", 60.0)
        for _ in range(10):
            await mpx.publish("a", "1")
        assert await questions() == before
        monkeypatch.setattr(connection_module, "ROLE_INTERVAL", 0.0)
        await mpx.publish("a", "2")
        assert await questions() == before + 1


@pytest.mark.usefixtures("admins")
async def test_a_lost_link_makes_publishing_dial_again(successor: Server, service: Proxy, server: Server) -> None:
    """The address of a lost connection may lead to another server by now, so publishing connects again too."""
    checker = Checker()
    async with Multiplexer(service.url, backoff=QUICK) as mpx:
        await new_sub(mpx, checker, b"a", sharded=False).wait_for_activation(timeout=5)
        assert await mpx.publish("a", "0") == 1
        await successor.admin.execute_command("REPLICAOF", "NO", "ONE")
        service.target = successor.port
        await kill_clients(server.admin)
        await until(lambda: checker.activations == 2)
        assert await mpx.publish("a", "1") == 1
    assert not checker.faults


@pytest.mark.one_flavour
async def test_an_unanswered_publish_makes_the_link_ping(server: Server) -> None:
    """A publish without a reply casts doubt on the server: the link pings it at once, not after `ping_interval`."""
    async with Multiplexer(server.url, publish_timeout=0.2, ping_interval=60, ping_timeout=0.2, backoff=QUICK) as mpx:
        checker = Checker()
        await new_sub(mpx, checker, b"a", sharded=False).wait_for_activation(timeout=5)
        await mpx.publish("b", "0")
        server.freeze()
        with pytest.raises(ConnectionLost):
            await mpx.publish("b", "1")
        await until(lambda: checker.disconnects == 1)
        assert "no reply to PING" in checker.events[-1][1].reason
        server.thaw()


@pytest.mark.one_flavour
async def test_a_lost_publisher_does_not_end_a_good_link(server: Server, admin: Redis) -> None:
    """When only the connection for publishing is lost, the link pings and stays."""
    async with Multiplexer(server.url, ping_interval=60, backoff=QUICK) as mpx:
        checker = Checker()
        await new_sub(mpx, checker, b"a", sharded=False).wait_for_activation(timeout=5)
        await mpx.publish("b", "0")
        await admin.client_pause(60_000, all=False)  # a PUBLISH waits, and a PING does not
        call = asyncio.ensure_future(mpx.publish("b", "1"))
        await until(lambda: len(mpx._hub.deployment.publisher._pipeline._sent) == 1)
        pings = await calls_of(admin, "ping")
        mpx._hub.deployment.publisher._pipeline.current._connection.abort()  # type: ignore[union-attr]
        with pytest.raises(ConnectionLost):
            await call
        while await calls_of(admin, "ping") == pings:
            await asyncio.sleep(0.01)
        await admin.client_unpause()
        assert await mpx.publish("a", "2") == 1
        await until(lambda: checker.kinds == ["activation", "message"])


@pytest.mark.one_flavour
async def test_a_silent_server_blocks_publishing_only_for_a_while(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The question for the role is bounded by `publish_timeout`, also for a client without timeouts of its own."""
    monkeypatch.setattr(connection_module, "ROLE_INTERVAL", 0.0)
    with Proxy(server.port) as proxy:
        async with Multiplexer(proxy.url, publish_timeout=0.2, socket_timeout=None) as mpx:
            await mpx.publish("a", "0")
            proxy.to_client.hole = True
            with pytest.raises(ConnectionLost) as caught:
                await mpx.publish("a", "1")
            assert not caught.value.sent
            proxy.heal()
            loop = asyncio.get_running_loop()
            give_up = loop.time() + 5
            while True:  # until the question has failed
                try:
                    assert await mpx.publish("a", "2") == 0
                    break
                except ConnectionLost:
                    assert loop.time() < give_up


async def test_an_abandoned_server_gets_no_more_batches() -> None:
    """After `abandon`, the batch in flight ends on its connection, and the next batch has a new one."""
    seen: list[tuple[int, bytes]] = []
    go_on = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        command = await shake_hands(reader, writer)
        number = len({number for number, _ in seen}) + 1
        while True:
            seen.append((number, command[2]))
            if command[2] == b"1":
                await go_on.wait()
            writer.write(b":0\r\n")
            command = await read_command(reader)

    async with FakeServer(script).run() as url, Multiplexer(url) as mpx:
        deployment = mpx._hub.deployment
        await mpx.publish("a", "0")
        calls = [asyncio.ensure_future(mpx.publish("a", "1"))]
        await until(lambda: seen[-1] == (1, b"1"))
        calls += [asyncio.ensure_future(mpx.publish("a", "2"))]
        deployment.abandon("a test", ("127.0.0.1", 1))  # another server
        assert not deployment.publisher._pipeline.current.is_outdated
        deployment.abandon("a test")
        go_on.set()
        assert await asyncio.gather(*calls) == [0, 0]
        assert seen == [(1, b"0"), (1, b"1"), (2, b"2")]
        deployment.abandon("a test")
        await until(lambda: deployment.addresses <= {deployment.main.address})  # an idle connection is closed at once


async def test_a_read_only_server_is_left() -> None:
    """A proxy may answer a PUBLISH at a former master with READONLY: the next call has a new connection."""
    seen: list[tuple[int, bytes]] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        command = await shake_hands(reader, writer)
        number = len({number for number, _ in seen}) + 1
        while True:
            seen.append((number, command[2]))
            if number == 1 and command[2] != b"0":
                writer.write(b"-READONLY You can't write against a read only replica.\r\n")
            else:
                writer.write(b":0\r\n")
            command = await read_command(reader)

    async with FakeServer(script).run() as url, Multiplexer(url) as mpx:
        await mpx.publish("a", "0")
        with pytest.raises(ReadOnlyError):
            await mpx.publish("a", "1")
        assert await mpx.publish("a", "2") == 0
        assert seen == [(1, b"0"), (1, b"1"), (2, b"2")]
