"""A server's notices about its maintenance (MOVING, MIGRATING, FAILING_OVER and others) are never an error."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis, RedisCluster

from redismpx import Multiplexer
from redismpx._io.redispy.slot_map import NodePool, SlotMap
from redismpx.testing import Checker
from tools.fuzz import bulk, message, push

from ..helpers.fake_server import FakeServer, read_command
from ..helpers.waiting import until

pytestmark = pytest.mark.usefixtures("no_leaks")

PUSHES = [
    push(b">", bulk(b"MOVING"), b":1\r\n", b":30\r\n", bulk(b"localhost:1")),
    push(b">", bulk(b"MOVING"), b":2\r\n", b":30\r\n", b"_\r\n"),
    push(b">", bulk(b"MIGRATING"), b":3\r\n", b":30\r\n"),
    push(b">", bulk(b"MIGRATED"), b":4\r\n"),
    push(b">", bulk(b"FAILING_OVER"), b":5\r\n", b":30\r\n"),
    push(b">", bulk(b"FAILED_OVER"), b":6\r\n"),
    push(b">", bulk(b"SMIGRATING"), b":7\r\n", bulk(b"1,5-9")),
    push(b">", bulk(b"SMIGRATED"), b":8\r\n", push(b"*", push(b"*", bulk(b"h:1"), bulk(b"h:2"), bulk(b"1-5")))),
]
"""In the shapes that redis-py reads: number, seconds, and where to."""

NOTICES = b"".join(PUSHES)
SPOILT = push(b">", bulk(b"MOVING"), b":1\r\n") + push(b">", bulk(b"MIGRATING"))


class Maintained:
    """A server that speaks RESP3 to those who want that, and has something to say at every turn."""

    def __init__(self, notices: bytes, *, only_if_asked: bool = False) -> None:
        self.commands: list[bytes] = []
        self.connections = 0
        self.writers: list[asyncio.StreamWriter] = []
        self._notices = notices
        self._only_if_asked = only_if_asked

    @asynccontextmanager
    async def run(self) -> AsyncIterator[str]:
        async with FakeServer(self._serve).run() as url:
            yield url.partition("?")[0]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        protocol, has_asked = 2, not self._only_if_asked
        while True:
            try:
                command = await read_command(reader)
            except ValueError:  # it has gone
                return
            self.commands.append(b" ".join(command[:2]))
            talks = command[0] in (b"SUBSCRIBE", b"PUBLISH", b"PING")
            notices = self._notices if talks and protocol == 3 and has_asked else b""
            mark = b">" if protocol == 3 else b"*"
            replies = [b"+OK\r\n"]
            if command[0] == b"HELLO":
                protocol = int(command[1]) if len(command) > 1 else protocol
                replies = [b"%%1\r\n+proto\r\n:%d\r\n" % protocol if protocol == 3 else b"*2\r\n+proto\r\n:2\r\n"]
            elif command[:2] == [b"CLIENT", b"MAINT_NOTIFICATIONS"]:
                has_asked = True
            elif command[0] == b"SUBSCRIBE":
                replies = [push(mark, bulk(b"subscribe"), bulk(name), b":1\r\n") for name in command[1:]]
                replies += [message(mark, name, b"%d" % n) for n in range(3) for name in command[1:]]
            elif command[0] == b"PING":
                replies = [b"+PONG\r\n"]
            elif command[0] == b"PUBLISH":
                replies = [b":7\r\n"]
            writer.write(notices + b"".join(reply + notices for reply in replies))


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Any:
    """Nobody has anything to complain of, redis-py neither."""
    yield
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def test_notices_on_the_link_are_counted_and_ignored() -> None:
    """Notices between confirmations, messages and replies to pings are counted and change nothing."""
    server = Maintained(NOTICES + SPOILT)
    kinds = len(PUSHES) + 2
    async with server.run() as url, Multiplexer(url, protocol=3, ping_interval=0.05) as mpx:
        await mpx.connect(5)
        checker = Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks)
        sub.add("a", "b")
        await until(lambda: server.commands.count(b"PING") >= 2 and checker.messages == 6)
        assert checker.kinds == ["activation"] * 2 + ["message"] * 6
        await until(lambda: mpx.stats().ignored >= (9 + 4) * kinds)
        stats = mpx.stats()
        assert (stats.connections, stats.last_error, server.connections) == (1, None, 1)
    assert not checker.faults


@pytest.mark.parametrize("protocol", [None, 3])
async def test_the_link_does_not_request_notices(protocol: int | None) -> None:
    """The subscriber connection never enables maintenance notices."""
    server = Maintained(NOTICES, only_if_asked=True)
    async with server.run() as url, Redis.from_url(url, protocol=protocol) as client, Multiplexer(client) as mpx:
        checker = Checker()
        mpx.new_channel_subscription(*checker.callbacks).add("a")
        await until(lambda: checker.messages == 3)
        assert b"CLIENT MAINT_NOTIFICATIONS" not in server.commands
        assert server.commands.count(b"HELLO 2") == (protocol is None)
        assert mpx.stats().ignored == 0


async def publish_all(mpx: Multiplexer, server: Maintained) -> None:
    """Publish with notices before, after, and while nothing is published."""
    for _ in range(3):
        assert await asyncio.gather(*(mpx.publish("a", "x") for _ in range(5))) == [7] * 5
        for writer in server.writers:
            if not writer.is_closing():
                writer.write(NOTICES)
        await asyncio.sleep(0.01)  # they may come now, or during the next batch


@pytest.mark.parametrize("protocol", [None, 3])
async def test_notices_while_publishing_are_ignored(protocol: int | None) -> None:
    """With a URL, a notice does not make the publisher connect to another address."""
    server = Maintained(NOTICES + SPOILT)
    async with server.run() as url, Multiplexer(url, protocol=protocol) as mpx:
        await publish_all(mpx, server)
        assert isinstance(mpx._client, Redis)
        assert mpx._client.connection_pool.connection_kwargs["host"] == "127.0.0.1"
        assert b"CLIENT MAINT_NOTIFICATIONS" not in server.commands
        assert mpx.stats().published == 15


async def test_no_cluster_connection_requests_notices() -> None:
    """No connection to a cluster enables notices, the publisher's own included."""
    client = RedisCluster.from_url("redis://localhost:1")
    assert "maint_notifications_config" in client.nodes_manager.connection_kwargs
    (node,) = SlotMap(client).nodes
    connection: Any = NodePool(node, is_master=True).make_connection()
    assert connection.maint_notifications_config is None
    await client.aclose()


async def test_a_client_that_enabled_notices_follows_them(caplog: pytest.LogCaptureFixture) -> None:
    """redis-py follows notices by default, for all connections of the client: its host changes for a while."""
    server = Maintained(NOTICES, only_if_asked=True)
    async with server.run() as url, Redis.from_url(url) as client, Multiplexer(client) as mpx:
        checker = Checker()
        mpx.new_channel_subscription(*checker.callbacks).add("a")
        await until(lambda: checker.messages == 3)
        for _ in range(3):
            assert await client.publish("a", "x") == 7
        options = client.connection_pool.connection_kwargs
        assert (options["host"], str(options["port"])) == ("localhost", url.rpartition(":")[2])  # the port it had
        assert mpx.connected  # the link stays where it is, ...
        assert checker.kinds == ["activation"] + ["message"] * 3
        assert mpx._hub.deployment._endpoint.pool.connection_kwargs is options  # ... and the next one goes there
