"""Handshakes with servers and proxies that know less than Redis does: only a wrong password stops a connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
from redis.asyncio import ConnectionPool, Redis
from redis.exceptions import AuthenticationError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from redismpx import Multiplexer, NoResponders
from redismpx._io.redispy.dial import dial

from ..helpers.backoffs import QUICK
from ..helpers.fake_server import FakeServer, read_command
from ..helpers.flavours import FLAVOURS, start_server
from ..helpers.servers import Server

pytestmark = pytest.mark.usefixtures("no_leaks")

WORDS = [
    b"-ERR unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'me' 'secret' ",
    b"-NOPROTO unsupported protocol version",
    b"-unsupported command 'HELLO'",
    b"-ERR command not found",
    b"-ERR Teleport: not supported by Teleport",
    b"-NOPERM this user has no permissions to run the 'hello' command",
    b"-LOADING starting",
    b"*4\r\n$6\r\nserver\r\n$5\r\nproxy\r\n$5\r\nproto\r\n:2",  # no error, and no RESP3 either
    b"+OK",
]


@asynccontextmanager
async def proxy(**replies: bytes) -> AsyncIterator[tuple[str, list[list[bytes]]]]:
    """Serve like a proxy with these replies to some commands; yield its address, and the commands that it gets."""
    commands: list[list[bytes]] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            command = await read_command(reader)
            commands.append(command)
            name = command[0].decode()
            if name in replies:
                writer.write(replies[name] + b"\r\n")
            elif name == "SUBSCRIBE":
                writer.write(b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n")
            elif name == "PUBLISH":
                writer.write(b":1\r\n")
            else:
                writer.write(b"+OK\r\n")

    async with FakeServer(script).run() as url:
        yield url.partition("?")[0].removeprefix("redis://"), commands


async def works(mpx: Multiplexer) -> None:
    """Subscribe and publish."""
    sub = mpx.new_channel_subscription(lambda *_: None)
    sub.add("a")
    await sub.wait_for_activation(timeout=5)
    assert await mpx.publish("a", "x") == 1


@pytest.mark.parametrize("user", ["", "me:secret@"])
@pytest.mark.parametrize("words", WORDS)
async def test_any_rejection_of_hello_means_resp2(words: bytes, user: str, caplog: pytest.LogCaptureFixture) -> None:
    """A server may reject HELLO in any words: the link and publishing speak RESP2, and send the password by AUTH."""
    caplog.set_level(logging.DEBUG)
    async with proxy(HELLO=words) as (address, commands), Multiplexer(f"redis://{user}{address}") as mpx:
        await works(mpx)
        assert mpx.stats().connections == 1
        assert ([b"AUTH", b"me", b"secret"] in commands) == bool(user)
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    "words", [b"-WRONGPASS invalid username-password pair or user is disabled.", b"-NOAUTH Authentication required."]
)
async def test_a_rejected_password_is_sent_once(words: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """An error about authentication stays one: there is no second try in RESP2."""
    async with proxy(HELLO=words) as (address, commands):
        with pytest.raises(AuthenticationError):
            await dial(ConnectionPool.from_url(f"redis://me:secret@{address}"))
        assert [command[0] for command in commands] == [b"HELLO"]


async def test_a_rejection_of_both_protocols_is_shown() -> None:
    """If the handshake fails in RESP2 too, the error is that of the second try."""
    async with proxy(HELLO=b"-ERR no", AUTH=b"-ERR go away") as (address, commands):
        with pytest.raises(Exception, match="go away"):
            await dial(ConnectionPool.from_url(f"redis://me:secret@{address}"))
        assert [command[0] for command in commands] == [b"HELLO", b"AUTH"]


async def test_resp2_by_option_has_no_second_try() -> None:
    """With protocol=2 no HELLO is sent, so an error is final at once."""
    async with proxy(AUTH=b"-ERR go away") as (address, commands):
        with pytest.raises(Exception, match="go away"):
            await dial(ConnectionPool.from_url(f"redis://me:secret@{address}?protocol=2"))
        assert [command[0] for command in commands] == [b"AUTH"]


@contextmanager
def server_without(flavour: str, *commands: str, options: tuple[str, ...] = ()) -> Iterator[Server]:
    """Start a server on which some commands are disabled."""
    server = start_server(flavour, *options, *(word for name in commands for word in ("--rename-command", name, "")))
    try:
        yield server
    finally:
        server.remove()


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("commands", [["CLIENT"], ["HELLO"], ["CLIENT", "HELLO", "ROLE", "INFO"]])
@pytest.mark.parametrize("options", [{}, {"protocol": 2}, {"protocol": 3}])
async def test_disabled_commands_cost_nothing_else(flavour: str, commands: list[str], options: dict[str, int]) -> None:
    """A server without CLIENT costs the name of the connection, and one without HELLO costs RESP3; all else works."""
    with server_without(flavour, *commands) as server:
        async with Multiplexer(server.admin_url, client_name="me", **options) as mpx:
            await works(mpx)
            assert (mpx.stats().connections, mpx.stats().last_error) == (1, None)
        if "CLIENT" not in commands:
            async with (
                Redis.from_url(server.admin_url, protocol=2) as admin,
                Multiplexer(server.admin_url, client_name="me") as mpx,
            ):
                await works(mpx)
                assert [client["name"] for client in await admin.client_list()].count("me") == 2


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_a_cluster_node_without_hello_is_known_as_one(flavour: str) -> None:
    """A node of a cluster counts its own subscribers only, so a request waits. It is known without HELLO."""
    with (
        server_without(flavour, "HELLO", options=("--cluster-enabled", "yes")) as node,
        server_without(flavour, "HELLO") as single,
    ):
        async with Multiplexer(node.admin_url) as mpx:
            with pytest.raises(TimeoutError):
                await mpx.request("a", "x", timeout=0.3)
        async with Multiplexer(single.admin_url) as mpx:
            with pytest.raises(NoResponders):
                await mpx.request("a", "x", timeout=5)


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_a_request_that_cannot_be_published_leaves_no_promise(flavour: str) -> None:
    """Without HELLO and PUBLISH a request fails, and the promise of its reply ends with it."""
    with server_without(flavour, "HELLO", "PUBLISH") as server:
        async with Multiplexer(server.admin_url) as mpx:
            with pytest.raises(ResponseError, match="unknown command"):
                await mpx.request("a", "x", timeout=5)
            assert mpx.stats().promises == 0


@pytest.mark.parametrize("words", [b"-ERR Client names cannot contain spaces", b"-NOPERM no", b"-unsupported"])
async def test_a_rejected_name_costs_the_name_only(words: bytes) -> None:
    """A client name that the server rejects, in any words, is left out; the handshake is not repeated."""
    async with (
        proxy(CLIENT=words) as (address, commands),
        Multiplexer(f"redis://{address}", client_name="a b", backoff=QUICK) as mpx,
    ):
        await works(mpx)
        assert mpx.stats().connections == 1
        assert [command[0] for command in commands].count(b"HELLO") == 4  # two connections, to RESP3 and back


@pytest.mark.parametrize("reply", [b"$-1", b":1", b"*0", b"+OK", b"-ERR no", b"-NOPERM no", b"$6\r\nmaster"])
async def test_an_unknown_role_is_taken_for_a_master(reply: bytes) -> None:
    """A server that does not tell its role as Redis does is used."""
    async with proxy(ROLE=reply) as (address, _):
        pool = ConnectionPool.from_url(f"redis://{address}")
        pool.is_master = True  # type: ignore[attr-defined]  # as the pools of Sentinels and of primaries say
        connection = await dial(pool)
        await connection.release()


async def test_a_replica_is_not_taken_for_a_master() -> None:
    """A server that says that it is a replica is not used as a master, and the handshake is not repeated."""
    async with proxy(ROLE=b"*1\r\n$5\r\nslave") as (address, commands):
        pool = ConnectionPool.from_url(f"redis://{address}")
        pool.is_master = True  # type: ignore[attr-defined]
        with pytest.raises(RedisConnectionError, match="is not a master any more"):
            await dial(pool)
        assert [command[0] for command in commands].count(b"ROLE") == 1


@pytest.mark.parametrize("reply", [b"-ERR no", b"$-1", b":1", b"*1\r\n:1"])
async def test_a_server_that_keeps_resp3_is_used(reply: bytes) -> None:
    """The second HELLO, which goes back to RESP2, may be rejected or answered with anything."""
    replies = iter([b"%1\r\n+proto\r\n:3\r\n", reply + b"\r\n"] * 2)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            command = await read_command(reader)
            if command[0] == b"HELLO":
                writer.write(next(replies))
            elif command[0] == b"SUBSCRIBE":
                writer.write(b">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n")
            else:
                writer.write(b":1\r\n" if command[0] == b"PUBLISH" else b"+OK\r\n")

    fake = FakeServer(script)
    async with fake.run() as url, Multiplexer(url.partition("?")[0]) as mpx:
        await works(mpx)
        assert fake.accepted == 2  # the link and the publisher, and no second try
