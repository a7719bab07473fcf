"""News by topic: one `PatternSubscription` for each WebSocket, which hears all channels of one topic.

    $ uvicorn examples.pattern:app                  (or: python examples/pattern.py)
    $ python -m websockets ws://localhost:8000/weather
    < * active
    $ curl -d 'sunny' http://localhost:8000/weather/rome
    {"receivers":1}
    < rome: sunny

The server is at REDIS_URL, or else at redis://localhost:6379.
"""

import contextlib
import os
import re
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from redismpx import ConnectionLost, Multiplexer

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379")
# A pattern is trusted input: whoever may choose one reads what they like. So clients choose among these, and nothing
# that they send becomes part of a pattern. (In a channel name, glob characters mean nothing.)
TOPICS = {topic: f"example:{topic}:" for topic in ("news", "sports", "weather")}
NAME = re.compile(r"[a-z0-9._-]{1,32}")
MAX_BODY = 500  # bytes

mpx = Multiplexer(REDIS_URL)  # no loop runs yet: it starts with the first WebSocket


async def listen(ws: WebSocket) -> None:
    prefix = TOPICS.get(ws.path_params["topic"])
    if prefix is None:
        await ws.close()  # before it was accepted: the client gets 403
        return
    await ws.accept()

    async def tell(text: str) -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # the client has left; the loop below ends soon
            await ws.send_text(text)

    async def on_message(channel: bytes, data: bytes) -> None:
        # Anybody who can publish to Redis chooses names and payloads: any bytes, of any length.
        name = channel[:100].decode(errors="replace").removeprefix(prefix)
        await tell(f"{name}: {data[:MAX_BODY].decode(errors='replace')}")

    async def on_disconnect(error: ConnectionLost) -> None:
        await tell("* disconnected: news may be missed now")

    async def on_activation(pattern: bytes) -> None:
        await tell("* active")

    async with mpx.new_pattern_subscription(f"{prefix}*", on_message, on_disconnect, on_activation, max_pending=100):
        while (await ws.receive())["type"] != "websocket.disconnect":
            pass  # this client has nothing to say


async def publish(request: Request) -> JSONResponse:
    prefix = TOPICS.get(request.path_params["topic"])
    name = request.path_params["name"]
    if prefix is None or not NAME.fullmatch(name):
        raise HTTPException(404, "no such topic, or not a name")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"{MAX_BODY} bytes are enough")
    try:
        receivers = await mpx.publish(prefix + name, body)
    except ConnectionLost:
        raise HTTPException(503, "Redis cannot be reached") from None
    return JSONResponse({"receivers": receivers})  # each process counts once, however many WebSockets it serves


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await mpx.aclose()


routes = [WebSocketRoute("/{topic}", listen), Route("/{topic}/{name}", publish, methods=["POST"])]
app = Starlette(routes=routes, lifespan=lifespan)

if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
