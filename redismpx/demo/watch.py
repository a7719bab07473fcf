"""The second WebSocket of the page: numbers, requests, faults, the feed of all rooms, promises and counters."""

from __future__ import annotations

__all__ = ["COUNTERS_INTERVAL", "MAX_PROMISES", "REQUEST_INTERVAL", "WatchWebSocket"]

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.websockets import WebSocket

from .. import InactiveSubscription, Promise, PromiseInterrupted, PromiseTimeout
from .backend import NUMBERS_TOPIC, Backend
from .errors import RequestRejected
from .protocol import MAX_CHAT_TEXT, ROOM_PREFIX, fault_of, seconds_of
from .websocket import DemoWebSocket

COUNTERS_INTERVAL = 0.5  # seconds between two reads of the counters
REQUEST_INTERVAL = 1.0  # seconds between two requests
MAX_PROMISES = 20  # pending at a time, for each page


class WatchWebSocket(DemoWebSocket):
    """Sends a page the numbers, replies, the messages of all rooms, the outcomes of its promises, and the counters."""

    def __init__(self, socket: WebSocket, backend: Backend) -> None:
        super().__init__(socket, backend)
        self._promises: dict[str, Promise] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscription = backend.mpx.new_pattern_subscription(
            ROOM_PREFIX + b"*", self.on_message, self.on_disconnect, self.on_activation, on_error=self.on_error
        )
        self._channel = backend.mpx.new_channel_subscription(
            lambda channel, number: self.send("number", of="channel", number=number),
            self._tell("interrupted", "channel"),
            self._tell("resumed", "channel"),
            decode=int,
            on_error=self.on_error,
        )
        self._stream = backend.mpx.new_stream_subscription(
            lambda message: self.send("number", of="stream", number=message.data),
            self._tell("gap", "stream"),
            self._tell("interrupted", "stream"),
            self._tell("resumed", "stream"),
            decode=int,
            on_error=self.on_error,
        )

    async def run(self) -> None:
        """Handle requests until the WebSocket closes, then close the subscriptions and cancel the tasks."""
        async with self._subscription, self._channel, self._stream:
            self._channel.add(self._backend.ticker.channel)
            self._stream.add(self._backend.ticker.stream)
            self._start(self._send_changes())
            self._start(self._send_replies())
            try:
                with self._backend.topics.subscribe(NUMBERS_TOPIC, self.on_topic):
                    await super().run()
            finally:
                while self._tasks:  # on Python 3.11 redis-py may swallow a cancellation, so repeat it
                    for task in self._tasks:
                        task.cancel()
                    await asyncio.wait(self._tasks, timeout=0.1)

    async def handle(self, request: dict[str, Any]) -> None:
        """Make a promise, keep one, or cause a fault."""
        match request:
            case {"do": "promise", "seconds": seconds}:
                await self._make_promise(seconds_of(seconds))
            case {"do": "keep", "promise": str(name)}:
                if (promise := self._promises.get(name)) is None:
                    raise RequestRejected("this promise already has its outcome")
                await self._backend.publish(promise.channel, b"done")
            case {"do": "fault"}:
                self._start(self._cause(*fault_of(request)))
            case _:
                raise RequestRejected("unknown request; this WebSocket can promise, keep and cause a fault")

    async def on_activation(self, pattern: bytes) -> None:
        """Send that Redis has confirmed the feed's pattern."""
        await self.send("activation", pattern=pattern.decode())

    async def on_topic(self, topic: tuple[str, ...], number: int) -> None:
        """Send a number of the topic. This subscriber is in the publisher's process, so it is called without Redis."""
        await self.send("number", of="topic", number=number)

    def _tell(self, kind: str, subscription: str) -> Callable[[object], Coroutine[object, object, None]]:
        return lambda _: self.send(kind, of=subscription)

    async def _cause(self, fault: str, seconds: float) -> None:
        try:
            await self._backend.cause(fault, seconds)
        except RequestRejected as rejection:
            await self.send("error", text=str(rejection), do="fault")

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

    async def _send_replies(self) -> None:
        for number in itertools.count(1):
            await asyncio.gather(self._send_reply(number), asyncio.sleep(REQUEST_INTERVAL))

    async def _send_reply(self, number: int) -> None:
        await self.send("reply", number=number, reply=await self._backend.ask(number))

    async def _send_changes(self) -> None:
        sent: dict[str, dict[str, object]] = {}
        while True:
            for kind, facts in (("facts", self._backend.facts()), ("counters", await self._backend.counters())):
                if sent.get(kind) != facts:
                    sent[kind] = facts
                    await self.send(kind, **facts)
            await asyncio.sleep(COUNTERS_INTERVAL)

    def _start(self, coroutine: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
