"""The `EventSource` of a browser, with FastAPI and uvicorn."""

from __future__ import annotations

from typing import Annotated

import pytest
from fastapi import Depends, FastAPI
from redis.asyncio import Redis

from redismpx import Multiplexer
from redismpx.contrib.starlette import EventStream, get_multiplexer, last_event_id, lifespan

from ..helpers.asgi import serving
from ..helpers.browser import browsing
from ..helpers.monitor import kill_clients
from ..helpers.servers import free_port

LISTEN = """window.heard = []
for (const path of ["/channel", "/stream"]) {
    const source = new EventSource(path)
    for (const kind of ["message", "activation", "disconnect", "gap"])
        source.addEventListener(kind, event => heard.push([path, kind, event.data].join(" ").trim()))
}"""


def new_app(url: str) -> FastAPI:
    app = FastAPI(lifespan=lifespan(Multiplexer(url)))

    @app.get("/channel")
    async def channel(mpx: Annotated[Multiplexer, Depends(get_multiplexer)]) -> EventStream:
        sub = mpx.new_channel_subscription()
        sub.add("browser:channel")
        return EventStream(sub)

    @app.get("/stream")
    async def stream(
        mpx: Annotated[Multiplexer, Depends(get_multiplexer)], last_id: Annotated[str | None, Depends(last_event_id)]
    ) -> EventStream:
        sub = mpx.new_stream_subscription()
        sub.add("browser:stream", after=last_id)
        return EventStream(sub)

    return app


@pytest.mark.one_flavour
async def test_an_event_source_survives_redis_and_server(url: str, admin: Redis) -> None:
    """It is told of a cut, reconnects to a server that has been restarted, and resumes its stream."""
    port = free_port()
    async with browsing() as page, Multiplexer(url) as mpx:

        async def heard(*texts: str) -> None:
            await page.wait_for_function("texts => texts.every(text => heard.includes(text))", arg=list(texts))

        async with serving(new_app(url), port):
            await page.goto(f"http://127.0.0.1:{port}/nothing-there")  # of the origin whose streams the page may read
            await page.evaluate(LISTEN)
            await heard("/channel activation", "/stream activation")
            await admin.publish("browser:channel", "one\ntwo")
            await mpx.append("browser:stream", "1")
            await heard("/channel message one\ntwo", "/stream message 1")
            await page.evaluate("heard.length = 0")
            await kill_clients(admin)
            await heard("/channel disconnect", "/channel activation", "/stream activation")
            await page.evaluate("heard.length = 0")
        await mpx.append("browser:stream", "2")  # while the server is away
        async with serving(new_app(url), port):
            await heard("/channel activation", "/stream message 2")
            await mpx.append("browser:stream", "3")
            await heard("/stream message 3")
            messages = [text for text in await page.evaluate("heard") if text.startswith("/stream message")]
            await page.close()
    await admin.delete("browser:stream")
    assert messages == ["/stream message 2", "/stream message 3"]
