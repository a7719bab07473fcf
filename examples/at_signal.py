"""Calls a function as soon as the server is asked to stop. The examples with streams of events end them then.

uvicorn waits for each response before it ends the lifespan, and a stream of events never ends by itself.
"""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from types import FrameType


@contextlib.asynccontextmanager
async def at_signal(call: Callable[[], object]) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(call)
        if callable(handler := before[number]):  # the handler of uvicorn
            handler(number, frame)

    before = {int(number): signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
