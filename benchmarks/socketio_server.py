"""A server of Socket.IO for a benchmark. It prints its port, and then on command its CPU time in microseconds.

With `clients` as the first argument, clients: they count events, and print their number when all have arrived. With
`emit`, a process that emits an event to each room on command, and prints the number of rooms.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from typing import Any

import socketio
import uvicorn

from redismpx.contrib.socketio import AsyncMultiplexerManager

DATA = {"text": "x" * 64}
MANAGERS = {"redismpx": AsyncMultiplexerManager, "python-socketio": socketio.AsyncRedisManager}


async def serve(kind: str, url: str, room: str) -> None:
    server: Any = socketio.AsyncServer(async_mode="asgi", client_manager=MANAGERS[kind](url))

    @server.event
    async def connect(sid: str, environ: dict[str, object]) -> None:
        await server.enter_room(sid, room)

    def report() -> None:
        if os.read(0, 1):
            print(int(time.process_time() * 1e6), flush=True)
        else:
            serving.should_exit = True
            loop.remove_reader(0)

    loop = asyncio.get_running_loop()
    serving = uvicorn.Server(uvicorn.Config(socketio.ASGIApp(server), lifespan="off", log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        loop.add_reader(0, report)
        print(listener.getsockname()[1], flush=True)
        await serving.serve([listener])


async def listen(expected: int, ports: list[str]) -> None:
    """Connect a client to each server, and wait for all events."""
    arrived = 0
    complete = asyncio.Event()

    def count(data: object) -> None:
        nonlocal arrived
        arrived += 1
        if arrived == expected:
            complete.set()

    clients = [socketio.AsyncClient() for _ in ports]
    for client, port in zip(clients, ports, strict=True):
        client.on("event", count)
        await client.connect(f"http://127.0.0.1:{port}", transports=["websocket"])
    print(len(clients), flush=True)
    await complete.wait()
    print(arrived, flush=True)
    for client in clients:
        await client.disconnect()


async def emit(kind: str, url: str, rooms: int) -> None:
    manager = MANAGERS[kind](url, write_only=True)
    print(0, flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        await asyncio.gather(*(manager.emit("event", DATA, room=f"room:{number}") for number in range(rooms)))
        print(rooms, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "clients":
        asyncio.run(listen(int(sys.argv[2]), sys.argv[3:]))
    elif sys.argv[1] == "emit":
        asyncio.run(emit(sys.argv[2], sys.argv[3], int(sys.argv[4])))
    else:
        asyncio.run(serve(*sys.argv[1:4]))
