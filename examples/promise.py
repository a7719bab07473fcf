"""A request that waits for what happens elsewhere: a `PromiseSubscription`, one promise for each request.

    $ uvicorn examples.promise:app                  (or: python examples/promise.py)
    $ curl 'http://localhost:8000/wait?suffix=order-7&timeout=30'
                                                    it waits; meanwhile, elsewhere (also at another process):
    $ curl -d 'paid' http://localhost:8000/fulfil/order-7
    paid                                            says the first one

`/wait` answers 200 with the payload, 504 when the time is up, and 503 when the message could be missed, because there
is no connection to Redis or it was lost meanwhile. The server is at REDIS_URL, or else at redis://localhost:6379.
"""

import contextlib
import os
import re
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from redismpx import ConnectionLost, InactiveSubscription, Multiplexer, PromiseInterrupted, PromiseTimeout

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379")
PREFIX = "example:promise:"
SUFFIX = re.compile(r"[a-z0-9._-]{1,32}")
MAX_TIMEOUT = 60.0  # seconds
MAX_BODY = 500  # bytes

mpx = Multiplexer(REDIS_URL)  # no loop runs yet: it starts in the lifespan
promises = mpx.new_promise_subscription(PREFIX)  # one pattern on the server, however many promises


async def wait(request: Request) -> PlainTextResponse:
    suffix = checked(request.query_params.get("suffix", ""))
    try:
        timeout = float(request.query_params.get("timeout", "10"))
    except ValueError:
        timeout = 0.0
    if not 0 < timeout <= MAX_TIMEOUT:  # NaN neither
        raise HTTPException(400, f"timeout: more than 0, and at most {MAX_TIMEOUT:g} seconds")
    try:
        payload = await promises.new_promise(suffix, timeout)
    except PromiseTimeout:
        raise HTTPException(504, "nothing came in time") from None
    except InactiveSubscription:
        raise HTTPException(503, "Redis cannot be reached; try again") from None
    except PromiseInterrupted as error:  # an asyncio.CancelledError too: left alone, it would end this task
        raise HTTPException(503, f"{error.reason}: what you wait for may be missed; try again") from None
    return PlainTextResponse(payload[:MAX_BODY])


async def fulfil(request: Request) -> JSONResponse:
    suffix = checked(request.path_params["suffix"])
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"{MAX_BODY} bytes are enough")
    try:
        receivers = await mpx.publish(PREFIX + suffix, body)
    except ConnectionLost:
        raise HTTPException(503, "Redis cannot be reached; try again") from None
    return JSONResponse({"receivers": receivers})  # processes that listen, whether or not anybody waits there


def checked(suffix: str) -> str:
    if not SUFFIX.fullmatch(suffix):
        raise HTTPException(400, "suffix: 1 to 32 of a-z, 0-9, . _ -")
    return suffix


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with mpx:  # begins to connect, without waiting for it; at the end: await mpx.aclose()
        yield


app = Starlette(routes=[Route("/wait", wait), Route("/fulfil/{suffix}", fulfil, methods=["POST"])], lifespan=lifespan)

if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
