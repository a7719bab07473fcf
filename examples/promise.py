"""HTTP requests that wait for a message. All share one `PromiseSubscription`; each request has a promise.

    $ uvicorn examples.promise:app                  (or: python -m examples.promise)
    $ curl 'http://localhost:8000/wait?suffix=order-7&timeout=30'
                                                    (waits; then, in another terminal:)
    $ curl -d 'paid' http://localhost:8000/fulfil/order-7
    paid                                            (printed by the first command)

`/wait` replies 200 with the payload, or 504 after the timeout. It replies 503 if Redis is not connected, or if the
connection was lost meanwhile, because the message may then be missed. `/fulfil` may be called on any process.

The environment variable REDIS_URL names the Redis server (default: redis://localhost:6379).
"""

import contextlib
import os
import re
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from redismpx import (
    ConnectionLost,
    InactiveSubscription,
    Multiplexer,
    PromiseSubscription,
    PromiseTimeout,
    SubscriptionIsClosed,
)

from .same_origin import SameOrigin

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379")
PREFIX = "example:promise:"
SUFFIX = re.compile(r"[a-z0-9._-]{1,32}")
MAX_TIMEOUT = 60.0  # seconds
MAX_BODY = 500  # bytes

mpx = Multiplexer(REDIS_URL)  # made before a loop runs; it starts in the lifespan


async def wait(request: Request) -> PlainTextResponse:
    suffix = checked(request.query_params.get("suffix", ""))
    try:
        timeout = float(request.query_params.get("timeout", "10"))
    except ValueError:
        timeout = 0.0
    if not 0 < timeout <= MAX_TIMEOUT:  # rejects NaN, too
        raise HTTPException(400, f"timeout must be more than 0 and at most {MAX_TIMEOUT:g} seconds")
    promises: PromiseSubscription = request.state.promises
    try:
        payload = await promises.new_promise(suffix, timeout).get()
    except PromiseTimeout:
        raise HTTPException(504, "no message arrived in time") from None
    except InactiveSubscription:
        raise HTTPException(503, "Redis cannot be reached; try again") from None
    except (ConnectionLost, SubscriptionIsClosed):
        raise HTTPException(503, "the message may be missed; try again") from None
    return PlainTextResponse(payload[:MAX_BODY])


async def fulfil(request: Request) -> JSONResponse:
    suffix = checked(request.path_params["suffix"])
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"at most {MAX_BODY} bytes are allowed")
    try:
        receivers = await mpx.publish(PREFIX + suffix, body)
    except ConnectionLost:
        raise HTTPException(503, "Redis cannot be reached; try again") from None
    return JSONResponse({"receivers": receivers})  # the number of processes, whether or not a request waits there


def checked(suffix: str) -> str:
    if not SUFFIX.fullmatch(suffix):
        raise HTTPException(400, "suffix must have 1 to 32 of the characters a-z 0-9 . _ -")
    return suffix


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, PromiseSubscription]]:
    async with mpx:  # closes it at the end; opens it again, without subscriptions, for a second lifespan, as in tests
        # One pattern on the server for all promises. The multiplexer starts to connect, and nothing waits for that.
        yield {"promises": mpx.new_promise_subscription(PREFIX)}


app = Starlette(
    routes=[Route("/wait", wait), Route("/fulfil/{suffix}", fulfil, methods=["POST"])],
    lifespan=lifespan,
    middleware=[Middleware(SameOrigin)],
)

if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
