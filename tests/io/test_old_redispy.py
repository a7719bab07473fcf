"""What redis-py 7 does otherwise than redis-py 8 makes no difference. `nox -s lowest` runs with redis-py 7 itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio import Connection, ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError

from redismpx._io.redispy.dial import dial

from ..helpers.fake_server import FakeServer, read_command
from ..helpers.waiting import until

pytestmark = pytest.mark.usefixtures("no_leaks")


class Old(Connection):
    """A connection as in redis-py 7: RESP2 by default, and one question whether there is something to read."""

    can_read: Any = None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if options.get("protocol") is None:
            self.protocol = 2

    async def can_read_destructive(self) -> bool:
        assert self._reader is not None
        if self._reader.at_eof():
            raise RedisConnectionError("Connection closed by server.")
        return bool(self._reader._buffer)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("protocol", "first"), [(None, [b"HELLO", b"3"]), (3, [b"HELLO", b"3"]), (2, [b"CLIENT"])])
async def test_the_handshake_begins_in_resp3(protocol: int | None, first: list[bytes]) -> None:
    """Without a `protocol` the handshake is done in RESP3, whatever redis-py's own default is."""
    commands: list[list[bytes]] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            commands.append(await read_command(reader))
            writer.write(b"%1\r\n+proto\r\n:3\r\n" if commands[-1][0] == b"HELLO" else b"+OK\r\n")

    async with FakeServer(script).run() as url:
        address = url.partition("?")[0]
        connection = await dial(ConnectionPool.from_url(address, connection_class=Old, protocol=protocol))
        assert commands[0][: len(first)] == first
        await connection.release()


@pytest.mark.parametrize("end", [b"", b"-ERR unasked\r\n"])
async def test_a_connection_at_its_end_is_not_usable(end: bytes) -> None:
    """A connection that the server has closed, or that has unasked data, is not usable, and that is no error."""
    go_on = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):  # CLIENT SETINFO
            await read_command(reader)
            writer.write(b"+OK\r\n")
        await go_on.wait()
        writer.write(end)
        if end:
            await reader.read()

    async with FakeServer(script).run() as url:
        connection = await dial(ConnectionPool.from_url(url, connection_class=Old))
        assert await connection.is_usable()
        go_on.set()
        reader = connection._raw._reader
        await until(lambda: reader.at_eof() or bool(reader._buffer))
        assert not await connection.is_usable()
        await connection.release()
