"""Case: a broadcast from Redis to a thousand WebSocket clients in ten rooms, through uvicorn and Starlette."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from redismpx import Message, Multiplexer
from redismpx.contrib.starlette import bridge

from .harness import Bench, Case
from .peers import in_background, redis_py, settled
from .publisher import Companion, Publisher

ROOMS = 10
CLIENTS = 1000
ROUNDS = 50  # of one message to each room; the next round starts when all clients have their message
PACKAGES = {"redismpx", "uvicorn", "starlette", "websockets", "asyncio", "broadcaster", "redis"}
SAMPLE_EVERY = 0.001  # seconds of CPU

Serve = Callable[[WebSocket, str], Awaitable[None]]
"""Sends a client the messages of its room until the client leaves."""
Approach = Callable[[Bench, int], AbstractAsyncContextManager[Serve]]
"""Takes the number of rooms, too."""


@dataclass(frozen=True)
class Chat:
    """So many clients in so many rooms, and so many messages to each room."""

    clients: int
    rooms: int
    rounds: int

    def scaled(self, bench: Bench) -> Chat:
        """Return the chat of this run, which is smaller with --quick."""
        rooms = bench.count(self.rooms, least=2)
        return Chat(bench.count(self.clients, least=10 * rooms), rooms, bench.count(self.rounds, least=2))

    async def measure(
        self, bench: Bench, port: int, publisher: Companion, ready: Awaitable[None], path: str = "/room:{}"
    ) -> None:
        """Connect the clients to a server, and have messages published. The next round waits for all clients.

        `path` has a place for the number of a room. `ready` is awaited when all clients are connected.
        """
        script = str(Path(__file__).with_name("websocket_clients.py"))

        def play() -> None:
            for _ in range(self.rounds):
                publisher.tell()
                assert publisher.hear() == self.rooms
                assert crowd.hear() == self.clients

        numbers = (port, self.rooms, self.clients, self.rounds)
        with Companion(script, path, *map(str, numbers)) as crowd:
            assert await asyncio.to_thread(crowd.hear) == self.clients
            await ready
            shares: Counter[str] = Counter()
            with bench.measured(self.clients * self.rounds), sampled(shares):
                await asyncio.to_thread(play)
            bench.measures["share"] = 100 * shares["redismpx"] / max(1, shares.total())


async def until_left(client: WebSocket) -> None:
    """Wait until a client leaves."""
    with suppress(WebSocketDisconnect):
        while True:
            await client.receive_text()


@asynccontextmanager
async def redismpx(bench: Bench, rooms: int) -> AsyncIterator[Serve]:
    """A subscription for each client."""
    async with Multiplexer(bench.url) as mpx:

        async def serve(client: WebSocket, room: str) -> None:
            async with mpx.new_channel_subscription(lambda channel, data: client.send_text(data.decode())) as sub:
                sub.add(room)
                await until_left(client)

        yield serve


@asynccontextmanager
async def bridged(bench: Bench, rooms: int) -> AsyncIterator[Serve]:
    """The adapter: it reads a subscription for each client."""

    def encode(event: object) -> str | None:
        return event.data.decode() if isinstance(event, Message) else None

    async with Multiplexer(bench.url) as mpx:

        async def serve(client: WebSocket, room: str) -> None:
            sub = mpx.new_channel_subscription()
            sub.add(room)
            with suppress(WebSocketDisconnect):
                async with bridge(client, sub, encode):
                    while True:
                        await client.receive_text()

        yield serve


@asynccontextmanager
async def bare(bench: Bench, rooms: int) -> AsyncIterator[Serve]:
    """The floor: redis-py and a set of clients for each room. A slow client delays all others."""
    members: defaultdict[str, set[WebSocket]] = defaultdict(set)

    async def consume(channel: bytes, data: bytes) -> None:
        for client in tuple(members[channel.decode()]):
            await client.send_text(data.decode())

    async def serve(client: WebSocket, room: str) -> None:
        members[room].add(client)
        await until_left(client)
        members[room].discard(client)

    async with redis_py(bench.port, [f"room:{number}" for number in range(rooms)], [], consume):
        yield serve


@asynccontextmanager
async def broadcaster(bench: Bench, rooms: int) -> AsyncIterator[Serve]:
    """A queue and a task for each client, as the documentation of broadcaster shows."""
    from broadcaster import Broadcast

    async with Broadcast(bench.url) as broadcast:

        async def serve(client: WebSocket, room: str) -> None:
            async def send() -> None:
                async for event in subscriber:
                    await client.send_text(event.message)

            async with broadcast.subscribe(room) as subscriber, in_background(send()):
                await until_left(client)

        yield serve


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[int]:
    """Serve an ASGI application with uvicorn, and yield its port."""
    # Without pings: the clients do not know them.
    options: Any = {"ws_per_message_deflate": False, "ws_ping_interval": None}
    config = uvicorn.Config(app, lifespan="off", log_level="error", **options)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0), backlog=CLIENTS) as listener:
        serving = asyncio.create_task(server.serve([listener]))
        yield listener.getsockname()[1]
        server.should_exit = True
        await serving


@asynccontextmanager
async def starlette(approach: Approach, bench: Bench, rooms: int) -> AsyncIterator[int]:
    """Serve a Starlette application, and yield its port."""
    async with approach(bench, rooms) as serve:

        async def accept(client: WebSocket) -> None:
            await client.accept()
            await serve(client, client.path_params["room"])

        async with served(Starlette(routes=[WebSocketRoute("/{room}", accept)])) as port:
            yield port


async def measure(approach: Approach, bench: Bench, chat: Chat = Chat(CLIENTS, ROOMS, ROUNDS)) -> None:
    """Measure what a Starlette application takes for one message to one client."""
    chat = chat.scaled(bench)
    async with starlette(approach, bench, chat.rooms) as port:
        with Publisher(bench.port, "room:", chat.rooms, chat.rooms, 64) as publisher:
            await chat.measure(bench, port, publisher, settled(bench.port, chat.rooms, 0))


@contextmanager
def sampled(shares: Counter[str]) -> Iterator[None]:
    """Count, for every millisecond of CPU time, the package whose code runs."""

    def sample(number: int, frame: FrameType | None) -> None:
        while frame is not None:
            folders = frame.f_code.co_filename.split("/")
            package = next((folder for folder in folders[-3:-1] if folder in PACKAGES), None)
            if package is not None:  # the innermost; code in C, such as hiredis, counts for its caller
                shares[package] += 1
                return
            frame = frame.f_back

    before = signal.signal(signal.SIGPROF, sample)
    signal.setitimer(signal.ITIMER_PROF, SAMPLE_EVERY, SAMPLE_EVERY)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


CASES = [
    Case("websocket", "1,000 WebSocket clients in 10 rooms", "message to a client", {
        "redismpx": partial(measure, redismpx),
        "bridge": partial(measure, bridged),
        "floor": partial(measure, bare),
        "broadcaster": partial(measure, broadcaster),
    })
]  # fmt: skip
