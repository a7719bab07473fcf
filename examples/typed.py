"""Typed payloads: messages arrive as the dataclass that `decode` makes of them, checked for type and shape.

    $ uvicorn examples.typed:app                    (or: python examples/typed.py)
    $ curl -d '{"item": "tea", "count": 3}' http://localhost:8000/orders
    {"receivers":1}
    $ curl -d '{"item": "tea", "count": 4}' http://localhost:8000/orders
    {"receivers":1}
    $ curl http://localhost:8000/totals             (also of another process)
    {"totals":{"tea":7},"undecodable":0}

Every process counts all orders from its start. The server is at REDIS_URL, or else at redis://localhost:6379.
"""

import asyncio
import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from redismpx import ChannelSubscription, ConnectionLost, DecodeError, Multiplexer

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379")
CHANNEL = "example:orders"
MAX_BODY = 500  # bytes
ITEM = re.compile(r"[a-z0-9._-]{1,32}")
MAX_COUNT = 1_000_000
MAX_ITEMS = 1000  # different ones


@dataclass(frozen=True, slots=True)
class Order:
    item: str
    count: int

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, payload: bytes) -> "Order":
        """Make an order of a payload. Anybody may publish anything, so whatever is not an order is a ValueError."""
        if len(payload) <= MAX_BODY:
            match json.loads(payload):  # its own errors are ValueErrors
                case {"item": str(item), "count": int(count)} if (
                    count is not True and ITEM.fullmatch(item) and 0 < count <= MAX_COUNT
                ):
                    return cls(item, count)
        raise ValueError("not an order")


totals: Counter[str] = Counter()
undecodable = 0


def on_error(error: Exception) -> None:
    global undecodable
    if isinstance(error, DecodeError):  # error.data is the payload, error.__cause__ what decode raised
        undecodable += 1


mpx = Multiplexer(REDIS_URL)  # no loop runs yet: it starts in the lifespan
orders: ChannelSubscription[Order] = mpx.new_channel_subscription(decode=Order.decode, on_error=on_error)
orders.add(CHANNEL)


async def tally() -> None:
    async for message in orders:  # a Message[Order]
        order = message.data
        if order.item in totals or len(totals) < MAX_ITEMS:
            totals[order.item] += order.count


async def take(request: Request) -> JSONResponse:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"{MAX_BODY} bytes are enough")
    try:
        order = Order.decode(body)
    except ValueError:
        raise HTTPException(400, 'an order is {"item": "tea", "count": 3}') from None
    try:
        receivers = await mpx.publish(CHANNEL, order.encode())
    except ConnectionLost:
        raise HTTPException(503, "Redis cannot be reached") from None
    return JSONResponse({"receivers": receivers})


async def show(request: Request) -> JSONResponse:
    return JSONResponse({"totals": dict(totals), "undecodable": undecodable})


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with mpx, asyncio.TaskGroup() as tasks:
        tasks.create_task(tally())
        yield
        with contextlib.suppress(TimeoutError):
            await mpx.drain(timeout=5)  # what was received is counted still, then the iteration ends


app = Starlette(routes=[Route("/orders", take, methods=["POST"]), Route("/totals", show)], lifespan=lifespan)

if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
