"""A request fails at once only when it is certain that nobody gets it. A count of 0 alone does not show that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from redis.asyncio import Redis, RedisCluster

from redismpx import Multiplexer, NoResponders, PromiseTimeout, Request
from redismpx._io.redispy import connection as connection_module

from ..helpers.acl import set_user
from ..helpers.cluster import Cluster
from ..helpers.fake_server import FakeServer, read_command, shake_hands
from ..helpers.flavours import FLAVOURS, binary_of
from ..helpers.monitor import calls_of
from ..helpers.servers import Server
from ..helpers.waiting import eventually, until

pytestmark = pytest.mark.usefixtures("no_leaks")


async def replicas_of(server: Server) -> tuple[int, int]:
    """Ask how many replicas a server has in any state, and how many of them are in sync."""
    info = await server.admin.info("replication")
    return info["connected_slaves"], len((await server.admin.role())[2])


async def in_sync(master: Server) -> None:
    """Wait until the replica of a server is in sync."""

    async def complaint() -> str:
        counts = await replicas_of(master)
        return "" if counts == (1, 1) else repr(counts)

    await eventually(complaint)


@asynccontextmanager
async def handling(server: Server, *, sharded: bool = False) -> AsyncIterator[list[bytes]]:
    """Serve `jobs` at a server; yield the requests that were handled."""
    handled: list[bytes] = []

    def handle(request: Request) -> None:
        handled.append(request.body)

    async with Multiplexer(server.url) as mpx:
        await mpx.serve("jobs", handle, sharded=sharded).wait_for_activation(timeout=10)
        yield handled


@pytest.fixture
async def replica(successor: Server, server: Server) -> AsyncIterator[Server]:
    """A replica of `server`, in sync."""
    await in_sync(server)
    yield successor
    await server.release()
    await successor.release()


@pytest.mark.parametrize("sharded", [False, True])
async def test_a_service_at_a_replica_hears_requests(server: Server, replica: Server, sharded: bool) -> None:
    """A master does not count the subscribers at its replicas, but they get the request."""
    async with handling(replica, sharded=sharded) as handled, Multiplexer(server.url) as mpx:
        with pytest.raises(PromiseTimeout):
            await mpx.request("jobs", "1", timeout=0.3, sharded=sharded)
        assert [reply async for reply in mpx.request_many("jobs", "2", timeout=0.1, sharded=sharded)] == []
        await until(lambda: handled == [b"1", b"2"])


async def test_a_replica_that_is_not_in_sync_counts_too(server: Server, replica: Server) -> None:
    """A replica that is about to load its master's data gets the request afterwards; ROLE does not list it."""
    await server.admin.config_set("repl-diskless-sync-delay", 3)
    async with handling(replica) as handled, Multiplexer(server.url) as mpx:
        await replica.admin.execute_command("REPLICAOF", "NO", "ONE")
        await server.admin.config_set("repl-backlog-ttl", 1)

        async def complaint() -> str:  # until its master has forgotten it
            return "still" if (await server.admin.info("replication"))["repl_backlog_active"] else ""

        await eventually(complaint)
        with pytest.raises(NoResponders):
            await mpx.request("jobs", "0", timeout=10)
        await replica.admin.execute_command("REPLICAOF", "127.0.0.1", server.port)

        async def waits() -> str:
            counts = await replicas_of(server)
            return "" if counts == (1, 0) else repr(counts)

        await eventually(waits)
        with pytest.raises(PromiseTimeout):
            await mpx.request("jobs", "1", timeout=0.2)
        assert handled == []


async def test_a_replica_without_a_connection_counts_too(server: Server, replica: Server) -> None:
    """A replica that has lost its master for a moment gets the request when it is back, out of the backlog."""
    async with handling(replica) as handled, Multiplexer(server.url) as mpx:
        replica.freeze()
        await server.admin.execute_command("CLIENT", "KILL", "TYPE", "replica")
        assert await replicas_of(server) == (0, 0)
        with pytest.raises(PromiseTimeout):
            await mpx.request("jobs", "1", timeout=0.2)
        replica.thaw()
        await until(lambda: handled == [b"1"])


async def test_at_a_replica_a_count_proves_nothing(server: Server, replica: Server) -> None:
    """A replica counts its own subscribers only, so a request that is published there waits for its timeout."""
    async with Multiplexer(replica.url) as mpx:
        for sharded in (False, True):
            with pytest.raises(PromiseTimeout):
                await mpx.request("nobody", b"", timeout=0.1, sharded=sharded)


async def test_without_the_right_to_info_a_request_waits(server: Server, admin: Redis) -> None:
    """A server that does not tell whether it has replicas proves nothing, until the right is granted."""
    rights = "allchannels -@all +publish +subscribe +psubscribe +unsubscribe +punsubscribe"
    await set_user(admin, "asker", "secret", rights)
    async with Multiplexer(server.url, username="asker", password="secret") as mpx:
        with pytest.raises(PromiseTimeout):
            await mpx.request("nobody", b"", timeout=0.1)
        await set_user(admin, "asker", "secret", rights + " +info")
        loop = asyncio.get_running_loop()
        give_up = loop.time() + 10
        with pytest.raises(NoResponders):
            while loop.time() < give_up:
                with suppress(PromiseTimeout):
                    await mpx.request("nobody", b"", timeout=0.1)


@pytest.mark.parametrize("reply", [b"$-1", b":1", b"*0", b"$11\r\nrole:master", b"-ERR unknown command"])
async def test_a_server_that_does_not_say_it_proves_nothing(reply: bytes) -> None:
    """Without a clear word about its role, its replicas and their backlog, a count of 0 proves nothing."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        command = await shake_hands(reader, writer)
        while True:
            if command[0] == b"PSUBSCRIBE":
                writer.write(b"*3\r\n$10\r\npsubscribe\r\n$%d\r\n%b\r\n:1\r\n" % (len(command[1]), command[1]))
            elif command[0] == b"PUBLISH":
                writer.write(b":0\r\n")
            elif command[0] == b"INFO":
                writer.write(reply + b"\r\n")
            command = await read_command(reader)

    async with FakeServer(script).run() as url, Multiplexer(url) as mpx:
        with pytest.raises(PromiseTimeout):
            await mpx.request("nobody", b"", timeout=0.2)
        assert await mpx.publish("nobody", b"") == 0  # over the same connection


async def test_only_a_request_without_receivers_asks(server: Server, replica: Server) -> None:
    """A server that does not count all is asked once a second; publish() and a request that is heard never ask."""
    before = await calls_of(server.admin, "info")

    async def questions() -> int:
        """How often INFO was asked, apart from here."""
        nonlocal before
        before += 1
        return await calls_of(server.admin, "info") - before

    async with handling(server), Multiplexer(server.url) as mpx:
        assert await mpx.publish("nobody", b"") == 0
        assert await mpx.request("jobs", b"", timeout=10) == b""
        assert await questions() == 0
        for _ in range(5):
            with pytest.raises(PromiseTimeout):
                await mpx.request("nobody", b"", timeout=0.01)
        assert await questions() == 1


async def test_unheard_requests_share_their_question(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of one batch ask once, each has its own error, and other messages of the batch have their counts."""
    asked: list[bool] = []
    counts_all = connection_module.Connection.counts_all

    async def count(self: connection_module.Connection, *, sharded: bool) -> bool:
        asked.append(sharded)
        return await counts_all(self, sharded=sharded)

    monkeypatch.setattr(connection_module.Connection, "counts_all", count)
    async with Multiplexer(url) as mpx:
        sub = mpx.new_channel_subscription()
        sub.add("somebody")
        await sub.wait_for_activation(timeout=5)
        with pytest.raises(NoResponders):
            await mpx.request("nobody", b"", timeout=10)  # the promise subscription is active from here on
        asked.clear()
        calls = [
            asyncio.ensure_future(call)
            for call in (
                mpx.request("nobody", b"", timeout=10),
                mpx.publish("somebody", b""),
                mpx.request("other", b"", timeout=10),
                mpx.publish("nobody", b""),
                mpx.request("sharded", b"", timeout=10, sharded=True),
            )
        ]
        first, heard, second, unheard, third = await asyncio.gather(*calls, return_exceptions=True)
        assert (heard, unheard) == (1, 0)
        for error, channel in ((first, b"nobody"), (second, b"other"), (third, b"sharded")):
            assert isinstance(error, NoResponders)
            assert error.channel == channel
        assert sorted(asked) == [False, True]


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_a_shard_without_replicas_counts_all(flavour: str) -> None:
    """In a cluster without replicas, a sharded request fails at once. A classic one waits: a node counts its own."""
    binary_of(flavour)
    cluster = await Cluster.start(flavour, 3, 0)
    try:
        async with RedisCluster.from_url(cluster.url) as client, Multiplexer(client) as mpx:
            with pytest.raises(NoResponders):
                await mpx.request("nobody", b"", timeout=10, sharded=True)
            with pytest.raises(PromiseTimeout):
                await mpx.request("nobody", b"", timeout=0.2)
    finally:
        await cluster.stop()


async def test_a_shard_with_replicas_does_not_count_all(shared_cluster: Cluster) -> None:
    """A service may subscribe at a replica, where its primary does not count it: it gets the requests, and replies."""
    channel = b"jobs"
    owner = await shared_cluster.owner(channel)
    (replica,) = await shared_cluster.replicas(owner)
    async with (
        handling(replica, sharded=True) as handled,
        RedisCluster.from_url(shared_cluster.url) as client,
        Multiplexer(client) as mpx,
    ):
        for number in (b"1", b"2"):
            assert await mpx.request(channel, number, timeout=10, sharded=True) == b""
        assert handled == [b"1", b"2"]
        with pytest.raises(PromiseTimeout):
            await mpx.request(b"{%b}nobody" % channel, b"", timeout=0.1, sharded=True)
