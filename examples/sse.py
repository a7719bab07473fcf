"""Server-Sent Events: a subscription for each stream, read message by message.

    $ uvicorn examples.sse:app                      (or: python examples/sse.py)
    $ curl -N http://localhost:8000/events/weather
    event: active
    data:
                                                    it goes on; meanwhile, elsewhere (also at another process):
    $ curl -d 'sunny' http://localhost:8000/events/weather
    data: sunny                                     says the first one

`active` says that from here on nothing is missed. When it comes again, there was a gap: load what you show anew. The
server is at REDIS_URL, or else at redis://localhost:6379.
"""

import asyncio
import contextlib
import logging
import os
import re
import signal
from collections.abc import AsyncIterator
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from redismpx import (
    ChannelSubscription,
    ConnectionLost,
    Multiplexer,
    MultiplexerIsClosed,
    SlowConsumer,
    SubscriptionIsClosed,
    SubscriptionRefused,
)

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379")
HEARTBEAT = float(os.environ.get("HEARTBEAT", "15"))  # seconds: proxies cut connections that are silent for long
PREFIX = "example:events:"  # a client reaches the channels that begin with this, and no others
TOPIC = re.compile(r"[a-z0-9._-]{1,32}")
MAX_BODY = 500  # bytes
ACTIVE = "event: active\ndata:\n\n"

log = logging.getLogger("examples.sse")


def on_error(error: Exception) -> None:
    if not isinstance(error, SlowConsumer):  # skipping for a slow client is what was asked for
        log.warning("%s", error)


mpx = Multiplexer(REDIS_URL, on_error=on_error)  # no loop runs yet: it starts in the lifespan


class EventStream(StreamingResponse):
    """The messages of a subscription, which is closed however the stream ends."""

    def __init__(self, sub: ChannelSubscription[str], lines: list[str]) -> None:
        super().__init__(stream(sub, lines), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self.sub = sub

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.sub:
            await super().__call__(scope, receive, send)


async def events(request: Request) -> EventStream:
    lines: list[str] = []  # what is to be sent next

    def on_activation(channel: bytes) -> None:
        if ACTIVE not in lines:  # the client may be stuck, and Redis come and go
            lines.append(ACTIVE)

    # A message tells the whole state of a topic, so a client that reads slowly needs the newest one only: `latest`
    # keeps that, and nothing piles up for it. For messages that add up (a chat, a log) take `max_pending=100` and the
    # default, `drop_oldest`, or `close`: then the stream ends, and the browser comes back by itself.
    topic = checked(request.path_params["topic"])
    try:
        sub = mpx.new_channel_subscription(on_activation=on_activation, decode=to_text, overflow="latest")
        sub.add(PREFIX + topic)
    except MultiplexerIsClosed:
        raise HTTPException(503, "this server is about to stop") from None
    return EventStream(sub, lines)


async def stream(sub: ChannelSubscription[str], lines: list[str]) -> AsyncIterator[str]:
    with contextlib.suppress(SubscriptionIsClosed, SubscriptionRefused):  # either ends the stream
        with contextlib.suppress(TimeoutError):
            await sub.wait_for_activation(HEARTBEAT)
        while True:
            while lines:
                yield lines.pop(0)
            # `async for message in sub` does without the heartbeats.
            try:
                message = await sub.get(HEARTBEAT)
            except TimeoutError:
                lines.append(": nothing new\n\n")
            else:
                lines.append(event(message.data))


def to_text(payload: bytes) -> str:
    """Show what anybody may publish: any bytes, of any length."""
    return payload[:MAX_BODY].decode(errors="replace")


def event(text: str) -> str:
    return "".join(f"data: {line}\n" for line in re.split(r"\r\n|\r|\n", text)) + "\n"


async def publish(request: Request) -> JSONResponse:
    topic = checked(request.path_params["topic"])
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"{MAX_BODY} bytes are enough")
    try:
        receivers = await mpx.publish(PREFIX + topic, body)
    except (ConnectionLost, MultiplexerIsClosed):
        raise HTTPException(503, "Redis cannot be reached") from None
    return JSONResponse({"receivers": receivers})  # each process counts once, however many streams it serves


def checked(topic: str) -> str:
    if not TOPIC.fullmatch(topic):
        raise HTTPException(404, "topic: 1 to 32 of a-z, 0-9, . _ -")
    return topic


async def drain_after(leaving: asyncio.Event) -> None:
    await leaving.wait()
    with contextlib.suppress(TimeoutError):  # somebody reads too slowly; it is closed all the same
        await mpx.drain(timeout=5)  # streams send what was received, and end


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    # A stream has no end of its own, and uvicorn waits for all of them before it ends the lifespan. So what ends them
    # begins with the signal. A client that stopped reading is left to `uvicorn --timeout-graceful-shutdown`.
    loop = asyncio.get_running_loop()
    leaving = asyncio.Event()

    def leave(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(leaving.set)
        if callable(handler := before[number]):
            handler(number, frame)

    before = {int(number): signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        async with mpx, asyncio.TaskGroup() as tasks:
            tasks.create_task(drain_after(leaving))
            yield
            leaving.set()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


routes = [Route("/events/{topic}", events), Route("/events/{topic}", publish, methods=["POST"])]
app = Starlette(routes=routes, lifespan=lifespan)

if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")), timeout_graceful_shutdown=10)
