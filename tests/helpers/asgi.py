"""An ASGI application under uvicorn in this process, and clients that read its Server-Sent Events."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from websockets.asyncio.client import connect

from .waiting import DEADLINE


class Served:
    """A running application."""

    def __init__(self, server: uvicorn.Server, port: int) -> None:
        self.server = server
        self.port = port

    def connect(self, path: str) -> connect:
        url = f"ws://127.0.0.1:{self.port}{path}"
        return connect(url, open_timeout=DEADLINE, close_timeout=DEADLINE, proxy=None, compression=None)

    @asynccontextmanager
    async def streaming(self, path: str, last_id: str | None = None, method: str = "GET") -> AsyncIterator[Events]:
        """Open a stream of events."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            resume = "" if last_id is None else f"Last-Event-ID: {last_id}\r\n"
            writer.write(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{resume}\r\n".encode())
            async with asyncio.timeout(DEADLINE):
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            assert head.startswith("http/1.1 200 "), head
            assert "content-type: text/event-stream" in head
            assert "cache-control: no-store" in head
            assert "x-accel-buffering: no" in head
            yield Events(reader, writer)
        finally:
            writer.transport.abort()


class Events:
    """A client of a stream of events."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.transport = writer.transport
        self._text = ""

    async def hear(self, heartbeats: bool = False) -> str:
        """Return the next event without its last lines' end; heartbeats only if they are asked for."""
        async with asyncio.timeout(DEADLINE):
            while True:
                while "\n\n" not in self._text:
                    chunk = await self._chunk()
                    assert chunk, "the stream ended"
                    self._text += chunk
                event, _, self._text = self._text.partition("\n\n")
                if heartbeats or not event.startswith(":"):
                    return event

    async def end(self) -> None:
        """Wait for the last chunk, with nothing before it."""
        assert not self._text
        async with asyncio.timeout(DEADLINE):
            assert await self._chunk() == ""

    async def _chunk(self) -> str:
        size = int(await self._reader.readline(), 16)
        return (await self._reader.readexactly(size + 2))[:-2].decode()


@asynccontextmanager
async def serving(app: Any, port: int = 0, **options: Any) -> AsyncIterator[Served]:
    """Serve an application, and shut it down at the end of the block as SIGTERM does."""
    config = uvicorn.Config(app, lifespan="on", log_config=None, ws="websockets-sansio", **options)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", port)) as listener:
        task = asyncio.create_task(server.serve([listener]))
        try:
            async with asyncio.timeout(DEADLINE):
                while not server.started and not task.done():
                    await asyncio.sleep(0.005)
            yield Served(server, listener.getsockname()[1])
        finally:
            server.should_exit = True
            async with asyncio.timeout(DEADLINE):
                await task
