"""A feed over WebSockets. A client that reconnects gets each message that it has missed, or a snapshot of the feed.

$ uvicorn examples.feed:app
$ python -m examples.feed_client ws://localhost:8000/
{"id": "0-0", "texts": []}                              (a snapshot; then, in another terminal:)
$ python -m websockets ws://localhost:8000/
> hello
{"id": "1700000000005-0", "text": "hello"}              (printed by both clients)
"""

import contextlib
import os
import re
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from redismpx import ConnectionLost, MessageGap, Multiplexer, StreamMessage

from .same_origin import SameOrigin

FEED, KEPT, MAX_TEXT = "example:feed", 100, 500  # messages; characters
mpx = Multiplexer(os.environ.get("REDIS_URL", "redis://localhost:6379"))


async def feed(ws: WebSocket) -> None:
    in_snapshot: set[bytes] = set()

    async def on_message(message: StreamMessage) -> None:
        if message.id not in in_snapshot:
            await ws.send_json({"id": message.id.decode(), "text": message.data.decode()})

    async def on_gap(gap: MessageGap) -> None:  # the client replaces what it has by all messages that are kept
        messages = await mpx.history(FEED, limit=10 * KEPT)
        in_snapshot.update([message.id for message in messages])
        last_id = messages[-1].id if messages else sub.position(FEED) or b""
        await ws.send_json({"id": last_id.decode(), "texts": [message.data.decode() for message in messages]})

    async def on_error(error: Exception) -> None:  # of the functions above: the client reconnects, and tries again
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # it is closed already
            await ws.close(1012)

    await ws.accept()
    last_id = re.fullmatch("[0-9]{1,19}-[0-9]{1,19}", ws.query_params.get("after", ""))
    async with mpx.new_stream_subscription(on_message, on_gap, on_error=on_error) as sub:
        sub.add(FEED, after=last_id[0] if last_id else "0-0")  # not "0": what is not kept any more is a gap
        while (frame := await ws.receive())["type"] != "websocket.disconnect":
            with contextlib.suppress(ConnectionLost):
                await mpx.append(FEED, (frame.get("text") or "")[:MAX_TEXT], max_length=KEPT)


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with mpx:
        yield


app = SameOrigin(Starlette(routes=[WebSocketRoute("/", feed)], lifespan=lifespan))
