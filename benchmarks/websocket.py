"""Case: a broadcast from Redis to a thousand WebSocket clients in ten rooms, through uvicorn and Starlette."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType

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


async def until_left(client: WebSocket) -> None:
    """Wait until a client leaves."""
    with suppress(WebSocketDisconnect):
        while True:
            await client.receive_text()


@asynccontextmanager
async def redismpx(bench: Bench) -> AsyncIterator[Serve]:
    """A subscription for each client."""
    async with Multiplexer(bench.url) as mpx:

        async def serve(client: WebSocket, room: str) -> None:
            async with mpx.new_channel_subscription(lambda channel, data: client.send_text(data.decode())) as sub:
                sub.add(room)
                await until_left(client)

        yield serve


@asynccontextmanager
async def bridged(bench: Bench) -> AsyncIterator[Serve]:
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
async def bare(bench: Bench) -> AsyncIterator[Serve]:
    """The floor: redis-py and a set of clients for each room. A slow client delays all others."""
    rooms: defaultdict[str, set[WebSocket]] = defaultdict(set)

    async def consume(channel: bytes, data: bytes) -> None:
        for client in tuple(rooms[channel.decode()]):
            await client.send_text(data.decode())

    async def serve(client: WebSocket, room: str) -> None:
        rooms[room].add(client)
        await until_left(client)
        rooms[room].discard(client)

    async with redis_py(bench.port, [f"room:{number}" for number in range(ROOMS)], [], consume):
        yield serve


@asynccontextmanager
async def broadcaster(bench: Bench) -> AsyncIterator[Serve]:
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


async def measure(approach: Callable[[Bench], AbstractAsyncContextManager[Serve]], bench: Bench) -> None:
    clients, rounds = bench.count(CLIENTS, least=2 * ROOMS), bench.count(ROUNDS, least=2)
    script = str(Path(__file__).with_name("websocket_clients.py"))

    def play() -> None:
        for _ in range(rounds):
            assert publisher.publish() == ROOMS
            assert crowd.hear() == clients

    async with approach(bench) as serve:

        async def accept(client: WebSocket) -> None:
            await client.accept()
            await serve(client, client.path_params["room"])

        app = Starlette(routes=[WebSocketRoute("/{room}", accept)])
        config = uvicorn.Config(app, lifespan="off", log_level="error", ws_per_message_deflate=False)
        server = uvicorn.Server(config)
        with socket.create_server(("127.0.0.1", 0), backlog=CLIENTS) as listener:
            serving = asyncio.create_task(server.serve([listener]))
            port = listener.getsockname()[1]
            with (
                Publisher(bench.port, "room:", ROOMS, ROOMS, 64) as publisher,
                Companion(script, str(port), str(ROOMS), str(clients), str(rounds)) as crowd,
            ):
                assert await asyncio.to_thread(crowd.hear) == clients
                await settled(bench.port, ROOMS, 0)
                shares: Counter[str] = Counter()
                with bench.measured(clients * rounds), sampled(shares):
                    await asyncio.to_thread(play)
                bench.measures["share"] = 100 * shares["redismpx"] / max(1, shares.total())
            server.should_exit = True
            await serving


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
