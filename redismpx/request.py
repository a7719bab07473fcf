"""Request and reply: a message that carries the channel of its answer, and a promise that waits there.

Both go in an `Envelope`. An answer that has the header FAILURE says that there is none, and why.
"""

from __future__ import annotations

__all__ = ["FAILURE", "REPLIES", "Handler", "Publish", "Question", "Request", "Requester", "Service", "kind_of"]

import asyncio
import inspect
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeAlias

from redis.asyncio import Redis, RedisCluster

from ._core.buffer import Overflow
from ._core.wire import Kind, escape_glob
from ._io.delivery.inbox import Consumer
from ._io.delivery.reporter import Reporter
from ._io.redispy.diagnosis import is_cluster_node
from ._io.runtime.notification import Notifier
from ._io.runtime.tasks import is_cancelled, running_task
from .channel import ChannelSubscription
from .envelope import Envelope
from .errors import (
    ConnectionLost,
    MultiplexerIsClosed,
    NoResponders,
    PromiseInterrupted,
    PromiseTimeout,
    RequestFailed,
    SubscriptionIsClosed,
    plain,
    quote,
)
from .promise import PromiseSubscription
from .subscription import Hub, Subscription
from .typing import OnError

FAILURE = "Mpx-Error"
"""The header of an answer that is none: the type and the text of what the handler raised."""
REPLIES = b"__mpx_reply:"
"""What the channels of all answers begin with."""
HANDLING, PUBLISHING = "the handler", "publishing an answer"  # what may fail, by the words of the log


class Publish(Protocol):
    """Publishes a payload on a channel; returns how many got it, as Redis counts."""

    def __call__(self, channel: bytes, data: bytes, *, sharded: bool = False) -> Awaitable[int]:
        """Publish it."""
        ...


class Question(NamedTuple):
    """What is asked, and by what kind of channel."""

    channel: bytes
    body: bytes
    headers: Mapping[str, str]
    sharded: bool

    def to(self, reply_to: bytes) -> bytes:
        """Return what is published, to be answered there."""
        return bytes(Envelope(self.body, self.headers, reply_to=reply_to))


@dataclass(frozen=True, slots=True)
class Request:
    """What a handler is asked."""

    channel: bytes
    """The channel that it was published to."""
    body: bytes
    """The payload. Not shown in the `repr`, and neither are the headers."""
    headers: Mapping[str, str]
    """Text by name, read-only."""
    reply_to: bytes | None
    """The channel on which the answer is wanted; None if none is: what the handler returns is thrown away then."""
    id: str
    """The id of its envelope: the same request, if it comes twice, has the same."""
    timestamp: datetime
    """When it was made, by the requester's clock: in UTC."""

    def __repr__(self) -> str:
        return f"<Request {self.id} on {quote(self.channel)}, {len(self.body)} bytes>"


Handler: TypeAlias = Callable[[Request], bytes | Awaitable[bytes | None] | None]
"""Answers a request. May be plain, a coroutine function, or return any awaitable."""


class Requester:
    """All requests of one multiplexer. Their answers come by one promise subscription, made for the first of them."""

    def __init__(
        self,
        hub: Hub,
        redis: Redis | RedisCluster,
        publish: Publish,
        counts: Callable[[bytes], Awaitable[bool]],
        on_error: OnError | None,
        max_pending: int,
    ) -> None:
        self._hub = hub
        self._redis = redis
        self._publish = publish
        self._counts = counts  # whether nobody means nobody, of a shard channel
        self._on_error = on_error
        self._max_pending = max_pending
        self._promises: PromiseSubscription | None = None
        self._counts_all: bool | None = None  # whether PUBLISH counts all that are reached; None: not known yet
        self._asking = asyncio.Lock()

    @cached_property
    def _prefix(self) -> bytes:
        # Not before it is needed: of a multiplexer made before a fork, each child is to have its own.
        return REPLIES + secrets.token_urlsafe(16).encode() + b":"

    async def request(self, question: Question, timeout: float) -> bytes:
        """Ask, and wait for the first answer."""
        channel = question.channel
        if self._promises is None:
            self._promises = PromiseSubscription(self._hub, self._on_error, self._prefix)
        try:
            promise = await self._promises.wait_for_new_promise(timeout=timeout)
            try:
                await self._ask(question, promise.channel, promise)
                answer = await promise
            finally:
                promise.cancel()
                del promise  # or what it raises would lead to itself, by its traceback
        except PromiseTimeout as error:
            raise PromiseTimeout(channel, timeout, "answer to a request") from error.__cause__
        except PromiseInterrupted as error:
            raise PromiseInterrupted(channel, error.reason) from error.__cause__
        except SubscriptionIsClosed:
            raise PromiseInterrupted(channel, "closed") from None
        return _read(channel, answer)

    async def request_many(self, question: Question, timeout: float, limit: int | None) -> AsyncGenerator[bytes, None]:
        """Ask, and yield the answers until the time is up or there are `limit` of them."""
        channel = question.channel
        loop = asyncio.get_running_loop()
        ends = loop.time() + timeout
        over: asyncio.Future[ConnectionLost | None] = loop.create_future()

        def end(error: ConnectionLost) -> None:  # its turn comes when all that came before has been read
            _settle(over, error)
            answers.close()

        # Not promises: of two answers that come together, the second would find none made yet.
        consumer = Consumer(None, end, on_error=self._on_error, max_pending=self._max_pending)
        answers: ChannelSubscription[bytes] = ChannelSubscription(self._hub, consumer)
        timer = loop.call_at(ends, _settle, over, None)
        failure: RequestFailed | None = None
        waiting: int | None = None  # answers that came in time, and are still to be read
        count = 0
        try:
            reply_to = self._prefix + secrets.token_urlsafe(16).encode()
            answers.add(reply_to)
            try:
                await answers.wait_for_activation(timeout)
            except TimeoutError as error:
                raise PromiseTimeout(channel, timeout, "answer to a request") from error.__cause__
            await self._ask(question, reply_to, over)
            while count != limit:
                rest = ends - loop.time()
                if rest <= 0:
                    waiting = answers.pending if waiting is None else waiting - 1
                    if waiting <= 0:
                        break
                try:
                    answer = (await answers.get(max(rest, 0.0))).data
                except TimeoutError:
                    break
                count += 1
                try:
                    result = _read(channel, answer)
                except RequestFailed as error:
                    failure = failure or error
                else:
                    yield result
        except SubscriptionIsClosed:
            lost = over.result() if over.done() else None
            raise PromiseInterrupted(channel, "closed" if lost is None else "connection lost") from lost
        finally:
            timer.cancel()
            answers.close()
        if failure is not None:
            try:
                raise failure
            finally:
                del failure

    def give_up(self) -> None:
        """Interrupt all requests that wait for one answer, for no more can come. Without effect if there are none."""
        if self._promises is not None:
            self._promises.close()

    async def _ask(self, question: Question, reply_to: bytes, over: asyncio.Future[Any]) -> None:
        """Publish a request, unless it is over before that: then the outcome is known, or can be no answer."""
        channel, asked = question.channel, False

        def hurry(_: object) -> None:
            if not asked:  # it is called a tick later than `over`
                patience.reschedule(0.0)

        try:
            async with asyncio.timeout(None) as patience:
                over.add_done_callback(hurry)
                try:
                    receivers = await self._publish(channel, question.to(reply_to), sharded=question.sharded)
                    if receivers == 0 and not over.done():
                        is_sure = await (self._counts(channel) if question.sharded else self._can_count())
                        if is_sure:
                            raise NoResponders(channel)
                finally:
                    asked = True
                    over.remove_done_callback(hurry)
        except TimeoutError:
            return
        except (ConnectionLost, MultiplexerIsClosed) as error:
            if over.done():
                return
            reason = "connection lost" if isinstance(error, ConnectionLost) else "closed"
            raise PromiseInterrupted(channel, reason) from error

    async def _can_count(self) -> bool:
        """Whether none that PUBLISH counted means nobody: a node of a cluster counts its own subscribers alone."""
        async with self._asking:
            if self._counts_all is None:
                is_node = await is_cluster_node(self._redis)
                if is_node is None:
                    return True
                self._counts_all = not is_node
            return self._counts_all


class Service(Subscription):
    """Answers the requests on one channel, or on all that match a pattern. Made by `Multiplexer.serve()`."""

    __slots__ = ("_concurrency", "_handler", "_kind", "_label", "_name", "_progress", "_publish", "_reporter", "_tasks")

    def __init__(
        self,
        hub: Hub,
        publish: Publish,
        name: bytes,
        handler: Handler,
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
        self._handler = handler
        self._concurrency = concurrency
        self._label = f"service on {quote(name)}"
        self._reporter = Reporter(on_error, self._label)
        self._tasks: set[asyncio.Task[object]] = set()  # each handles a request
        self._progress = Notifier()  # fires when one has ended
        hub.admit(self._kind, (name,))
        consumer = Consumer(
            self._take,
            on_error=on_error,
            decode=Envelope.from_bytes,
            max_pending=max_pending,
            overflow=overflow,
            is_own=True,
        )
        super().__init__(hub, consumer, self._label)
        hub.add(self._kind, (name,), self._inbox)

    @property
    def in_flight(self) -> int:
        """Requests that are being handled: `concurrency` at most."""
        return len(self._tasks)

    @property
    def pending(self) -> int:
        """Requests received and waiting to be handled: `max_pending` at most."""
        return self._inbox.pending

    @property
    def dropped(self) -> int:
        """Messages dropped so far: because more than `max_pending` waited, or because they were no envelopes."""
        return self._inbox.dropped

    def close(self) -> None:
        """Leave at once and for good: handlers in flight are cancelled, and nobody is answered any more.

        To let them end, use `Multiplexer.drain()`. Closing twice, or offline, is fine.
        """
        super().close()
        for task in tuple(self._tasks):
            if task is not running_task() and not task.get_loop().is_closed():
                task.cancel()

    async def _consumed(self) -> None:
        await super()._consumed()
        while self._tasks and not self.closed:
            await self._progress.wait()

    def _take(self, channel: bytes, envelope: Envelope) -> Awaitable[None] | None:
        """Begin to handle a request; return what to await before the next, if anything."""
        request = Request(channel, envelope.body, envelope.headers, envelope.reply_to, envelope.id, envelope.timestamp)
        task = self._hub.tasks.start(self._handle(request), f"redismpx {self._label}")
        if not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._leave)
        return self._room() if len(self._tasks) >= self._concurrency else None

    def _leave(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        self._progress.notify()

    async def _room(self) -> None:
        while len(self._tasks) >= self._concurrency:
            await self._progress.wait()

    async def _handle(self, request: Request) -> None:
        failures: list[tuple[BaseException, str]] = []
        try:
            answer = self._handler(request)
            if inspect.isawaitable(answer):
                answer = await answer
            data = bytes(Envelope(_as_body(answer)))
        except BaseException as error:
            if is_cancelled(error) or isinstance(error, GeneratorExit):
                raise
            failures.append((error, HANDLING))
            data = _failure(error)
        if request.reply_to is not None:
            try:
                try:
                    await self._publish(request.reply_to, data)
                except ValueError as error:  # it is longer than a payload may be
                    failures.append((error, PUBLISHING))
                    await self._publish(request.reply_to, _failure(error))
            except Exception as error:  # noqa: BLE001, whatever it is, nobody hears of it but the owner of the service
                failures.append((error, PUBLISHING))
        while failures:
            await self._reporter.settle(*failures.pop(0), self.closed)

    @property
    def _names(self) -> tuple[bytes]:
        return (self._name,)

    def __repr__(self) -> str:
        return self._describe(f"{quote(self._name)} in_flight={self.in_flight}")


def kind_of(name: bytes) -> Kind:
    """Tell whether a name to serve is a pattern: it is one as soon as there is something in it to escape."""
    return Kind.CHANNEL if escape_glob(name) == name else Kind.PATTERN


def _settle(over: asyncio.Future[ConnectionLost | None], error: ConnectionLost | None) -> None:
    if not over.done():
        over.set_result(error)


def _read(channel: bytes, answer: bytes) -> bytes:
    """Return the body of an answer; raise `RequestFailed` if it has none."""
    try:
        envelope = Envelope.from_bytes(answer)
    except ValueError as error:
        raise RequestFailed(channel, f"its answer is {error}") from None
    failure = envelope.headers.get(FAILURE)
    if failure is not None:
        raise RequestFailed(channel, failure)
    return envelope.body


def _as_body(answer: object) -> bytes:
    if answer is None:
        return b""
    if not isinstance(answer, bytes):
        raise TypeError(f"a handler must return bytes or None, not {type(answer).__name__}")
    return answer


def _failure(error: BaseException) -> bytes:
    """Return the answer of who has none: the type and the text of an exception, and never its traceback."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001, users' code
        text = ""
    kind = type(error).__name__
    return bytes(Envelope(b"", {FAILURE: plain(f"{kind}: {text}" if text else kind)}))
