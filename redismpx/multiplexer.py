"""The front door: builds and owns the rooms, decides nothing."""

from __future__ import annotations

__all__ = ["Multiplexer"]

import asyncio
from collections.abc import AsyncGenerator, Mapping
from types import TracebackType
from typing import Any, Self, overload

from redis.asyncio import Redis, RedisCluster
from redis.backoff import AbstractBackoff

from ._core.buffer import Budget, Overflow
from ._core.wire import Kind
from ._io.delivery.inbox import Consumer
from ._io.deployment import DeploymentOptions, deployment_of
from ._io.hub import Hub
from ._io.redispy.client import client_from_url, reconnect_backoff
from ._io.runtime.log import logger
from ._io.runtime.tasks import Tasks
from ._io.session.session import SessionOptions, SessionState
from .arguments import (
    Limits,
    check_bound,
    check_callback,
    check_overflow,
    check_positive,
    check_seconds,
    to_bytes,
    to_pattern,
    to_payload,
)
from .channel import ChannelSubscription, ShardedChannelSubscription
from .errors import MultiplexerIsClosed, quote
from .pattern import PatternSubscription
from .promise import PromiseSubscription
from .request import Handler, OutgoingRequest, Requester
from .service import Service, kind_of
from .stats import Counters, Stats
from .subscription import MessageSubscription, Subscription
from .typing import Decode, OnActivation, OnDisconnect, OnError, OnMessage, Payload, T


class Multiplexer:
    """One Redis connection for many subscriptions.

    It can be made at import time: it needs neither a running event loop nor a server. It starts dialling with the
    first subscription, `connect()` or `async with`, in the loop that runs then; subscriptions made before any loop
    runs are kept, and start with the first call inside one. From another loop or thread, and in a forked child, calls
    raise `RuntimeError`.

    When the connection is lost it dials again: at once, then with `backoff`, for as long as it takes. All that is
    subscribed is subscribed again, and each subscription is told of the gap.

    In a cluster, this one connection leads to any node, and to another when that is lost. Sharded channels have one to
    each primary that owns slots of theirs, as long as there are any; what is said below of the connection holds for
    each of these, but `connected`, `connect()` and the `state` of `stats()` are about the former.

    Args:
        redis: a URL (`redis://`, `rediss://`, `unix://`), or a `redis.asyncio.Redis` client, also one from
            `Sentinel.master_for()` or `fakeredis.FakeAsyncRedis`, or a `redis.asyncio.RedisCluster`. A client stays
            yours: its options are used, and it is never closed.
        backoff: seconds between attempts, by redis-py's backoff classes; `compute(0)` comes after the second attempt.
            None is full jitter, from 50 ms doubling up to 5 s. The first attempt after a loss is made at once. All
            begins anew after a connection has lasted 10 s.
        ping_interval: seconds of silence after which the server is pinged; None never pings.
        ping_timeout: seconds after a ping in which something must be heard, or the connection is given up.
        delivery_probe: seconds between two messages to ourselves, each published over a new connection to wherever the
            server is by then. One that Redis took, and that does not come back in as many seconds, ends the connection:
            it leads to a server to which nobody publishes any more, such as a former master, though it answers pings.
            Needs the rights to publish and subscribe `__mpx_probe:*`. None: no probe.
        max_pending: messages that may wait for the consumer of one subscription.
        overflow: what gives way beyond that, an `Overflow` or its name: `drop_oldest`, `drop_newest`, `latest` (only
            the newest message of each channel waits), `close` (the subscription is closed). What is dropped is counted,
            and reported as `SlowConsumer`.
        on_error: called with the errors of subscriptions that have no `on_error` of their own.
        max_channels, max_patterns, max_promises: how many different channels and patterns may be wanted, and how many
            promises outstanding, at a time. Beyond, `TooManyChannels`, `TooManyPatterns` and `TooManyPromises` are
            raised. A promise subscription is a pattern too. None: no bound, as for all that follow.
        max_name_bytes, max_pattern_bytes, max_pattern_stars: the longest channel and pattern, in bytes, and the most
            stars in a pattern: beyond, `ValueError`. Each pattern costs the server time with each message of anybody.
        max_pending_bytes, max_total_pending_bytes: bytes of channels and payloads that may wait for the consumer of
            one subscription, and for all together, of which one may have as much as it leaves free. Beyond, `overflow`
            says what gives way, as for `max_pending`.
        publish_timeout: seconds that a `publish()` has, from the call to Redis's answer.
        max_payload: the longest payload of a `publish()`, in bytes: beyond, `ValueError`. Servers cut off subscribers
            that are sent more than they may take at once (client-output-buffer-limit).
        connection_options: whatever `redis.asyncio.Redis.from_url` accepts; only with a URL. Of what a server says of
            its maintenance (MOVING and others) nothing is asked for, unless `maint_notifications_config` does.

    Raises `TypeError` and `ValueError` at once for what cannot work.
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
        overflow: Overflow | str = "drop_oldest",
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
        max_payload: int | None = 1_048_576,
        **connection_options: Any,
    ) -> None:
        if backoff is not None and not isinstance(backoff, AbstractBackoff):
            raise TypeError(f"backoff must be one of redis.backoff's, not {type(backoff).__name__}")
        if check_seconds(ping_interval, "ping_interval") == 0 or not check_seconds(ping_timeout, "ping_timeout"):
            raise ValueError(
                "ping_interval and ping_timeout must be more than 0 seconds; ping_interval=None disables pings"
            )
        if check_seconds(delivery_probe, "delivery_probe") == 0:
            raise ValueError("delivery_probe must be more than 0 seconds; None disables it")
        if not check_seconds(publish_timeout, "publish_timeout"):
            raise ValueError("publish_timeout must be more than 0 seconds")
        self._max_payload = check_bound(max_payload, "max_payload")
        self._max_pending = check_positive(max_pending, "max_pending")
        limits = {
            "max_channels": max_channels,
            "max_patterns": max_patterns,
            "max_promises": max_promises,
            "max_name_bytes": max_name_bytes,
            "max_pattern_bytes": max_pattern_bytes,
            "max_pattern_stars": max_pattern_stars,
        }
        budget = Budget(
            check_bound(max_pending_bytes, "max_pending_bytes"),
            check_bound(max_total_pending_bytes, "max_total_pending_bytes"),
        )
        self._overflow = check_overflow(overflow)
        self._on_error = check_callback(on_error, "on_error")
        self._owned: Redis | None = None
        if isinstance(redis, str):
            redis = self._owned = client_from_url(redis, connection_options)
        elif connection_options:
            raise TypeError(f"options ({', '.join(connection_options)}) go with a URL only; set them on the client")
        elif not isinstance(redis, (Redis, RedisCluster)):
            kind = f"{type(redis).__module__}.{type(redis).__name__}"
            raise TypeError(f"redis must be a URL or a client, redis.asyncio.Redis or RedisCluster, not {kind}")
        self._client = redis  # kept alive: connections of a Sentinel client refer to it weakly
        tasks, counters = Tasks(), Counters()
        sessions = SessionOptions(ping_interval, ping_timeout, tasks, counters)
        backoff = reconnect_backoff() if backoff is None else backoff
        self._hub = Hub(
            lambda on_end: deployment_of(
                redis, DeploymentOptions(backoff, sessions, publish_timeout, delivery_probe, on_end)
            ),
            tasks,
            counters,
            Limits(**{name: check_bound(limit, name) for name, limit in limits.items()}),
            budget,
        )
        self._requester = Requester(self._hub, self.publish, self._on_error, self._max_pending)

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
        overflow: Overflow | str | None = None,
        on_error: OnError | None = None,
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
        overflow: Overflow | str | None = None,
        on_error: OnError | None = None,
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
        overflow: Overflow | str | None = None,
        on_error: OnError | None = None,
        sharded: bool = False,
    ) -> ChannelSubscription[Any]:
        """Make a subscription without channels yet; `add()` them.

        Returns at once, and works offline. Sync callbacks run in the order of the wire, between two reads of the
        socket: keep them short. What a callback returns and can be awaited is awaited, one at a time; meanwhile this
        subscription's events wait, and nobody else's. An exception goes to `on_error` and to the log, and delivery
        goes on.

        Args:
            on_message: called with the channel and the payload of each message. None: the subscription is read, by
                `async for`, `get()` or `get_nowait()`; the other callbacks are called when the messages before them
                have been read.
            on_disconnect: called with a `ConnectionLost`, once for each lost connection on which a channel was active.
            on_activation: called with each channel when Redis has confirmed it, again after each reconnect. Never from
                inside `add()`.
            decode: makes what the consumer gets of the bytes of a payload: `bytes.decode`, `json.loads`. What it cannot
                decode goes to `on_error` as `DecodeError`, and counts as dropped.
            max_pending: as for the multiplexer, whose value is used if this is None.
            overflow: as for the multiplexer, whose value is used if this is None.
            on_error: called with what callbacks raise, `SlowConsumer`, `DecodeError`, and `SubscriptionRefused`; None
                stands for the multiplexer's.
            sharded: whether its channels are those of sharded Pub/Sub (https://redis.io/docs/latest/develop/pubsub/):
                another kind of channels, to which `publish(..., sharded=True)` publishes. In a cluster a message for
                one goes to one shard only, to which there is a connection of its own. Needs Redis 7; an older server
                refuses it (`SubscriptionRefused`).

        Raises `MultiplexerIsClosed`; `TypeError` and `ValueError` for bad arguments.
        """
        self._enter()
        consumer = self._consumer(on_message, on_disconnect, on_activation, decode, max_pending, overflow, on_error)
        return (ShardedChannelSubscription if sharded else ChannelSubscription)(self._hub, consumer)

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
        overflow: Overflow | str | None = None,
        on_error: OnError | None = None,
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
        overflow: Overflow | str | None = None,
        on_error: OnError | None = None,
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
        overflow: Overflow | str | None = None,
        on_error: OnError | None = None,
    ) -> PatternSubscription[Any]:
        """Make a subscription to all channels that match a glob pattern.

        `on_message` gets the channel that the message was published to, `on_activation` the pattern. For the rest see
        `new_channel_subscription()`. The pattern must not be empty, too long or full of stars (`ValueError`). Raises
        `TooManyPatterns`.
        """
        self._enter()
        consumer = self._consumer(on_message, on_disconnect, on_activation, decode, max_pending, overflow, on_error)
        return PatternSubscription(self._hub, consumer, to_pattern(pattern, self._hub.limits))

    def new_promise_subscription(self, prefix: str | bytes) -> PromiseSubscription:
        """Make a subscription for promises on all channels that begin with `prefix`.

        Glob characters in the prefix mean themselves. Returns at once, and works offline. Raises `MultiplexerIsClosed`,
        `TooManyPatterns`; `TypeError` and `ValueError` for what cannot be a prefix.
        """
        self._enter()
        name = to_bytes(prefix, "a prefix", self._hub.limits.max_pattern_bytes)
        return PromiseSubscription(self._hub, self._on_error, name)

    # --- publishing

    async def publish(self, channel: str | bytes, data: Payload, *, sharded: bool = False) -> int:
        """Publish a message, and return how many connections received it, as Redis counts: a promise of nothing.

        Messages go out in the order of the calls, over one connection of its own. Calls made while others
        wait for their answers are sent together after those. Each call has its own outcome, and is sent once or not at
        all: nothing is tried again once it was sent. It may be called in callbacks too, and during `drain()`.

        Cancelled, it is not sent if it had not been sent yet. Offline, it waits for a connection.

        Args:
            channel: whom it is for; `str` stands for its UTF-8.
            data: `str` is published as its UTF-8; `bytes`, whatever else has the buffer protocol, and what has
                `__bytes__`, as those bytes.
            sharded: publish to the subscriptions made with `sharded=True`, and to no others. In a cluster it goes to
                the primary that owns the slot of the channel, over a connection of its own, and the order is kept for
                each slot. If the slot moves meanwhile, the message follows it.

        Raises `ConnectionLost` after `publish_timeout`, or when the connection is lost before Redis has answered: its
        `sent` tells whether the message may have been published. What Redis refuses is redis-py's `ResponseError`, such
        as `NoPermissionError`, for this call alone. `MultiplexerIsClosed`, also when closed before it was sent;
        `ValueError` for more than `max_payload`; `TypeError` and `ValueError` for what cannot be published.
        """
        if self._hub.closed:
            raise MultiplexerIsClosed
        self._hub.enter()
        name = to_bytes(channel, "a channel", self._hub.limits.max_name_bytes)
        return await self._hub.deployment.publisher.publish(name, to_payload(data, self._max_payload), sharded=sharded)

    # --- request and reply

    async def request(
        self,
        channel: str | bytes,
        data: Payload,
        *,
        timeout: float,
        headers: Mapping[str, str] | None = None,
        sharded: bool = False,
    ) -> bytes:
        """Ask whoever serves a channel, and return the first answer.

        Published is an `Envelope` that carries `headers` and the channel of the answer, which nobody can guess. All
        requests of a multiplexer share one promise subscription, made for the first of them. Cancelling it leaves
        nothing behind; an answer that comes too late, or twice, does nothing.

        Args:
            channel: whom it is for; `str` stands for its UTF-8.
            data: the body of the envelope, as for `publish()`.
            timeout: seconds for all of it: until there is a connection, and until there is an answer.
            headers: text by name; see `Envelope`.
            sharded: ask those who serve the channel with `sharded=True`. The answer does not come over a shard: there
                are no patterns, and so no promises, in sharded Pub/Sub.

        Raises `NoResponders` at once when nobody is subscribed to the channel, but not in a cluster unless `sharded`:
        of other channels, a node counts its own subscribers only. `PromiseTimeout` when there was no answer in time;
        `RequestFailed` when the handler failed, with what it said; `PromiseInterrupted`, which is an
        `asyncio.CancelledError` too, when the connection was lost or closed meanwhile: whether the request was handled
        is unknown. `MultiplexerIsClosed`, `SubscriptionRefused`, `TooManyPromises`, `TooManyPatterns`, and what
        `publish()` raises for a payload or for lack of rights; `TypeError` and `ValueError` for bad arguments.
        """
        self._enter()
        return await self._requester.request(*self._outgoing_request(channel, data, headers, timeout, sharded))

    def request_many(
        self,
        channel: str | bytes,
        data: Payload,
        *,
        timeout: float,
        limit: int | None = None,
        headers: Mapping[str, str] | None = None,
        sharded: bool = False,
    ) -> AsyncGenerator[bytes, None]:
        """Ask all who serve a channel, and iterate over their answers as they come.

        The request is sent when the first answer is asked for. The iteration ends `timeout` seconds after that, or
        after `limit` answers (None: as many as come). Answers that came in time are not lost when they are read late;
        they wait as messages do, at most `max_pending`. A failure of one who was asked counts as an answer, and does
        not keep those of others back: it is raised at the end, the first if there are several.

        Raises, while it is iterated over, what `request()` raises, but `PromiseTimeout` only if the request could not
        be sent in time: no answer at all is no error.
        """
        self._enter()
        if limit is not None:
            check_positive(limit, "limit")
        return self._requester.request_many(*self._outgoing_request(channel, data, headers, timeout, sharded), limit)

    def serve(
        self, channel_or_pattern: str | bytes, handler: Handler, *, concurrency: int = 1, sharded: bool = False
    ) -> Service:
        """Answer the requests on a channel, or on all channels that match a pattern.

        Returns at once, and works offline, as subscriptions do. Where several serve a channel, all are asked, and
        `request()` takes the first answer: this is Pub/Sub, and no queue.

        Args:
            channel_or_pattern: with any of `*`, `?`, `[` or a backslash in it, it is a pattern. For a channel that has
                such characters, give `escape_glob(channel)`.
            handler: called with each `Request`; returns the body of the answer, or something that can be awaited for
                it. None is an empty answer. What it raises goes to the requester, as `type: text`, and to `on_error`
                and the log. An answer that nobody asked for, since the envelope had no `reply_to`, is thrown away.
            concurrency: how many handlers may be in flight. Beyond, requests wait, and are begun in their order;
                `max_pending` and `overflow` of the multiplexer hold for them.
            sharded: serve a channel of sharded Pub/Sub, for those who ask with `sharded=True`; see
                `new_channel_subscription()`. A pattern is a `ValueError` then.

        What is no envelope goes to `on_error` as `DecodeError`, and counts as dropped. `drain()` waits until the
        handlers in flight are through and their answers published; `close()` cancels them.

        Raises `MultiplexerIsClosed`, `TooManyChannels`, `TooManyPatterns`; `TypeError` and `ValueError` for bad
        arguments.
        """
        self._enter()
        if not callable(handler):
            raise TypeError(f"handler must be callable, not {type(handler).__name__}")
        limits = self._hub.limits
        name = to_bytes(channel_or_pattern, "a channel or pattern", limits.max_name_bytes)
        if kind_of(name) is Kind.PATTERN:
            if sharded:
                raise ValueError(f"there are no patterns in sharded Pub/Sub, and {quote(name)} is one; serve channels")
            to_pattern(name, limits)
        check_positive(concurrency, "concurrency")
        return Service(
            self._hub,
            self.publish,
            name,
            handler,
            concurrency,
            self._on_error,
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
        """Wait until there is a connection, for `timeout` seconds at most; None waits as long as it takes.

        Calling it is not needed: subscriptions start the dialling too. Cancelling it changes nothing else. Raises
        `TimeoutError`, whose `__cause__` is the last `ConnectionLost`; `MultiplexerIsClosed`, also when closed
        meanwhile.
        """
        check_seconds(timeout, "timeout")
        self._enter()
        try:
            async with asyncio.timeout(timeout):
                await self._hub.deployment.main.connected()
        except TimeoutError:
            outage = self._hub.deployment.main.outage
            detail = "" if outage is None else f"; the last attempt: {outage.reason}"
            raise TimeoutError(f"no connection to Redis within {timeout} s{detail}") from outage

    def stats(self) -> Stats:
        """Take a snapshot of the state and the counters. Works in every state, closed too."""
        hub = self._hub
        counters = hub.counters
        subscriptions = hub.subscriptions
        return Stats(
            state=hub.deployment.main.state.value,
            connections=counters.connections,
            channels=hub.channels,
            patterns=hub.patterns,
            shards=hub.deployment.shard_count,
            subscriptions=len(subscriptions),
            messages=counters.messages,
            ignored=counters.ignored,
            pending=sum(s.pending for s in subscriptions if isinstance(s, (MessageSubscription, Service))),
            pending_bytes=sum(s._inbox.pending_bytes for s in subscriptions if isinstance(s, Subscription)),
            dropped=counters.dropped,
            promises=counters.promises,
            published=counters.published,
            last_error=hub.deployment.main.last_error,
        )

    def __repr__(self) -> str:
        s = self.stats()
        return (
            f"<Multiplexer {s.state} epoch={s.connections} channels={s.channels} patterns={s.patterns} "
            f"pending={s.pending} dropped={s.dropped}>"
        )

    # --- the end

    def close(self) -> None:
        """Close everything at once: no callback is called after this returns.

        All subscriptions are closed, outstanding promises fail, async callbacks that are being awaited are cancelled,
        unless one of them calls this. A `publish()` without an outcome fails. Closing twice is fine, at any moment,
        also from inside a callback. What is left to release is released in the next ticks of the loop; `aclose()` waits
        for it.
        """
        self._hub.check()
        self._hub.close()

    async def drain(self, timeout: float | None = None) -> None:
        """Unsubscribe everything, let what was received be consumed and published, then close as `aclose()` does.

        Messages that arrive until Redis has confirmed the unsubscribing are delivered too; a `request()` that has no
        answer by then is interrupted. During an outage there is nothing to unsubscribe. From here on nothing new can be
        wanted (`MultiplexerIsClosed`), but callbacks may still publish, and services answer what they have received.
        After `timeout` seconds (None: as long as it takes) it closes all the same and raises `TimeoutError`; what still
        waits is dropped. Cancelled, it closes at once. Called from inside a callback it returns at once, and goes on by
        itself: it cannot wait for that callback. Without effect when closed.
        """
        check_seconds(timeout, "timeout")
        self._hub.check()
        if self._hub.closed:
            return
        self._hub.drain()
        if self._hub.tasks.are_running:
            self._hub.tasks.start(self._drain_alone(timeout), "redismpx drain")
        else:
            await self._drain(timeout)

    async def _drain_alone(self, timeout: float | None) -> None:
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
            raise TimeoutError(f"{left} within {timeout} s; dropped") from None
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Close, and wait until every task and socket is gone; a few seconds at most, even if callbacks resist.

        Called from inside a callback, it does not wait for that one. When it is cancelled, closing goes on
        nevertheless, and another `aclose()` waits for the rest.
        """
        self.close()
        self._hub.tasks.cancel()  # also a callback that closed, and went on
        await self._hub.tasks.ended()
        if self._owned is not None:
            await self._owned.aclose()

    async def __aenter__(self) -> Self:
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
        self, channel: str | bytes, data: Payload, headers: Mapping[str, str] | None, timeout: float, sharded: bool
    ) -> tuple[OutgoingRequest, float]:
        if check_seconds(timeout, "timeout") is None:
            raise TypeError("timeout must be a number of seconds; without one, a request could wait for ever")
        name = to_bytes(channel, "a channel", self._hub.limits.max_name_bytes)
        return OutgoingRequest(name, to_payload(data, self._max_payload), headers or {}, sharded), timeout

    def _consumer(
        self,
        on_message: OnMessage[Any] | None,
        on_disconnect: OnDisconnect | None,
        on_activation: OnActivation | None,
        decode: Decode[Any] | None,
        max_pending: int | None,
        overflow: Overflow | str | None,
        on_error: OnError | None,
    ) -> Consumer:
        return Consumer(
            check_callback(on_message, "on_message"),
            check_callback(on_disconnect, "on_disconnect"),
            check_callback(on_activation, "on_activation"),
            check_callback(on_error, "on_error") or self._on_error,
            check_callback(decode, "decode"),
            self._max_pending if max_pending is None else check_positive(max_pending, "max_pending"),
            self._overflow if overflow is None else check_overflow(overflow),
        )
