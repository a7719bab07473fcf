"""What the lifespan of a Starlette application shares with its responses: the multiplexer, and the open streams."""

from __future__ import annotations

__all__ = ["KEY", "Application"]

import asyncio
import signal
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from starlette.types import Scope

from .. import Multiplexer
from ._client import cancel

KEY = "redismpx"  # in the state of the lifespan

_POLL_INTERVAL = 0.1  # seconds, as in uvicorn
_LAST_SEND = 1.0  # seconds for the last send to each client


class Application:
    """The multiplexer of an application, and the event streams that it sends."""

    def __init__(self, multiplexer: Multiplexer | None = None) -> None:
        self.multiplexer = multiplexer
        self.streams: WeakKeyDictionary[asyncio.Timeout, Callable[[], None]] = WeakKeyDictionary()
        """By the block that sends each stream: the function that ends it."""
        self.is_stopping = False

    @classmethod
    def of(cls, scope: Scope) -> Application:
        """Return the application of a request or WebSocket; one without a multiplexer if it has no `lifespan()`."""
        return scope.get("state", {}).get(KEY) or cls()

    async def end_streams_at_shutdown(self) -> None:
        """Wait until uvicorn shuts down, and end the streams then: it waits for them before it ends the lifespan."""
        # uvicorn does not tell the application. Its handler of signals is a method of the server; it stays in place.
        server: Any = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        if not hasattr(server, "should_exit"):
            return
        while not server.should_exit:  # noqa: ASYNC110, uvicorn has no event for it
            await asyncio.sleep(_POLL_INTERVAL)
        self.is_stopping = True
        for end in tuple(self.streams.values()):
            end()
            await asyncio.sleep(0)  # there may be thousands
        await asyncio.sleep(_LAST_SEND)
        for block in tuple(self.streams):  # of clients that do not read
            cancel(block)
            await asyncio.sleep(0)
