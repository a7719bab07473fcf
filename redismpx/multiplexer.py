"""The front door: builds and owns the parts of a multiplexer, checks arguments, and decides nothing else."""

from __future__ import annotations

__all__ = ["Multiplexer"]

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import Context
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from redis.asyncio import Redis, RedisCluster
from redis.backoff import AbstractBackoff

from ._core.budget import Budget
from ._core.overflow import Overflow
from ._core.wire import Kind
from ._io.delivery.consumer import Consumer
from ._io.delivery.watch import finish, new_watch
from ._io.deployment import DeploymentOptions, deployment_of
from ._io.hub import Hub
from ._io.redispy.client import client_from_url, reconnect_backoff
from ._io.runtime.log import RecordLimit, logger
from ._io.runtime.tasks import Tasks, check_asyncio
from ._io.session.options import SessionOptions
from ._io.session.state import SessionState
from ._io.snapshot import snapshot_of
from .arguments import (
    Limits,
    check_bound,
    check_callback,
    check_overflow,
    check_plain,
    check_positive,
    check_seconds,
    to_bytes,
    to_events,
    to_key_name,
    to_pattern,
    to_payload,
    to_position,
)
from .channel import ChannelSubscription, ShardedChannelSubscription
from .envelope import Envelope, Headers
from .errors import MultiplexerIsClosed, quote
from .keys import KeySubscription, OnKeyEvent
from .message import OnGap, OnStreamMessage, StreamMessage
from .observing import Observer
from .pattern import PatternSubscription
from .promise import PromiseSubscription
from .request import EncodedHandler, Handler, OutgoingRequest, Request, Requester
from .service import Service, kind_of
from .stats import Counters, Stats
from .stream import StreamSubscription
from .typing import Decode, Encode, OnActivation, OnClose, OnDisconnect, OnError, OnMessage, OverflowName, Payload, T
from .url_file import read_url_file

_S = TypeVar("_S")  # what `encode` takes


class Multiplexer:
    """One Redis connection for many subscriptions.

    A multiplexer may be made at import time: it needs neither a running event loop nor a server. It connects with the
    first subscription or `connect()` in a running event loop; `publish()` has a connection of its own. Subscriptions
    made before that are kept, and start with the first call inside a loop. Calls from another loop or thread, or in a
    forked child, raise `RuntimeError`, and so do subscriptions made in a thread without an event loop, unless it is the
    main thread.

    `async with` closes the multiplexer at the end, and opens a closed one again: without subscriptions, in the loop
    that runs then. All other calls raise `MultiplexerIsClosed` when it is closed.

    After a lost connection, the multiplexer reconnects: at once, then with `backoff`, without an end. It subscribes to
    every name again, and each subscription gets a disconnect and an activation.

    In a cluster, the connection goes to any node, and after a loss to another node. For sharded channels there is one
    more connection to each primary that owns slots of subscribed channels. All these connections behave as described
    here, but `connected`, `connect()` and the `state` of `stats()` are about the first one only.

    Args:
        redis: a URL, or a client. A URL begins with `redis://` or `valkey://`, with TLS `rediss://` or `valkeys://`, or
            `unix://`; for a master behind Sentinels it is `redis+sentinel://host:port,host:port/service/db`, with TLS
            `rediss+sentinel://`. A client is a `redis.asyncio.Redis`, also one from `Sentinel.master_for()` or a
            `fakeredis.FakeAsyncRedis`, or a `redis.asyncio.RedisCluster`. A client stays yours: the multiplexer uses
            its options, and never closes it.
        backoff: seconds between attempts to connect, as a backoff of redis-py. The first attempt after a loss is made
            at once; `compute(0)` is the delay after the second attempt. None: full jitter, from 50 ms doubling up to
            5 s. The sequence starts again after a connection that lasted 10 s.
        ping_interval: seconds of silence after which the server is pinged. None: no pings.
        ping_timeout: seconds after a ping within which the server must send something. Otherwise the connection is
            dropped.
        delivery_probe: seconds between two probes. A probe is a message that the multiplexer publishes to itself, over
            a new connection to the current server. If Redis accepts a probe, but it does not arrive within the same
            number of seconds, the connection is dropped, and that for publishing too: the server answers pings but no
            longer gets the published messages, as a former master does. The seconds do not pass while received data
            waits for callbacks. Needs the rights to publish and subscribe to `__mpx_probe:*`. None: no probes.
        max_pending: the number of messages that one subscription buffers.
        overflow: which message is dropped when the buffer is full, as an `Overflow` or its name: `"drop_oldest"`,
            `"drop_newest"`, `"latest"` (only the newest message of each channel is buffered), or `"close"` (the
            subscription is closed). Dropped messages are counted, and reported as `SlowConsumer`.
        on_error: called with the errors of each subscription that has no `on_error` of its own.
        max_channels: the number of different channels that may be subscribed to at a time. Beyond:
            `TooManyChannels`. None: no limit, here and for all following limits.
        max_patterns: the number of different patterns that may be subscribed to at a time. A promise subscription is
            one pattern. Beyond: `TooManyPatterns`.
        max_promises: the number of promises that may be outstanding at a time. Beyond: `TooManyPromises`.
        max_name_bytes: the length of a channel, in bytes. Beyond: `ValueError`.
        max_pattern_bytes: the length of a pattern, in bytes. Beyond: `ValueError`.
        max_pattern_stars: the number of stars in a pattern. Beyond: `ValueError`. Each pattern costs the server time
            for every message that any client publishes.
        max_pending_bytes: the bytes of channels and payloads that one subscription buffers. Beyond, `overflow` applies
            as for `max_pending`. A subscription without buffered messages buffers one message of any size.
        max_total_pending_bytes: the bytes that all subscriptions together buffer. Beyond, the subscriptions that buffer
            the most bytes drop messages, as their `overflow` says. A message longer than half of the total may exceed
            it, if its subscription has no other: at most half of the total is buffered beside it. Once half of the
            total is used, a payload of 1 KiB or more that several subscriptions buffer is counted once.
        publish_timeout: seconds for one `publish()`, from the call to the reply of Redis. If the event loop is busy
            when they end, the call has more time, so that a reply which has arrived can be read.
        tail_interval: seconds without a message on a stream after which its last id is compared, so that nothing is
            missed on a connection that is silently broken, or that was appended by plain XADD. It takes up to half of
            that longer. None: never.
        max_payload: the length of a payload for `publish()`, in bytes. Beyond: `ValueError`. Servers disconnect a
            subscriber whose unsent messages exceed `client-output-buffer-limit`.
        observers: get what happens to connections, names and messages, as `redismpx.observing` describes. Without
            a `MessageObserver` among them, they cost nothing for each message.
        connection_options: any option of `redis.asyncio.Redis.from_url`; only with a URL. With Sentinels also
            `sentinel_username` and `sentinel_password`; the user and the password of the URL are those of the master.
            Maintenance notifications of the server (MOVING and others) are off unless `maint_notifications_config`
            requests them.

    Raises:
        TypeError, ValueError: an argument is invalid, or redis-py cannot use an option.

    Example:
        ::

            async with Multiplexer("redis://localhost:6379") as mpx:
                async with mpx.subscribe("news") as sub:
                    await mpx.publish("news", "hello")
                    message = await sub.get(timeout=5)
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
        if backoff is not None and not isinstance(backoff, AbstractBackoff):
            raise TypeError(f"backoff must be a redis.backoff.AbstractBackoff, not {type(backoff).__name__}")
        _check_times(ping_interval, ping_timeout, delivery_probe, publish_timeout)
        if check_seconds(tail_interval, "tail_interval") == 0:
            raise ValueError("tail_interval must be more than 0 seconds; None disables it")
        self._max_payload = check_bound(max_payload, "max_payload")
        self._max_pending = check_positive(max_pending, "max_pending")
        limits = Limits(
            max_channels=check_bound(max_channels, "max_channels"),
            max_patterns=check_bound(max_patterns, "max_patterns"),
            max_promises=check_bound(max_promises, "max_promises"),
            max_name_bytes=check_bound(max_name_bytes, "max_name_bytes"),
            max_pattern_bytes=check_bound(max_pattern_bytes, "max_pattern_bytes"),
            max_pattern_stars=check_bound(max_pattern_stars, "max_pattern_stars"),
        )
        each = check_bound(max_pending_bytes, "max_pending_bytes")
        total = check_bound(max_total_pending_bytes, "max_total_pending_bytes")
        self._overflow = check_overflow(overflow)
        self._on_error = check_callback(on_error, "on_error", "error")
        client = client_from_url(redis, connection_options) if isinstance(redis, str) else redis
        if client is redis:
            _check_client(client, connection_options)
        self._client = client
        self._is_owner = client is not redis
        backoff = reconnect_backoff() if backoff is None else backoff
        watch = self._watch = new_watch(observers)

        def new_hub() -> Hub:
            tasks, counters, record_limit, budget = Tasks(), Counters(), RecordLimit(), Budget(each, total)
            sessions = SessionOptions(
                ping_interval,
                ping_timeout,
                tasks,
                counters,
                budget.critical,
                record_limit,
                None if watch is None else watch.tell,
            )
            return Hub(
                lambda on_end, slices: deployment_of(
                    client, DeploymentOptions(backoff, sessions, publish_timeout, delivery_probe, on_end, slices)
                ),
                tasks,
                counters,
                limits,
                budget,
                record_limit,
                tail_interval,
                watch,
            )

        self._new_hub = new_hub
        self._open()

    @classmethod
    def from_url_file(cls, path: str | os.PathLike[str], **options: Any) -> Self:
        """Make a multiplexer for the server whose URL is in a file, as `redismpx broker --url-file` writes it.

        The file is read once. After the broker was started again, its password is another one: make a new multiplexer.

        Args:
            path: the file. It has one URL; lines that begin with `#` are ignored.
            options: the keyword arguments of the `Multiplexer`.

        Returns:
            The multiplexer.

        Raises:
            redismpx.url_file.StaleURLFile: the broker that wrote the file has ended.
            FileNotFoundError: there is no such file.
            OSError, TypeError, ValueError: the file cannot be read, or its URL or an option is invalid.

        Example:
            ::

                # after: redismpx broker --url-file broker.url
                mpx = Multiplexer.from_url_file("broker.url", max_pending=1_000)
        """
        return cls(read_url_file(path), **options)

    def _open(self) -> None:
        """Begin a life without subscriptions: the first one, or one after the end of the last."""
        self._hub = self._new_hub()
        self._requester = Requester(self._hub, self._begin_request, self._on_error, self._max_pending)

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

        Plain callbacks run in wire order, between two reads of the socket: keep them short. If a callback returns an
        awaitable, it is awaited, one at a time; meanwhile the other events of this subscription are buffered, and
        other subscriptions go on. An exception of a callback goes to `on_error` and to the log; delivery goes on.

        Args:
            on_message: called with the channel and the payload of each message. None: the subscription is read, with
                `async for`, `ChannelSubscription.get()` or `ChannelSubscription.get_nowait()`. The other callbacks are
                then called when the messages before their event have been read. A subscription without callbacks that
                nobody refers to any more is closed, with a `ResourceWarning`, because nobody can read it.
            on_disconnect: called with a `ConnectionLost`, once for each lost connection on which a channel was active.
            on_activation: called with each channel when Redis has confirmed it, and again after each reconnect. It is
                never called from inside `add()`.
            decode: converts each payload, for example `bytes.decode` or `json.loads`; the subscription is generic in
                the result type. If it raises, `on_error` gets a `DecodeError`, and the message counts as dropped. None:
                payloads are `bytes`.
            max_pending: as for the `Multiplexer`, whose value is the default.
            overflow: as for the `Multiplexer`, whose value is the default.
            on_error: called with each exception of a callback, and with `SlowConsumer`, `DecodeError` and
                `SubscriptionRefused`. None: the `on_error` of the multiplexer.
            on_close: called once when the subscription ends without a call of its own `close()`: with `"overflow"`, if
                `overflow` is `"close"`, or with `"multiplexer closed"`. A plain function; it is the last callback.
            sharded: use sharded Pub/Sub (https://redis.io/docs/latest/develop/pubsub/). Its channels are separate from
                the other channels: they get the messages of `publish(..., sharded=True)`. In a cluster, a message goes
                to one shard only, to which there is a connection of its own. Needs Redis 7; an older server rejects the
                channels (`SubscriptionRefused`).

        Returns:
            The subscription.

        Raises:
            MultiplexerIsClosed: the multiplexer is closed or drains.
            TypeError, ValueError: an argument is invalid.

        Example:
            ::

                def on_order(channel: bytes, order: dict[str, int]) -> None:
                    print(channel, order["id"])

                orders = mpx.new_channel_subscription(on_order, decode=json.loads, overflow="latest")
                orders.add("orders:eu", "orders:us")
                await orders.wait_for_activation(timeout=5)
                await mpx.publish("orders:eu", '{"id": 7}')  # prints b'orders:eu' 7
        """
        self._enter()
        consumer = self._consumer(
            on_message, on_disconnect, on_activation, decode, max_pending, overflow, on_error, on_close
        )
        return (ShardedChannelSubscription if sharded else ChannelSubscription)(self._hub, consumer)

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
    ) -> AbstractAsyncContextManager[ChannelSubscription[bytes]]: ...

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
    ) -> AbstractAsyncContextManager[ChannelSubscription[T]]: ...

    @asynccontextmanager
    async def subscribe(self, *channels: str | bytes, **options: Any) -> AsyncIterator[ChannelSubscription[Any]]:
        """Subscribe to channels for the duration of a block: `async with mpx.subscribe("news") as sub`.

        All channels are active when the block begins, so it misses no message that is published from then on. The
        subscription is closed at the end of the block. Offline, it waits for the connection; use `asyncio.timeout()`
        to limit the wait. If it is cancelled, or an error is raised, nothing stays subscribed.

        Args:
            channels: names; `str` is encoded as UTF-8.
            options: the callbacks and options of `new_channel_subscription()`, as keywords.

        Returns:
            An asynchronous context manager with the `ChannelSubscription`.

        Raises:
            SubscriptionRefused: the server rejects one of the channels.
            TooManyChannels: `max_channels` would be exceeded.
            MultiplexerIsClosed: the multiplexer is closed or drains.
            SubscriptionIsClosed: the multiplexer was closed during the wait.
            TypeError, ValueError: an argument is invalid.

        Example:
            ::

                async with mpx.subscribe("news", "weather", decode=bytes.decode) as sub:
                    await mpx.publish("news", "hello")
                    async for message in sub:
                        print(message.channel, message.data)  # b'news' hello
                        break
        """
        async with self.new_channel_subscription(**options) as subscription:
            subscription.add(*channels)
            await subscription.wait_for_activation()
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
        """Subscribe to all channels that match a glob pattern.

        Returns at once, and works offline.

        Args:
            pattern: a glob pattern; `str` is encoded as UTF-8. Use `escape_glob()` for text from outside.
            on_message: called with the channel on which a message was published, and its payload.
            on_disconnect: called with a `ConnectionLost`, once for each lost connection on which the pattern was
                active.
            on_activation: called with the pattern when Redis has confirmed it, and again after each reconnect.
            decode: as for `new_channel_subscription()`.
            max_pending: as for the `Multiplexer`, whose value is the default.
            overflow: as for the `Multiplexer`, whose value is the default.
            on_error: as for `new_channel_subscription()`.
            on_close: as for `new_channel_subscription()`.

        Returns:
            The subscription.

        Raises:
            MultiplexerIsClosed: the multiplexer is closed or drains.
            TooManyPatterns: `max_patterns` is reached.
            TypeError, ValueError: an argument is invalid, or the pattern is empty, too long, or has too many stars.

        Example:
            ::

                logins = mpx.new_pattern_subscription("user:*:login", decode=bytes.decode)
                await logins.wait_for_activation(timeout=5)
                await mpx.publish("user:7:login", "Ann")
                message = await logins.get(timeout=5)
                print(message.channel, message.data)  # b'user:7:login' Ann
        """
        self._enter()
        consumer = self._consumer(
            on_message, on_disconnect, on_activation, decode, max_pending, overflow, on_error, on_close
        )
        return PatternSubscription(self._hub, consumer, to_pattern(pattern, self._hub.limits))

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
        """Subscribe to the events of all keys that match a glob pattern: keyspace notifications.

        Returns at once, and works offline. In a cluster, it listens to every primary, over a connection to each, and
        follows the slot map; for a single key, to the primary that owns it.

        The server must be set to publish the events: `notify-keyspace-events` needs the letter `K`, and letters for
        classes of events (https://redis.io/docs/latest/develop/pubsub/keyspace-notifications/). After an activation the
        setting is read; `on_error` gets one `KeyEventsDisabled` if letters are missing. Where `CONFIG` is forbidden, it
        is not checked.

        Args:
            pattern: a glob pattern of keys, or a key; `str` is encoded as UTF-8. Use `escape_glob()` for text from
                outside.
            on_event: called with each `KeyEvent`. None: the subscription is read, with `async for`,
                `KeySubscription.get()` or `KeySubscription.get_nowait()`.
            on_disconnect: called with a `ConnectionLost`, once for each lost connection on which the subscription was
                active. Its attribute `node` names the primary of a cluster; events of that primary are missed until the
                next activation.
            on_activation: called with the pattern when all servers concerned have confirmed the subscription, and again
                after each disconnect.
            events: the events to deliver, for example `{"set", "expired"}`. None: all.
            db: the number of the database.
            subkeys: subscribe to subkey notifications instead, which name the fields of a hash. Needs Redis 8.8, and
                the letter `S` in place of `K`.
            max_pending: as for the `Multiplexer`, whose value is the default.
            overflow: as for the `Multiplexer`, whose value is the default. `"latest"` keeps the newest event of each
                key.
            on_error: as for `new_channel_subscription()`; called with `KeyEventsDisabled` too.
            on_close: as for `new_channel_subscription()`.

        Returns:
            The subscription.

        Raises:
            MultiplexerIsClosed: the multiplexer is closed or drains.
            TooManyPatterns, TooManyChannels: a limit is reached. A single key is a channel.
            TypeError, ValueError: an argument is invalid.

        Example:
            ::

                sessions = mpx.new_key_subscription("session:*", events={"set", "expired"})
                await sessions.wait_for_activation(timeout=5)
                await redis.set("session:7", "Ann")  # with a client of redis-py
                event = await sessions.get(timeout=5)
                print(event.key, event.event)  # b'session:7' b'set'
        """
        self._enter()
        name = to_key_name(pattern, db, self._hub.limits, has_subkeys=subkeys)
        check_callback(on_event, "on_event", "event")
        consumer = self._consumer(None, on_disconnect, on_activation, None, max_pending, overflow, on_error, on_close)
        return KeySubscription(self._hub, consumer, on_event, name, to_events(events))

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
        """Make a subscription to streams, still without streams: `StreamSubscription.add()` subscribes to them.

        A stream is a channel whose messages Redis keeps: those of `append()`. What a lost connection, or a slow
        consumer, has missed is read from Redis, in order. If Redis does not have it any more, `on_gap` says so. So no
        message is lost unseen.

        Returns at once, and works offline. In a cluster, the channels of streams are sharded.

        Args:
            on_message: called with each `StreamMessage`. None: the subscription is read, with `async for`,
                `StreamSubscription.get()` or `StreamSubscription.events()`.
            on_gap: called with a `MessageGap` in its place between the messages. None: gaps go to `on_error`, or to the
                log.
            on_disconnect: called with a `ConnectionLost`, once for each lost connection on which a stream was active.
                No message is missed therefore.
            on_activation: called with each stream when it is subscribed and its position is known, and again after each
                reconnect.
            decode: converts each payload, as for `new_channel_subscription()`. If it raises, the message is left out.
            durable: a name under which the positions are kept in Redis, in a hash beside each stream. They are saved
                when the consumer is through with a message: within a second, at `StreamSubscription.commit()`, at
                `drain()` and `aclose()`, and when the stream is removed or the subscription closed. A subscription with
                the same name goes on from there, at least once: what was handled after the last save is delivered
                again. Only one subscription at a time should have the name.
            max_pending: the number of messages that are buffered, as for the `Multiplexer`, whose value is the default.
                Beyond, they stay in Redis until the consumer has caught up, and `on_error` gets one `SlowConsumer`.
            on_error: as for `new_channel_subscription()`.
            on_close: called once with the reason when the multiplexer is closed before the subscription. A plain
                function; it is the last callback.

        Returns:
            The subscription.

        Raises:
            MultiplexerIsClosed: the multiplexer is closed or drains.
            TypeError, ValueError: an argument is invalid.

        Example:
            ::

                await mpx.append("jobs", "resize 7.jpg")
                jobs = mpx.new_stream_subscription(decode=bytes.decode, durable="resizer")
                jobs.add("jobs", after="0")  # or behind the last message that the resizer was through with
                job = await jobs.get(timeout=5)
                print(job.data)  # resize 7.jpg
                await jobs.commit()
        """
        self._enter()
        check_callback(on_message, "on_message", "message")
        check_callback(on_gap, "on_gap", "gap")
        name = None if durable is None else to_bytes(durable, "durable", self._hub.limits.max_name_bytes)
        consumer = self._consumer(
            None, on_disconnect, on_activation, decode, max_pending, Overflow.DROP_NEWEST, on_error, on_close
        )
        return StreamSubscription(self._hub, consumer, on_message, on_gap, decode, name)

    def new_promise_subscription(self, prefix: str | bytes) -> PromiseSubscription:
        """Make a subscription for promises on all channels that begin with `prefix`.

        Returns at once, and works offline.

        Args:
            prefix: the prefix of the channels; `str` is encoded as UTF-8. Glob characters in it have no special
                meaning.

        Returns:
            The subscription. `PromiseSubscription.new_promise()` makes a promise.

        Raises:
            MultiplexerIsClosed: the multiplexer is closed or drains.
            TooManyPatterns: `max_patterns` is reached.
            TypeError, ValueError: the prefix is invalid.

        Example:
            ::

                replies = mpx.new_promise_subscription("reply:")
                promise = await replies.wait_for_new_promise(timeout=5)
                await mpx.publish(promise.channel, "paid")  # usually, another process does this
                payload = await promise.get()
                print(payload)  # b'paid'
        """
        self._enter()
        name = to_bytes(prefix, "a prefix", self._hub.limits.max_pattern_bytes)
        return PromiseSubscription(self._hub, self._on_error, name)

    # --- publishing

    async def publish(
        self,
        channel: str | bytes,
        data: Payload,
        *,
        headers: Mapping[str, str] | None = None,
        sharded: bool = False,
    ) -> int:
        """Publish a message.

        Messages go out in the order of the calls, over a connection of their own. Calls made while the
        connection waits for replies are sent together, in the next pipeline. Each call has its own outcome. A message
        is sent at most once: nothing is retried after it was sent. May be called in callbacks, and during `drain()`.

        Offline, it waits for a connection until `publish_timeout`. A cancelled call that was not sent yet is not sent.

        Args:
            channel: the channel; `str` is encoded as UTF-8.
            data: the payload: `str` (encoded as UTF-8), `bytes`, or an object with the buffer protocol or `__bytes__`.
            headers: text by name. The message is then an `Envelope` with these headers and the data as its body, and
                observers may add headers, for example those of a trace. A subscription with
                `decode=Envelope.from_bytes` gets the envelope; one without gets its wire form, which begins with
                `MPX/1`. None: the message is the data alone, as every client of Redis expects.
            sharded: publish to the subscriptions that were made with `sharded=True`, and to no others. In a cluster,
                the message goes to the primary that owns the slot of the channel, over a connection of its own. The
                order is kept for each slot. If the slot moves, the message follows it.

        Returns:
            The number of connections that received the message, as Redis counts them. This does not guarantee that a
            subscriber gets it. In a cluster, a node counts its own connections only.

        Raises:
            ConnectionLost: after `publish_timeout`, or when the connection is lost before Redis has replied. Its
                attribute `sent` tells whether the message may have been published.
            redis.exceptions.ResponseError: Redis rejected this message, for example with `NoPermissionError`. Other
                calls are not affected.
            MultiplexerIsClosed: the multiplexer is closed, or was closed before the message was sent.
            TypeError, ValueError: the channel or the payload is invalid, or longer than `max_name_bytes` or
                `max_payload`.

        Example:
            ::

                async with mpx.subscribe("payments", decode=Envelope.from_bytes) as payments:
                    await mpx.publish("payments", "12.50", headers={"Currency": "EUR"})
                    message = await payments.get(timeout=5)
                    print(message.data.headers["Currency"], message.data.body)  # EUR b'12.50'
        """
        name, payload = self._convert(channel, data, headers)
        return await self._hub.publish(name, payload, sharded=sharded)

    def _begin_publish(self, name: bytes, payload: bytes, outcome: asyncio.Future[int], *, sharded: bool) -> None:
        """Publish what `_to_message()` returned, and have the outcome set on a future. For blocking and topics."""
        self._enter_to_publish(payload)
        self._hub.begin_publish(name, payload, outcome, sharded=sharded)

    def _convert(
        self, channel: str | bytes, data: Payload, headers: Mapping[str, str] | None = None, operation: str = "publish"
    ) -> tuple[bytes, bytes]:
        """Return the bytes of a channel and a payload to publish now."""
        name, payload = self._to_message(channel, data, headers, operation)
        self._enter_to_publish(payload)
        return name, payload

    def _to_message(
        self, channel: str | bytes, data: Payload, headers: Mapping[str, str] | None = None, operation: str = "publish"
    ) -> tuple[bytes, bytes]:
        """Return the bytes of a channel and a payload. Any thread may call this."""
        name = to_bytes(channel, "a channel", self._hub.limits.max_name_bytes)
        if headers is not None:
            data = Envelope(to_payload(data, None), headers)
        if self._watch is None or not self._watch.follows:
            return name, to_payload(data, self._max_payload)
        return name, self._watch.convert(operation, name, data, self._max_payload)

    def _enter_to_publish(self, payload: bytes = b"") -> None:
        """Begin a public call that is possible during `drain()`, too."""
        try:
            if self._hub.closed:  # also by the payload, while it was converted
                raise MultiplexerIsClosed
            self._hub.enter()
        except BaseException as error:
            finish(payload, error)
            raise

    # --- streams

    async def append(
        self,
        channel: str | bytes,
        data: Payload,
        *,
        max_length: int | None = 1_000,
        max_age: float | None = 3_600,
        key: str | bytes | None = None,
    ) -> bytes:
        """Append a message to a stream: Redis keeps it, and publishes it to the stream subscriptions.

        One script does all of it in one atomic step. It goes out in the order of the calls, with those of `publish()`,
        as described there. Needs the rights to run scripts, to read and write the key with the name of the stream, and
        to publish on the channel of that name.

        Args:
            channel: the stream; `str` is encoded as UTF-8.
            data: the payload, as for `publish()`.
            max_length: how many messages are kept at least. Redis removes older ones in blocks, of up to a hundred
                messages. None: no limit.
            max_age: how long messages are kept at least, in seconds; the whole stream expires that long after its last
                message. None: no limit.
            key: makes the call idempotent: a call with a key that was used in the last ten minutes appends nothing, and
                returns the id of the first one. While a node of a cluster hands the stream over to another node, later
                calls may overtake a call with a key.

        Returns:
            The id of the message.

        Raises:
            ConnectionLost: as for `publish()`. If its attribute `sent` is true, the message may have been appended;
                with a `key`, it is safe to call again.
            redis.exceptions.ResponseError: Redis rejected the call, and appended nothing; its notes say what to do. It
                is an `OutOfMemoryError` when `maxmemory` is reached, a `ReadOnlyError` from a replica, a
                `NoPermissionError` when a right is missing, and has the text `WRONGTYPE` if the key is no stream.
            MultiplexerIsClosed: as for `publish()`.
            TypeError, ValueError: an argument is invalid.

        Example:
            ::

                key = secrets.token_hex()
                while True:
                    try:
                        id = await mpx.append("room:1", "hello", key=key)
                    except ConnectionLost:
                        continue  # it is appended once, however often this is repeated
                    break
        """
        if max_length is not None:
            check_positive(max_length, "max_length")
        age = check_seconds(max_age, "max_age")
        if age is not None and age < 0.001:
            raise ValueError(f"max_age must be at least a millisecond, not {age} s")
        once = None if key is None else to_bytes(key, "key", self._hub.limits.max_name_bytes)
        name, payload = self._convert(channel, data, operation="append")
        return await self._hub.append(name, payload, max_length, age, once)

    async def history(
        self, channel: str | bytes, *, after: str | bytes = b"0", limit: int = 100
    ) -> list[StreamMessage[bytes]]:
        """Read messages that a stream keeps, oldest first, without a subscription.

        Offline, it waits for a connection until `publish_timeout`.

        Args:
            channel: the stream; `str` is encoded as UTF-8.
            after: an id: the messages behind it. `"0"`: from the oldest one on.
            limit: how many messages to return at most.

        Returns:
            The messages. Fewer than `limit`: there are no more.

        Raises:
            ConnectionLost: there is no connection.
            redis.exceptions.ResponseError: Redis rejected the call.
            MultiplexerIsClosed: the multiplexer is closed.
            TypeError, ValueError: an argument is invalid.

        Example:
            ::

                first = await mpx.append("room:1", "hello")
                await mpx.append("room:1", "how are you?")
                for message in await mpx.history("room:1", after=first, limit=10):
                    print(message.data)  # b'how are you?'
        """
        name = self._stream(channel)
        position = to_position(after)
        if position is None:
            raise TypeError("after must be str or bytes: the id of an entry, or '0'")
        check_positive(limit, "limit")
        return await self._hub._streams.history(name, position, limit)

    async def delete_position(self, channel: str | bytes, durable: str | bytes) -> bool:
        """Delete a position that a durable stream subscription has saved. While it is open, it may save it again.

        Args:
            channel: the stream; `str` is encoded as UTF-8.
            durable: the name of the position.

        Returns:
            Whether there was one.

        Raises:
            ConnectionLost: there is no connection.
            redis.exceptions.ResponseError: Redis rejected the call.
            MultiplexerIsClosed: the multiplexer is closed.
            TypeError, ValueError: an argument is invalid.

        Example:
            ::

                await mpx.append("jobs", "resize 7.jpg")
                async with mpx.new_stream_subscription(durable="resizer") as jobs:
                    jobs.add("jobs", after="0")
                    await jobs.get(timeout=5)
                    await jobs.commit()
                existed = await mpx.delete_position("jobs", "resizer")
                print(existed)  # True
        """
        position = to_bytes(durable, "durable")
        return await self._hub._streams.positions.delete(self._stream(channel), position)

    def _stream(self, channel: str | bytes) -> bytes:
        """Return the name of a stream for a call now."""
        name = to_bytes(channel, "a channel", self._hub.limits.max_name_bytes)
        self._enter_to_publish()
        return name

    # --- request and reply

    def _begin_request(
        self, channel: bytes, data: Payload, outcome: asyncio.Future[int], *, sharded: bool
    ) -> Callable[[], None]:
        """Publish a request, and have the outcome set on a future; return what cancels that.

        The outcome is `NoResponders` if it is certain that nobody received the request.
        """
        name, payload = self._convert(channel, data, operation="request")
        return self._hub.begin_publish(name, payload, outcome, sharded=sharded, must_be_heard=True)

    async def _publish_reply(self, channel: bytes, data: Payload) -> int:
        """Publish a reply, which no observer follows: it belongs to the request."""
        payload = to_payload(data, self._max_payload)
        self._enter_to_publish()
        return await self._hub.deployment.publisher.publish(channel, payload, sharded=False)

    @overload
    async def request(
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
    async def request(
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
    async def request(
        self,
        channel: str | bytes,
        data: _S,
        *,
        timeout: float,
        encode: Encode[_S],
        decode: None = None,
        headers: Mapping[str, str] | None = None,
        sharded: bool = False,
    ) -> bytes: ...

    @overload
    async def request(
        self,
        channel: str | bytes,
        data: _S,
        *,
        timeout: float,
        encode: Encode[_S],
        decode: Decode[T],
        headers: Mapping[str, str] | None = None,
        sharded: bool = False,
    ) -> T: ...

    async def request(
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
        """Send a request to the services on a channel, and return the first reply.

        The request is an `Envelope` with `headers` and an unguessable channel for the reply. All requests of a
        multiplexer share one promise subscription, which the first request makes. A reply that arrives late or twice is
        ignored.

        Offline, it waits for the connection. Cancelling it leaves nothing behind.

        Args:
            channel: the channel of the service; `str` is encoded as UTF-8.
            data: the body of the request, as for `publish()`; with `encode`, what `encode` takes.
            timeout: seconds for all of it, the waits for a connection and for the reply included.
            encode: converts the data to a payload, for example `json.dumps`. None: the data is a payload.
            decode: converts the body of the reply, for example `json.loads`. None: the body is `bytes`.
            headers: text by name; see `Envelope`. `Mpx-Reply` and `Mpx-Error` are for replies.
            sharded: send the request over sharded Pub/Sub, to services with `sharded=True`. The reply uses a normal
                channel, because sharded Pub/Sub has no patterns and therefore no promises.

        Returns:
            The body of the reply, or the result of `decode`.

        Raises:
            DecodeError: `decode` raised an exception, which is the `__cause__`.
            NoResponders: it is certain that nobody received the request. Raised at once. Redis must say that it counts
                all subscribers: not at a replica or at a master that has or had replicas, not for a classic request in
                a cluster, and not without the right to `INFO`. There, the request waits for its timeout.
            PromiseTimeout: no reply arrived within `timeout`.
            RequestFailed: the handler of the service raised; the reason is its text.
            ConnectionLost: the connection was lost before the reply arrived. If `sent` is true, it is unknown whether
                the request was handled; if not, it was not published, and will not be.
            MultiplexerIsClosed: the multiplexer is closed or drains, or was closed before the reply arrived.
            SubscriptionRefused: Redis rejects the pattern for the replies.
            TooManyPromises, TooManyPatterns: a limit is reached.
            redis.exceptions.ResponseError: Redis rejected the request, as for `publish()`.
            TypeError, ValueError: an argument is invalid.

        Example:
            ::

                service = mpx.serve("sum", lambda request: str(sum(json.loads(request.body))).encode())
                await service.wait_for_activation(timeout=5)
                total = await mpx.request("sum", [1, 2, 3], timeout=5, encode=json.dumps, decode=json.loads)
                print(total)  # 6
        """
        self._enter()
        request = self._outgoing_request(channel, data, headers, timeout, sharded, encode, decode)
        return await self._requester.request(request, timeout)

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
    ) -> AsyncGenerator[bytes, None]: ...

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
    ) -> AsyncGenerator[T, None]: ...

    @overload
    def request_many(
        self,
        channel: str | bytes,
        data: _S,
        *,
        timeout: float,
        limit: int | None = None,
        encode: Encode[_S],
        decode: None = None,
        headers: Mapping[str, str] | None = None,
        sharded: bool = False,
    ) -> AsyncGenerator[bytes, None]: ...

    @overload
    def request_many(
        self,
        channel: str | bytes,
        data: _S,
        *,
        timeout: float,
        limit: int | None = None,
        encode: Encode[_S],
        decode: Decode[T],
        headers: Mapping[str, str] | None = None,
        sharded: bool = False,
    ) -> AsyncGenerator[T, None]: ...

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
    ) -> AsyncGenerator[Any, None]:
        """Send a request to all services on a channel, and iterate over their replies in the order of arrival.

        The request is sent when the iteration begins. Replies that arrive in time are buffered, at most `max_pending`,
        and can be read after the timeout. A handler that fails counts as one reply. Its failure does not delay the
        replies of others: the first failure is raised at the end of the iteration. No reply at all is not an error.

        Args:
            channel: as for `request()`.
            data: as for `request()`.
            timeout: seconds from the begin of the iteration to its end.
            limit: the number of replies after which the iteration ends. None: no limit.
            encode: as for `request()`.
            decode: as for `request()`. A reply that cannot be decoded counts as the failure of a handler does.
            headers: as for `request()`.
            sharded: as for `request()`.

        Returns:
            An asynchronous iterator over the bodies of the replies. Iterating raises the errors of `request()`, but
            `PromiseTimeout` only if the request could not be sent in time.

        Raises:
            MultiplexerIsClosed: the multiplexer is closed or drains.
            TypeError, ValueError: an argument is invalid.

        Example:
            ::

                for name in "server 1", "server 2":
                    service = mpx.serve("who.is", lambda request, name=name: name.encode())
                    await service.wait_for_activation(timeout=5)
                names = [reply async for reply in mpx.request_many("who.is", b"", timeout=5, limit=2)]
                print(sorted(names))  # [b'server 1', b'server 2']
        """
        self._enter()
        if limit is not None:
            check_positive(limit, "limit")
        request = self._outgoing_request(channel, data, headers, timeout, sharded, encode, decode)
        return self._requester.request_many(request, timeout, limit)

    @overload
    def serve(
        self,
        channel_or_pattern: str | bytes,
        handler: Handler[bytes],
        *,
        decode: None = None,
        encode: None = None,
        concurrency: int = 1,
        on_error: OnError | None = None,
        sharded: bool = False,
    ) -> Service: ...

    @overload
    def serve(
        self,
        channel_or_pattern: str | bytes,
        handler: Handler[T],
        *,
        decode: Decode[T],
        encode: None = None,
        concurrency: int = 1,
        on_error: OnError | None = None,
        sharded: bool = False,
    ) -> Service: ...

    @overload
    def serve(
        self,
        channel_or_pattern: str | bytes,
        handler: EncodedHandler[bytes, _S],
        *,
        decode: None = None,
        encode: Encode[_S],
        concurrency: int = 1,
        on_error: OnError | None = None,
        sharded: bool = False,
    ) -> Service: ...

    @overload
    def serve(
        self,
        channel_or_pattern: str | bytes,
        handler: EncodedHandler[T, _S],
        *,
        decode: Decode[T],
        encode: Encode[_S],
        concurrency: int = 1,
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
        concurrency: int = 1,
        on_error: OnError | None = None,
        sharded: bool = False,
    ) -> Service:
        """Reply to the requests on a channel, or on all channels that match a pattern.

        Returns at once, and works offline. If several services serve a channel, each gets every request, and
        `request()` takes the first reply: this is Pub/Sub, not a queue.

        A message that is not an envelope, or is a reply, goes to `on_error` as a `DecodeError`, and counts as dropped.
        `drain()` waits until the handlers in flight have ended and their replies are published; `Service.close()`
        cancels the handlers.

        Args:
            channel_or_pattern: a name with `*`, `?`, `[` or a backslash is a pattern. For a channel that has such a
                character, pass `escape_glob(channel)`.
            handler: called with each `Request`; returns the body of the reply, or an awaitable of it. None is an empty
                reply. An exception goes to the requester as `type: text`, with the first line of its text, and to
                `on_error` and the log. If the envelope has no `reply_to`, the result is discarded.
            decode: converts the body of each request, for example `json.loads`; `Request.body` is the result. If it
                raises, the handler is not called, `on_error` gets a `DecodeError`, and so does the requester: without
                the text of its cause, which may repeat the body. None: the body is `bytes`.
            encode: converts each result of the handler, None too, to a payload, for example `json.dumps`. None: the
                handler returns `bytes` or None.
            concurrency: the number of handlers that may be in flight. Further requests are buffered in order, within
                `max_pending` and `overflow` of the multiplexer.
            on_error: called with each exception of the handler, and with each `SlowConsumer`, `DecodeError` and
                `SubscriptionRefused`. None: the `on_error` of the multiplexer.
            sharded: serve a channel of sharded Pub/Sub, for requests with `sharded=True`; see
                `new_channel_subscription()`. Patterns are not possible then (`ValueError`).

        Returns:
            The service. Close it to stop serving.

        Raises:
            MultiplexerIsClosed: the multiplexer is closed or drains.
            TooManyChannels, TooManyPatterns: a limit is reached.
            TypeError, ValueError: an argument is invalid.

        Example:
            ::

                async def add(request: Request[list[int]]) -> int:
                    return sum(request.body)

                service = mpx.serve("sum", add, decode=json.loads, encode=json.dumps, concurrency=10)
                await service.wait_for_activation(timeout=5)
                print(await mpx.request("sum", "[1, 2, 3]", timeout=5))  # b'6'
        """
        self._enter()
        if handler is None:
            raise TypeError("handler must be callable, not NoneType")
        check_callback(handler, "handler", "request")
        check_callback(decode, "decode", "payload")
        check_callback(encode, "encode", "result")
        limits = self._hub.limits
        name = to_bytes(channel_or_pattern, "a channel or pattern", limits.max_name_bytes)
        if kind_of(name) is Kind.PATTERN:
            if sharded:
                raise ValueError(f"sharded Pub/Sub has no patterns, and {quote(name)} is a pattern; serve channels")
            to_pattern(name, limits)
        check_positive(concurrency, "concurrency")
        return Service(
            self._hub,
            self._publish_reply,
            name,
            handler,
            decode,
            encode,
            concurrency,
            check_callback(on_error, "on_error", "error") or self._on_error,
            self._max_pending,
            self._overflow,
            sharded=sharded,
        )

    # --- state

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._hub.deployment.main.state is SessionState.CONNECTED

    async def connect(self, timeout: float | None = None) -> None:
        """Wait until there is a connection.

        Calling it is optional, because subscriptions connect too. Cancelling it changes nothing else.

        Args:
            timeout: seconds to wait. None: no limit.

        Raises:
            TimeoutError: there is no connection within `timeout`. Its `__cause__` is the last `ConnectionLost`.
            MultiplexerIsClosed: the multiplexer is closed or drains, or was closed during the wait.
            TypeError, ValueError: the timeout is invalid.

        Example:
            ::

                try:
                    await mpx.connect(timeout=5)
                except TimeoutError as error:
                    print("no connection:", error.__cause__)
        """
        check_seconds(timeout, "timeout")
        self._enter()
        try:
            async with asyncio.timeout(timeout):
                await self._hub.deployment.main.connected()
        except TimeoutError:
            main = self._hub.deployment.main
            raise TimeoutError(f"no connection to Redis within {timeout} s: {main.progress}") from main.outage

    def stats(self) -> Stats:
        """Return a snapshot of the state and the counters. Works in every state, also when closed.

        Returns:
            The snapshot. It does not change.
        """
        return snapshot_of(self._hub)

    def __repr__(self) -> str:
        s = self.stats()
        state = s.state if self._hub.has_loop or self._hub.closed else "waits for an event loop"
        return (
            f"<Multiplexer {state} epoch={s.connections} channels={s.channels} patterns={s.patterns} "
            f"pending={s.pending} dropped={s.dropped}>"
        )

    # --- the end

    def close(self) -> None:
        """Close everything at once. No callback is called after this returns, except `on_close`.

        All subscriptions are closed, and outstanding promises and `publish()` calls fail. Async callbacks that are
        being awaited are cancelled, except one that calls `close()`, itself or by way of a task that it has started.
        Of thousands of these, most end in the next iterations of the loop, some in each, and `on_close` is called then.
        May be called at any time, also from inside a callback; without effect when closed already. Sockets and tasks
        are released in the next iterations of the loop; `aclose()` waits for all of this.

        It cannot save the positions of `durable` stream subscriptions, because it does not wait: what was handled since
        the last save, at most a second before, is delivered again. `aclose()` and `drain()` save them.
        """
        if not self._hub.closed:
            self._hub.check()
            self._hub.close()

    async def drain(self, timeout: float | None = None) -> None:
        """Unsubscribe from everything, wait until the received messages are consumed, and close as `aclose()` does.

        Messages that arrive before Redis has confirmed the unsubscribe are delivered. Then each `request()` that has no
        reply is interrupted. New subscriptions and requests raise `MultiplexerIsClosed` from the start, but callbacks
        may still publish, and services reply to the requests they have received. The last step before closing is to
        wait for the outcome of each `publish()`.

        Offline, there is nothing to unsubscribe from. Cancelled, it closes at once. Called from inside a callback, or
        from a task that a running callback has started, it returns at once and continues in the background, because it
        cannot wait for that callback. Without effect when closed already.

        Args:
            timeout: seconds after which the multiplexer is closed in any case, and buffered messages are dropped. None:
                no limit.

        Raises:
            TimeoutError: not all messages were consumed, or not all calls of `publish()` had an outcome.
            TypeError, ValueError: the timeout is invalid.
        """
        check_seconds(timeout, "timeout")
        if self._hub.closed:
            return
        self._hub.check()
        self._hub.drain()
        if self._hub.tasks.are_running:
            # In an empty context: it waits for the callback that the running code belongs to.
            Context().run(self._hub.tasks.start, self._drain_in_background(timeout), "redismpx drain")
        else:
            await self._drain(timeout)

    async def _drain_in_background(self, timeout: float | None) -> None:
        try:
            await self._drain(timeout)
        except TimeoutError as error:
            logger.warning("%s", error)

    async def _drain(self, timeout: float | None) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._hub.deployment.unsubscribe_all()
                self._requester.interrupt()
                await self._hub.consumed()
                await self._hub.deployment.publisher.flushed()
        except TimeoutError:
            left = f"{self.stats().pending} messages not consumed"
            if self._hub.deployment.publisher.pending:
                left += f" and {self._hub.deployment.publisher.pending} not published"
            raise TimeoutError(f"{left} within {timeout} s; they are dropped") from None
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Close, and wait until every task has ended and every socket is closed.

        This takes a few seconds at most, even if callbacks ignore their cancellation. Called from inside a callback, or
        from a task that a running callback has started, it does not wait for that callback. If it is cancelled, closing
        continues, and another `aclose()` waits for the rest. Works offline, and when closed already.

        If there are `durable` stream subscriptions, it closes them first, and waits until their positions are saved:
        for a second at most. Then it closes everything else.
        """
        hub = self._hub
        hub.check()
        try:
            if not hub.closed:
                await hub.save_positions()
        finally:
            hub.close()
            hub.cancel()  # also a callback that called close() and still runs
        await hub.ended()
        if self._is_owner:
            await self._client.aclose()

    async def __aenter__(self) -> Self:
        """Open the multiplexer, or open it again after its end: without subscriptions, in the loop that runs now."""
        hub = self._hub
        hub.check()
        check_asyncio()  # otherwise it would wait for a loop that never runs
        if hub.closed:
            await self.aclose()  # after close(), not everything may be released yet
            if self._hub is hub:
                self._open()
        self._enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    # --- arguments

    def _enter(self) -> None:
        if self._hub.closed or self._hub.draining:
            raise MultiplexerIsClosed
        self._hub.enter()

    def _outgoing_request(
        self,
        channel: str | bytes,
        data: Any,
        headers: Mapping[str, str] | None,
        timeout: float,
        sharded: bool,
        encode: Encode[Any] | None,
        decode: Decode[Any] | None,
    ) -> OutgoingRequest:
        if check_seconds(timeout, "timeout") is None:
            raise TypeError("timeout must be a number of seconds: without a timeout, a request could wait forever")
        check_callback(encode, "encode", "data")
        check_callback(decode, "decode", "payload")
        name = to_bytes(channel, "a channel", self._hub.limits.max_name_bytes)
        texts = Headers({} if headers is None else headers)
        payload = to_payload(data if encode is None else encode(data), self._max_payload)
        request = OutgoingRequest(name, payload, texts, sharded, decode)
        request.check_head()
        return request

    def _consumer(
        self,
        on_message: OnMessage[Any] | None,
        on_disconnect: OnDisconnect | None,
        on_activation: OnActivation | None,
        decode: Decode[Any] | None,
        max_pending: int | None,
        overflow: Overflow | OverflowName | None,
        on_error: OnError | None,
        on_close: OnClose | None,
    ) -> Consumer:
        return Consumer(
            check_callback(on_message, "on_message", "channel", "message"),
            check_callback(on_disconnect, "on_disconnect", "error"),
            check_callback(on_activation, "on_activation", "name"),
            check_callback(on_error, "on_error", "error") or self._on_error,
            check_callback(decode, "decode", "payload"),
            self._max_pending if max_pending is None else check_positive(max_pending, "max_pending"),
            self._overflow if overflow is None else check_overflow(overflow),
            check_plain(on_close, "on_close", "reason"),
        )


def _check_times(
    ping_interval: float | None, ping_timeout: float, delivery_probe: float | None, publish_timeout: float
) -> None:
    if check_seconds(ping_interval, "ping_interval") == 0 or not check_seconds(ping_timeout, "ping_timeout"):
        raise ValueError(
            "ping_interval and ping_timeout must be more than 0 seconds; ping_interval=None disables pings"
        )
    if check_seconds(delivery_probe, "delivery_probe") == 0:
        raise ValueError("delivery_probe must be more than 0 seconds; None disables it")
    if not check_seconds(publish_timeout, "publish_timeout"):
        raise ValueError("publish_timeout must be more than 0 seconds")


def _check_client(client: object, connection_options: dict[str, Any]) -> None:
    if not isinstance(client, (Redis, RedisCluster)):
        module, name = type(client).__module__, type(client).__name__
        hint = ""
        if module.startswith("redis."):
            hint = f": from redis.asyncio import {'RedisCluster' if name == 'RedisCluster' else 'Redis'}"
        elif module.startswith("valkey."):
            hint = ": from redis.asyncio import Redis, which connects to Valkey, too; or pass its URL"
        raise TypeError(
            f"redis must be a URL or a client, redis.asyncio.Redis or RedisCluster, not {module}.{name}{hint}"
        )
    if connection_options:
        names = ", ".join(connection_options)
        raise TypeError(f"options ({names}) are for a URL only; set them on the client instead")
