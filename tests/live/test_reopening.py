"""`async with` opens a closed multiplexer again: empty, in the loop that runs then."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from redismpx import Multiplexer, MultiplexerIsClosed, SubscriptionIsClosed

from ..helpers.monitor import settled
from ..helpers.servers import Server
from ..helpers.waiting import until

pytestmark = [pytest.mark.one_flavour, pytest.mark.usefixtures("no_leaks")]


async def echo(mpx: Multiplexer) -> bytes:
    """Publish a message, and return it as a subscription gets it."""
    async with mpx.subscribe("a") as sub:
        await mpx.publish("a", "hello")
        return (await sub.get(5)).data


async def test_a_closed_multiplexer_opens_again(url: str, admin: Redis) -> None:
    """The next life has no subscriptions, counters or errors of the last; old subscriptions stay closed."""
    mpx = Multiplexer(url)
    seen: list[bytes] = []
    for life in range(3):
        async with mpx:
            assert mpx.stats().published == mpx.stats().subscriptions == 0
            sub = mpx.new_channel_subscription(lambda _, data: seen.append(data))
            sub.add("b")
            assert await echo(mpx) == b"hello"
            await sub.wait_for_activation(timeout=5)
            await admin.publish("b", life)
            await until(lambda expected=life + 1: len(seen) == expected)  # type: ignore[misc]
            service = mpx.serve("c", lambda request: request.body)
            await service.wait_for_activation(timeout=5)
            assert await mpx.request("c", b"ping", timeout=5) == b"ping"
        with pytest.raises(SubscriptionIsClosed):
            sub.add("c")
        with pytest.raises(MultiplexerIsClosed):
            mpx.new_channel_subscription()
        await settled(admin, set())
    assert seen == [b"0", b"1", b"2"]


async def test_close_and_open_at_once_leaves_nothing(url: str, admin: Redis) -> None:
    """After close(), entering waits until the last life has released everything."""
    mpx = Multiplexer(url)
    async with mpx:
        for _ in range(3):
            busy = asyncio.Event()
            sub = mpx.new_channel_subscription(lambda *_: asyncio.sleep(60, busy.set()))  # noqa: B023
            sub.add("a")
            await sub.wait_for_activation(timeout=5)
            await admin.publish("a", "x")
            await busy.wait()
            mpx.close()
            async with contextlib.AsyncExitStack() as stack:
                await asyncio.gather(*(stack.enter_async_context(mpx) for _ in range(3)))  # one opens, all enter
                assert await echo(mpx) == b"hello"
                stack.pop_all()
    await settled(admin, set())


def test_two_runs_of_a_loop(server: Server) -> None:
    """asyncio.run() twice with one multiplexer, which was made before, also when a client object is its server."""

    async def main(mpx: Multiplexer) -> bytes:
        async with mpx:
            return await echo(mpx)

    client = Redis.from_url(server.url)
    for mpx in (Multiplexer(server.url), Multiplexer(client)):
        assert [asyncio.run(main(mpx)) for _ in range(3)] == [b"hello"] * 3


def test_two_lifespans_of_an_application(server: Server) -> None:
    """Two test clients, one after the other, enter and leave a module's multiplexer."""
    mpx = Multiplexer(server.url)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with mpx:
            yield

    async def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse(await echo(mpx))

    app = Starlette(routes=[Route("/", hello)], lifespan=lifespan)
    for _ in range(2):
        with TestClient(app) as client:
            assert client.get("/").text == "hello"


async def test_a_draining_multiplexer_does_not_open(url: str) -> None:
    """Only the end makes room for another life."""
    gate = asyncio.Event()
    mpx = Multiplexer(url)
    async with mpx:
        sub = mpx.new_channel_subscription(lambda *_: gate.wait())
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        await mpx.publish("a", "x")
        await until(lambda: mpx.stats().messages == 1)
        draining = asyncio.create_task(mpx.drain(5))
        await asyncio.sleep(0)
        with pytest.raises(MultiplexerIsClosed):
            async with mpx:
                pass
        gate.set()
        await draining
    async with mpx:
        assert await echo(mpx) == b"hello"
