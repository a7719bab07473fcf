"""Server-Sent Events of topics of which only the newest message counts. Each stream reads a subscription of its own.

    $ uvicorn examples.latest:app                   (or: python -m examples.latest)
    $ curl -N http://localhost:8000/events/weather
    event: active
    data:
                                                    (goes on; then, in another terminal:)
    $ curl -d 'sunny' http://localhost:8000/events/weather
    data: sunny                                     (printed by the first command)

After `active`, no message is missed. A second `active` means that messages may have been missed before it, so the
client should load the current state again. Publishing works on any process. Where each message counts, see `sse.py`.

The environment variable REDIS_URL names the Redis server (default: redis://localhost:6379).
"""

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
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

from .at_signal import at_signal
from .same_origin import SameOrigin

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379")
HEARTBEAT = float(os.environ.get("HEARTBEAT", "15"))  # seconds; proxies close connections that are silent for longer
PREFIX = "example:events:"  # clients can only use channels with this prefix
TOPIC = re.compile(r"[a-z0-9._-]{1,32}")
MAX_BODY = 500  # bytes
ACTIVE = "event: active\ndata:\n\n"

log = logging.getLogger("examples.latest")


def on_error(error: Exception) -> None:
    if not isinstance(error, SlowConsumer):  # expected: overflow="latest" drops messages of a slow client
        log.warning("%s", error)


mpx = Multiplexer(REDIS_URL, on_error=on_error)  # made before a loop runs; it starts in the lifespan


class EventStream(StreamingResponse):
    """Stream the messages of a subscription, and close the subscription however the stream ends."""

    def __init__(self, sub: ChannelSubscription[str], lines: list[str]) -> None:
        super().__init__(stream(sub, lines), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self.sub = sub

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.sub:
            await super().__call__(scope, receive, send)


async def events(request: Request) -> EventStream:
    lines: list[str] = []  # to be sent before the next message

    def on_activation(channel: bytes) -> None:
        if ACTIVE not in lines:  # once is enough if Redis reconnects several times while the client is slow
            lines.append(ACTIVE)

    # Each message contains the whole state of a topic, so a slow client needs only the newest one. `latest` buffers
    # one message per channel.
    topic = checked(request.path_params["topic"])
    try:
        sub = mpx.new_channel_subscription(on_activation=on_activation, decode=to_text, overflow="latest")
        sub.add(PREFIX + topic)
    except MultiplexerIsClosed:
        raise HTTPException(503, "this server is shutting down") from None
    return EventStream(sub, lines)


async def stream(sub: ChannelSubscription[str], lines: list[str]) -> AsyncIterator[str]:
    with contextlib.suppress(SubscriptionIsClosed, SubscriptionRefused):  # both end the stream
        with contextlib.suppress(TimeoutError):
            await sub.wait_for_activation(timeout=HEARTBEAT)
        while True:
            while lines:
                yield lines.pop(0)
            # Without heartbeats, `async for message in sub` is enough.
            try:
                message = await sub.get(HEARTBEAT)
            except TimeoutError:
                lines.append(": heartbeat\n\n")
            else:
                lines.append(event(message.data))


def to_text(payload: bytes) -> str:
    """Decode and shorten a payload: any program may publish any bytes, of any length."""
    return payload[:MAX_BODY].decode(errors="replace")


def event(text: str) -> str:
    return "".join(f"data: {line}\n" for line in re.split(r"\r\n|\r|\n", text)) + "\n"


async def publish(request: Request) -> JSONResponse:
    topic = checked(request.path_params["topic"])
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"at most {MAX_BODY} bytes are allowed")
    try:
        receivers = await mpx.publish(PREFIX + topic, body)
    except (ConnectionLost, MultiplexerIsClosed):
        raise HTTPException(503, "Redis cannot be reached") from None
    return JSONResponse({"receivers": receivers})  # each process counts as one receiver, for all its streams


def checked(topic: str) -> str:
    if not TOPIC.fullmatch(topic):
        raise HTTPException(404, "topic must have 1 to 32 of the characters a-z 0-9 . _ -")
    return topic


async def drain_after(stopping: asyncio.Event) -> None:
    await stopping.wait()
    with contextlib.suppress(TimeoutError):  # a client reads too slowly; the multiplexer is closed all the same
        await mpx.drain(timeout=5)  # each stream sends its buffered messages, then ends


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    # Streams never end by themselves, and uvicorn waits for them before it ends the lifespan. So the drain, which ends
    # them, starts with the signal. A client that stopped reading is closed by `uvicorn --timeout-graceful-shutdown`.
    stopping = asyncio.Event()
    async with mpx, asyncio.TaskGroup() as tasks, at_signal(stopping.set):
        tasks.create_task(drain_after(stopping))
        yield
        stopping.set()


routes = [Route("/events/{topic}", events), Route("/events/{topic}", publish, methods=["POST"])]
app = Starlette(routes=routes, lifespan=lifespan, middleware=[Middleware(SameOrigin)])

if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")), timeout_graceful_shutdown=10)
