"""Topics for threads. Callbacks are called in the thread of the publisher, or, for other processes, in a worker."""

from __future__ import annotations

__all__ = ["Topics"]

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Any, Self

from .. import topics as asyncio_topics
from .._core.topic_tree import Words, parse_topic
from ..arguments import check_positive, check_seconds
from ..errors import MultiplexerIsClosed, NoResponders
from ..message import OnGap
from ..topics.bus import TopicBus
from ..topics.periodic import F
from ..topics.relay import RelayEvents
from ..topics.service import TopicService, failed_here
from ..topics.subscription import TopicSubscription, is_coroutine_function
from ..topics.wire import ORIGIN, decode_json, encode_json, request_name
from ..typing import Decode, Encode, OnDisconnect
from .described import described_by
from .hand_over import Border
from .inlet import Inlet
from .multiplexer import Multiplexer
from .periodic import PeriodicThread
from .portal import runs_loop
from .topic_reader import TopicReader

_CLOSE_TIMEOUT = 5.0  # seconds for which the end waits for callbacks


@described_by(asyncio_topics.Topics)
class Topics(TopicBus):
    """Publish and subscribe on a tree of topics, for threads: the blocking twin of `redismpx.topics.Topics`.

    Callbacks and handlers are plain functions. One is called in the thread of the publisher, before `publish()`
    returns; for a message of another process, in a worker thread, one message after the other.

    `with` closes the topics at the end, as `close()` does, and opens closed ones again, without subscriptions.

    The arguments are those of `redismpx.topics.Topics`, with a `redismpx.blocking.Multiplexer`.

    Example:
        ::

            with Multiplexer("redis://localhost:6379") as mpx, Topics(mpx, prefix="shop") as topics:
                topics.subscribe("orders", lambda topic, **message: print(topic, message))
                topics.publish("orders.eu", id=7)  # prints ('orders', 'eu') {'id': 7}
                topics.flush()  # it has reached Redis
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
            raise TypeError(
                f"mpx must be a redismpx.blocking.Multiplexer or None, not {type(mpx).__name__}; "
                "redismpx.topics.Topics is for redismpx.Multiplexer"
            )
        self._mpx = mpx
        check_positive(max_pending, "max_pending")
        self._inlet = Inlet(self._start_worker, self._receive, lambda error: self._reporter.report(error), max_pending)
        self._periodic: list[PeriodicThread] = []
        inner = None if mpx is None else mpx._mpx
        super().__init__(
            inner, prefix, on_disconnect, on_activation, on_gap, on_error, encode, decode, max_pending, stream=stream
        )

    def _relay_events(self) -> RelayEvents:
        return RelayEvents(
            self._inlet.put_message,
            partial(self._put, self._reporter.disconnected),
            partial(self._put, self._reporter.activated),
            partial(self._put, self._reporter.missed),
            partial(self._put, self._reporter.report),
        )

    def _put(self, function: Callable[[Any], object], argument: object) -> None:
        self._inlet.put(partial(function, argument))

    def _start_worker(self, job: Callable[[], None]) -> None:
        assert self._mpx is not None
        assert self._mpx._border is not None  # it has the loop that calls this
        self._mpx._border.workers.start(job)

    @property
    def _border(self) -> Border:
        assert self._mpx is not None
        return self._mpx._begun()

    def _call_in_loop(self, function: Callable[[], object]) -> None:
        self._border.portal.call(function)

    def _post_to_loop(self, function: Callable[[], object]) -> None:
        self._border.portal.post(partial(self._call_and_report, function))

    def _call_and_report(self, function: Callable[[], object]) -> None:
        try:
            function()
        except Exception as error:  # noqa: BLE001, there is no caller
            self._put(self._reporter.report, error)

    # --- subscribing

    def subscribe(
        self, topic: str | Words | None, callback: Callable[..., Any], *, weak: bool = False
    ) -> TopicSubscription:
        """Call a plain function for each message to a topic and to everything below it.

        It is called as `callback(topic, **message)`; `topic` is a tuple of words. It gets the keywords that its
        parameters take. For each keyword that it lacks, there is one warning in the log.

        It is called before `publish()` returns, in the thread of the publisher; for a message of another process, in a
        worker thread, which calls one callback after the other. So it may run in two threads at a time. It may still
        run when `close()` of the subscription returns in another thread.

        It is called once for a message, whatever number of its subscriptions cover the topic.

        Args:
            topic: the topic, perhaps with wildcards. `""`, `()` or None: everything.
            callback: a function, a method, or another object that can be called.
            weak: hold the callback weakly: the subscription ends with the object of a method, or with the function.

        Returns:
            The subscription. A second subscription of the same callback to the same topic is the first one.

        Raises:
            TypeError, ValueError: the topic is invalid, or the callback does not take a topic.
            RuntimeError: these topics are closed.
            TooManyPatterns, TooManyChannels: a limit of the multiplexer is reached.
            MultiplexerIsClosed: the multiplexer is closed.
        """
        _check_plain(callback, "the callback")
        return self._add_callback(topic, callback, None, weak)

    def open(self, topic: str | Words | None, *, max_pending: int | None = None) -> TopicReader:
        return TopicReader(self._add_queue(topic, max_pending))

    def wait_for_activation(self, timeout: float | None = None) -> None:
        check_seconds(timeout, "timeout")
        relay = self._relay
        if relay is None:
            return
        give_up = None if timeout is None else monotonic() + timeout
        self._border.portal.wait(lambda: relay.wait_for_activation(timeout))
        for service in tuple(self._directory.services):
            for remote in tuple(service.services):
                remote.wait_for_activation(timeout=None if give_up is None else max(0.0, give_up - monotonic()))

    def flush(self) -> None:
        if self._relay is not None:
            self._border.portal.wait(self._relay.flush)

    # --- requests

    def serve(self, topic: str | Words | None, handler: Callable[..., Any], *, threads: int = 1) -> TopicService:
        """Answer the requests to a topic and to everything below it, of this process and of all others.

        If several handlers of one process serve a topic, that of the longest prefix answers the requests of this
        process. Of several processes, each handles a request, and the first reply counts.

        Args:
            topic: the topic, without wildcards. `""`, `()` or None: all requests.
            handler: a plain function, called as `handler(topic, **message)`, with the keywords that it takes: in the
                thread of the requester, or, for another process, in a worker. Its result is the reply. An exception
                goes to the requester, as `RequestFailed` with its type and text.
            threads: how many requests of other processes are handled at a time, each in a thread.

        Returns:
            The service. Close it to stop serving.

        Raises:
            TypeError, ValueError: an argument is invalid, or the handler does not take a topic.
            RuntimeError: these topics are closed.
            TooManyPatterns, TooManyChannels: a limit of the multiplexer is reached.
            MultiplexerIsClosed: the multiplexer is closed.
        """
        check_positive(threads, "threads")
        _check_plain(handler, "the handler")
        serve = None if self._mpx is None else partial(self._mpx.serve, threads=threads)
        return self._add_service(topic, handler, serve)

    def request(self, topic: str | Words | None, /, *, timeout: float, **message: Any) -> Any:
        words = parse_topic(topic)
        if check_seconds(timeout, "timeout") is None:
            raise TypeError("timeout must be a number of seconds: without a timeout, a request could wait forever")
        channel = request_name(self._prefix, words)
        service = self._find_service(words)
        if service is not None:
            try:
                return service.call(words, message)
            except Exception as error:
                raise failed_here(channel, error) from error
        if self._mpx is None:
            raise NoResponders(channel)
        headers = {ORIGIN: self._origin}
        return self._mpx.request(
            channel, message, timeout=timeout, encode=self._encode, decode=self._decode, headers=headers
        )

    # --- periodic publishers

    def every(self, seconds: float) -> Callable[[F], F]:
        """Decorate a plain function that a thread of its own calls at an interval, until the topics are closed.

        The first call is one interval after the start. The times of the calls are multiples of the interval since then,
        so there is no drift. A call that takes longer than the interval leaves out the times that it misses. An
        exception goes to `on_error`; the next call follows as usual.

        Args:
            seconds: the interval.

        Returns:
            A decorator for functions without arguments. It returns the function itself.

        Raises:
            TypeError, ValueError: the interval is invalid, or the function is a coroutine function.
            RuntimeError: these topics are closed.

        Example:
            ::

                @topics.every(5)
                def measure() -> None:
                    topics.publish("room.1.temperature", celsius=read_sensor())
        """
        if not check_seconds(seconds, "seconds"):
            raise ValueError("seconds must be more than 0")

        def decorate(function: F) -> F:
            _check_plain(function, "the function")
            self._check_open()
            self._periodic.append(PeriodicThread(function, seconds, self._reporter.report))
            return function

        return decorate

    # --- the end

    def close(self) -> None:
        """Stop the periodic functions, let the subscribers finish what they have received, and close. Takes seconds.

        The multiplexer stays open. It waits until a periodic function that runs has returned, until the callbacks have
        been called with all messages, and until all messages have reached Redis or failed to. It does not wait for the
        function or callback that calls it, and does not wait at all in a thread that runs an event loop. A second call
        changes nothing.
        """
        was_closed, self._is_closed = self._is_closed, True
        waits = not runs_loop()
        for periodic in self._periodic:
            periodic.end()
        while waits and self._periodic:
            self._periodic.pop().join(_CLOSE_TIMEOUT)
        if self._relay is not None and not was_closed:
            with suppress(MultiplexerIsClosed):
                self._border.portal.call(self._relay.close)
                if waits:
                    self._inlet.wait_until_idle(_CLOSE_TIMEOUT)
                    with suppress(Exception):  # on_error got it
                        self.flush()
        self.clear()

    def __enter__(self) -> Self:
        """Open the topics, or open them again after their end: without subscriptions."""
        self._is_closed = False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _check_plain(function: Callable[..., Any], what: str) -> None:
    if not callable(function):
        raise TypeError(f"{what} must be callable, not {type(function).__name__}")
    if is_coroutine_function(function):
        raise TypeError(f"{what} must be a plain function: redismpx.topics.Topics takes coroutine functions")
