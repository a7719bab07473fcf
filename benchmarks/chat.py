"""Cases: 10,000 WebSocket clients of one process in 100 rooms, with each framework, with us and without."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from websockets.asyncio.server import ServerConnection, broadcast, serve

from redismpx import Multiplexer

from . import websocket
from .channels import MESSAGE, PUBLISHER
from .harness import Bench, Case
from .peers import redis_py, settled
from .publisher import Companion, Publisher
from .websocket import Chat, served

CHAT = Chat(clients=10_000, rooms=100, rounds=10)
FOR_EVER = 3_600  # seconds between pings, which the clients do not know


# --- the websockets library, with its broadcast()


Send = Callable[[bytes, bytes], None]
"""Sends a message of a room to its clients."""


@asynccontextmanager
async def redismpx(bench: Bench, rooms: int, send: Send) -> AsyncIterator[None]:
    async with Multiplexer(bench.url) as mpx:
        sub = mpx.new_channel_subscription(send)
        sub.add(*(f"room:{number}" for number in range(rooms)))
        yield


@asynccontextmanager
async def bare(bench: Bench, rooms: int, send: Send) -> AsyncIterator[None]:
    async with redis_py(bench.port, [f"room:{number}" for number in range(rooms)], [], send):
        yield


async def websockets(receiving: Callable[[Bench, int, Send], AbstractAsyncContextManager[None]], bench: Bench) -> None:
    """A set of connections for each room."""
    chat = CHAT.scaled(bench)
    members: defaultdict[bytes, set[ServerConnection]] = defaultdict(set)

    async def handle(client: ServerConnection) -> None:
        assert client.request is not None
        room = members[client.request.path[1:].encode()]
        room.add(client)
        await client.wait_closed()
        room.discard(client)

    def send(channel: bytes, data: bytes) -> None:
        broadcast(members[channel], data.decode())

    async with (
        receiving(bench, chat.rooms, send),
        serve(handle, "127.0.0.1", 0, compression=None, ping_interval=None) as server,
    ):
        port = server.sockets[0].getsockname()[1]
        with Publisher(bench.port, "room:", chat.rooms, chat.rooms, 64) as publisher:
            await chat.measure(bench, port, publisher, settled(bench.port, chat.rooms, 0))


# --- Django Channels


LAYERS = {
    "redismpx": "redismpx.contrib.channels.ChannelLayer",
    "channels_redis": "channels_redis.pubsub.RedisPubSubChannelLayer",
}


async def channels(kind: str, bench: Bench) -> None:
    """A consumer for each client."""
    import django
    import msgpack
    from django.conf import settings

    settings.configure(CHANNEL_LAYERS={"default": {"BACKEND": LAYERS[kind], "CONFIG": {"hosts": [bench.url]}}})
    django.setup()
    from channels.generic.websocket import AsyncWebsocketConsumer
    from channels.layers import get_channel_layer

    chat = CHAT.scaled(bench)

    class Consumer(AsyncWebsocketConsumer):  # type: ignore[misc]
        async def connect(self) -> None:
            await self.channel_layer.group_add(self.scope["path"][1:], self.channel_name)
            await self.accept()

        async def chat_message(self, event: dict[str, Any]) -> None:
            await self.send(event["text"])

    async with served(Consumer.as_asgi()) as port:
        data: bytes = msgpack.packb(MESSAGE)
        with Companion("-c", PUBLISHER, str(bench.port), str(chat.rooms), data.hex()) as publisher:
            await asyncio.to_thread(publisher.hear)
            await chat.measure(bench, port, publisher, asyncio.sleep(0), "/room{}")
    await get_channel_layer().flush()


# --- Socket.IO


async def socketio(kind: str, bench: Bench) -> None:
    """Rooms of python-socketio. Another process emits."""
    from socketio import ASGIApp, AsyncServer

    from .socketio_server import MANAGERS

    chat = CHAT.scaled(bench)
    manager = MANAGERS[kind](bench.url)
    server: Any = AsyncServer(async_mode="asgi", client_manager=manager, ping_interval=FOR_EVER)

    @server.event
    async def connect(sid: str, environ: dict[str, Any]) -> None:
        await server.enter_room(sid, environ["QUERY_STRING"].rpartition("=")[2])

    script = str(Path(__file__).with_name("socketio_server.py"))
    async with served(ASGIApp(server)) as port:
        # -P: to a script in this folder, `import socketio` would be this module.
        with Companion("-P", script, "emit", kind, bench.url, str(chat.rooms)) as emitter:
            await asyncio.to_thread(emitter.hear)
            ready = asyncio.sleep(0) if kind == "redismpx" else settled(bench.port, 1, 0)
            path = "/socket.io/?EIO=4&transport=websocket&room=room:{}"
            await chat.measure(bench, port, emitter, ready, path)
    if kind == "redismpx":
        await manager.multiplexer.aclose()
    else:
        await manager.redis.aclose()


CASES = [
    Case("chat-starlette", "a chat of 10,000 clients in 100 rooms, Starlette", "message to a client", {
        "redismpx": partial(websocket.measure, websocket.redismpx, chat=CHAT),
        "bridge": partial(websocket.measure, websocket.bridged, chat=CHAT),
        "floor": partial(websocket.measure, websocket.bare, chat=CHAT),
        "broadcaster": partial(websocket.measure, websocket.broadcaster, chat=CHAT),
    }),
    Case("chat-websockets", "the same, websockets with broadcast()", "message to a client", {
        "redismpx": partial(websockets, redismpx),
        "redis-py": partial(websockets, bare),
    }),
    Case("chat-channels", "the same, Django Channels", "message to a client", {
        "redismpx": partial(channels, "redismpx"),
        "channels_redis": partial(channels, "channels_redis"),
    }),
    Case("chat-socketio", "the same, Socket.IO", "message to a client", {
        "redismpx": partial(socketio, "redismpx"),
        "python-socketio": partial(socketio, "python-socketio"),
    }),
]  # fmt: skip
