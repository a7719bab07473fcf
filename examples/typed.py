"""Typed payloads. `decode` checks each payload and turns it into a dataclass.

    $ uvicorn examples.typed:app                    (or: python -m examples.typed)
    $ curl -d '{"item": "tea", "count": 3}' http://localhost:8000/orders
    {"receivers":1}
    $ curl -d '{"item": "tea", "count": 4}' http://localhost:8000/orders
    {"receivers":1}
    $ curl http://localhost:8000/totals             (on any process)
    {"totals":{"tea":7},"undecodable":0}

Each process counts all orders since its start. The environment variable REDIS_URL names the Redis server
(default: redis://localhost:6379).
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
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from redismpx import ChannelSubscription, ConnectionLost, DecodeError, Multiplexer

from .same_origin import SameOrigin

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379")
CHANNEL = "example:orders"
MAX_BODY = 500  # bytes
ITEM = re.compile(r"[a-z0-9._-]{1,32}")
MAX_COUNT = 1_000_000
MAX_ITEMS = 1000  # different items


@dataclass(frozen=True, slots=True)
class Order:
    item: str
    count: int

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, payload: bytes) -> "Order":
        """Convert a payload to an order. Raises ValueError if it is not one: any program may publish to the channel."""
        if len(payload) <= MAX_BODY:
            match json.loads(payload):  # raises ValueError, too
                case {"item": str(item), "count": int(count)} if (
                    count is not True and ITEM.fullmatch(item) and 0 < count <= MAX_COUNT
                ):
                    return cls(item, count)
        raise ValueError("not an order")


totals: Counter[str] = Counter()
undecodable = 0


def on_error(error: Exception) -> None:
    global undecodable
    if isinstance(error, DecodeError):  # error.data is the payload, error.__cause__ the exception
        undecodable += 1


mpx = Multiplexer(REDIS_URL)  # made before a loop runs; it starts in the lifespan


async def count_orders(orders: ChannelSubscription[Order]) -> None:
    async for message in orders:  # a Message[Order]
        order = message.data
        if order.item in totals or len(totals) < MAX_ITEMS:
            totals[order.item] += order.count


async def add_order(request: Request) -> JSONResponse:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"at most {MAX_BODY} bytes are allowed")
    try:
        order = Order.decode(body)
    except ValueError:
        raise HTTPException(400, 'an order looks like {"item": "tea", "count": 3}') from None
    try:
        receivers = await mpx.publish(CHANNEL, order.encode())
    except ConnectionLost:
        raise HTTPException(503, "Redis cannot be reached") from None
    return JSONResponse({"receivers": receivers})


async def show_totals(request: Request) -> JSONResponse:
    return JSONResponse({"totals": dict(totals), "undecodable": undecodable})


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with mpx, asyncio.TaskGroup() as tasks:
        orders = mpx.new_channel_subscription(decode=Order.decode, on_error=on_error)
        orders.add(CHANNEL)
        tasks.create_task(count_orders(orders))
        yield
        with contextlib.suppress(TimeoutError):
            await mpx.drain(timeout=5)  # buffered orders are still counted, then the iteration ends


app = Starlette(
    routes=[Route("/orders", add_order, methods=["POST"]), Route("/totals", show_totals)],
    lifespan=lifespan,
    middleware=[Middleware(SameOrigin)],
)

if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
