"""A request that waits for the result of a job, which one of several worker processes does: a queue and a promise.

    $ uvicorn examples.jobs:app                     (or: python examples/jobs.py)
    $ python examples/jobs.py worker                (as many as you like)
    $ curl -d 'the quick brown fox' http://localhost:8000/count
    {"words":4,"worker":4711}

`serve()` would ask all workers; a Redis list gives each job to one. It carries an envelope: the job, and the channel of
the promise that the result keeps. The HTTP answer is 504 when there was no result in time, and 503 when it could be
missed, because there is no connection to Redis or it was lost meanwhile. The server is at REDIS_URL, or else at
redis://localhost:6379.
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
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from redismpx import ConnectionLost, Envelope, InactiveSubscription, Multiplexer, PromiseInterrupted, PromiseTimeout

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379")
QUEUE = "example:jobs"
MAX_QUEUE = 1000  # jobs
MAX_BODY = 10_000  # bytes
TIMEOUT = float(os.environ.get("TIMEOUT", "10"))  # seconds

mpx = Multiplexer(REDIS_URL)  # no loop runs yet: it starts in the lifespan, or in the worker
redis = Redis.from_url(REDIS_URL)

# --- who asks: a web server

results = mpx.new_promise_subscription("example:result:")


async def count(request: Request) -> Response:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"{MAX_BODY} bytes are enough")
    try:
        result = results.new_promise(timeout=TIMEOUT)  # first the promise, then the job: its result cannot be missed
        try:
            await redis.rpush(QUEUE, bytes(Envelope(body, reply_to=result.channel)))
            await redis.ltrim(QUEUE, -MAX_QUEUE, -1)
            return Response(await result, media_type="application/json")
        finally:
            result.cancel()  # if nobody waits any more
    except PromiseTimeout:
        raise HTTPException(504, "no worker was done in time") from None
    except (InactiveSubscription, RedisError):
        raise HTTPException(503, "Redis cannot be reached; try again") from None
    except PromiseInterrupted as error:  # an asyncio.CancelledError too: left alone, it would end this task
        raise HTTPException(503, f"{error.reason}: the result may be missed; try again") from None


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with mpx, redis:  # begins to connect, without waiting for it; at the end: await mpx.aclose()
        yield


app = Starlette(routes=[Route("/count", count, methods=["POST"])], lifespan=lifespan)

# --- who works: a process of its own


async def work(stopping: asyncio.Event) -> None:
    """Take one job after the other."""
    while not stopping.is_set():
        try:
            item = await redis.blpop([QUEUE], timeout=1)
            if item is None:
                continue
            job = Envelope.from_bytes(item[1])
            if job.reply_to is None or datetime.now(UTC) - job.timestamp > timedelta(seconds=TIMEOUT):
                continue  # nobody waits, or not any more
            result = json.dumps({"words": len(job.body.split()), "worker": os.getpid()}, separators=(",", ":"))
            await mpx.publish(job.reply_to, result)
        except ValueError as error:  # anybody may push anything
            print(error, file=sys.stderr)
        except (RedisError, ConnectionLost):
            await asyncio.sleep(1)


async def be_worker() -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with mpx, redis:
        print("working", file=sys.stderr, flush=True)
        await work(stopping)


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        asyncio.run(be_worker())
    else:
        uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
