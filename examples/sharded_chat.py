"""A chat whose rooms are sharded channels: a Redis Cluster sends each message to one shard, not to every node.

    $ uvicorn examples.sharded_chat:app             (or: python -m examples.sharded_chat)
    $ python -m websockets ws://localhost:8000/
    > +tea
    < * tea: active
    > =tea with or without milk
    < * tea: with or without milk                   a new topic
    > !tea is anybody here?
    < tea: is anybody here?
    > -tea

`+room` joins, `-room` leaves, `=room topic` sets the topic of a room, `!room message` publishes a message. If a slot
moves or a primary dies meanwhile, only the rooms in its slots are interrupted.

The environment variable REDIS_URL names the server (default: redis://localhost:6379). If REDIS_CLUSTER is set, it is
any node of a cluster; otherwise it is a single server, Redis 7 or newer.
"""

import contextlib
import os
import re
from collections.abc import AsyncIterator

import uvicorn
from redis.asyncio import Redis, RedisCluster
from redis.exceptions import ResponseError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from redismpx import ChannelSubscription, ConnectionLost, Multiplexer, SlowConsumer, SubscriptionRefused

from .same_origin import SameOrigin

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379")
MAX_ROOMS = 20  # for each WebSocket
MAX_TEXT = 500  # characters of a message
COMMAND = re.compile(rf"([+!=-])([a-z0-9._-]{{1,32}})(?: (.{{1,{MAX_TEXT}}}))?", re.DOTALL)
# The text in braces selects the slot, so both channels of a room are always on the same node. Their messages arrive in
# the order of publishing, and they are interrupted together.
TALK, TOPIC = "example:{%s}:talk", "example:{%s}:topic"

redis = RedisCluster.from_url(REDIS_URL) if os.environ.get("REDIS_CLUSTER") else Redis.from_url(REDIS_URL)
mpx = Multiplexer(redis, publish_timeout=1)  # made before a loop runs; it connects when the first client subscribes


async def chat(ws: WebSocket) -> None:
    await ws.accept()

    async def send(text: str) -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # closed; the loop below ends soon
            await ws.send_text(text)

    async def on_message(channel: bytes, data: bytes) -> None:
        text = data[:MAX_TEXT].decode(errors="replace")
        room = room_of(channel)
        await send(f"{room}: {text}" if is_talk(channel) else f"* {room}: {text}")

    async def on_disconnect(error: ConnectionLost) -> None:
        names = sub.channels if error.names is None else error.names  # those of one shard, or of a slot that has moved
        for room in sorted(map(room_of, filter(is_talk, names))):
            await send(f"* {room}: interrupted, messages may be missed")

    async def on_activation(channel: bytes) -> None:
        if is_talk(channel):
            await send(f"* {room_of(channel)}: active")

    async def on_error(error: Exception) -> None:
        match error:
            case SubscriptionRefused():
                await send(f"* {room_of(error.name)}: rejected by Redis")
            case SlowConsumer():
                await send(f"* you read too slowly: {error.dropped} messages were dropped")

    async with mpx.new_channel_subscription(
        on_message, on_disconnect, on_activation, max_pending=100, on_error=on_error, sharded=True
    ) as sub:
        while (event := await ws.receive())["type"] != "websocket.disconnect":
            try:
                await run_command(sub, event.get("text") or "")
            except ValueError as error:
                await send(f"? {error}")


async def run_command(sub: ChannelSubscription, command: str) -> None:
    """Run a command of a client. Raises ValueError with a reason if it is invalid or cannot be carried out."""
    found = COMMAND.fullmatch(command)
    match found.groups() if found else ():
        case ("+", room, None):
            if len(sub.channels) >= 2 * MAX_ROOMS:
                raise ValueError(f"at most {MAX_ROOMS} rooms are allowed")
            sub.add(TALK % room, TOPIC % room)
        case ("-", room, None):
            sub.remove(TALK % room, TOPIC % room)
        case ("!" | "=" as kind, room, str(text)):
            try:
                await mpx.publish((TALK if kind == "!" else TOPIC) % room, text, sharded=True)
            except (ConnectionLost, ResponseError):  # ResponseError: no node of the cluster owns the slot
                raise ValueError("not published: Redis cannot be reached") from None
        case _:
            raise ValueError(f"send +room, -room, =room topic, or !room message with up to {MAX_TEXT} characters")


def room_of(channel: bytes) -> str:
    return channel.decode().partition("{")[2].partition("}")[0]


def is_talk(channel: bytes) -> bool:
    return channel.endswith(b":talk")


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with contextlib.aclosing(redis), mpx:  # the multiplexer does not close a client that is passed in
        yield


app = Starlette(routes=[WebSocketRoute("/", chat)], lifespan=lifespan, middleware=[Middleware(SameOrigin)])

if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
