"""The rest of a page: the feed of all rooms (a `PatternSubscription`), its promises, the counters and the knife."""

from __future__ import annotations

__all__ = ["COUNT_INTERVAL", "MAX_PROMISES", "Watch"]

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.websockets import WebSocket

from .. import InactiveSubscription, Promise, PromiseInterrupted, PromiseTimeout
from .backend import Backend
from .errors import Refused
from .session import Session
from .vocabulary import MAX_TEXT, ROOM_PREFIX, seconds_of

COUNT_INTERVAL = 0.5  # seconds between two looks at the counters
MAX_PROMISES = 20


class Watch(Session):
    """Sees what is said in all rooms, and waits for promises."""

    def __init__(self, socket: WebSocket, backend: Backend) -> None:
        super().__init__(socket, backend)
        self._promises: dict[str, Promise] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscription = backend.mpx.new_pattern_subscription(
            ROOM_PREFIX + b"*", self.on_message, self.on_disconnect, self.on_activation, on_error=self.on_error
        )

    async def run(self) -> None:
        """Live as long as the WebSocket, and end what was begun for it."""
        async with self._subscription:
            self._start(self._count())
            try:
                await super().run()
            finally:
                while self._tasks:  # on Python 3.11 redis-py may swallow a cancellation: once may not be enough
                    for task in self._tasks:
                        task.cancel()
                    await asyncio.wait(self._tasks, timeout=0.1)

    async def do(self, request: dict[str, Any]) -> None:
        """Make a promise, keep one, or cut the connection to Redis."""
        match request:
            case {"do": "promise", "seconds": seconds}:
                await self._promise(seconds_of(seconds))
            case {"do": "keep", "promise": str(name)}:
                if (promise := self._promises.get(name)) is None:
                    raise Refused("this promise has its outcome already")
                await self._backend.publish(promise.channel, b"done")
            case {"do": "cut"}:
                await self.tell("cut", connections=await self._backend.cut())
            case _:
                raise Refused("this WebSocket can promise, keep and cut")

    async def on_activation(self, pattern: bytes) -> None:
        """Tell that the feed is live."""
        await self.tell("activation", pattern=pattern.decode())

    async def _promise(self, seconds: float) -> None:
        if len(self._promises) >= MAX_PROMISES:
            raise Refused(f"{MAX_PROMISES} promises at a time are enough here")
        try:
            promise = self._backend.promises.new_promise(timeout=seconds)
        except InactiveSubscription:
            raise Refused("there is no connection to Redis now, so the message could be missed") from None
        name = promise.channel.decode()
        self._promises[name] = promise
        await self.tell("promise", promise=name, state="waiting", seconds=seconds, detail="")
        self._start(self._await(promise, name, seconds))

    async def _await(self, promise: Promise, name: str, seconds: float) -> None:
        try:
            state, detail = "kept", (await promise)[:MAX_TEXT].decode(errors="replace")
        except PromiseTimeout:
            state, detail = "timed out", ""
        except PromiseInterrupted as error:
            state, detail = "interrupted", error.reason
        finally:
            del self._promises[name]
        await self.tell("promise", promise=name, state=state, seconds=seconds, detail=detail)

    async def _count(self) -> None:
        told = None
        while True:
            counters = await self._backend.counters()
            if counters != told:
                told = counters
                await self.tell("counters", **counters)
            await asyncio.sleep(COUNT_INTERVAL)

    def _start(self, coroutine: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
