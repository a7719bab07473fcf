"""Votes as Server-Sent Events. A browser that reconnects gets each vote that it has missed, or a snapshot of all votes.

$ uvicorn examples.sse:app
$ curl -N http://localhost:8000/votes           (in another terminal: curl -X POST http://localhost:8000/votes/tea)
"""

import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping

from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from redismpx import Activation, Disconnect, Multiplexer, StreamEvent, StreamMessage
from redismpx.contrib.starlette import EventStream, ServerSentEvent, last_event_id, lifespan

from .same_origin import SameOrigin

VOTES, COUNTS, CHOICES = "example:votes", "example:votes:counts", ("coffee", "juice", "tea")
redis = Redis.from_url(os.environ.get("REDIS_URL", "redis://localhost:6379"))
mpx = Multiplexer(redis)


async def votes(request: Request) -> EventStream:
    async def encode(event: StreamEvent[str]) -> ServerSentEvent | None:
        if isinstance(event, StreamMessage):
            return ServerSentEvent(event.data, "vote")
        if isinstance(event, Disconnect) or (isinstance(event, Activation) and last_id):
            return None
        counts = {key.decode(): int(count) for key, count in (await redis.hgetall(COUNTS)).items()}
        return ServerSentEvent(json.dumps(counts), "snapshot", id=(sub.position(VOTES) or b"").decode())

    last_id = last_event_id(request)  # None: a new client, which gets a snapshot when the stream is active
    sub = mpx.new_stream_subscription(decode=bytes.decode)
    sub.add(VOTES, after=last_id)
    return EventStream(sub, encode)


async def vote(request: Request) -> JSONResponse:
    choice = request.url.path.removeprefix("/votes/")
    counts = {choice: await redis.hincrby(COUNTS, choice, 1)}
    await mpx.append(VOTES, json.dumps(counts))  # the new count: a vote that is in the snapshot too changes nothing
    return JSONResponse(counts)


@contextlib.asynccontextmanager
async def own_lifespan(app: Starlette) -> AsyncIterator[Mapping[str, object]]:
    async with redis, lifespan(mpx)(app) as state:
        yield state


routes = [Route("/votes", votes), *[Route(f"/votes/{choice}", vote, methods=["POST"]) for choice in CHOICES]]
app = SameOrigin(Starlette(routes=routes, lifespan=own_lifespan))
