"""News by topic. Each WebSocket has a `PatternSubscription` to all channels of one topic.

    $ uvicorn examples.pattern:app                  (or: python -m examples.pattern)
    $ python -m websockets ws://localhost:8000/weather
    < * active
    $ curl -d 'sunny' http://localhost:8000/weather/rome
    {"receivers":1}
    < rome: sunny

The environment variable REDIS_URL names the Redis server (default: redis://localhost:6379).
"""

import contextlib
import os
import re
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from redismpx import ConnectionLost, Multiplexer

from .same_origin import SameOrigin

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379")
# A client that could choose a pattern could read every channel. So clients choose one of these topics, and nothing that
# they send becomes part of a pattern. (In a channel name, glob characters have no meaning.)
TOPICS = {topic: f"example:{topic}:" for topic in ("news", "sports", "weather")}
NAME = re.compile(r"[a-z0-9._-]{1,32}")
MAX_BODY = 500  # bytes

mpx = Multiplexer(REDIS_URL)  # made before a loop runs; it connects when the first client subscribes


async def listen(ws: WebSocket) -> None:
    prefix = TOPICS.get(ws.path_params["topic"])
    if prefix is None:
        await ws.close()  # a close before accept() makes the reply 403
        return
    await ws.accept()

    async def send(text: str) -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # closed; the loop below ends soon
            await ws.send_text(text)

    async def on_message(channel: bytes, data: bytes) -> None:
        # Any program can publish any bytes, of any length, to a channel of any name. So decode and shorten them safely.
        name = channel[:100].decode(errors="replace").removeprefix(prefix)
        await send(f"{name}: {data[:MAX_BODY].decode(errors='replace')}")

    async def on_disconnect(error: ConnectionLost) -> None:
        await send("* disconnected: messages may be missed")

    async def on_activation(pattern: bytes) -> None:
        await send("* active")

    async with mpx.new_pattern_subscription(f"{prefix}*", on_message, on_disconnect, on_activation, max_pending=100):
        while (await ws.receive())["type"] != "websocket.disconnect":
            pass  # ignore what the client sends


async def publish(request: Request) -> JSONResponse:
    prefix = TOPICS.get(request.path_params["topic"])
    name = request.path_params["name"]
    if prefix is None or not NAME.fullmatch(name):
        raise HTTPException(404, "unknown topic or invalid name")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"at most {MAX_BODY} bytes are allowed")
    try:
        receivers = await mpx.publish(prefix + name, body)
    except ConnectionLost:
        raise HTTPException(503, "Redis cannot be reached") from None
    return JSONResponse({"receivers": receivers})  # each process counts as one receiver, for all its WebSockets


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with mpx:  # closes it at the end; opens it again for a second lifespan, as in tests
        yield


routes = [WebSocketRoute("/{topic}", listen), Route("/{topic}/{name}", publish, methods=["POST"])]
app = Starlette(routes=routes, lifespan=lifespan, middleware=[Middleware(SameOrigin)])

if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
