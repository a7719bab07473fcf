"""A scripted server on loopback, for replies that no real server gives."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from redismpx.testing.proxy import stop_accepting


class FakeServer:
    """A server that runs a script for each connection. `accepted` counts the connections."""

    def __init__(self, script: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> None:
        self._script = script
        self.accepted = 0

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[str]:
        """Serve until the block ends; yield the URL."""
        tasks: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.accepted += 1
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                    await self._script(reader, writer)
            finally:
                tasks.discard(task)
                writer.transport.abort()

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        try:
            yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}?protocol=2"
        finally:
            await stop_accepting(server)
            for task in tuple(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def read_command(reader: asyncio.StreamReader) -> list[bytes]:
    """Read one command from a connection."""
    count = int((await reader.readline())[1:])
    command = []
    for _ in range(count):
        size = int((await reader.readline())[1:])
        command.append((await reader.readexactly(size + 2))[:-2])
    return command


async def shake_hands(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> list[bytes]:
    """Reply to the optional commands of the handshake; return the first command after them."""
    while True:
        command = await read_command(reader)
        if command[0] != b"CLIENT":
            return command
        writer.write(b"+OK\r\n")
