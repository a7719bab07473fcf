"""What the topics for asyncio and for threads have in common: who is subscribed, and who gets a message."""

from __future__ import annotations

__all__ = ["TopicBus"]

import asyncio
import functools
import queue
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from .. import Multiplexer
from .._core.topic_tree import Words, parse_filter, parse_topic
from ..arguments import check_callback, check_positive, to_payload
from ..envelope import Envelope
from ..errors import DecodeError, MultiplexerIsClosed, SubscriptionIsClosed
from ..message import OnGap
from ..typing import Decode, Encode, OnDisconnect
from .consumer import Owner, TopicConsumer
from .directory import Covering, Directory
from .message import TopicMessage
from .message_queue import TopicQueue
from .observed import ObservedTopicSubscription, arrived
from .relay import Relay, RelayEvents
from .reporter import TopicReporter
from .service import RemoteService, TopicService
from .subscription import TopicSubscription, key_of
from .wire import ORIGIN, TOPIC, check_prefix, read_message, request_names


class TopicBus(ABC):
    """Subscribes, and delivers in this process. Sends each message on to the other processes if there is a relay."""

    def __init__(
        self,
        mpx: Multiplexer | None,
        prefix: str,
        on_disconnect: OnDisconnect | None,
        on_activation: Callable[[Words], object] | None,
        on_gap: OnGap | None,
        on_error: Callable[[Exception], object] | None,
        encode: Encode[Any],
        decode: Decode[Any],
        max_pending: int,
        *,
        stream: bool,
    ) -> None:
        self._reporter = TopicReporter(on_disconnect, on_activation, on_gap, on_error)
        self._encode = check_callback(encode, "encode", "message")
        self._decode = check_callback(decode, "decode", "payload")
        self._directory = Directory()
        self._prefix = check_prefix(prefix)
        self._is_stream = stream
        self._mpx_in_loop = mpx
        watch = None if mpx is None else mpx._watch
        self._watch = watch if watch is not None and watch.follows else None
        self._new_subscription: Callable[..., TopicSubscription] = TopicSubscription
        if self._watch is not None:
            self._new_subscription = partial(ObservedTopicSubscription, self._watch)
        self._relay = None if mpx is None else Relay(mpx, self._prefix, self._relay_events(), is_stream=stream)
        self._is_closed = False
        check_positive(max_pending, "max_pending")
        self._owner = Owner(self._reporter.report, self._forget, self._directory.dead.append, max_pending)
        self._undecodable = 0

    # --- what differs between asyncio and threads

    @abstractmethod
    def _call_in_loop(self, function: Callable[[], object]) -> None:
        """Call a function of the relay in its loop; what it raises is raised here, if that can be."""

    @abstractmethod
    def _post_to_loop(self, function: Callable[[], object]) -> None:
        """Have the loop of the relay call a function soon, in the order of the calls."""

    @abstractmethod
    def _relay_events(self) -> RelayEvents:
        """Return what the relay calls in its loop."""

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else f"{len(self._directory.consumers)} subscriptions"
        place = "in this process" if self._relay is None else f"with prefix {self._prefix.decode()!r}"
        return f"<Topics {place}, {state}>"

    # --- subscribing

    @property
    def undecodable(self) -> int:
        """The number of messages on the channels of this prefix that were no messages of a topic; none is delivered."""
        return self._undecodable

    def _add_callback(
        self,
        topic: str | Words | None,
        callback: Callable[..., Any],
        loop: asyncio.AbstractEventLoop | None,
        weak: bool,
    ) -> TopicSubscription:
        words = parse_filter(topic)
        self._drop_dead()
        with self._directory.lock:
            known = self._directory.consumers.get((words, key_of(callback)))
            if isinstance(known, TopicSubscription):
                return known
            subscription = self._new_subscription(self._owner, words, callback, loop, weak=weak)
            self._add(subscription)
        self._follow(subscription)
        return subscription

    def _add_queue(self, topic: str | Words | None, max_pending: int | None) -> TopicQueue:
        size = self._owner.max_pending if max_pending is None else check_positive(max_pending, "max_pending")
        queue = TopicQueue(self._owner, parse_filter(topic), size)
        self._add(queue)
        self._follow(queue)
        return queue

    def _add(self, consumer: TopicConsumer) -> None:
        self._check_open()
        self._directory.add(consumer)

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("these topics are closed; a new `with` or `async with` opens them again")

    def _follow(self, consumer: TopicConsumer) -> None:
        """Ask Redis for the messages of other processes. The lock must be free: the loop may wait for it."""
        if self._relay is None:
            return
        try:
            self._call_in_loop(partial(self._relay.follow, consumer.topic))
        except BaseException:  # also Ctrl-C: the caller has no subscription then
            self._forget(consumer)
            raise
        with self._directory.lock:
            consumer.is_followed = not consumer.closed
        if consumer.closed:
            self._leave(consumer)

    def unsubscribe(self, topic: str | Words | None, callback: Callable[..., Any]) -> bool:
        """End the subscription of a callback to a topic, as `TopicSubscription.close()` does.

        Returns:
            Whether there was one.

        Raises:
            TypeError, ValueError: the topic is invalid.
        """
        subscription = self._directory.consumers.get((parse_filter(topic), key_of(callback)))
        if subscription is None:
            return False
        subscription.close()
        return True

    def clear(self) -> None:
        """End all subscriptions, readers and services, as their `close()` does."""
        with self._directory.lock:
            for ended in (*self._directory.consumers.values(), *self._directory.services):
                ended.close()

    def _forget(self, consumer: TopicConsumer) -> None:
        with self._directory.lock:
            if consumer.closed:
                return
            consumer.end()
            self._directory.remove(consumer)
            was_followed, consumer.is_followed = consumer.is_followed, False
        if was_followed:
            self._leave(consumer)

    def _leave(self, consumer: TopicConsumer) -> None:
        assert self._relay is not None
        with suppress(MultiplexerIsClosed, SubscriptionIsClosed):
            self._post_to_loop(partial(self._relay.leave, consumer.topic))

    def _drop_dead(self) -> None:
        while self._directory.dead:
            self._forget(self._directory.dead.popleft())

    # --- publishing

    def publish(self, topic: str | Words | None, /, **message: Any) -> int:
        """Deliver a message to the subscribers of a topic, in this process and in all others with the same prefix.

        Those of this process are called in this order: those of the topic itself, those of shorter prefixes of it, the
        longest first, those with wildcards, and those of everything; among these, the earlier subscription first. An
        exception in one goes to `on_error`, and the others are called all the same; but one that is no `Exception`,
        such as `KeyboardInterrupt`, leaves `publish()`. The message to a coroutine function waits until the function
        has returned from the messages before it.

        With a multiplexer, the message goes to Redis in the order of the calls, without a wait: `flush()` waits. If it
        does not reach Redis, for example because there is no connection within `publish_timeout`, the error goes to
        `on_error`.

        Args:
            topic: the topic, without wildcards. `""`, `()` or None: a broadcast to every subscriber, the earlier
                subscription first.
            message: the keywords of the message. All subscribers in this process get the same values.

        Returns:
            How many subscribers in this process were called, or will be.

        Raises:
            TypeError, ValueError: the topic is invalid, or `encode` rejects the message. Nothing is delivered.
            queue.Full: `max_pending` messages have not reached Redis yet. Nothing is delivered.
            MultiplexerIsClosed: the multiplexer is closed. Nothing is delivered.
            RuntimeError: the multiplexer is for asyncio, and no event loop runs, or another one than before.
        """
        try:
            covering = self._directory.covering[topic]
        except (KeyError, TypeError):  # TypeError: it has no hash, and is no topic
            covering = self._cover(topic)
        record = None if self._relay is None else self._forward(covering.topic, message)
        return self._deliver(covering.topic, covering, message, record)

    def publish_locally(self, topic: str | Words | None, /, **message: Any) -> int:
        """Deliver a message to the subscribers of a topic in this process only, as `publish()` does.

        Args:
            topic: as for `publish()`.
            message: as for `publish()`. It may have any values.

        Returns:
            How many subscribers were called, or will be.

        Raises:
            TypeError, ValueError: the topic is invalid.
        """
        covering = self._cover(topic)
        return self._deliver(covering.topic, covering, message, None)

    def _forward(self, words: Words, message: dict[str, Any]) -> TopicMessage:
        """Send a message on to the other processes; return its record."""
        relay, mpx = self._relay, self._mpx_in_loop
        assert relay is not None
        assert mpx is not None
        if relay.unsent >= self._owner.max_pending:
            raise queue.Full(f"max_pending={self._owner.max_pending} messages have not reached Redis yet: flush()")
        headers, name = {ORIGIN: self._origin}, ".".join(words)
        if self._is_stream:
            headers[TOPIC], name = name, ""
        envelope = Envelope(to_payload(self._encode(message), None), headers)
        channel, payload = mpx._to_message(self._prefix + b":" + name.encode(), envelope)
        self._post_to_loop(partial(relay.publish, channel, payload))
        return TopicMessage(words, message, envelope.id, envelope.timestamp, envelope.headers)

    @functools.cached_property
    def _origin(self) -> str:
        # Made when it is first used: if this is made before a fork, each child has an origin of its own. It is read for
        # each message, so without a lock: of two threads that make it at once, both get the one that was stored first.
        origin: str = vars(self).setdefault("_origin", secrets.token_hex(8))
        return origin

    def _cover(self, topic: str | Words | None) -> Covering:
        self._drop_dead()
        return self._directory.cover(topic)

    def _deliver(self, words: Words, covering: Covering, message: dict[str, Any], record: TopicMessage | None) -> int:
        called = 0
        for subscription in covering.subscriptions:
            called += subscription.deliver(words, message)
        if covering.queues:
            if record is None:
                local = Envelope(b"")
                record = TopicMessage(words, message, local.id, local.timestamp, local.headers)
            for queue in covering.queues:
                queue.put(record)
            called += len(covering.queues)
        return called

    # --- requests

    def _add_service(
        self, topic: str | Words | None, handler: Callable[..., Any], serve: Callable[..., RemoteService] | None
    ) -> TopicService:
        """Answer requests; `serve` is that of the multiplexer, for the requests of other processes."""
        service = TopicService(parse_topic(topic), handler, self._remove_service)
        with self._directory.lock:
            self._check_open()
            self._directory.add_service(service)
        if serve is not None:
            try:
                self._call_in_loop(partial(self._serve_others, service, serve))
            except BaseException:  # also Ctrl-C: the caller has no service then
                service.close()
                raise
        return service

    def _serve_others(self, service: TopicService, serve: Callable[..., RemoteService]) -> None:
        serve = partial(serve, decode=self._decode, encode=self._encode, on_error=self._reporter.on_error)
        for name in request_names(self._prefix, service.topic):
            service.services.append(serve(name, partial(service.answer, self._prefix)))
        if service.closed:  # meanwhile, in another thread
            service.close_services()

    def _remove_service(self, service: TopicService) -> None:
        with self._directory.lock:
            if service.closed:
                return
            service.closed = True
            self._directory.remove_service(service)
        if service.services:
            with suppress(MultiplexerIsClosed):
                self._post_to_loop(service.close_services)

    def _find_service(self, words: Words) -> TopicService | None:
        """Return the service of this process that answers requests to a topic: that of the longest prefix."""
        return self._directory.service_of(words)

    # --- from other processes

    def _receive(self, topic: bytes | None, payload: bytes) -> None:
        """Deliver a message that was published by another process. Foreign publishers may write anything."""
        try:
            decoded = read_message(topic, payload, self._decode, not_from=self._origin)
        except Exception as cause:  # noqa: BLE001, hostile data
            self._undecodable += 1
            name = self._prefix + b":" + (topic or b"")
            error = DecodeError(name, payload)
            error.__cause__ = cause
            self._reporter.report(error)
            return
        if decoded is not None:
            covering = self._directory.covering.get(decoded.topic) or self._cover(decoded.topic)
            envelope = decoded.envelope
            record = TopicMessage(decoded.topic, decoded.content, envelope.id, envelope.timestamp, envelope.headers)
            words = decoded.topic if self._watch is None else arrived(decoded, self._prefix)
            self._deliver(words, covering, decoded.content, record)
