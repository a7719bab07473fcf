"""Servers of Socket.IO, as a program: their clients say what they are to do.

python -m tests.helpers.socketio_server URL COUNT, which prints their ports, and ends with its process group.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from typing import Any

import socketio
import uvicorn

from redismpx import Multiplexer
from redismpx.contrib.socketio import AsyncMultiplexerManager

from .backoffs import QUICK


def serve(url: str) -> None:
    async def interrupted(error: Exception) -> None:
        await server.emit("interrupted", type(error).__name__, ignore_queue=True)

    async def resumed() -> None:
        await server.emit("resumed", ignore_queue=True)

    multiplexer = Multiplexer(url, backoff=QUICK, ping_interval=0.5, ping_timeout=0.5, publish_timeout=5)
    manager = AsyncMultiplexerManager(multiplexer, on_disconnect=interrupted, on_reconnect=resumed)
    server: Any = socketio.AsyncServer(async_mode="asgi", client_manager=manager, namespaces=["/", "/other"])

    @server.event
    async def connect(sid: str, environ: dict[str, object], auth: dict[str, str] | None) -> None:
        if auth is not None:
            await server.enter_room(sid, auth["room"])

    @server.event
    async def enter(sid: str, room: str, other: str | None = None) -> None:
        await server.enter_room(other or sid, room)

    @server.event
    async def leave(sid: str, room: str, other: str | None = None) -> None:
        await server.leave_room(other or sid, room)

    @server.event
    async def close(sid: str, room: str) -> None:
        await server.close_room(room)

    @server.event
    async def emit(sid: str, event: str, data: Any, options: dict[str, Any]) -> str:
        try:
            await server.emit(event, data, **options)
        except ConnectionError as error:
            return type(error).__name__
        return "ok"

    @server.event
    async def call(sid: str, event: str, data: Any, other: str) -> Any:
        return await server.call(event, data, to=other, timeout=10)

    @server.event
    async def nest(sid: str, other: str, room: str) -> None:
        """Call a client in the callback of an event, which needs another callback meanwhile."""

        async def callback(reply: Any) -> None:
            await server.emit("nested", [reply, await server.call("ask", "inner", to=other, timeout=10)], room=room)

        await server.emit("ask", "outer", to=other, callback=callback)

    @server.event
    async def kick(sid: str, other: str) -> None:
        await server.disconnect(other)

    app = socketio.ASGIApp(server, on_shutdown=multiplexer.aclose)
    config = uvicorn.Config(app, log_level="warning", ws="websockets-sansio")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sys.stdout.write(f"{listener.getsockname()[1]}\n")  # at once: print() may write the end of the line apart
        sys.stdout.flush()
        asyncio.run(uvicorn.Server(config).serve([listener]))


if __name__ == "__main__":
    for _ in range(int(sys.argv[2])):  # forked, because the imports take most of their time
        if os.fork() == 0:
            serve(sys.argv[1])
            break
    else:
        os.wait()
