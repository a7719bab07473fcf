"""Votes as Server-Sent Events. A browser that reconnects gets each vote that it has missed, or a snapshot of all votes.

$ uvicorn examples.sse:app
$ curl -N http://localhost:8000/votes           (in another terminal: curl -X POST http://localhost:8000/votes/tea)
"""

import contextlib
import json
import os
import re
from collections.abc import AsyncIterator

from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from redismpx import MessageGap, Multiplexer, StreamMessage

from .at_signal import at_signal
from .same_origin import SameOrigin

VOTES, COUNTS, CHOICES = "example:votes", "example:votes:counts", ("coffee", "juice", "tea")
redis = Redis.from_url(os.environ.get("REDIS_URL", "redis://localhost:6379"))
mpx = Multiplexer(redis)


async def stream(last_id: str | None) -> AsyncIterator[str]:
    async with mpx.new_stream_subscription() as sub:
        sub.add(VOTES, after=last_id)
        async for event in sub.events():
            if isinstance(event, StreamMessage):
                yield f"id: {event.id.decode()}\nevent: vote\ndata: {event.data.decode()}\n\n"
            elif isinstance(event, MessageGap) or last_id is None:  # too old; or new, and this is the activation
                last_id = (sub.position(VOTES) or b"").decode()
                counts = {key.decode(): int(count) for key, count in (await redis.hgetall(COUNTS)).items()}
                yield f"id: {last_id}\nevent: snapshot\ndata: {json.dumps(counts)}\n\n"


async def votes(request: Request) -> StreamingResponse:
    last_id = re.fullmatch("[0-9]{1,19}-[0-9]{1,19}", request.headers.get("last-event-id", ""))
    return StreamingResponse(stream(last_id and last_id[0]), media_type="text/event-stream")


async def vote(request: Request) -> JSONResponse:
    choice = request.url.path.removeprefix("/votes/")
    counts = {choice: await redis.hincrby(COUNTS, choice, 1)}
    await mpx.append(VOTES, json.dumps(counts))  # the new count: a vote that is in the snapshot too changes nothing
    return JSONResponse(counts)


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with redis, mpx, at_signal(mpx.close):  # which ends each stream; its client comes back with its last id
        yield


routes = [Route("/votes", votes), *[Route(f"/votes/{choice}", vote, methods=["POST"]) for choice in CHOICES]]
app = SameOrigin(Starlette(routes=routes, lifespan=lifespan))
