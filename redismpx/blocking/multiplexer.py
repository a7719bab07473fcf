"""The multiplexer for threads: it runs the asyncio one in a thread of its own, and decides nothing itself."""

from __future__ import annotations

__all__ = ["Multiplexer"]

import asyncio
import atexit
import multiprocessing.util
import os
import queue
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import Context
from dataclasses import replace
from functools import partial
from time import monotonic, sleep
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from redis.asyncio import Redis, RedisCluster
from redis.backoff import AbstractBackoff

import redismpx

from .. import Overflow, Request, Stats
from .._io.runtime.log import RecordLimit, logger
from ..arguments import check_overflow, check_plain, check_positive, check_seconds
from ..errors import MultiplexerIsClosed
from ..keys import OnKeyEvent
from ..message import OnGap, OnStreamMessage, StreamMessage
from ..observing import Observer
from ..typing import Decode, Encode, OnActivation, OnClose, OnDisconnect, OnError, OnMessage, OverflowName, Payload, T
from ..url_file import read_url_file
from .collecting import collects_here
from .described import described_by
from .hand_over import Border, HandOver
from .portal import JOIN_TIMEOUT, Begin, Portal, check_may_block, runs_loop
from .promise import PromiseSubscription
from .service import Service
from .streams import StreamSubscription
from .subscriptions import ChannelSubscription, KeySubscription, PatternSubscription

_Encodable = TypeVar("_Encodable")  # what `encode` takes
_Outcome = TypeVar("_Outcome")

_EXIT_TIMEOUT = 2.0  # seconds that the end of the interpreter waits for a multiplexer


@described_by(redismpx.Multiplexer)
class Multiplexer:
    """One Redis connection for many subscriptions, for threads: the blocking twin of `redismpx.Multiplexer`.

    It runs the asyncio multiplexer in a daemon thread of its own, which the first call starts. Any thread may call the
    methods, and read the subscriptions. Callbacks are called in worker threads: those of one subscription one at a
    time, in order, and at most 32 at a time.

    A thread that runs an event loop, too, may call the methods that return at once, `publish_soon()`, `apublish()`,
    `arequest()` and `arun()`. The methods that wait raise `RuntimeError` there, because they would block that loop.

    A multiplexer that is made before a fork, and called afterwards only, works in each child. After a call, it belongs
    to its process: in a forked child, every call raises `RuntimeError`.

    `with` closes the multiplexer at the end, and opens a closed one again, without subscriptions. All other calls raise
    `MultiplexerIsClosed` when it is closed. At the exit of the interpreter, it ends by itself.

    The arguments are those of `redismpx.Multiplexer`.

    Example:
        ::

            with Multiplexer("redis://localhost:6379") as mpx, mpx.subscribe("news") as sub:
                mpx.publish("news", "hello")
                message = sub.get(timeout=5)
                print(message.channel, message.data)  # b'news' b'hello'
    """

    def __init__(
        self,
        redis: str | Redis | RedisCluster = "redis://localhost:6379",
        *,
        backoff: AbstractBackoff | None = None,
        ping_interval: float | None = 10.0,
        ping_timeout: float = 5.0,
        delivery_probe: float | None = None,
        max_pending: int = 10_000,
        overflow: Overflow | OverflowName = "drop_oldest",
        on_error: OnError | None = None,
        max_channels: int | None = 1_000_000,
        max_patterns: int | None = 1_000,
        max_promises: int | None = 100_000,
        max_name_bytes: int | None = 65_536,
        max_pattern_bytes: int | None = 1_024,
        max_pattern_stars: int | None = 100,
        max_pending_bytes: int | None = 67_108_864,
        max_total_pending_bytes: int | None = 536_870_912,
        publish_timeout: float = 5.0,
        tail_interval: float | None = 30.0,
        max_payload: int | None = 1_048_576,
        observers: Iterable[Observer] = (),
        **connection_options: Any,
    ) -> None:
        self._on_error = check_plain(on_error, "on_error", "error")
        self._mpx = redismpx.Multiplexer(
            redis,
            backoff=backoff,
            ping_interval=ping_interval,
            ping_timeout=ping_timeout,
            delivery_probe=delivery_probe,
            max_pending=max_pending,
            overflow=overflow,
            max_channels=max_channels,
            max_patterns=max_patterns,
            max_promises=max_promises,
            max_name_bytes=max_name_bytes,
            max_pattern_bytes=max_pattern_bytes,
            max_pattern_stars=max_pattern_stars,
            max_pending_bytes=max_pending_bytes,
            max_total_pending_bytes=max_total_pending_bytes,
            publish_timeout=publish_timeout,
            tail_interval=tail_interval,
            max_payload=max_payload,
            observers=observers,
            on_error=None if on_error is None else self._report,
            **connection_options,
        )
        self._max_pending = max_pending
        self._overflow = overflow
        self._lock = threading.RLock()  # a finalizer may interrupt; for the beginning, the end, and `_unsent`
        self._border: Border | None = None
        self._is_closed = False
        self._unsent = 0  # messages of publish_soon() that have no outcome yet
        self._is_failing = False  # whether the last one failed
        self._records = RecordLimit()

    @classmethod
    def from_url_file(cls, path: str | os.PathLike[str], **options: Any) -> Self:
        return cls(read_url_file(path), **options)

    # --- subscriptions

    @overload
    def new_channel_subscription(
        self,
        on_message: OnMessage[bytes] | None = None,
        on_disconnect: OnDisconnect | None = None,
        on_activation: OnActivation | None = None,
        *,
        decode: None = None,
        max_pending: int | None = None,
        overflow: Overflow | OverflowName | None = None,
        on_error: OnError | None = None,
        on_close: OnClose | None = None,
        sharded: bool = False,
    ) -> ChannelSubscription[bytes]: ...

    @overload
    def new_channel_subscription(
        self,
        on_message: OnMessage[T] | None = None,
        on_disconnect: OnDisconnect | None = None,
        on_activation: OnActivation | None = None,
        *,
        decode: Decode[T],
        max_pending: int | None = None,
        overflow: Overflow | OverflowName | None = None,
        on_error: OnError | None = None,
        on_close: OnClose | None = None,
        sharded: bool = False,
    ) -> ChannelSubscription[T]: ...

    def new_channel_subscription(
        self,
        on_message: OnMessage[Any] | None = None,
        on_disconnect: OnDisconnect | None = None,
        on_activation: OnActivation | None = None,
        *,
        decode: Decode[Any] | None = None,
        max_pending: int | None = None,
        overflow: Overflow | OverflowName | None = None,
        on_error: OnError | None = None,
        on_close: OnClose | None = None,
        sharded: bool = False,
    ) -> ChannelSubscription[Any]:
        """Make a subscription to channels, still without channels: `ChannelSubscription.add()` subscribes to them.

        Returns at once, and works offline.

        Callbacks are plain functions, and are called in worker threads: those of one subscription one at a time, in
        order. Meanwhile the other events of this subscription are buffered, and other subscriptions go on. An exception
        of a callback goes to `on_error` and to the log; delivery goes on.

        Args:
            on_message: called with the channel and the payload of each message. None: the subscription is read, with
                `listen()`, `run()`, `get()` or `get_nowait()`. The other callbacks are then called when the messages
                before their event have been read. A subscription without callbacks that nobody refers to any more is
                closed, with a `ResourceWarning`, because nobody can read it.
            on_disconnect: called with a `ConnectionLost`, once for each lost connection on which a channel was active.
            on_activation: called with each channel when Redis has confirmed it, and again after each reconnect.
            decode: converts each payload, for example `bytes.decode` or `json.loads`; the subscription is generic in
                the result type. It is called in the thread of the loop. If it raises, `on_error` gets a `DecodeError`,
                and the message counts as dropped. None: payloads are `bytes`.
            max_pending: as for the `Multiplexer`, whose value is the default.
            overflow: as for the `Multiplexer`, whose value is the default.
            on_error: called with each exception of a callback, and with `SlowConsumer`, `DecodeError` and
                `SubscriptionRefused`. None: the `on_error` of the multiplexer.
            on_close: called once when the subscription ends without a call of its own `close()`: with `"overflow"`, if
                `overflow` is `"close"`, or with `"multiplexer closed"`. It is the last callback.
            sharded: use sharded Pub/Sub, as for `redismpx.Multiplexer.new_channel_subscription()`.

        Returns:
            The subscription.

        Raises:
            MultiplexerIsClosed: the multiplexer is closed or drains.
            TypeError, ValueError: an argument is invalid, or a callback is a coroutine function.

        Example:
            ::

                def on_order(channel: bytes, order: dict[str, int]) -> None:
                    print(channel, order["id"])

                orders = mpx.new_channel_subscription(on_order, decode=json.loads)
                orders.add("orders:eu", "orders:us")
                orders.wait_for_activation(timeout=5)
                mpx.publish("orders:eu", '{"id": 7}')  # a worker thread prints b'orders:eu' 7
        """
        border, hand_over, options = self._consumer(
            on_disconnect, on_activation, max_pending, overflow, on_error, on_close
        )
        options["on_message"] = border.workers.calling(check_plain(on_message, "on_message", "channel", "message"))
        subscription = border.portal.call(
            lambda: self._mpx.new_channel_subscription(decode=decode, sharded=sharded, **options)
        )
        return ChannelSubscription(subscription, hand_over)

    @overload
    def subscribe(
        self,
        *channels: str | bytes,
        on_message: OnMessage[bytes] | None = None,
        on_disconnect: OnDisconnect | None = None,
        on_activation: OnActivation | None = None,
        decode: None = None,
        max_pending: int | None = None,
        overflow: Overflow | OverflowName | None = None,
        on_error: OnError | None = None,
        on_close: OnClose | None = None,
        sharded: bool = False,
    ) -> AbstractContextManager[ChannelSubscription[bytes]]: ...

    @overload
    def subscribe(
        self,
        *channels: str | bytes,
        on_message: OnMessage[T] | None = None,
        on_disconnect: OnDisconnect | None = None,
        on_activation: OnActivation | None = None,
        decode: Decode[T],
        max_pending: int | None = None,
        overflow: Overflow | OverflowName | None = None,
        on_error: OnError | None = None,
        on_close: OnClose | None = None,
        sharded: bool = False,
    ) -> AbstractContextManager[ChannelSubscription[T]]: ...

    @contextmanager
    def subscribe(self, *channels: str | bytes, **options: Any) -> Iterator[ChannelSubscription[Any]]:
        """Subscribe to channels for the duration of a block: `with mpx.subscribe("news") as sub`.

        All channels are active when the block begins, so it misses no message that is published from then on. The
        subscription is closed at the end of the block. Offline, it waits for the connection. If it is interrupted, or
        an error is raised, nothing stays subscribed.

        Args:
            channels: names; `str` is encoded as UTF-8.
            options: the callbacks and options of `new_channel_subscription()`, as keywords.

        Returns:
            A context manager with the `ChannelSubscription`.

        Raises:
            SubscriptionRefused: the server rejects one of the channels.
            TooManyChannels: `max_channels` would be exceeded.
            MultiplexerIsClosed: the multiplexer is closed or drains.
            SubscriptionIsClosed: the multiplexer was closed during the wait.
            RuntimeError: an event loop runs in this thread.
            TypeError, ValueError: an argument is invalid.

        Example:
            ::

                with mpx.subscribe("news", "weather", decode=bytes.decode) as sub:
                    mpx.publish("news", "hello")
                    for message in sub.listen(timeout=60):
                        print(message.channel, message.data)  # b'news' hello
                        break
        """
        with self.new_channel_subscription(**options) as subscription:
            subscription.add(*channels)
            subscription.wait_for_activation()
            yield subscription

    @overload
    def new_pattern_subscription(
        self,
        pattern: str | bytes,
        on_message: OnMessage[bytes] | None = None,
        on_disconnect: OnDisconnect | None = None,
        on_activation: OnActivation | None = None,
        *,
        decode: None = None,
        max_pending: int | None = None,
        overflow: Overflow | OverflowName | None = None,
        on_error: OnError | None = None,
        on_close: OnClose | None = None,
    ) -> PatternSubscription[bytes]: ...

    @overload
    def new_pattern_subscription(
        self,
        pattern: str | bytes,
        on_message: OnMessage[T] | None = None,
        on_disconnect: OnDisconnect | None = None,
        on_activation: OnActivation | None = None,
        *,
        decode: Decode[T],
        max_pending: int | None = None,
        overflow: Overflow | OverflowName | None = None,
        on_error: OnError | None = None,
        on_close: OnClose | None = None,
    ) -> PatternSubscription[T]: ...

    def new_pattern_subscription(
        self,
        pattern: str | bytes,
        on_message: OnMessage[Any] | None = None,
        on_disconnect: OnDisconnect | None = None,
        on_activation: OnActivation | None = None,
        *,
        decode: Decode[Any] | None = None,
        max_pending: int | None = None,
        overflow: Overflow | OverflowName | None = None,
        on_error: OnError | None = None,
        on_close: OnClose | None = None,
    ) -> PatternSubscription[Any]:
        border, hand_over, options = self._consumer(
            on_disconnect, on_activation, max_pending, overflow, on_error, on_close
        )
        options["on_message"] = border.workers.calling(check_plain(on_message, "on_message", "channel", "message"))
        subscription = border.portal.call(lambda: self._mpx.new_pattern_subscription(pattern, decode=decode, **options))
        return PatternSubscription(subscription, hand_over)

    def new_key_subscription(
        self,
        pattern: str | bytes,
        on_event: OnKeyEvent | None = None,
        on_disconnect: OnDisconnect | None = None,
        on_activation: OnActivation | None = None,
        *,
        events: Iterable[str | bytes] | None = None,
        db: int = 0,
        subkeys: bool = False,
        max_pending: int | None = None,
        overflow: Overflow | OverflowName | None = None,
        on_error: OnError | None = None,
        on_close: OnClose | None = None,
    ) -> KeySubscription:
        border, hand_over, options = self._consumer(
            on_disconnect, on_activation, max_pending, overflow, on_error, on_close
        )
        options["on_event"] = border.workers.calling(check_plain(on_event, "on_event", "event"))
        subscription = border.portal.call(
            lambda: self._mpx.new_key_subscription(pattern, events=events, db=db, subkeys=subkeys, **options)
        )
        return KeySubscription(subscription, hand_over)

    @overload
    def new_stream_subscription(
        self,
        on_message: OnStreamMessage[bytes] | None = None,
        on_gap: OnGap | None = None,
        on_disconnect: OnDisconnect | None = None,
        on_activation: OnActivation | None = None,
        *,
        decode: None = None,
        durable: str | bytes | None = None,
        max_pending: int | None = None,
        on_error: OnError | None = None,
        on_close: OnClose | None = None,
    ) -> StreamSubscription[bytes]: ...

    @overload
    def new_stream_subscription(
        self,
        on_message: OnStreamMessage[T] | None = None,
        on_gap: OnGap | None = None,
        on_disconnect: OnDisconnect | None = None,
        on_activation: OnActivation | None = None,
        *,
        decode: Decode[T],
        durable: str | bytes | None = None,
        max_pending: int | None = None,
        on_error: OnError | None = None,
        on_close: OnClose | None = None,
    ) -> StreamSubscription[T]: ...

    def new_stream_subscription(
        self,
        on_message: OnStreamMessage[Any] | None = None,
        on_gap: OnGap | None = None,
        on_disconnect: OnDisconnect | None = None,
        on_activation: OnActivation | None = None,
        *,
        decode: Decode[Any] | None = None,
        durable: str | bytes | None = None,
        max_pending: int | None = None,
        on_error: OnError | None = None,
        on_close: OnClose | None = None,
    ) -> StreamSubscription[Any]:
        border, hand_over, options = self._consumer(
            on_disconnect,
            on_activation,
            max_pending,
            Overflow.DROP_NEWEST if durable is None else Overflow.LATEST,  # which takes one message at a time
            on_error,
            on_close,
        )
        del options["overflow"]
        options["on_message"] = border.workers.calling(check_plain(on_message, "on_message", "message"))
        options["on_gap"] = hand_over.then(check_plain(on_gap, "on_gap", "gap"))
        subscription = border.portal.call(
            lambda: self._mpx.new_stream_subscription(decode=decode, durable=durable, **options)
        )
        return StreamSubscription(subscription, hand_over)

    def new_promise_subscription(self, prefix: str | bytes) -> PromiseSubscription:
        border = self._begun()
        return PromiseSubscription(border.portal.call(lambda: self._mpx.new_promise_subscription(prefix)), border)

    # --- publishing

    def publish(
        self,
        channel: str | bytes,
        data: Payload,
        *,
        headers: Mapping[str, str] | None = None,
        sharded: bool = False,
    ) -> int:
        """Publish a message, and wait for the reply of Redis.

        Messages of one thread go out in the order of the calls, over a connection of their own. Calls of several
        threads are sent together, in one pipeline. Each call has its own outcome. A message is sent at most once:
        nothing is retried after it was sent. May be called in callbacks, and during `drain()`.

        Offline, it waits for a connection until `publish_timeout`. An interrupted call that was not sent yet is not
        sent.

        Args:
            channel: the channel; `str` is encoded as UTF-8.
            data: the payload: `str` (encoded as UTF-8), `bytes`, or an object with the buffer protocol or `__bytes__`.
            headers: text by name, which makes the message an `Envelope`, as for `redismpx.Multiplexer.publish()`.
            sharded: publish to the subscriptions that were made with `sharded=True`, as for
                `redismpx.Multiplexer.publish()`.

        Returns:
            The number of connections that received the message, as Redis counts them.

        Raises:
            RuntimeError: an event loop runs in this thread; use `apublish()` or `publish_soon()`.
            ConnectionLost, redis.exceptions.ResponseError, MultiplexerIsClosed, TypeError, ValueError: as for
                `redismpx.Multiplexer.publish()`.

        Example:
            ::

                with mpx.subscribe("payments", decode=Envelope.from_bytes) as payments:
                    mpx.publish("payments", "12.50", headers={"Currency": "EUR"})
                    message = payments.get(timeout=5)
                    print(message.data.headers["Currency"], message.data.body)  # EUR b'12.50'
        """
        portal = self._begun().portal
        return portal.wait_for(self._publishing(channel, data, headers, sharded))

    async def apublish(
        self,
        channel: str | bytes,
        data: Payload,
        *,
        headers: Mapping[str, str] | None = None,
        sharded: bool = False,
    ) -> int:
        """Publish a message as `publish()` does, awaited in an event loop of any thread.

        The loop may end with the call, as that of `asyncio.run()` does: the connection stays.

        Args:
            channel: as for `publish()`.
            data: as for `publish()`.
            headers: as for `publish()`.
            sharded: as for `publish()`.

        Returns:
            The number of connections that received the message, as Redis counts them.

        Raises:
            ConnectionLost, redis.exceptions.ResponseError, MultiplexerIsClosed, TypeError, ValueError: as for
                `publish()`.

        Example:
            ::

                async def view() -> int:
                    return await mpx.apublish("clicks", "button 7")

                print(asyncio.run(view()))  # 0
        """
        portal = self._begun().portal
        return await portal.forward_for(self._publishing(channel, data, headers, sharded))

    def _publishing(
        self, channel: str | bytes, data: Payload, headers: Mapping[str, str] | None, sharded: bool
    ) -> Begin[int]:
        """Convert a message in this thread; return the function that publishes it in the thread of the loop."""
        name, payload = self._mpx._to_message(channel, data, headers)
        return lambda outcome: self._mpx._begin_publish(name, payload, outcome, sharded=sharded)

    def publish_soon(
        self,
        channel: str | bytes,
        data: Payload,
        *,
        headers: Mapping[str, str] | None = None,
        sharded: bool = False,
    ) -> None:
        """Publish a message without a wait for the reply. Any thread may call it, also one that runs an event loop.

        Messages of one thread go out in the order of the calls, those of `publish()` included. An error goes to the
        `on_error` of the multiplexer, and the first one of a series to the log. `drain()` waits until the
        messages are sent, and so does the end of the interpreter, for two seconds at most; `close()` does not.

        Args:
            channel: as for `publish()`.
            data: as for `publish()`. It is converted in the thread of the loop: do not change it any more.
            headers: as for `publish()`.
            sharded: as for `publish()`.

        Raises:
            queue.Full: `max_pending` messages have no outcome yet. The message is not sent.
            MultiplexerIsClosed: the multiplexer is closed.

        Example:
            ::

                try:
                    mpx.publish_soon("clicks", "button 7")  # returns at once
                except queue.Full:
                    pass  # Redis is slow, or there is no connection: this message is left out
        """
        portal = self._begun().portal
        portal.check()
        with self._lock:
            if self._unsent >= self._max_pending:
                raise queue.Full(
                    f"max_pending={self._max_pending} messages have no outcome yet; call publish() instead"
                )
            self._unsent += 1
        portal.post(lambda: self._publish_soon(portal, channel, data, headers, sharded))

    def _publish_soon(
        self,
        portal: Portal,
        channel: str | bytes,
        data: Payload,
        headers: Mapping[str, str] | None,
        sharded: bool,
    ) -> None:
        outcome: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        outcome.add_done_callback(lambda outcome: self._published(portal, outcome.exception()))
        try:
            self._publishing(channel, data, headers, sharded)(outcome)
        except Exception as error:  # noqa: BLE001, there is no caller
            self._published(portal, error)

    def _published(self, portal: Portal, error: BaseException | None) -> None:
        """Take note of the outcome of a message of `publish_soon()`."""
        if isinstance(error, Exception):
            portal.start(self._report_unsent(error))
        else:
            self._is_failing = False
            self._forget_unsent()

    async def _report_unsent(self, error: Exception) -> None:
        try:
            left_out = None if self._is_failing else self._records.admit("publish_soon")
            if left_out is not None:
                more = f" ({left_out} more like this since the last record)" if left_out else ""
                logger.warning("publish_soon() failed; further failures in a row are not logged: %s%s", error, more)
            self._is_failing = True
            if self._on_error is not None:
                await self._report(error)
        finally:
            self._forget_unsent()  # no earlier: so the reports that wait are bounded, too

    def _forget_unsent(self) -> None:
        with self._lock:
            self._unsent -= 1

    # --- streams

    def append(
        self,
        channel: str | bytes,
        data: Payload,
        *,
        max_length: int | None = 1_000,
        max_age: float | None = 3_600,
        key: str | bytes | None = None,
    ) -> bytes:
        return self._begun().portal.wait(
            lambda: self._mpx.append(channel, data, max_length=max_length, max_age=max_age, key=key)
        )

    def history(
        self, channel: str | bytes, *, after: str | bytes = b"0", limit: int = 100
    ) -> list[StreamMessage[bytes]]:
        return self._begun().portal.wait(lambda: self._mpx.history(channel, after=after, limit=limit))

    def delete_position(self, channel: str | bytes, durable: str | bytes) -> bool:
        return self._begun().portal.wait(lambda: self._mpx.delete_position(channel, durable))

    # --- request and reply

    @overload
    def request(
        self,
        channel: str | bytes,
        data: Payload,
        *,
        timeout: float,
        encode: None = None,
        decode: None = None,
        headers: Mapping[str, str] | None = None,
        sharded: bool = False,
    ) -> bytes: ...

    @overload
    def request(
        self,
        channel: str | bytes,
        data: Payload,
        *,
        timeout: float,
        encode: None = None,
        decode: Decode[T],
        headers: Mapping[str, str] | None = None,
        sharded: bool = False,
    ) -> T: ...

    @overload
    def request(
        self,
        channel: str | bytes,
        data: _Encodable,
        *,
        timeout: float,
        encode: Encode[_Encodable],
        decode: None = None,
        headers: Mapping[str, str] | None = None,
        sharded: bool = False,
    ) -> bytes: ...

    @overload
    def request(
        self,
        channel: str | bytes,
        data: _Encodable,
        *,
        timeout: float,
        encode: Encode[_Encodable],
        decode: Decode[T],
        headers: Mapping[str, str] | None = None,
        sharded: bool = False,
    ) -> T: ...

    def request(
        self,
        channel: str | bytes,
        data: Any,
        *,
        timeout: float,
        encode: Encode[Any] | None = None,
        decode: Decode[Any] | None = None,
        headers: Mapping[str, str] | None = None,
        sharded: bool = False,
    ) -> Any:
        return self._begun().portal.wait(
            lambda: self._mpx.request(
                channel, data, timeout=timeout, encode=encode, decode=decode, headers=headers, sharded=sharded
            )
        )

    @overload
    async def arequest(
        self,
        channel: str | bytes,
        data: Payload,
        *,
        timeout: float,
        encode: None = None,
        decode: None = None,
        headers: Mapping[str, str] | None = None,
        sharded: bool = False,
    ) -> bytes: ...

    @overload
    async def arequest(
        self,
        channel: str | bytes,
        data: Payload,
        *,
        timeout: float,
        encode: None = None,
        decode: Decode[T],
        headers: Mapping[str, str] | None = None,
        sharded: bool = False,
    ) -> T: ...

    @overload
    async def arequest(
        self,
        channel: str | bytes,
        data: _Encodable,
        *,
        timeout: float,
        encode: Encode[_Encodable],
        decode: None = None,
        headers: Mapping[str, str] | None = None,
        sharded: bool = False,
    ) -> bytes: ...

    @overload
    async def arequest(
        self,
        channel: str | bytes,
        data: _Encodable,
        *,
        timeout: float,
        encode: Encode[_Encodable],
        decode: Decode[T],
        headers: Mapping[str, str] | None = None,
        sharded: bool = False,
    ) -> T: ...

    async def arequest(
        self,
        channel: str | bytes,
        data: Any,
        *,
        timeout: float,
        encode: Encode[Any] | None = None,
        decode: Decode[Any] | None = None,
        headers: Mapping[str, str] | None = None,
        sharded: bool = False,
    ) -> Any:
        """Send a request as `request()` does, awaited in an event loop of any thread.

        The loop may end with the call, as that of `asyncio.run()` does: the connection stays.

        Args:
            channel: as for `request()`.
            data: as for `request()`.
            timeout: as for `request()`.
            encode: as for `request()`. It is called in the thread of the multiplexer, and so is `decode`.
            decode: as for `request()`.
            headers: as for `request()`.
            sharded: as for `request()`.

        Returns:
            The body of the reply, or the result of `decode`.

        Raises:
            NoResponders, PromiseTimeout, RequestFailed, ConnectionLost, MultiplexerIsClosed: as for `request()`, and
                so are the other errors.
        """
        return await self._begun().portal.forward(
            lambda: self._mpx.request(
                channel, data, timeout=timeout, encode=encode, decode=decode, headers=headers, sharded=sharded
            )
        )

    @overload
    def request_many(
        self,
        channel: str | bytes,
        data: Payload,
        *,
        timeout: float,
        limit: int | None = None,
        encode: None = None,
        decode: None = None,
        headers: Mapping[str, str] | None = None,
        sharded: bool = False,
    ) -> Iterator[bytes]: ...

    @overload
    def request_many(
        self,
        channel: str | bytes,
        data: Payload,
        *,
        timeout: float,
        limit: int | None = None,
        encode: None = None,
        decode: Decode[T],
        headers: Mapping[str, str] | None = None,
        sharded: bool = False,
    ) -> Iterator[T]: ...

    @overload
    def request_many(
        self,
        channel: str | bytes,
        data: _Encodable,
        *,
        timeout: float,
        limit: int | None = None,
        encode: Encode[_Encodable],
        decode: None = None,
        headers: Mapping[str, str] | None = None,
        sharded: bool = False,
    ) -> Iterator[bytes]: ...

    @overload
    def request_many(
        self,
        channel: str | bytes,
        data: _Encodable,
        *,
        timeout: float,
        limit: int | None = None,
        encode: Encode[_Encodable],
        decode: Decode[T],
        headers: Mapping[str, str] | None = None,
        sharded: bool = False,
    ) -> Iterator[T]: ...

    def request_many(
        self,
        channel: str | bytes,
        data: Any,
        *,
        timeout: float,
        limit: int | None = None,
        encode: Encode[Any] | None = None,
        decode: Decode[Any] | None = None,
        headers: Mapping[str, str] | None = None,
        sharded: bool = False,
    ) -> Iterator[Any]:
        border = self._begun()
        replies = border.portal.call(
            lambda: self._mpx.request_many(
                channel,
                data,
                timeout=timeout,
                limit=limit,
                encode=encode,
                decode=decode,
                headers=headers,
                sharded=sharded,
            )
        )

        async def next_reply() -> tuple[Any, ...]:
            async for reply in replies:
                return (reply,)
            return ()

        async def close() -> None:
            await replies.aclose()

        def iterate() -> Iterator[Any]:
            try:
                while reply := border.portal.wait(next_reply):
                    yield reply[0]
            finally:
                border.portal.post(lambda: border.portal.start(close()))

        return iterate()

    @overload
    def serve(
        self,
        channel_or_pattern: str | bytes,
        handler: Callable[[Request[bytes]], bytes | None],
        *,
        decode: None = None,
        encode: None = None,
        threads: int = 1,
        on_error: OnError | None = None,
        sharded: bool = False,
    ) -> Service: ...

    @overload
    def serve(
        self,
        channel_or_pattern: str | bytes,
        handler: Callable[[Request[T]], bytes | None],
        *,
        decode: Decode[T],
        encode: None = None,
        threads: int = 1,
        on_error: OnError | None = None,
        sharded: bool = False,
    ) -> Service: ...

    @overload
    def serve(
        self,
        channel_or_pattern: str | bytes,
        handler: Callable[[Request[bytes]], _Encodable],
        *,
        decode: None = None,
        encode: Encode[_Encodable],
        threads: int = 1,
        on_error: OnError | None = None,
        sharded: bool = False,
    ) -> Service: ...

    @overload
    def serve(
        self,
        channel_or_pattern: str | bytes,
        handler: Callable[[Request[T]], _Encodable],
        *,
        decode: Decode[T],
        encode: Encode[_Encodable],
        threads: int = 1,
        on_error: OnError | None = None,
        sharded: bool = False,
    ) -> Service: ...

    def serve(
        self,
        channel_or_pattern: str | bytes,
        handler: Callable[[Request[Any]], object],
        *,
        decode: Decode[Any] | None = None,
        encode: Encode[Any] | None = None,
        threads: int = 1,
        on_error: OnError | None = None,
        sharded: bool = False,
    ) -> Service:
        """Reply to the requests on a channel, or on all channels that match a pattern.

        Returns at once, and works offline. If several services serve a channel, each gets every request, and
        `request()` takes the first reply: this is Pub/Sub, not a queue.

        A message that is not an envelope, or is a reply, goes to `on_error` as a `DecodeError`, and counts as dropped.
        `drain()` waits until the handlers in flight have ended and their replies are published.

        Args:
            channel_or_pattern: a name with `*`, `?`, `[` or a backslash is a pattern. For a channel that has such a
                character, pass `escape_glob(channel)`.
            handler: a plain function, called in a worker thread with each `Request`; returns the body of the reply.
                None is an empty reply. An exception goes to the requester as `type: text`, with the first line of its
                text, and to `on_error` and the log. If the envelope has no `reply_to`, the result is discarded.
            decode: as for `redismpx.Multiplexer.serve()`.
            encode: as for `redismpx.Multiplexer.serve()`.
            threads: the number of handlers that may run at a time, each in a thread. Further requests are buffered in
                order, within `max_pending` and `overflow` of the multiplexer.
            on_error: as for `redismpx.Multiplexer.serve()`; a plain function, called in a worker thread.
            sharded: as for `redismpx.Multiplexer.serve()`.

        Returns:
            The service. Close it to stop serving.

        Raises:
            MultiplexerIsClosed: the multiplexer is closed or drains.
            TooManyChannels, TooManyPatterns: a limit is reached.
            TypeError, ValueError: an argument is invalid, or the handler is a coroutine function.

        Example:
            ::

                def add(request: Request[list[int]]) -> int:
                    return sum(request.body)

                service = mpx.serve("sum", add, decode=json.loads, encode=json.dumps, threads=10)
                service.wait_for_activation(timeout=5)
                print(mpx.request("sum", "[1, 2, 3]", timeout=5))  # b'6'
        """
        check_positive(threads, "threads")
        border = self._begun()
        handle: Any = border.workers.calling(check_plain(handler, "handler", "request"))
        report = border.workers.calling(check_plain(on_error, "on_error", "error"))
        service = border.portal.call(
            lambda: self._mpx.serve(
                channel_or_pattern,
                handle,
                decode=decode,
                encode=encode,
                concurrency=threads,
                on_error=report,
                sharded=sharded,
            )
        )
        return Service(service, border, threads)

    # --- code of asyncio

    async def arun(self, function: Callable[[redismpx.Multiplexer], Coroutine[Any, Any, _Outcome]]) -> _Outcome:
        """Run a coroutine function in the loop of this multiplexer, awaited in an event loop of any thread.

        Its subscriptions are those of asyncio: a plain callback is called in the thread of that loop, at once and
        without a worker thread. This suits callbacks that pass messages to an event loop of another thread, with
        `call_soon_threadsafe()`. A callback or a step of the function that blocks delays everything else.

        Offline, the function runs at once. Cancelled, the call cancels the function.

        Args:
            function: called with the asyncio multiplexer that this one runs. Do not close it.

        Returns:
            The result of the function.

        Raises:
            MultiplexerIsClosed: the multiplexer is closed, or was closed before the function returned.

        Example:
            ::

                async def subscribe(mpx: redismpx.Multiplexer) -> redismpx.ChannelSubscription[bytes]:
                    sub = mpx.new_channel_subscription(print)  # called in the thread of the loop
                    sub.add("news")
                    await sub.wait_for_activation()
                    return sub

                async def view() -> None:
                    sub = await mpx.arun(subscribe)

                asyncio.run(view())
        """
        return await self._begun().portal.forward(lambda: function(self._mpx))

    # --- state

    @property
    def connected(self) -> bool:
        return self._look(lambda: self._mpx.connected)

    def connect(self, timeout: float | None = None) -> None:
        self._begun().portal.wait(lambda: self._mpx.connect(timeout))

    def stats(self) -> Stats:
        return self._look(self._stats)

    def _stats(self) -> Stats:
        stats, border = self._mpx.stats(), self._border
        if border is None:
            return stats
        return replace(stats, pending=stats.pending + border.pending, dropped=stats.dropped + border.dropped)

    def __repr__(self) -> str:
        s = self.stats()
        state = s.state if self._border is not None or self._is_closed else "waits for its first call"
        return (
            f"<blocking.Multiplexer {state} epoch={s.connections} channels={s.channels} patterns={s.patterns} "
            f"pending={s.pending} dropped={s.dropped}>"
        )

    # --- the end

    def close(self) -> None:
        """Close everything, and wait until every socket is closed and every thread has ended.

        All subscriptions are closed, the iterations that read them end, and outstanding promises and `publish()` calls
        fail. No callback begins after this, except `on_close`. This takes a few seconds at most, even if callbacks run
        for longer. Called from inside a callback, it does not wait for that callback; in a thread that runs an event
        loop, it waits for nothing. Works offline, before the first call, and when closed already.

        The positions of `durable` stream subscriptions are saved first, which may take a second; not in a thread that
        runs an event loop.
        """
        with self._lock:
            border = self._border
            if border is not None:
                border.portal.check()
            self._is_closed = True
        if border is None:
            self._mpx.close()
        else:
            self._close(border, JOIN_TIMEOUT)

    def _close(self, border: Border, timeout: float) -> None:
        portal = border.portal
        waits = not (runs_loop() or collects_here())
        if not waits:
            portal.release(self._mpx.close)
        portal.post(lambda: portal.start(self._finish(border)))
        if waits:
            portal.join(timeout)
            border.workers.end(timeout)

    async def _finish(self, border: Border) -> None:
        try:
            await self._mpx.aclose()
        finally:
            _open.discard(self)
            border.portal.stop()

    def drain(self, timeout: float | None = None) -> None:
        """Unsubscribe from everything, wait until the received messages are consumed, and close as `close()` does.

        Messages that arrive before Redis has confirmed the unsubscribe are delivered, to callbacks and to the threads
        that read. Then each `request()` that has no reply is interrupted. New subscriptions and requests raise
        `MultiplexerIsClosed` from the start, but callbacks may still publish, and services reply to the requests they
        have received. The last step before closing is to wait for the outcome of each `publish()`.

        Offline, there is nothing to unsubscribe from. Interrupted, it closes at once. Called from inside a callback, it
        returns at once and continues in the background, because it cannot wait for that callback. Without effect when
        closed already.

        Args:
            timeout: seconds after which the multiplexer is closed in any case, and buffered messages are dropped. None:
                no limit.

        Raises:
            TimeoutError: not all messages were consumed, or not all calls of `publish()` had an outcome.
            RuntimeError: an event loop runs in this thread.
            TypeError, ValueError: the timeout is invalid.
        """
        check_seconds(timeout, "timeout")
        border = self._border
        if self._is_closed:
            return
        if border is None:
            self.close()
        elif border.workers.are_here:
            portal = border.portal
            portal.post(lambda: Context().run(portal.start, self._drain_in_background(border, timeout)))
        else:
            check_may_block()
            try:
                border.portal.wait(lambda: self._drain(border, timeout))
            finally:
                self.close()

    async def _drain_in_background(self, border: Border, timeout: float | None) -> None:
        try:
            await self._drain(border, timeout)
        except TimeoutError as error:
            logger.warning("%s", error)
        self._is_closed = True
        await self._finish(border)

    async def _drain(self, border: Border, timeout: float | None) -> None:
        border.is_draining = True  # the threads get what is on the way
        deadline = None if timeout is None else monotonic() + timeout
        await self._mpx.drain(timeout)
        try:
            async with asyncio.timeout(None if deadline is None else max(0.0, deadline - monotonic())):
                for hand_over in tuple(border.hand_overs):
                    await hand_over.empty()
        except TimeoutError:
            left = border.pending
            for hand_over in tuple(border.hand_overs):
                hand_over.forget(None)
            raise TimeoutError(f"{left} messages not consumed within {timeout} s; they are dropped") from None

    def __enter__(self) -> Self:
        """Open the multiplexer, or open it again after its end: without subscriptions."""
        check_may_block()
        with self._lock:
            if self._is_closed:
                if self._border is not None:
                    self._border.portal.check()
                    self._border.portal.join()
                self._border, self._is_closed = None, False
        self._begun().portal.wait(self._mpx.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _end_at_exit(self) -> None:
        border = self._border
        if border is not None and border.portal.pid == os.getpid():
            give_up = monotonic() + _EXIT_TIMEOUT
            while self._unsent and monotonic() < give_up:
                sleep(0.01)
            if self._unsent:
                logger.error("%d messages of publish_soon() were not sent before the interpreter ended", self._unsent)
            border.portal.is_exiting = True
            self._close(border, _EXIT_TIMEOUT)

    # --- the beginning of a call

    def _begun(self) -> Border:
        """Begin a public call: start the thread of the loop with the first one."""
        if self._is_closed:
            raise MultiplexerIsClosed
        border = self._border
        if border is None:
            with self._lock:
                if self._border is None:
                    self._border = Border()
                    _open.add(self)
                    _register_end()
                border = self._border
        return border

    def _look(self, look: Callable[[], _Outcome]) -> _Outcome:
        """Return a state, in the thread of the loop if there is one."""
        border = self._border
        return look() if border is None else border.portal.call(look)

    def _consumer(
        self,
        on_disconnect: OnDisconnect | None,
        on_activation: OnActivation | None,
        max_pending: int | None,
        overflow: Overflow | OverflowName | None,
        on_error: OnError | None,
        on_close: OnClose | None,
    ) -> tuple[Border, HandOver, dict[str, Any]]:
        """Check the callbacks of a subscription; return the options for the asyncio one."""
        border = self._begun()
        size = self._max_pending if max_pending is None else check_positive(max_pending, "max_pending")
        hand_over = HandOver(border, size, check_overflow(self._overflow if overflow is None else overflow))
        check_plain(on_close, "on_close", "reason")

        def closed(reason: str) -> None:
            hand_over.end()
            if on_close is not None:
                border.workers.start(partial(_call_on_close, on_close, reason))

        options = {
            "on_disconnect": hand_over.then(check_plain(on_disconnect, "on_disconnect", "error")),
            "on_activation": hand_over.then(check_plain(on_activation, "on_activation", "name")),
            "on_error": border.workers.calling(check_plain(on_error, "on_error", "error")),
            "on_close": closed,
            "max_pending": max_pending,
            "overflow": overflow,
        }
        return border, hand_over, options

    async def _report(self, error: Exception) -> None:
        """Call on_error of the multiplexer."""
        if self._border is not None and (call := self._border.workers.calling(self._on_error)) is not None:
            await call(error)


def _call_on_close(on_close: OnClose, reason: str) -> None:
    try:
        on_close(reason)
    except BaseException:  # noqa: BLE001, users' code
        logger.exception("on_close raised an exception")


_open: set[Multiplexer] = set()
"""The multiplexers of this process whose thread runs."""


_registered_by: set[tuple[int, bool]] = set()
"""The processes that have registered `_end_all()`, this one and its ancestors; and whether as children."""


def _end_all() -> None:
    for multiplexer in tuple(_open):
        multiplexer._end_at_exit()


def _register_end() -> None:
    """Have the interpreter call `_end_all()` at its exit. A process of multiprocessing forgets it when it is forked."""
    is_child = multiprocessing.parent_process() is not None  # known after the imports of the main module
    if (os.getpid(), is_child) not in _registered_by:
        _registered_by.add((os.getpid(), is_child))
        atexit.unregister(_end_all)
        atexit.register(_end_all)
        if is_child:  # before Python 3.13, a process that multiprocessing has forked runs no exit handlers
            multiprocessing.util.Finalize(None, _end_all, exitpriority=0)


_register_end()  # at import, so that functions that the program registers later run earlier, and can publish
