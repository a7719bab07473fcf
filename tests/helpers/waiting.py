"""Wait for a condition, and fail when it does not come true in time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from redis.exceptions import RedisError

DEADLINE = 10.0  # seconds after which a condition that should come true counts as failed


async def until(condition: Callable[[], bool], deadline: float = DEADLINE) -> None:
    """Wait until a condition is true; fail when it is not true in time."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + deadline
    while not condition():
        if loop.time() > give_up:
            raise AssertionError("waited in vain")
        await asyncio.sleep(0.002)


async def eventually(complaint: Callable[[], Awaitable[str]], deadline: float = 30.0) -> None:
    """Call `complaint` until it returns no text; fail with its last text at the deadline. A server error is one."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + deadline
    while True:
        try:
            said = await complaint()
        except RedisError as error:
            said = repr(error)
        if not said:
            return
        assert loop.time() < give_up, f"still after {deadline} s: {said}"
        await asyncio.sleep(0.02)
