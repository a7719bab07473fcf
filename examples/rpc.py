"""Typed calls between services with `serve()`, `request()` and a codec, here msgspec.

    $ uvicorn examples.rpc:app                      (or: python -m examples.rpc)
    $ curl -d '{"item": "tea", "count": 3}' http://localhost:8000/quotes
    {"item":"tea","cents":750}

Each process both serves and requests. A request reaches all processes; the first reply is used.

The HTTP status is 400 for an invalid order, 404 for an item that is not sold, 502 if the service failed, 503 if there
is no service or Redis cannot be reached, and 504 after the timeout.

The environment variable REDIS_URL names the Redis server (default: redis://localhost:6379).
"""

import contextlib
import os
from collections.abc import AsyncIterator

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.routing import Route

from redismpx import ConnectionLost, Multiplexer, NoResponders, PromiseTimeout, Request, RequestFailed

from .same_origin import SameOrigin

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379")
CHANNEL = "example:quote"
MAX_BODY = 500  # bytes
TIMEOUT = 2.0  # seconds
CENTS = {"tea": 250, "milk": 120}


class Order(msgspec.Struct, forbid_unknown_fields=True):
    item: str
    count: int


class Quote(msgspec.Struct):
    item: str
    cents: int | None  # None: not sold. An expected outcome is part of the reply; exceptions are logged as errors


encode = msgspec.json.encode
read_order = msgspec.json.Decoder(Order).decode
read_quote = msgspec.json.Decoder(Quote).decode


async def give_quote(request: Request[Order]) -> Quote:
    order = request.body
    cents = CENTS.get(order.item)
    return Quote(order.item, None if cents is None else cents * order.count)


mpx = Multiplexer(REDIS_URL)  # made before a loop runs; it starts in the lifespan


async def ask_for_quote(order: Order) -> Quote:
    return await mpx.request(CHANNEL, order, timeout=TIMEOUT, encode=encode, decode=read_quote)


async def get_quote(request: HTTPRequest) -> Response:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"at most {MAX_BODY} bytes are allowed")
    try:
        order = read_order(body)
    except msgspec.MsgspecError:
        raise HTTPException(400, 'an order looks like {"item": "tea", "count": 3}') from None
    try:
        quote = await ask_for_quote(order)
    except RequestFailed as error:
        raise HTTPException(502, error.reason) from None
    except NoResponders:
        raise HTTPException(503, "no service gives quotes now; try again") from None
    except PromiseTimeout as error:
        if not mpx.connected:
            raise HTTPException(503, "Redis cannot be reached; try again") from None
        raise HTTPException(504, str(error)) from None
    except ConnectionLost:
        raise HTTPException(503, "the reply may be missed; try again") from None
    if quote.cents is None:
        raise HTTPException(404, "this item is not sold here")
    return Response(encode(quote), media_type="application/json")


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with mpx:
        mpx.serve(CHANNEL, give_quote, decode=read_order, encode=encode, concurrency=10)
        yield
        with contextlib.suppress(TimeoutError):
            await mpx.drain(timeout=5)  # requests that have arrived still get a reply


app = Starlette(
    routes=[Route("/quotes", get_quote, methods=["POST"])], lifespan=lifespan, middleware=[Middleware(SameOrigin)]
)

if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
