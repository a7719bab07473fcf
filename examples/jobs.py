"""A job queue. An HTTP request waits for the result of its job, which one of several worker processes does.

    $ uvicorn examples.jobs:app                     (or: python -m examples.jobs)
    $ python -m examples.jobs worker                (start one or more)
    $ curl -d 'the quick brown fox' http://localhost:8000/count
    {"words":4,"worker":4711}

With `serve()` every worker would get the job; from a Redis list only one worker takes it. Each list entry is an
envelope with the job and the channel of a promise. The worker publishes the result to that channel.

The HTTP status is 504 if no result arrived in time. It is 503 if Redis is not connected, or if the connection was lost
meanwhile, because the result may then be missed.

The environment variable REDIS_URL names the Redis server (default: redis://localhost:6379).
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import uvicorn
from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from redismpx import (
    ConnectionLost,
    Envelope,
    InactiveSubscription,
    Multiplexer,
    PromiseSubscription,
    PromiseTimeout,
    SubscriptionIsClosed,
)

from .same_origin import SameOrigin

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379")
QUEUE = "example:jobs"
MAX_QUEUE = 1000  # jobs
MAX_BODY = 10_000  # bytes
TIMEOUT = float(os.environ.get("TIMEOUT", "10"))  # seconds

mpx = Multiplexer(REDIS_URL)  # made before a loop runs; it starts in the lifespan or in the worker
redis = Redis.from_url(REDIS_URL)

# --- the web server, which adds jobs


async def count(request: Request) -> Response:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"at most {MAX_BODY} bytes are allowed")
    results: PromiseSubscription = request.state.results
    try:
        result = results.new_promise(timeout=TIMEOUT)  # before the job is queued, so its result is not missed
        try:
            await redis.rpush(QUEUE, bytes(Envelope(body, reply_to=result.channel)))
            await redis.ltrim(QUEUE, -MAX_QUEUE, -1)
            return Response(await result.get(), media_type="application/json")
        finally:
            result.cancel()  # the request has ended, perhaps before the result arrived
    except PromiseTimeout:
        raise HTTPException(504, "no worker sent a result in time") from None
    except (InactiveSubscription, RedisError):
        raise HTTPException(503, "Redis cannot be reached; try again") from None
    except (ConnectionLost, SubscriptionIsClosed):
        raise HTTPException(503, "the result may be missed; try again") from None


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, PromiseSubscription]]:
    async with mpx, redis:  # closes both at the end
        # A second lifespan, as in tests, opens the multiplexer again, without this subscription.
        yield {"results": mpx.new_promise_subscription("example:result:")}


app = Starlette(
    routes=[Route("/count", count, methods=["POST"])], lifespan=lifespan, middleware=[Middleware(SameOrigin)]
)

# --- the worker, a separate process


async def work(stopping: asyncio.Event) -> None:
    """Take one job after another and publish its result."""
    while not stopping.is_set():
        try:
            item = await redis.blpop([QUEUE], timeout=1)
            if item is None:
                continue
            job = Envelope.from_bytes(item[1])
            if job.reply_to is None or datetime.now(UTC) - job.timestamp > timedelta(seconds=TIMEOUT):
                continue  # no request waits for the result, or it has timed out
            result = json.dumps({"words": len(job.body.split()), "worker": os.getpid()}, separators=(",", ":"))
            await mpx.publish(job.reply_to, result)
        except ValueError as error:  # the entry is no envelope: any program may push to the list
            print(error, file=sys.stderr)
        except (RedisError, ConnectionLost):
            await asyncio.sleep(1)


async def run_worker() -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with mpx, redis:
        print("working", file=sys.stderr, flush=True)
        await work(stopping)


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        asyncio.run(run_worker())
    else:
        uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
