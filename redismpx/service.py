"""Services: each request on a channel goes to a handler, and the result of the handler is the reply."""

from __future__ import annotations

__all__ = ["Service", "kind_of"]

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from ._core.overflow import Overflow
from ._core.raised import is_a
from ._core.wire import Kind, escape_glob
from ._io.delivery.consumer import Consumer
from ._io.delivery.reporter import Reporter
from ._io.hub import Hub
from ._io.runtime.awaitable import is_awaitable
from ._io.runtime.notification import Notifier
from ._io.runtime.tasks import adopt, belongs_to, is_cancelled, mark_callback, running_task
from .arguments import to_payload
from .envelope import Envelope
from .errors import quote
from .reply import decode_body, new_failure, new_reply, read_request
from .request import Request
from .subscription import Subscription
from .typing import Decode, Encode, OnError, Payload


class Service(Subscription):
    """Replies to the requests on one channel, or on all channels that match a pattern.

    Made by `Multiplexer.serve()`.
    """

    __slots__ = (
        "_concurrency", "_decode", "_encode", "_handler", "_kind", "_label", "_name", "_progress", "_publish",
        "_reporter", "_tasks",
    )  # fmt: skip

    def __init__(
        self,
        hub: Hub,
        publish: Callable[[bytes, Payload], Awaitable[int]],
        name: bytes,
        handler: Callable[[Request[Any]], object],
        decode: Decode[Any] | None,
        encode: Encode[Any] | None,
        concurrency: int,
        on_error: OnError | None,
        max_pending: int,
        overflow: Overflow,
        *,
        sharded: bool,
    ) -> None:
        self._kind = Kind.SHARD_CHANNEL if sharded else kind_of(name)
        self._publish = publish
        self._name = name
        self._label = f"service on {quote(name)}"
        watch = hub.delivery.watch
        self._handler = handler if watch is None or not watch.follows else watch.serving(handler, self._label)
        self._decode = decode
        self._encode = encode
        self._concurrency = concurrency
        self._reporter = Reporter(on_error, self._label, hub.delivery.record_limit)
        self._tasks: set[asyncio.Task[object]] = set()  # one for each request in flight
        self._progress = Notifier()  # notifies when a handler has ended
        hub.admit(self._kind, (name,))
        consumer = Consumer(
            self._start_handler,
            on_error=on_error,
            decode=read_request,
            max_pending=max_pending,
            overflow=overflow,
            is_own=True,
        )
        super().__init__(hub, consumer, self._label)
        hub.add(self._kind, (name,), self._inbox)

    @property
    def in_flight(self) -> int:
        """The number of requests that are being handled: at most `concurrency`."""
        return len(self._tasks)

    @property
    def pending(self) -> int:
        """The number of requests received and not yet handled: at most `max_pending`."""
        return self._inbox.pending

    @property
    def dropped(self) -> int:
        """The number of messages dropped so far, because the buffer was full or they were not requests."""
        return self._inbox.dropped

    def close(self) -> None:
        """Unsubscribe, and cancel the handlers in flight, at once and for good.

        Buffered requests are discarded, and no reply is sent any more. To let the handlers end first, use
        `Multiplexer.drain()`. May be called offline, and more than once.
        """
        super().close()

    def _end(self, reason: str | None) -> None:
        super()._end(reason)
        for task in tuple(self._tasks):
            if not belongs_to(task) and not task.get_loop().is_closed():
                task.cancel()

    async def _consumed(self) -> None:
        await super()._consumed()
        while self._tasks and not self.closed:
            await self._progress.wait()

    def _start_handler(self, channel: bytes, envelope: Envelope) -> Awaitable[None] | None:
        """Begin to handle a request; return what to await before the next one, if anything."""
        request = Request(channel, envelope.body, envelope.headers, envelope.reply_to, envelope.id, envelope.timestamp)
        task = self._hub.tasks.start(self._handle(request), f"redismpx {self._label}")
        if not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._handler_ended)
        return self._below_limit() if len(self._tasks) >= self._concurrency else None

    def _handler_ended(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        self._progress.notify()

    async def _below_limit(self) -> None:
        """Wait until another handler may start."""
        while len(self._tasks) >= self._concurrency:
            await self._progress.wait()

    async def _call(self, request: Request[bytes]) -> bytes:
        """Call the handler; return the reply."""
        if self._decode is not None:
            request = replace(request, body=decode_body(request.channel, request.body, self._decode))
        result = self._handler(request)
        if is_awaitable(result):
            adopt(result)
            result = await result
        return new_reply(result if self._encode is None else to_payload(self._encode(result), None))

    async def _handle(self, request: Request[bytes]) -> None:
        task = running_task()
        assert task is not None
        mark_callback(task)
        failures: list[tuple[BaseException, bool]] = []  # each with whether it is a fault of the handler
        try:
            reply = await self._call(request)
        except BaseException as error:
            if is_cancelled(error) or is_a(error, GeneratorExit):
                raise
            failures.append((error, True))
            reply = new_failure(error)
        if request.reply_to is not None and not self.closed:
            try:
                await self._publish_reply(request.reply_to, reply, failures)
            except Exception as error:  # noqa: BLE001, it is for the owner of the service only: there is no reply
                failures.append((error, False))
        while failures:  # popped, so that no exception refers to itself: traceback, frame, list, exception
            await self._report(*failures.pop(0))

    async def _report(self, error: Any, is_of_handler: bool) -> None:
        """Report an error, and await what on_error returns. Only a fault of the handler has a traceback in the log."""
        reporter, closed = self._reporter, self.closed
        if is_of_handler:
            report = reporter.failed(error, "the handler", closed)
        else:
            report = None if closed else reporter.report(error)
        if report is not None:
            await reporter.settle(report)

    async def _publish_reply(self, reply_to: bytes, reply: bytes, failures: list[tuple[BaseException, bool]]) -> None:
        try:
            await self._publish(reply_to, reply)
        except ValueError as error:  # the reply is longer than `max_payload`: publish that instead
            failures.append((error, True))
            await self._publish(reply_to, new_failure(error))

    @property
    def _names(self) -> tuple[bytes]:
        return (self._name,)

    def __repr__(self) -> str:
        return self._describe(f"{quote(self._name)} in_flight={self.in_flight}")


def kind_of(name: bytes) -> Kind:
    """Tell whether a name to serve is a channel or a pattern: a pattern has a character that needs escaping."""
    return Kind.CHANNEL if escape_glob(name) == name else Kind.PATTERN
