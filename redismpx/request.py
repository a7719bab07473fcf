"""Requests: an envelope that names a reply channel is published, and a promise waits on that channel."""

from __future__ import annotations

__all__ = ["BeginRequest", "EncodedHandler", "Handler", "OutgoingRequest", "Request", "Requester"]

import asyncio
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeAlias

from ._core.wire import Kind
from ._io.delivery.consumer import Consumer
from ._io.hub import Hub
from .channel import ChannelSubscription
from .envelope import Envelope, Headers
from .errors import (
    ConnectionLost,
    DecodeError,
    MultiplexerIsClosed,
    PromiseInterrupted,
    PromiseTimeout,
    RequestFailed,
    SubscriptionIsClosed,
    quote,
)
from .promise import Promise, PromiseSubscription
from .reply import REPLIES, check_request_headers, read_reply
from .typing import Decode, OnError, Payload, T

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # typing's from Python 3.13 on

    Body = TypeVar("Body", default=bytes)
else:
    from typing import TypeVar

    Body = TypeVar("Body")

_Result = TypeVar("_Result")

_TOKENS = 45  # bytes of a reply channel after its prefix: two tokens of 128 bits, and a colon


@dataclass(frozen=True, slots=True)
class Request(Generic[Body]):
    """A request, as a handler gets it. It is generic in the type of its body: `bytes` without `decode`."""

    channel: bytes
    """The channel on which the request was published."""
    body: Body
    """The payload: `bytes`, or the result of `decode`. The `repr` shows neither the body nor the headers."""
    headers: Mapping[str, str]
    """Text by name, read-only."""
    reply_to: bytes | None
    """The channel for the reply. None: the requester expects no reply, and the result of the handler is discarded."""
    id: str
    """The id of the envelope. A request that arrives twice has the same id both times."""
    timestamp: datetime
    """The time at which the request was made, by the requester's clock, in UTC."""

    def __repr__(self) -> str:
        body = f"{len(self.body)} bytes" if isinstance(self.body, bytes) else type(self.body).__name__
        return f"<Request {self.id} on {quote(self.channel)}, {body}>"


Handler: TypeAlias = Callable[[Request[Body]], bytes | Awaitable[bytes | None] | None]
"""Returns the reply to a request. A plain function, a coroutine function, or any callable that returns an awaitable."""

EncodedHandler: TypeAlias = Callable[[Request[T]], _Result | Awaitable[_Result]]
"""The same for a service with `encode`, which converts what the handler returns."""


class BeginRequest(Protocol):
    """Publishes a request, and has the outcome set on a future; returns what cancels that."""

    def __call__(
        self, channel: bytes, data: Payload, outcome: asyncio.Future[int], *, sharded: bool
    ) -> Callable[[], None]:
        """Publish the payload after all earlier ones."""
        ...


class OutgoingRequest(NamedTuple):
    """A request before it is published."""

    channel: bytes
    body: bytes
    headers: Headers
    sharded: bool
    decode: Decode[Any] | None = None  # of the replies

    def check_head(self) -> None:
        """Raise `ValueError` if the headers are not those of a request, or are too long."""
        if self.headers:
            check_request_headers(self.headers)
            bytes(self._replace(body=b"").enclose(REPLIES + b"x" * _TOKENS))

    def enclose(self, reply_to: bytes) -> Envelope:
        """Return what to publish, with the channel for the reply."""
        return Envelope(self.body, self.headers, reply_to=reply_to)


class Requester:
    """All requests of one multiplexer. They share one promise subscription, which the first request makes."""

    def __init__(
        self,
        hub: Hub,
        begin: BeginRequest,
        on_error: OnError | None,
        max_pending: int,
    ) -> None:
        self._hub = hub
        self._begin = begin
        self._on_error = on_error
        self._max_pending = max_pending
        self._promises: PromiseSubscription | None = None

    @cached_property
    def _prefix(self) -> bytes:
        # Made when it is first used: if a multiplexer is made before a fork, each child has a prefix of its own.
        return REPLIES + secrets.token_urlsafe(16).encode() + b":"

    async def request(self, request: OutgoingRequest, timeout: float) -> Any:
        """Publish a request, and return the body of the first reply."""
        channel = request.channel
        if self._promises is None:
            self._promises = PromiseSubscription(self._hub, self._on_error, self._prefix)
        try:
            promise = await self._promises.wait_for_new_promise(timeout=timeout)
            try:
                envelope = request.enclose(promise.channel)
                cancel = self._begin(channel, envelope, _PublishingOutcome(promise), sharded=request.sharded)
                try:
                    reply = await promise
                finally:
                    cancel()
                    del cancel  # otherwise an exception refers to itself: traceback, frame, promise, exception
            finally:
                promise.cancel()
                del promise  # for the same reason
        except PromiseTimeout as error:
            why = self._hub.progress(Kind.PATTERN) if error.__cause__ else ""  # it was not subscribed to the replies
            raise PromiseTimeout(channel, timeout, "reply to a request", why) from error.__cause__
        except PromiseInterrupted as error:
            raise _interruption(error.__cause__) from error.__cause__
        except SubscriptionIsClosed:
            raise MultiplexerIsClosed from None
        return read_reply(channel, reply, request.decode)

    async def request_many(
        self, request: OutgoingRequest, timeout: float, limit: int | None
    ) -> AsyncGenerator[Any, None]:
        """Publish a request, and yield the replies until the timeout, or until there are `limit` of them."""
        self._hub.enter()
        channel = request.channel
        failure: RequestFailed | DecodeError | None = None
        count, is_sent = 0, False
        replies = _ReplySubscription(self._hub, self._on_error, self._max_pending, timeout)
        try:
            reply_to = self._prefix + secrets.token_urlsafe(16).encode()
            try:
                await replies.subscribe(reply_to)
            except TimeoutError as error:
                why = self._hub.progress(Kind.CHANNEL)
                raise PromiseTimeout(channel, timeout, "reply to a request", why) from error.__cause__
            await self._send(request, reply_to, replies.outcome)
            is_sent = True
            while count != limit and (reply := await replies.next()) is not None:
                count += 1
                try:
                    body = read_reply(channel, reply, request.decode)
                except (RequestFailed, DecodeError) as error:
                    failure = failure or error
                else:
                    yield body
        except SubscriptionIsClosed:
            raise _interruption(replies.lost, sent=is_sent) from replies.lost
        finally:
            replies.close()
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # otherwise the exception refers to itself: traceback, frame, exception

    def interrupt(self) -> None:
        """Interrupt each `request()` that waits for its reply. Without effect if there is none."""
        if self._promises is not None:
            self._promises.close()

    async def _send(self, request: OutgoingRequest, reply_to: bytes, outcome: asyncio.Future[Any]) -> None:
        """Publish a request, and wait until it is published, or until `outcome` is done: no reply can come."""
        sent = outcome.get_loop().create_future()
        cancel = self._begin(request.channel, request.enclose(reply_to), sent, sharded=request.sharded)
        try:
            await asyncio.wait((sent, outcome), return_when=asyncio.FIRST_COMPLETED)
            if sent.done() and sent.exception() and not outcome.done():
                sent.result()
        finally:
            cancel()
            del sent, cancel  # otherwise an exception refers to itself: traceback, frame, future, exception


class _PublishingOutcome(asyncio.Future[int]):
    """The outcome of publishing a request. If it is a failure, it is that of the promise for the reply, too."""

    __slots__ = ("_promise",)

    def __init__(self, promise: Promise) -> None:
        super().__init__(loop=promise.get_loop())
        self._promise = promise

    def set_exception(self, exception: type[BaseException] | BaseException) -> None:
        super().set_exception(exception)
        self.exception()  # marks it as retrieved
        if not self._promise.done():  # the reply may be there already
            self._promise.set_exception(exception)


class _ReplySubscription:
    """The replies to one `request_many()`: until the deadline, or until the connection is lost.

    The replies are not promises: of two replies that arrive together, the second would find no promise yet.
    """

    def __init__(self, hub: Hub, on_error: OnError | None, max_pending: int, timeout: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout = timeout
        self._deadline = self._loop.time() + timeout
        self.outcome: asyncio.Future[ConnectionLost | None] = self._loop.create_future()
        """Done at the deadline, or when the connection is lost."""
        consumer = Consumer(None, self._disconnected, on_error=on_error, max_pending=max_pending)
        self._subscription: ChannelSubscription[bytes] = ChannelSubscription(hub, consumer)
        self._timer = self._loop.call_at(self._deadline, self._finish, None)
        self._late: int | None = None  # replies that arrived before the deadline and are read after it

    async def subscribe(self, reply_to: bytes) -> None:
        """Subscribe to the reply channel, and wait until Redis has confirmed it. Raises `TimeoutError`."""
        self._subscription.add(reply_to)
        await self._subscription.wait_for_activation(timeout=self._timeout)

    async def next(self) -> bytes | None:
        """Wait for the next reply; return None when all replies that arrived before the deadline have been read."""
        left = max(self._deadline - self._loop.time(), 0.0)
        if left == 0.0 and not self._take_late():
            return None
        try:
            return (await self._subscription.get(left)).data
        except TimeoutError:
            return None

    def _take_late(self) -> bool:
        """Count a reply that is read after the deadline; return whether there is one.

        Replies that arrive after the deadline do not count: otherwise the iteration would go on while they arrive.
        """
        if self._late is None:
            self._late = self._subscription.pending
        self._late -= 1
        return self._late >= 0

    @property
    def lost(self) -> ConnectionLost | None:
        """The loss of the connection, if that has ended the subscription."""
        return self.outcome.result() if self.outcome.done() else None

    def close(self) -> None:
        """Unsubscribe, and stop the timer."""
        self._timer.cancel()
        self._subscription.close()

    def _disconnected(self, error: ConnectionLost) -> None:  # called when all earlier replies have been read
        self._finish(error)
        self._subscription.close()

    def _finish(self, error: ConnectionLost | None) -> None:
        if not self.outcome.done():
            self.outcome.set_result(error)


def _interruption(cause: BaseException | None, *, sent: bool = True) -> ConnectionLost | MultiplexerIsClosed:
    """Return the error of a request whose replies can no longer be received: because of `cause`, or of the end."""
    return ConnectionLost(cause.reason, sent=sent) if isinstance(cause, ConnectionLost) else MultiplexerIsClosed()
