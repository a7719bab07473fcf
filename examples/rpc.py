"""Typed calls between services: `serve()` and `request()`, and a codec of one's choice, here msgspec.

    $ uvicorn examples.rpc:app                      (or: python examples/rpc.py)
    $ curl -d '{"item": "tea", "count": 3}' http://localhost:8000/quotes
    {"item":"tea","cents":750}

Each process asks and answers: all of them are asked, and the first answer is taken. The HTTP answer is 400 for what is
no order, 404 for what is not sold, 502 when the service failed, 503 when nobody serves or Redis cannot be reached, 504
when the time is up. The server is at REDIS_URL, or else at redis://localhost:6379.
"""

import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, TypeVar

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.routing import Route

from redismpx import Multiplexer, NoResponders, PromiseInterrupted, PromiseTimeout, Request, RequestFailed, Service

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379")
MAX_BODY = 500  # bytes
TIMEOUT = 2.0  # seconds
CENTS = {"tea": 250, "milk": 120}

Q = TypeVar("Q")
A = TypeVar("A")


class Call(Generic[Q, A]):
    """What is asked on one channel, and what is answered: the whole of a typed RPC."""

    def __init__(self, channel: str, question: type[Q], answer: type[A]) -> None:
        self.channel = channel
        self.question = question
        self.answer = answer

    async def __call__(self, mpx: Multiplexer, question: Q) -> A:
        body = await mpx.request(self.channel, msgspec.json.encode(question), timeout=TIMEOUT)
        return msgspec.json.decode(body, type=self.answer)

    def serve(self, mpx: Multiplexer, handler: Callable[[Q], Awaitable[A]], concurrency: int = 10) -> Service:
        async def handle(request: Request) -> bytes:
            # What is no Q raises here, and the requester is told.
            return msgspec.json.encode(await handler(msgspec.json.decode(request.body, type=self.question)))

        return mpx.serve(self.channel, handle, concurrency=concurrency)


class Order(msgspec.Struct, forbid_unknown_fields=True):
    item: str
    count: int


class Quote(msgspec.Struct):
    item: str
    cents: int | None  # what may well happen belongs in the answer: exceptions are logged as faults of the service


quote = Call("example:quote", Order, Quote)


async def give_quote(order: Order) -> Quote:
    cents = CENTS.get(order.item)
    return Quote(order.item, None if cents is None else cents * order.count)


mpx = Multiplexer(REDIS_URL)  # no loop runs yet: it starts in the lifespan
quote.serve(mpx, give_quote)


async def ask(request: HTTPRequest) -> Response:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"{MAX_BODY} bytes are enough")
    try:
        order = msgspec.json.decode(body, type=Order)
    except msgspec.MsgspecError:
        raise HTTPException(400, 'an order is {"item": "tea", "count": 3}') from None
    try:
        answer = await quote(mpx, order)
    except RequestFailed as error:
        raise HTTPException(502, error.reason) from None
    except NoResponders:
        raise HTTPException(503, "nobody gives quotes now; try again") from None
    except PromiseTimeout as error:
        if not mpx.connected:
            raise HTTPException(503, "Redis cannot be reached; try again") from None
        raise HTTPException(504, str(error)) from None
    except PromiseInterrupted as error:  # an asyncio.CancelledError too: left alone, it would end this task
        raise HTTPException(503, f"{error.reason}; try again") from None
    if answer.cents is None:
        raise HTTPException(404, "that is not sold here")
    return Response(msgspec.json.encode(answer), media_type="application/json")


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with mpx:
        yield
        with contextlib.suppress(TimeoutError):
            await mpx.drain(timeout=5)  # who was asked still answers


app = Starlette(routes=[Route("/quotes", ask, methods=["POST"])], lifespan=lifespan)

if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
