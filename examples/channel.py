"""A chat with many rooms. Each WebSocket has a `ChannelSubscription`; all share one Redis connection.

    $ uvicorn examples.channel:app                  (or: python -m examples.channel)
    $ python -m websockets ws://localhost:8000/
    > +tea
    < * tea: active
    > !tea is anybody here?
    < tea: is anybody here?
    > -tea

`+channel` subscribes, `-channel` unsubscribes, `!channel message` publishes. If you restart Redis meanwhile, the client
shows `* disconnected` and then `* tea: active` again.

The environment variable REDIS_URL names the Redis server (default: redis://localhost:6379).
"""

import contextlib
import os
import re
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from redismpx import ChannelSubscription, ConnectionLost, Multiplexer, SlowConsumer, SubscriptionRefused

from .same_origin import SameOrigin

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379")
PREFIX = "example:room:"  # clients can only use channels with this prefix
MAX_CHANNELS = 20  # for each WebSocket
MAX_TEXT = 500  # characters of a message
COMMAND = re.compile(rf"([+!-])([a-z0-9._-]{{1,32}})(?: (.{{1,{MAX_TEXT}}}))?", re.DOTALL)

mpx = Multiplexer(REDIS_URL, publish_timeout=1)  # made before a loop runs; it connects when the first client subscribes


async def chat(ws: WebSocket) -> None:
    await ws.accept()

    async def send(text: str) -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # closed; the loop below ends soon
            await ws.send_text(text)

    # Async callbacks run one at a time for each subscription. A slow client delays only its own messages.
    async def on_message(channel: bytes, data: bytes) -> None:
        await send(f"{room_of(channel)}: {data[:MAX_TEXT].decode(errors='replace')}")

    async def on_disconnect(error: ConnectionLost) -> None:
        await send("* disconnected: messages may be missed")

    async def on_activation(channel: bytes) -> None:
        await send(f"* {room_of(channel)}: active")

    async def on_error(error: Exception) -> None:
        match error:
            case SubscriptionRefused():
                await send(f"* {room_of(error.name)}: rejected by Redis")
            case SlowConsumer():
                await send(f"* you read too slowly: {error.dropped} messages were dropped")

    # The block closes the subscription, however the WebSocket ends.
    async with mpx.new_channel_subscription(
        on_message, on_disconnect, on_activation, max_pending=100, on_error=on_error
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
        case ("+", channel, None):
            if len(sub.channels) >= MAX_CHANNELS:
                raise ValueError(f"at most {MAX_CHANNELS} channels are allowed")
            sub.add(PREFIX + channel)
        case ("-", channel, None):
            sub.remove(PREFIX + channel)
        case ("!", channel, str(text)):
            try:
                await mpx.publish(PREFIX + channel, text)
            except ConnectionLost:
                raise ValueError("not published: Redis cannot be reached") from None
        case _:
            raise ValueError(f"send +channel, -channel, or !channel message with up to {MAX_TEXT} characters")


def room_of(channel: bytes) -> str:
    return channel.decode().removeprefix(PREFIX)


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with mpx:  # closes it at the end; opens it again for a second lifespan, as in tests
        yield


app = Starlette(routes=[WebSocketRoute("/", chat)], lifespan=lifespan, middleware=[Middleware(SameOrigin)])

if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
