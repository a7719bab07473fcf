"""Topics in an event loop, or in one process without a loop."""

from __future__ import annotations

__all__ = ["Topics"]

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Self

from .. import Multiplexer
from .._core.topic_tree import Words, parse_topic
from ..arguments import check_positive, check_seconds
from ..errors import NoResponders
from ..message import OnGap
from ..typing import Decode, Encode, OnDisconnect
from .bus import TopicBus
from .home_loop import HomeLoop
from .periodic import F, Periodic
from .reader import TopicReader
from .relay import RelayEvents
from .service import TopicService, call_here
from .subscription import TopicSubscription, ended, is_coroutine_function, running_loop
from .wire import ORIGIN, decode_json, encode_json, request_name


class Topics(TopicBus):
    """Publish and subscribe on a tree of topics: in one process, or, with a multiplexer, in many.

    A topic is a `str` of words with dots between them, or a tuple of words: `"orders.eu"` and `("orders", "eu")` are
    the same. A subscription covers its topic and everything below it. In a subscription, the word `=` stands for one
    word, and `+` for one word or more. `""`, `()` or None subscribes to everything, and publishes to every subscriber.

    A word has one character or more. A dot, white space, control characters, and `*`, `?`, `[`, `]` and the backslash
    are not allowed in it. A topic has at most 255 bytes in UTF-8.

    Without a multiplexer, no server and no event loop is needed. With one, each message goes to all processes whose
    topics have the same prefix. This process asks Redis for what its subscriptions cover, and for nothing else: a
    channel and a pattern for each topic. `redismpx.blocking.Topics` is the twin for threads.

    Any thread may call the methods that are no coroutines; with a multiplexer, after the first use in the loop. So may
    a callback, and a message that it publishes is delivered before its own call of `publish()` returns.

    `async with` closes the topics at the end, as `aclose()` does, and opens closed ones again, without subscriptions.

    Args:
        mpx: the multiplexer, which stays yours: topics do not close it. None: this process only.
        prefix: keeps the topics of one application apart from all other names in Redis. It has the rules of a topic,
            and no `:` or `!`.
        on_disconnect: called with a `ConnectionLost`, once for each lost connection. Messages of other processes are
            missed from here until the next activation.
        on_activation: called with the words of a subscription from which on it gets the messages of other processes,
            and again after each reconnect.
        on_gap: with `stream`, called with the `MessageGap` for messages that are lost for good.
        on_error: called with each exception of a callback, and of a handler of another process's request; with a
            `SlowConsumer`, with a `DecodeError` for a payload that is no message of a topic, and with the error of a
            message that did not reach Redis. Without it, they are logged. It and the three callbacks above are plain
            functions.
        encode: converts the keywords of a message, a `dict`, and the results of handlers to a payload.
        decode: converts it back. It gets hostile data: never use `pickle`.
        max_pending: how many messages may wait for one coroutine function, for one reader, and for Redis. Beyond that,
            the oldest one is dropped, or, for Redis, `publish()` raises `queue.Full`.
        stream: keep the messages of all topics of this prefix in one stream. So they survive a lost connection, and
            each process gets all of them. Use the same value in all processes.

    Raises:
        TypeError, ValueError: an argument is invalid.

    Example:
        ::

            topics = Topics()
            topics.subscribe("orders.eu", lambda topic, **message: print(topic, message))
            topics.publish("orders.eu.paid", id=7)  # prints ('orders', 'eu', 'paid') {'id': 7}
    """

    def __init__(
        self,
        mpx: Multiplexer | None = None,
        *,
        prefix: str = "topics",
        on_disconnect: OnDisconnect | None = None,
        on_activation: Callable[[Words], object] | None = None,
        on_gap: OnGap | None = None,
        on_error: Callable[[Exception], object] | None = None,
        encode: Encode[Any] = encode_json,
        decode: Decode[Any] = decode_json,
        max_pending: int = 10_000,
        stream: bool = False,
    ) -> None:
        if mpx is not None and not isinstance(mpx, Multiplexer):
            hint = ": a blocking multiplexer is for redismpx.blocking.Topics" if hasattr(mpx, "publish_soon") else ""
            raise TypeError(f"mpx must be a redismpx.Multiplexer or None, not {type(mpx).__name__}{hint}")
        self._mpx = mpx
        super().__init__(
            mpx, prefix, on_disconnect, on_activation, on_gap, on_error, encode, decode, max_pending, stream=stream
        )
        self._home = HomeLoop(self._reporter.report)
        self._periodic: list[Periodic] = []
        self._waiting_for_loop: list[Callable[[], Periodic]] = []

    # --- the loop of the multiplexer

    def _relay_events(self) -> RelayEvents:
        reporter = self._reporter
        return RelayEvents(self._receive, reporter.disconnected, reporter.activated, reporter.missed, reporter.report)

    def _call_in_loop(self, function: Callable[[], object]) -> None:
        self._home.call(function)

    def _post_to_loop(self, function: Callable[[], object]) -> None:
        self._home.call(function)

    # --- subscribing

    def subscribe(
        self, topic: str | Words | None, callback: Callable[..., Any], *, weak: bool = False
    ) -> TopicSubscription:
        """Call a callback for each message to a topic and to everything below it.

        It is called as `callback(topic, **message)`; `topic` is a tuple of words. It gets the keywords that its
        parameters take. For each keyword that it lacks, there is one warning in the log.

        A plain function is called before `publish()` returns, in the thread of the publisher; for a message of another
        process, in the thread of the loop. A coroutine function is awaited in the loop that runs now, for one message
        at a time, in their order.

        A callback is called once for a message, whatever number of its subscriptions cover the topic.

        Args:
            topic: the topic, perhaps with wildcards. `""`, `()` or None: everything.
            callback: a function, a method, or another object that can be called.
            weak: hold the callback weakly: the subscription ends with the object of a method, or with the function.

        Returns:
            The subscription. A second subscription of the same callback to the same topic is the first one.

        Raises:
            TypeError, ValueError: the topic is invalid, or the callback does not take a topic.
            RuntimeError: the callback is a coroutine function, and no event loop runs in this thread; or these topics
                are closed.
            TooManyPatterns, TooManyChannels: a limit of the multiplexer is reached.
            MultiplexerIsClosed: the multiplexer is closed.
        """
        if not callable(callback):
            raise TypeError(f"the callback must be callable, not {type(callback).__name__}")
        loop = running_loop() if is_coroutine_function(callback) else None
        if loop is None and is_coroutine_function(callback):
            raise RuntimeError("the callback is a coroutine function, and no event loop runs here to await it")
        return self._add_callback(topic, callback, loop, weak)

    def open(self, topic: str | Words | None, *, max_pending: int | None = None) -> TopicReader:
        """Read the messages to a topic and to everything below it, instead of having a callback called.

        Args:
            topic: the topic, perhaps with wildcards. `""`, `()` or None: everything.
            max_pending: how many messages are kept until they are read. Beyond that, the oldest one is dropped, and
                `on_error` gets a `SlowConsumer`. None: that of the `Topics`.

        Returns:
            The reader.

        Raises:
            TypeError, ValueError, RuntimeError, TooManyPatterns, TooManyChannels, MultiplexerIsClosed: as for
                `subscribe()`.
        """
        return TopicReader(self._add_queue(topic, max_pending))

    async def wait_for_activation(self, timeout: float | None = None) -> None:
        """Wait until all subscriptions, readers and services get what other processes send. Offline, it waits.

        Args:
            timeout: seconds. None: no limit.

        Raises:
            TimeoutError: not all are active within `timeout`.
            SubscriptionRefused: the server rejects a channel or a pattern.
            TypeError, ValueError: the timeout is invalid.
        """
        check_seconds(timeout, "timeout")
        if self._relay is not None:
            async with asyncio.timeout(timeout):
                await self._relay.wait_for_activation(None)
                for service in tuple(self._directory.services):
                    for remote in service.services:
                        await remote.wait_for_activation()

    async def flush(self) -> None:
        """Wait until all messages so far have reached Redis, or failed to. Without a multiplexer, it returns at once.

        Raises:
            ConnectionLost, redis.exceptions.ResponseError: the first error of these messages. `on_error` got it, too.
        """
        if self._relay is not None:
            await asyncio.sleep(0)  # what other threads have published
            await self._relay.flush()

    # --- requests

    def serve(self, topic: str | Words | None, handler: Callable[..., Any], *, concurrency: int = 1) -> TopicService:
        """Answer the requests to a topic and to everything below it, of this process and of all others.

        If several handlers of one process serve a topic, that of the longest prefix answers the requests of this
        process. Of several processes, each handles a request, and the first reply counts.

        Args:
            topic: the topic, without wildcards. `""`, `()` or None: all requests.
            handler: called as `handler(topic, **message)`, with the keywords that it takes. Its result is the reply. A
                plain function, or a coroutine function, which is awaited. An exception goes to the requester, as
                `RequestFailed` with its type and text.
            concurrency: how many requests of other processes are handled at a time.

        Returns:
            The service. Close it to stop serving.

        Raises:
            TypeError, ValueError: an argument is invalid, or the handler does not take a topic.
            RuntimeError: these topics are closed.
            TooManyPatterns, TooManyChannels: a limit of the multiplexer is reached.
            MultiplexerIsClosed: the multiplexer is closed.
        """
        check_positive(concurrency, "concurrency")
        serve = None if self._mpx is None else partial(self._mpx.serve, concurrency=concurrency)
        return self._add_service(topic, handler, serve)

    async def request(self, topic: str | Words | None, /, *, timeout: float, **message: Any) -> Any:
        """Send a request to the handlers of a topic, and return the first reply.

        A handler of this process answers, if there is one: it gets the values as they are, and so does the caller.
        Otherwise the request goes to the other processes. Subscribers get no requests.

        Args:
            topic: the topic, without wildcards.
            timeout: seconds until the reply must be there.
            message: the keywords of the request.

        Returns:
            What the handler returned.

        Raises:
            NoResponders: it is certain that nobody serves the topic.
            PromiseTimeout: no reply came within `timeout`.
            RequestFailed: the handler raised; the reason is its type and text.
            ConnectionLost, MultiplexerIsClosed, SubscriptionRefused: as for `redismpx.Multiplexer.request()`.
            TypeError, ValueError: the topic or the timeout is invalid, or `encode` rejects the message.
        """
        words = parse_topic(topic)
        if check_seconds(timeout, "timeout") is None:
            raise TypeError("timeout must be a number of seconds: without a timeout, a request could wait forever")
        channel = request_name(self._prefix, words)
        service = self._find_service(words)
        if service is not None:
            return await call_here(service, words, message, channel, timeout)
        if self._mpx is None:
            raise NoResponders(channel)
        return await self._mpx.request(
            channel, message, timeout=timeout, encode=self._encode, decode=self._decode, headers={ORIGIN: self._origin}
        )

    # --- periodic publishers

    def every(self, seconds: float) -> Callable[[F], F]:
        """Decorate a function that is called at an interval, until the topics are closed.

        The first call is one interval after the start: at once in a running event loop, otherwise when `async with`
        begins. The times of the calls are multiples of the interval since then, so there is no drift. A call that takes
        longer than the interval leaves out the times that it misses. An exception goes to `on_error`; the next call
        follows as usual.

        Args:
            seconds: the interval.

        Returns:
            A decorator for plain functions and coroutine functions without arguments. It returns the function itself.

        Raises:
            TypeError, ValueError: the interval is invalid.
            RuntimeError: these topics are closed.

        Example:
            ::

                @topics.every(5)
                async def measure() -> None:
                    topics.publish("room.1.temperature", celsius=await read_sensor())
        """
        if not check_seconds(seconds, "seconds"):
            raise ValueError("seconds must be more than 0")

        def decorate(function: F) -> F:
            self._check_open()
            if running_loop() is None:
                self._waiting_for_loop.append(lambda: Periodic(function, seconds, self._reporter.report))
            else:
                self._periodic.append(Periodic(function, seconds, self._reporter.report))
            return function

        return decorate

    # --- the end

    def close(self) -> None:
        """End all subscriptions, readers, services and periodic functions at once. The multiplexer stays open.

        Messages that wait for a coroutine function are dropped, and a periodic coroutine function is cancelled. May be
        called at any time, and more than once. `aclose()` lets them finish first.
        """
        self._is_closed = True
        self._waiting_for_loop.clear()
        while self._periodic:
            self._periodic.pop().cancel()
        self.clear()
        if self._relay is not None:
            self._post_to_loop(self._relay.close)

    async def aclose(self) -> None:
        """Stop the periodic functions, let the subscribers finish what they have received, and close as `close()` does.

        It waits until a periodic function that runs has returned, until all messages have reached Redis or failed to,
        and until each coroutine function has handled all its messages. Called from inside one of these, it does not
        wait for that one. Cancelled, it closes at once.
        """
        try:
            await ended([periodic.end() for periodic in self._periodic])
            if self._relay is not None:
                self._relay.close()
            while await ended(
                [task for each in tuple(self._directory.consumers.values()) if (task := each.task) is not None]
            ):
                pass
            with suppress(Exception):  # on_error got it
                await self.flush()
        finally:
            self.close()

    async def __aenter__(self) -> Self:
        """Open the topics, or open them again after their end: without subscriptions, in the loop that runs now."""
        self._is_closed = False
        self._home.enter()
        self._periodic += [start() for start in self._waiting_for_loop]
        self._waiting_for_loop.clear()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
