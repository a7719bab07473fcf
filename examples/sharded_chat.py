"""A chat whose rooms are sharded channels: in a Redis Cluster, what is said goes to one shard and not to every node.

    $ uvicorn examples.sharded_chat:app             (or: python examples/sharded_chat.py)
    $ python -m websockets ws://localhost:8000/
    > +tea
    < * tea: you hear what is said
    > =tea with or without milk
    < * tea: with or without milk                   a new topic
    > !tea is anybody here?
    < tea: is anybody here?
    > -tea

`+room` joins, `-room` leaves, `=room topic` sets what it is about, `!room message` says something. The server is at
REDIS_URL, or else at redis://localhost:6379: any node of a cluster if REDIS_CLUSTER is set, otherwise a single server,
version 7 or newer. Move a slot or kill a primary meanwhile, and see that only the rooms there are interrupted.
"""

import contextlib
import os
import re
from collections.abc import AsyncIterator

import uvicorn
from redis.asyncio import Redis, RedisCluster
from redis.exceptions import ResponseError
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from redismpx import ChannelSubscription, ConnectionLost, Multiplexer, SlowConsumer, SubscriptionRefused

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379")
MAX_ROOMS = 20  # for each WebSocket
MAX_TEXT = 500  # characters of a message
COMMAND = re.compile(rf"([+!=-])([a-z0-9._-]{{1,32}})(?: (.{{1,{MAX_TEXT}}}))?", re.DOTALL)
# What stands in braces makes the slot. So both channels of a room are at the same node, always: what comes by them is
# in order, and they are interrupted together.
SAID, TOPIC = "example:{%s}:said", "example:{%s}:topic"

redis = RedisCluster.from_url(REDIS_URL) if os.environ.get("REDIS_CLUSTER") else Redis.from_url(REDIS_URL)
mpx = Multiplexer(redis, publish_timeout=1)  # no loop runs yet: it starts with the first WebSocket


async def chat(ws: WebSocket) -> None:
    await ws.accept()

    async def tell(text: str) -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # the client has left; the loop below ends soon
            await ws.send_text(text)

    async def on_message(channel: bytes, data: bytes) -> None:
        text = data[:MAX_TEXT].decode(errors="replace")
        room = room_of(channel)
        await tell(f"{room}: {text}" if is_talk(channel) else f"* {room}: {text}")

    async def on_disconnect(error: ConnectionLost) -> None:
        names = sub.channels if error.names is None else error.names  # those of one shard, or one whose slot has moved
        for room in sorted(map(room_of, filter(is_talk, names))):
            await tell(f"* {room}: interrupted, you miss what is said now")

    async def on_activation(channel: bytes) -> None:
        if is_talk(channel):
            await tell(f"* {room_of(channel)}: you hear what is said")

    async def on_error(error: Exception) -> None:
        match error:
            case SubscriptionRefused():
                await tell(f"* {room_of(error.name)}: refused by Redis")
            case SlowConsumer():
                await tell(f"* you read too slowly: {error.dropped} messages were dropped")

    async with mpx.new_channel_subscription(
        on_message, on_disconnect, on_activation, max_pending=100, on_error=on_error, sharded=True
    ) as sub:
        while (event := await ws.receive())["type"] != "websocket.disconnect":
            try:
                await obey(sub, event.get("text") or "")
            except ValueError as refusal:
                await tell(f"? {refusal}")


async def obey(sub: ChannelSubscription, command: str) -> None:
    """Do what a client wants, or raise ValueError with the reason: it may send anything."""
    found = COMMAND.fullmatch(command)
    match found.groups() if found else ():
        case ("+", room, None):
            if len(sub.channels) >= 2 * MAX_ROOMS:
                raise ValueError(f"{MAX_ROOMS} rooms are enough")
            sub.add(SAID % room, TOPIC % room)
        case ("-", room, None):
            sub.remove(SAID % room, TOPIC % room)
        case ("!" | "=" as kind, room, str(text)):
            try:
                await mpx.publish((SAID if kind == "!" else TOPIC) % room, text, sharded=True)
            except (ConnectionLost, ResponseError):  # the latter from a cluster in which nobody has the slot
                raise ValueError("not published: Redis cannot be reached") from None
        case _:
            raise ValueError(f"+room, -room, =room topic, or !room message with up to {MAX_TEXT} characters")


def room_of(channel: bytes) -> str:
    return channel.decode().partition("{")[2].partition("}")[0]


def is_talk(channel: bytes) -> bool:
    return channel.endswith(b":said")


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with contextlib.aclosing(redis):  # it stays ours, so the multiplexer does not close it
        try:
            yield
        finally:
            await mpx.aclose()


app = Starlette(routes=[WebSocketRoute("/", chat)], lifespan=lifespan)

if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
