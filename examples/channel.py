"""A chat with many rooms: one `ChannelSubscription` for each WebSocket, one Redis connection for all of them.

    $ uvicorn examples.channel:app                  (or: python examples/channel.py)
    $ python -m websockets ws://localhost:8000/
    > +tea
    < * tea: active
    > !tea is anybody here?
    < tea: is anybody here?
    > -tea

`+channel` subscribes, `-channel` unsubscribes, `!channel message` publishes. Restart Redis meanwhile, and see
`* disconnected` and `* tea: active` again. The server is at REDIS_URL, or else at redis://localhost:6379.
"""

import contextlib
import os
import re
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from redismpx import ChannelSubscription, ConnectionLost, Multiplexer, SlowConsumer, SubscriptionRefused

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379")
PREFIX = "example:room:"  # a client reaches the channels that begin with this, and no others
MAX_CHANNELS = 20  # for each WebSocket
MAX_TEXT = 500  # characters of a message
COMMAND = re.compile(rf"([+!-])([a-z0-9._-]{{1,32}})(?: (.{{1,{MAX_TEXT}}}))?", re.DOTALL)

mpx = Multiplexer(REDIS_URL, publish_timeout=1)  # no loop runs yet: it starts with the first WebSocket


async def chat(ws: WebSocket) -> None:
    await ws.accept()

    async def tell(text: str) -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # the client has left; the loop below ends soon
            await ws.send_text(text)

    # Callbacks return awaitables, so a client that reads slowly delays its own messages, and nobody else's.
    async def on_message(channel: bytes, data: bytes) -> None:
        await tell(f"{room_of(channel)}: {data[:MAX_TEXT].decode(errors='replace')}")

    async def on_disconnect(error: ConnectionLost) -> None:
        await tell("* disconnected: you miss what is said now")

    async def on_activation(channel: bytes) -> None:
        await tell(f"* {room_of(channel)}: active")

    async def on_error(error: Exception) -> None:
        match error:
            case SubscriptionRefused():
                await tell(f"* {room_of(error.name)}: refused by Redis")
            case SlowConsumer():
                await tell(f"* you read too slowly: {error.dropped} messages were dropped")

    # However the WebSocket ends, the subscription ends with it.
    async with mpx.new_channel_subscription(
        on_message, on_disconnect, on_activation, max_pending=100, on_error=on_error
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
        case ("+", channel, None):
            if len(sub.channels) >= MAX_CHANNELS:
                raise ValueError(f"{MAX_CHANNELS} channels are enough")
            sub.add(PREFIX + channel)
        case ("-", channel, None):
            sub.remove(PREFIX + channel)
        case ("!", channel, str(text)):
            try:
                await mpx.publish(PREFIX + channel, text)
            except ConnectionLost:
                raise ValueError("not published: Redis cannot be reached") from None
        case _:
            raise ValueError(f"+channel, -channel, or !channel message with up to {MAX_TEXT} characters")


def room_of(channel: bytes) -> str:
    return channel.decode().removeprefix(PREFIX)


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await mpx.aclose()


app = Starlette(routes=[WebSocketRoute("/", chat)], lifespan=lifespan)

if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
