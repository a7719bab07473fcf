"""While the event loop is busy, the deadlines of publishing do not pass: the server may have replied meanwhile."""

from __future__ import annotations

import asyncio
import time

import pytest

from redismpx import ConnectionLost, Multiplexer

from ..helpers.servers import Server

pytestmark = [pytest.mark.one_flavour, pytest.mark.usefixtures("no_leaks")]

TIMEOUT = 0.3  # seconds
BUSY = 0.6


async def be_busy(steps: int) -> None:
    """Let the loop make some steps, and keep it busy for longer than the timeout."""
    for _ in range(steps):
        await asyncio.sleep(0)
    time.sleep(BUSY)


@pytest.mark.parametrize("steps", range(6))  # until the calls are made, sent, or on their way
@pytest.mark.parametrize("count", [1, 5, 200])
async def test_calls_outlive_a_busy_loop(url: str, count: int, steps: int) -> None:
    """Calls have their count, although the loop was busy for longer than `publish_timeout`."""
    async with Multiplexer(url, publish_timeout=TIMEOUT) as mpx:
        for _ in range(3):  # from then on, a single call is sent at once
            await mpx.publish("a", "x")
        calls = [asyncio.create_task(mpx.publish("a", "x")) for _ in range(count)]
        await be_busy(steps)
        assert await asyncio.gather(*calls) == [0] * count


@pytest.mark.parametrize("steps", range(3))
async def test_scripts_outlive_a_busy_loop(url: str, steps: int) -> None:
    """So do `append()` and `history()`."""
    async with Multiplexer(url, publish_timeout=TIMEOUT) as mpx:
        name = f"stream-{steps}"
        appending = asyncio.create_task(mpx.append(name, "x"))
        await be_busy(steps)
        message_id = await appending
        reading = asyncio.create_task(mpx.history(name))
        await be_busy(steps)
        assert (await reading)[-1].id == message_id


@pytest.mark.parametrize("count", [1, 5])
async def test_a_silent_server_is_found_after_a_busy_loop(server: Server, count: int) -> None:
    """A server that does not reply has no more time than the loop was busy; the next calls get a new connection."""
    async with Multiplexer(server.url, publish_timeout=TIMEOUT) as mpx:
        for _ in range(3):
            await mpx.publish("a", "x")
        server.freeze()
        calls = [asyncio.create_task(mpx.publish("a", "x")) for _ in range(count)]
        await be_busy(4)
        async with asyncio.timeout(5):
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ConnectionLost] * count
        server.thaw()
        assert await mpx.publish("a", "x") == 0
