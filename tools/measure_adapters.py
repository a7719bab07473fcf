"""Measure the adapters for frameworks beside those that they replace: connections, memory, and what kills lose.

    $ python -m tools.measure_adapters [--clients 1000] [--kills 100] [ADAPTER ...]

Each contestant has a process and a server of its own; all of them run at once. The clients are in ten rooms (groups,
channels). They are those of the framework, without WebSockets and without browsers: for Starlette, the ASGI application
runs for each client; for Socket.IO, the packet for each client is counted instead of sent.

- connections: those of the process to Redis, when a message was published to each room.
- memory: how much more of the process is resident with all clients than with one in each room, for each client.
- Then the server kills the connections of all subscribers, again and again. From 0.1 s after each kill on, numbered
  messages are published to each room, one after the other, until all clients have got one of them. A message is lost
  if a client never gets it. A kill is reported if the application got each of the notices or errors that its adapter
  has for it: one for each client, for each room, or for the process.

When clients get nothing within TIMEOUT after each of MOST_DEAF kills, there is no further kill. redismpx reconnects
with a backoff of 10 ms, because the kills follow each other. With its default, it reconnects at once after a
connection that lasted 10 s.

Prints a table in Markdown. There is no limit; the exit status is 0.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import logging
import os
import statistics
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.backoff import ConstantBackoff
from redis.exceptions import RedisError

from redismpx import Disconnect, Message, Multiplexer

from .measuring import resident_memory, running_server

ROOMS = 10
INTERVAL = 0.1  # seconds between two messages, and from a kill to the first; half of it more for the message to arrive
TIMEOUT = 5.0  # seconds until an adapter counts as deaf
MOST_DEAF = 3  # kills in a row
TOLD_WITHIN = 1.0  # seconds for the notices; the next kill follows them
BACKOFF = ConstantBackoff(0.01)


class Figures(NamedTuple):
    """What was measured of one contestant."""

    connections: int
    memory: float  # bytes for each client
    kills: int
    back: float | None  # seconds until all clients had a message, the median of those kills after which they had
    published: int  # messages
    lost: int
    told: int  # kills
    connections_after: int


class Clients:
    """What the clients of one process have heard, and what the application was told."""

    def __init__(self) -> None:
        self.heard: Counter[str] = Counter()
        self.told = 0
        self._tasks: list[asyncio.Task[None]] = []

    def hear(self, text: str) -> None:
        self.heard[text] += 1

    def tell(self, *_: object) -> None:
        self.told += 1

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a client. An exception that ends it is a notice, too."""
        self._tasks.append(asyncio.create_task(self._run(work)))

    async def _run(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            self.tell()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Adapter(NamedTuple):
    """What the measurement does with a contestant."""

    join: Callable[[str], Awaitable[object]]
    """Starts a client in a room."""
    publish: Callable[[str, str], Awaitable[object]]
    """Publishes a text to a room."""


Start = Callable[[str, Clients], AbstractAsyncContextManager[Adapter]]


# --- the contestants


@asynccontextmanager
async def channels(new_layer: Callable[[str], Any], url: str, clients: Clients) -> AsyncIterator[Adapter]:
    layer = new_layer(url)

    async def consume(name: str) -> None:
        while True:
            message = await layer.receive(name)
            if message["type"] == "text":
                clients.hear(message["text"])
            else:
                clients.tell()

    async def join(room: str) -> None:
        name = await layer.new_channel()
        await layer.group_add(room, name)
        clients.start(consume(name))

    yield Adapter(join, lambda room, text: layer.group_send(room, {"type": "text", "text": text}))
    await clients.stop()
    await layer.flush()


def channel_layer(url: str) -> Any:
    from redismpx.contrib.channels import ChannelLayer

    return ChannelLayer([{"address": url, "backoff": BACKOFF}], on_reconnect="told")


def channels_redis(url: str) -> Any:
    from channels_redis.pubsub import RedisPubSubChannelLayer

    return RedisPubSubChannelLayer([url], on_reconnect="told")


@asynccontextmanager
async def socketio(new_manager: Callable[..., Any], url: str, clients: Clients) -> AsyncIterator[Adapter]:
    """One server; another process would emit, so a second manager does."""
    import socketio

    class Server(socketio.AsyncServer):  # type: ignore[misc]
        async def _send_eio_packet(self, eio_sid: str, eio_pkt: Any) -> None:
            clients.hear(json.loads(eio_pkt.data[1:])[1])

    async with Multiplexer(url, backoff=BACKOFF) as mpx:
        server = Server(async_mode="asgi", client_manager=new_manager(url, mpx, clients.tell))
        emitter = new_manager(url, mpx, clients.tell, write_only=True)
        manager = server.manager
        manager.initialize()
        numbers = itertools.count()

        async def join(room: str) -> None:
            sid = await manager.connect(f"client {next(numbers)}", "/")
            await manager.enter_room(sid, "/", room)

        yield Adapter(join, lambda room, text: emitter.emit("text", text, room=room))
        manager.thread.cancel()
        await asyncio.gather(manager.thread, return_exceptions=True)


def multiplexer_manager(url: str, mpx: Multiplexer, tell: Callable[..., None], **options: Any) -> Any:
    from redismpx.contrib.socketio import AsyncMultiplexerManager

    return AsyncMultiplexerManager(mpx, on_reconnect=tell, **options)


def redis_manager(url: str, mpx: Multiplexer, tell: Callable[..., None], **options: Any) -> Any:
    from socketio import AsyncRedisManager

    return AsyncRedisManager(url, **options)


@asynccontextmanager
async def broadcaster(new: Callable[..., Any], url: str, clients: Clients) -> AsyncIterator[Adapter]:
    async with new(url, clients.tell) as broadcast:

        async def listen(room: str, joined: asyncio.Event) -> None:
            async with broadcast.subscribe(room) as subscriber:
                joined.set()
                async for event in subscriber:
                    clients.hear(event.message)

        async def join(room: str) -> None:
            joined = asyncio.Event()
            clients.start(listen(room, joined))
            await joined.wait()

        yield Adapter(join, broadcast.publish)
        await clients.stop()


def broadcast_class(url: str, tell: Callable[..., None]) -> Any:
    from redismpx.contrib.broadcaster import Broadcast

    return Broadcast(url, on_gap=tell, backoff=BACKOFF)


def broadcast_backend(url: str, tell: Callable[..., None]) -> Any:
    from broadcaster import Broadcast

    from redismpx.contrib.broadcaster import MultiplexerBackend

    return Broadcast(backend=MultiplexerBackend(url, on_gap=tell, backoff=BACKOFF))


def broadcaster_itself(url: str, tell: Callable[..., None]) -> Any:
    from broadcaster import Broadcast

    return Broadcast(url)


@asynccontextmanager
async def litestar(new_backend: Callable[..., Any], url: str, clients: Clients) -> AsyncIterator[Adapter]:
    from litestar.channels import ChannelsPlugin

    plugin = ChannelsPlugin(new_backend(url, clients.tell), arbitrary_channels_allowed=True)
    with suppress(RedisError):  # the plugin raises at its end what has ended its task
        async with plugin:

            async def listen(subscriber: Any) -> None:
                async for data in subscriber.iter_events():
                    clients.hear(data.decode())

            async def join(room: str) -> None:
                clients.start(listen(await plugin.subscribe(room)))

            yield Adapter(join, lambda room, text: plugin.wait_published(text, room))
            await clients.stop()


def multiplexer_backend(url: str, tell: Callable[..., None]) -> Any:
    from redismpx.contrib.litestar import MultiplexerChannelsBackend

    return MultiplexerChannelsBackend(url, on_gap=tell, backoff=BACKOFF)


def litestar_backend(new_client: Callable[[str], Redis], url: str, tell: Callable[..., None]) -> Any:
    from litestar.channels.backends.redis import RedisChannelsPubSubBackend

    return RedisChannelsPubSubBackend(redis=new_client(url))


@asynccontextmanager
async def starlette(new_endpoint: Callable[..., Any], url: str, clients: Clients) -> AsyncIterator[Adapter]:
    """The endpoint accepts a client when the room is subscribed."""
    from starlette.applications import Starlette
    from starlette.routing import WebSocketRoute

    async with new_endpoint(url, clients.tell) as (endpoint, publish):
        app = Starlette(routes=[WebSocketRoute("/{room}", endpoint)])

        async def join(room: str) -> None:
            accepted = asyncio.Event()
            events = iter([{"type": "websocket.connect"}])

            async def receive() -> dict[str, str] | None:
                event = next(events, None)
                if event is None:  # the client stays
                    await asyncio.Event().wait()
                return event

            async def send(event: Any) -> None:
                if event["type"] == "websocket.accept":
                    accepted.set()
                elif event["type"] == "websocket.send":
                    clients.hear(event["text"])

            scope = {"type": "websocket", "path": f"/{room}", "query_string": b"", "headers": []}
            clients.start(app(scope, receive, send))
            await accepted.wait()

        yield Adapter(join, publish)
        await clients.stop()


@asynccontextmanager
async def bridged(url: str, tell: Callable[..., None]) -> AsyncIterator[Any]:
    from starlette.websockets import WebSocket

    from redismpx.contrib.starlette import bridge

    def encode(event: object) -> str | None:
        if isinstance(event, Disconnect):
            tell()
        return event.data.decode() if isinstance(event, Message) else None

    async with Multiplexer(url, backoff=BACKOFF) as mpx:

        async def endpoint(websocket: WebSocket) -> None:
            async with mpx.subscribe(websocket.path_params["room"]) as sub:
                await websocket.accept()
                async with bridge(websocket, sub, encode):
                    async for _ in websocket.iter_text():
                        pass

        yield endpoint, mpx.publish


@asynccontextmanager
async def pub_sub(new_client: Callable[[str], Redis], url: str, tell: Callable[..., None]) -> AsyncIterator[Any]:
    """A PubSub of redis-py for each client, as its documentation shows."""
    from starlette.websockets import WebSocket

    async with new_client(url) as client:

        async def endpoint(websocket: WebSocket) -> None:
            async with client.pubsub() as pubsub:
                await pubsub.subscribe(websocket.path_params["room"])
                await websocket.accept()
                async for message in pubsub.listen():
                    if message["type"] == "message":
                        await websocket.send_text(message["data"].decode())

        yield endpoint, client.publish


# The pool has 100 connections by default: too few for a PubSub for each client.
def from_url(url: str) -> Redis:
    return Redis.from_url(url, max_connections=100_000)


def from_host(url: str) -> Redis:
    host, port = url.removeprefix("redis://").split(":")
    return Redis(host=host, port=int(port), max_connections=100_000)


class Contestant(NamedTuple):
    start: Start
    notices: str  # one after a kill for each "client", "room" or "process"


CONTESTANTS = {
    "Channels: redismpx": Contestant(partial(channels, channel_layer), "client"),
    "Channels: channels_redis": Contestant(partial(channels, channels_redis), "client"),
    "Socket.IO: redismpx": Contestant(partial(socketio, multiplexer_manager), "process"),
    "Socket.IO: AsyncRedisManager": Contestant(partial(socketio, redis_manager), "process"),
    "broadcaster: Broadcast of redismpx": Contestant(partial(broadcaster, broadcast_class), "client"),
    "broadcaster: MultiplexerBackend": Contestant(partial(broadcaster, broadcast_backend), "room"),
    "broadcaster: its own backend": Contestant(partial(broadcaster, broadcaster_itself), "room"),
    "Litestar: redismpx": Contestant(partial(litestar, multiplexer_backend), "room"),
    "Litestar: its own backend, Redis.from_url()": Contestant(
        partial(litestar, partial(litestar_backend, from_url)), "room"
    ),
    "Litestar: its own backend, Redis()": Contestant(partial(litestar, partial(litestar_backend, from_host)), "room"),
    "Starlette: bridge()": Contestant(partial(starlette, bridged), "client"),
    "Starlette: PubSub, Redis.from_url()": Contestant(partial(starlette, partial(pub_sub, from_url)), "client"),
    "Starlette: PubSub, Redis()": Contestant(partial(starlette, partial(pub_sub, from_host)), "client"),
}


# --- the measurement


class Measurement:
    """A contestant with its clients, and a server that has no other clients."""

    def __init__(self, adapter: Adapter, clients: Clients, admin: Redis) -> None:
        self._adapter = adapter
        self._clients = clients
        self._admin = admin
        self._joined = 0

    async def join(self, count: int) -> None:
        """Start clients until there are `count`, and wait until each of them has got a message."""
        while self._joined < count:
            await self._adapter.join(f"room{self._joined % ROOMS}")
            self._joined += 1
        for attempt in range(20):  # some subscribe in the background
            text = f"{count} clients, {attempt}"
            await self.publish(text)
            if await self.arrived(text, 1.0):
                return
        raise AssertionError("the clients do not get messages")

    async def publish(self, text: str) -> None:
        for number in range(ROOMS):
            await self._adapter.publish(f"room{number}", text)

    async def arrived(self, text: str, timeout: float) -> bool:
        """Wait until all clients have a message; return whether they have."""
        return await self._becomes(lambda: self._has_arrived(text), timeout)

    def _has_arrived(self, text: str) -> bool:
        return self._clients.heard[text] >= self._joined

    async def _becomes(self, condition: Callable[[], bool], timeout: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not condition():
                    await asyncio.sleep(0.01)
        return condition()

    async def connections(self) -> int:
        return sum(client["name"] != "admin" for client in await self._admin.client_list())

    async def kill(self, texts: list[str]) -> float | None:
        """Kill the connections, and publish until all clients have a message; return the seconds that this took."""
        loop = asyncio.get_running_loop()
        await self._admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        began = loop.time()
        while loop.time() - began < TIMEOUT:
            await asyncio.sleep(INTERVAL)
            texts.append(f"{began}: {len(texts)}")
            await self.publish(texts[-1])
            if await self._becomes(lambda: any(map(self._has_arrived, texts)), INTERVAL / 2):
                return loop.time() - began
        return None

    async def kills(self, kills: int, notices: int) -> dict[str, Any]:
        """Kill again and again, and return what it did."""
        backs: list[float] = []
        published = lost = told = number = deaf = 0
        while number < kills and deaf < MOST_DEAF:
            self._clients.told, texts = 0, []
            back = await self.kill(texts)
            backs += [] if back is None else [back]
            deaf = deaf + 1 if back is None else 0
            told += await self._becomes(lambda: self._clients.told >= notices, TOLD_WITHIN)
            published += len(texts)
            lost += len(texts) - sum(map(self._has_arrived, texts))
            number += 1
        median = statistics.median(backs) if backs else None
        return {"kills": number, "back": median, "published": published, "lost": lost, "told": told}


async def measure(contestant: Contestant, url: str, count: int, kills: int) -> Figures:
    """Measure a contestant in this process, with `count` clients."""
    clients = Clients()
    notices = {"client": count, "room": ROOMS, "process": 1}[contestant.notices]
    async with Redis.from_url(url, client_name="admin") as admin, contestant.start(url, clients) as adapter:
        measurement = Measurement(adapter, clients, admin)
        await measurement.join(ROOMS)
        gc.collect()
        before = resident_memory()
        await measurement.join(count)
        gc.collect()
        memory = (resident_memory() - before) / (count - ROOMS)
        connections = await measurement.connections()
        after = await measurement.kills(kills, notices)
        return Figures(connections, memory, connections_after=await measurement.connections(), **after)


async def measure_apart(name: str, *numbers: str) -> Figures:
    """Measure a contestant in a process of its own, on a server of its own."""
    with running_server() as server:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tools.measure_adapters", name, *numbers, "--url", server.admin_url),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        output, _ = await process.communicate()
    return Figures(*json.loads(output))


def table(rows: dict[str, Figures]) -> str:
    lines = [
        "| | connections | memory per client | messages again after | messages lost | kills reported |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        back = "never" if row.back is None else f"{row.back:.2f} s"
        lost, told = f"{row.lost:,} of {row.published:,}", f"{row.told} of {row.kills}"
        connections = f"{row.connections:,}"
        if row.connections_after != row.connections:
            connections += f", then {row.connections_after:,}"
        lines.append(f"| {name} | {connections} | {row.memory / 1000:.1f} kB | {back} | {lost} | {told} |")
    return "\n".join(lines)


async def measure_all(names: list[str], *numbers: str) -> None:
    rows = await asyncio.gather(*(measure_apart(name, *numbers) for name in names))
    print(table(dict(zip(names, rows, strict=True))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapters", metavar="ADAPTER", nargs="*", help="the beginning of its name, as in the table")
    parser.add_argument("--clients", type=int, default=1_000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--url", help=argparse.SUPPRESS)  # measures in this process
    options = parser.parse_args()
    if options.url:
        logging.disable()
        contestant = CONTESTANTS[options.adapters[0]]
        print(json.dumps(asyncio.run(measure(contestant, options.url, options.clients, options.kills))))
        return
    names = [name for name in CONTESTANTS if name.startswith(tuple(options.adapters or [""]))]
    asyncio.run(measure_all(names, "--clients", str(options.clients), "--kills", str(options.kills)))


if __name__ == "__main__":
    main()
