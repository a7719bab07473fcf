"""Socket.IO: servers in other processes, each with a Redis channel for each room of its clients."""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import socketio
from redis.asyncio import Redis

from redismpx import ConnectionLost, DecodeError, Multiplexer, SubscriptionRefused
from redismpx.contrib.socketio import AsyncMultiplexerManager, MultiplexerManager
from redismpx.testing import Proxy

from ..helpers.acl import limited, set_limited_user
from ..helpers.asgi import Served, serving
from ..helpers.lengths import at_length
from ..helpers.logs import broken_log
from ..helpers.servers import Server, free_port
from ..helpers.socketio_clients import Clients, Servers
from ..helpers.waiting import DEADLINE, eventually


@pytest.fixture
async def clients() -> AsyncIterator[Clients]:
    async with Clients() as clients:
        yield clients


@asynccontextmanager
async def server_here(multiplexer: Multiplexer) -> AsyncIterator[tuple[Any, Served]]:
    """Serve Socket.IO in this process."""
    server: Any = socketio.AsyncServer(async_mode="asgi", client_manager=AsyncMultiplexerManager(multiplexer))
    server.on("connect", lambda sid, environ: None)
    async with multiplexer, serving(socketio.ASGIApp(server)) as served:
        yield server, served
        await server.shutdown()


# --- between servers


async def test_events_reach_rooms_of_other_servers(url: str, clients: Clients) -> None:
    """An event reaches the clients of its rooms, of a sid, or of a namespace, once each, on all servers."""
    async with Servers(url) as servers:
        ann = await clients.python(servers.ports[0], "red")
        bob = await clients.python(servers.ports[1], "red")
        eve = await clients.javascript(servers.ports[1], "blue")
        other = await clients.python(servers.ports[1], namespace="/other")
        await bob.do("enter", "blue")
        await ann.emit("room", 1, room="red")
        assert await ann.hear() == await bob.hear() == ("room", 1)
        await ann.emit("rooms", [1, None], room=["red", "blue", "green"])
        assert await ann.hear() == await bob.hear() == await eve.hear() == ("rooms", [1, None])
        await ann.emit("sid", {}, room=eve.sid)
        assert await eve.hear() == ("sid", {})
        await eve.emit("all", "x")
        assert await ann.hear() == await bob.hear() == await eve.hear() == ("all", "x")
        await eve.emit("some", "x", skip_sid=[bob.sid, ann.sid])
        assert await eve.hear() == ("some", "x")
        await ann.emit("other", "x", namespace="/other")
        assert await other.hear() == ("other", "x")
        await bob.do("leave", "blue")
        await ann.emit("room", 2, room="blue")
        assert await eve.hear() == ("room", 2)
        for client in (ann, bob, eve):
            await client.hears_nothing(ann)


@pytest.mark.one_flavour
async def test_callbacks_and_requests_cross_servers(url: str, clients: Clients) -> None:
    """A server gets the replies of other servers' clients, disconnects them, and moves them between rooms."""
    async with Servers(url) as servers:
        ann = await clients.python(servers.ports[0], "red")
        bob = await clients.python(servers.ports[1], "red")
        eve = await clients.javascript(servers.ports[1], "red")
        assert await ann.do("call", "ask", "how?", bob.sid) == "python: how?"
        assert await ann.do("call", "ask", "how?", eve.sid) == "js: how?"
        assert await ann.do("call", "ask", b"\x00\xff", bob.sid) == b"\xff\x00"
        assert await ann.do("call", "ask", b"\x01\x00", eve.sid) == b"\x00\x01"
        await ann.do("nest", bob.sid, ann.sid)  # a callback that waits for a callback
        assert await ann.hear() == ("nested", ["python: outer", "python: inner"])
        await ann.emit("bytes", {"a": b"\x00\xff", "b": [bytearray(b"b")]}, room=bob.sid)
        assert await bob.hear() == ("bytes", {"a": b"\x00\xff", "b": [b"b"]})
        await ann.do("enter", "green", bob.sid)
        await ann.do("leave", "red", eve.sid)
        await ann.emit("rooms", 1, room=["green", "red"])  # behind the requests, on the same connection
        assert await bob.hear() == await ann.hear() == ("rooms", 1)
        await ann.do("close", "red")
        await ann.emit("red", 2, room="red")
        for client in (ann, bob, eve):
            await client.hears_nothing(ann)
        await ann.do("kick", bob.sid)
        await bob.hears("disconnect")
        await ann.do("kick", eve.sid)
        await eve.hears("disconnect")


@pytest.mark.one_flavour
async def test_a_server_has_the_channels_of_its_clients(url: str, clients: Clients, admin: Redis) -> None:
    """A server subscribes to the rooms that its clients are in, and unsubscribes when the last client leaves."""

    async def subscribers(*rooms: str) -> list[int]:
        names = [f"socketio#/#{room}" if room else "socketio#/" for room in rooms]
        return [count for _, count in await admin.pubsub_numsub(*names)]

    async def are_gone() -> str:
        return "" if await subscribers("red", bob.sid, "") == [0, 0, 1] else "still subscribed"

    async with Servers(url) as servers:
        ann = await clients.python(servers.ports[0], "blue")
        async with Clients() as guests:
            bob, eve = [await guests.python(servers.ports[1], "red") for _ in range(2)]
            await bob.do("enter", "blue")
            rooms = ("red", "blue", ann.sid, bob.sid, eve.sid, "")
            assert await subscribers(*rooms) == [1, 2, 1, 1, 1, 2]
            await bob.do("leave", "red")
            await eve.emit("red", 1, room="red")
            await eve.hears("red")
        await eventually(are_gone)


@pytest.mark.one_flavour
async def test_an_entered_room_misses_nothing(shared_server: Server, clients: Clients) -> None:
    """What another process emits after `enter_room()`, or to the sid of a new client, is never missed."""
    manager = AsyncMultiplexerManager(shared_server.url, write_only=True)
    with Proxy(shared_server.port) as proxy:
        proxy.to_server.delay = 0.02  # the process that emits has no proxy: it is faster
        async with manager.multiplexer, Servers(proxy.url, 1) as servers:
            for number in range(at_length(300, 5)):
                client = await clients.python(servers.ports[0])
                await manager.emit("sid", number, to=client.sid)
                await client.hears("sid")
                await client.do("enter", f"room {number}")
                await manager.emit("room", number, room=f"room {number}")
                await client.hears("room")


@pytest.mark.one_flavour
async def test_other_processes_emit(url: str, admin: Redis, clients: Clients) -> None:
    """Write-only managers, in an event loop and without one, emit, and move and disconnect clients."""
    here, thread = AsyncMultiplexerManager(url, write_only=True), MultiplexerManager(url, write_only=True)
    async with here.multiplexer, Servers(url) as servers:
        bob, eve = [await clients.python(port, "red") for port in servers.ports]
        await here.emit("here", b"\x00", room="red")
        await asyncio.to_thread(thread.emit, "thread", b"\x00", room=["red", bob.sid])
        for client in (bob, eve):
            assert [await client.hear(), await client.hear()] == [("here", b"\x00"), ("thread", b"\x00")]
        await here.enter_room(bob.sid, "/", "blue")
        async with asyncio.timeout(DEADLINE):
            while not await admin.pubsub_channels("*blue"):  # enter_room() does not wait for another server
                await asyncio.sleep(0.01)
        await asyncio.to_thread(thread.leave_room, bob.sid, "/", "red")
        await asyncio.to_thread(thread.emit, "both", None, room=["red", "blue"])
        await bob.hears("both")
        await here.close_room("red")
        await here.emit("red", None, room="red")
        await here.emit("blue", None, room=["blue", eve.sid])
        await bob.hears("blue")
        await eve.hears("both", "blue")
        await here.disconnect(bob.sid, "/")
        await bob.hears("disconnect")
        await asyncio.to_thread(thread.disconnect, eve.sid, "/")
        await eve.hears("disconnect")
        await asyncio.to_thread(thread.multiplexer.close)


@pytest.mark.one_flavour
async def test_a_server_without_clients_gets_replies(url: str, clients: Clients) -> None:
    """A server that never had a client gets the reply of another server's client."""
    async with Servers(url, 1) as servers, server_here(Multiplexer(url)) as (server, _):
        client = await clients.python(servers.ports[0])
        assert await server.call("ask", 1, to=client.sid, timeout=DEADLINE) == "python: 1"


# --- faults


async def lose(server: Server, fault: str) -> None:
    """Lose the connections of Socket.IO's servers, and get the server of Redis back."""
    if fault == "kill":
        await server.admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        return
    if fault == "freeze":
        server.freeze()
    else:
        server.kill()
    await asyncio.sleep(1.2)  # the time of the fault: longer than a ping and its timeout
    if fault == "freeze":
        server.thaw()
    else:
        server.start()
        await server.release()  # the connection of `admin` was lost, too


@pytest.mark.timeout(300)
async def test_no_gap_is_silent_and_rooms_come_back(server: Server, clients: Clients) -> None:
    """After each kill, freeze and restart, every client is told of the gap once, and gets its rooms' events again."""
    faults = ["kill", "freeze", "restart"] + ["kill"] * at_length(97, 0)
    async with Servers(server.url) as servers:
        ann, bob = [await clients.python(port, "red") for port in servers.ports]
        eve = await clients.javascript(servers.ports[1], "blue")
        for number, fault in enumerate(faults):
            await lose(server, fault)
            for client in (ann, bob, eve):
                await client.hears("interrupted", "resumed")
            await ann.emit("red", number, room=["red", "blue"])
            assert await ann.hear() == await bob.hear() == await eve.hear() == ("red", number)
            await eve.emit("sid", number, room=ann.sid)
            assert await ann.hear() == ("sid", number)
            await eve.emit("all", number)
            assert await ann.hear() == await bob.hear() == await eve.hear() == ("all", number)
        assert await ann.do("call", "ask", "still?", eve.sid) == "js: still?"
        await server.release()
    assert servers.log.count("Socket.IO clients miss what other processes emit") == 2 * len(faults)


@pytest.mark.one_flavour
async def test_a_refused_room_is_not_called_active(
    server: Server, clients: Clients, admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """After an outage, the log names a room that Redis rejects, and `on_reconnect` waits for the other rooms."""
    caplog.set_level(logging.INFO, "redismpx")
    told = asyncio.Event()
    red = b"socketio#/#red"

    async def lose_connection() -> tuple[bool, bool]:
        """Return whether the log says that all rooms are active again, and that one stays inactive."""
        caplog.clear()
        told.clear()
        await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        async with asyncio.timeout(DEADLINE):
            await told.wait()
        return "all rooms of Socket.IO are active" in caplog.text, "1 Socket.IO rooms stay inactive" in caplog.text

    def resumed() -> None:
        assert red in manager._sub.active
        told.set()

    await set_limited_user(admin, "&socketio#[^/]*", "&socketio#/", "&socketio#/#[^!]*")
    async with server_here(limited(server)) as (sockets, served):
        manager = sockets.manager
        manager._on_reconnect = resumed
        client = await clients.python(served.port)
        await manager.enter_room(client.sid, "/", "red")
        with pytest.raises(SubscriptionRefused, match="!secret"):
            await manager.enter_room(client.sid, "/", "!secret")
        assert await lose_connection() == (False, True)
        message = b'["a", {"method": "emit", "event": "b", "data": [1], "namespace": "/", "room": "red"}]'
        await admin.publish(red, message)
        assert await client.hear() == ("b", 1)
        await manager.leave_room(client.sid, "/", "!secret")
        assert await lose_connection() == (True, False)


async def test_very_many_refused_rooms_cost_one_look_each() -> None:
    """When Redis rejects the channels of all rooms, the work does not grow with the square of their number."""
    rooms, looks = frozenset(b"%d" % number for number in range(1000)), 0

    class Sub:
        channels, active = rooms, frozenset[bytes]()

        async def wait_for_activation(self, *names: bytes) -> None:
            nonlocal looks
            looks += len(names)
            raise SubscriptionRefused("channel", names[0], "no")

    manager: Any = AsyncMultiplexerManager()
    manager._sub = Sub()
    await manager._recover(ConnectionLost("lost"))
    assert looks == 1000


async def test_rooms_come_back_although_the_log_is_broken(server: Server, clients: Clients, admin: Redis) -> None:
    """If a log filter raises, both hooks are called nevertheless, for each outage."""
    told: asyncio.Queue[str] = asyncio.Queue()
    async with server_here(Multiplexer(server.url)) as (sockets, served):
        sockets.manager._on_disconnect = lambda error: told.put_nowait("interrupted")
        sockets.manager._on_reconnect = lambda: told.put_nowait("resumed")
        await clients.python(served.port)
        with broken_log():
            for _ in range(2):
                await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                async with asyncio.timeout(DEADLINE):
                    assert [await told.get(), await told.get()] == ["interrupted", "resumed"]


async def test_no_room_comes_back_after_the_end(
    server: Server, clients: Clients, admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """If the multiplexer is closed while `on_disconnect` runs, `on_reconnect` is not called."""
    caplog.set_level(logging.INFO, "redismpx")
    mpx = Multiplexer(server.url)
    closed = asyncio.Event()

    async def close(_: Exception) -> None:
        await mpx.aclose()
        closed.set()

    async with server_here(mpx) as (sockets, served):
        manager = sockets.manager
        manager._on_disconnect, manager._on_reconnect = close, lambda: pytest.fail("there is no connection")
        await clients.python(served.port)
        await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        async with asyncio.timeout(DEADLINE):
            await closed.wait()
            while manager._tasks:
                await asyncio.wait(manager._tasks)
    assert "active again" not in caplog.text.replace("until all rooms are active again", "")


async def test_a_server_goes_on_alone_without_redis(clients: Clients) -> None:
    """Without Redis, clients connect, enter rooms and get events of their server; `emit()` raises `ConnectionLost`."""
    multiplexer = Multiplexer(f"redis://127.0.0.1:{free_port()}", publish_timeout=0.2)
    async with server_here(multiplexer) as (server, served):
        told: list[Exception] = []
        server.manager._on_disconnect = told.append
        client = await clients.python(served.port)
        await server.enter_room(client.sid, "red")
        with pytest.raises(ConnectionLost):
            await server.emit("red", 1, room="red")
        assert await client.hear() == ("red", 1)
        assert [type(error) for error in told] == [TimeoutError]
    await client.hears("disconnect")


@pytest.mark.one_flavour
async def test_what_an_application_raises_is_logged(
    url: str, clients: Clients, admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception of a callback, hook or handler is logged, and the server goes on."""

    def fail(*_: object) -> None:
        raise RuntimeError("of the application")

    async with server_here(Multiplexer(url)) as (server, served), server_here(Multiplexer(url)) as (other, _):
        server.manager._on_disconnect = server.manager._on_reconnect = fail
        server.on("disconnect", fail)
        client, second = await clients.python(served.port), await clients.python(served.port)
        await other.emit("ask", 1, to=client.sid, callback=fail)
        await eventually(partial(is_logged, caplog, "callback of Socket.IO raised an exception"))
        await other.disconnect(second.sid)
        await eventually(partial(is_logged, caplog, "disconnect of Socket.IO raised an exception"))
        await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        for hook in ("on_disconnect", "on_reconnect"):
            await eventually(partial(is_logged, caplog, f"{hook} of Socket.IO raised an exception"))
        await other.manager._sub.wait_for_activation()
        await other.emit("red", 1, to=client.sid)
        assert await client.hear() == ("red", 1)


async def is_logged(caplog: pytest.LogCaptureFixture, text: str) -> str:
    return "" if text in caplog.messages else str(caplog.messages)


@pytest.mark.one_flavour
async def test_hostile_payloads_change_nothing(url: str, clients: Clients, admin: Redis) -> None:
    """A payload that is no message goes to `on_error`; none is unpickled."""
    errors: list[Exception] = []
    async with server_here(Multiplexer(url, on_error=errors.append)) as (_, served):
        client = await clients.python(served.port)
        hostile = [b"", b"\xff", b"1", b"[]", b'["a", []]', b'["a", {}]', b'["a", null, "="]', pickle.dumps(["a", {}])]
        for payload in hostile:
            await admin.publish("socketio#/", payload)
        await admin.publish("socketio#/", b'["a", {"method": "emit"}]')  # a method without its arguments
        await admin.publish("socketio#/", b'["a", {"method": [], "copy": []}]')
        message = b'["a", {"method": "emit", "event": "b", "data": [1], "namespace": "/", "host_id": "a"}]'
        await admin.publish("socketio#/", message)
        assert await client.hear() == ("b", 1)
        assert [type(error) for error in errors] == [DecodeError] * len(hostile)


def test_a_thread_can_only_emit() -> None:
    """A `MultiplexerManager` for a server is refused, because it would not receive anything."""
    with pytest.raises(ValueError, match="write_only=True"):
        MultiplexerManager()
