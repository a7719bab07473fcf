"""The second WebSocket of the page: the feed of all rooms, the promises, the counters and the cut of the connection."""

from __future__ import annotations

__all__ = ["COUNTERS_INTERVAL", "MAX_PROMISES", "WatchWebSocket"]

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.websockets import WebSocket

from .. import InactiveSubscription, Promise, PromiseInterrupted, PromiseTimeout
from .backend import Backend
from .errors import RequestRejected
from .protocol import MAX_CHAT_TEXT, ROOM_PREFIX, seconds_of
from .websocket import DemoWebSocket

COUNTERS_INTERVAL = 0.5  # seconds between two reads of the counters
MAX_PROMISES = 20  # pending at a time, for each page


class WatchWebSocket(DemoWebSocket):
    """Sends a page the messages of all rooms, the outcomes of its promises, and the counters."""

    def __init__(self, socket: WebSocket, backend: Backend) -> None:
        super().__init__(socket, backend)
        self._promises: dict[str, Promise] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscription = backend.mpx.new_pattern_subscription(
            ROOM_PREFIX + b"*", self.on_message, self.on_disconnect, self.on_activation, on_error=self.on_error
        )

    async def run(self) -> None:
        """Handle requests until the WebSocket closes, then close the subscription and cancel the tasks."""
        async with self._subscription:
            self._start(self._send_counters())
            try:
                await super().run()
            finally:
                while self._tasks:  # on Python 3.11 redis-py may swallow a cancellation, so repeat it
                    for task in self._tasks:
                        task.cancel()
                    await asyncio.wait(self._tasks, timeout=0.1)

    async def handle(self, request: dict[str, Any]) -> None:
        """Make a promise, keep one, or cut the connection to Redis."""
        match request:
            case {"do": "promise", "seconds": seconds}:
                await self._make_promise(seconds_of(seconds))
            case {"do": "keep", "promise": str(name)}:
                if (promise := self._promises.get(name)) is None:
                    raise RequestRejected("this promise already has its outcome")
                await self._backend.publish(promise.channel, b"done")
            case {"do": "cut"}:
                await self.send("cut", connections=await self._backend.kill_connections())
            case _:
                raise RequestRejected("unknown request; this WebSocket can promise, keep and cut")

    async def on_activation(self, pattern: bytes) -> None:
        """Send that Redis has confirmed the feed's pattern."""
        await self.send("activation", pattern=pattern.decode())

    async def _make_promise(self, seconds: float) -> None:
        if len(self._promises) >= MAX_PROMISES:
            raise RequestRejected(f"at most {MAX_PROMISES} promises can be pending; wait for an outcome first")
        try:
            promise = self._backend.promises.new_promise(timeout=seconds)
        except InactiveSubscription:
            raise RequestRejected("Redis is not connected, so the message could be missed; try again") from None
        name = promise.channel.decode()
        self._promises[name] = promise
        await self.send("promise", promise=name, state="waiting", seconds=seconds, detail="")
        self._start(self._report_outcome(promise, name, seconds))

    async def _report_outcome(self, promise: Promise, name: str, seconds: float) -> None:
        try:
            state, detail = "kept", (await promise)[:MAX_CHAT_TEXT].decode(errors="replace")
        except PromiseTimeout:
            state, detail = "timed out", ""
        except PromiseInterrupted as error:
            state, detail = "interrupted", error.reason
        finally:
            del self._promises[name]
        await self.send("promise", promise=name, state=state, seconds=seconds, detail=detail)

    async def _send_counters(self) -> None:
        sent = None
        while True:
            counters = await self._backend.counters()
            if counters != sent:
                sent = counters
                await self.send("counters", **counters)
            await asyncio.sleep(COUNTERS_INTERVAL)

    def _start(self, coroutine: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
