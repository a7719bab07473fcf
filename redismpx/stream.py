"""Streams: channels whose messages Redis keeps, so that none is lost unseen."""

from __future__ import annotations

__all__ = ["StreamSubscription"]

from collections.abc import AsyncIterator, Collection
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self

from ._io.delivery.consumer import Consumer
from ._io.hub import Hub
from ._io.runtime.slices import SLICE_STEPS
from ._io.session.subscriber import Subscriber
from ._io.streams.delivery import StreamDelivery, StreamEvents
from ._io.streams.inbox import ObservedStreamInbox, StreamInbox
from ._io.streams.subscriber import StreamSubscriber
from .arguments import to_bytes, to_names, to_position
from .errors import ConnectionLost, MultiplexerIsClosed, quote
from .message import OnGap, OnStreamMessage, StreamEvent, StreamMessage
from .reading import MessageSubscription
from .typing import Decode, T


class StreamSubscription(Generic[T]):
    """Any number of streams with one consumer. Made by `Multiplexer.new_stream_subscription()`.

    The events of each stream are those of a channel: an activation, its messages, and a disconnect when the connection
    is lost. After the reconnect the messages go on where they ended: those that were missed are read from Redis. If
    Redis does not have them any more, there is a gap in their place.

    A slow consumer misses nothing either: beyond `max_pending`, its messages stay in Redis until it has caught up.
    """

    __slots__ = ("_delivery", "_messages", "_subscriber")

    def __init__(
        self,
        hub: Hub,
        consumer: Consumer,
        on_message: OnStreamMessage[T] | None,
        on_gap: OnGap | None,
        decode: Decode[T] | None,
        durable: bytes | None,
    ) -> None:
        self._delivery: StreamDelivery[T] = StreamDelivery(on_message, on_gap, decode)
        self._messages = _StreamMessages(hub, self._delivery.consumer(consumer), durable)
        self._subscriber = self._delivery.subscriber = self._messages.subscriber
        self._subscriber.call = None if on_message is None or hub.delivery.follows else self._delivery.call

    @property
    def channels(self) -> frozenset[bytes]:
        """The streams of this subscription, active or not."""
        return frozenset(self._subscriber.names)

    @property
    def active(self) -> frozenset[bytes]:
        """The streams that are subscribed on the present connection, and whose positions are known."""
        return self._messages.active

    @property
    def closed(self) -> bool:
        """Whether the subscription, or its multiplexer, was closed."""
        return self._messages.closed

    @property
    def pending(self) -> int:
        """The number of buffered messages: received, and not yet delivered. More may wait in Redis."""
        return self._messages.pending

    @property
    def lagging(self) -> bool:
        """Whether messages stay in Redis, because the consumer is slow. They are read when it has caught up."""
        return self._subscriber.is_lagging

    def position(self, channel: str | bytes) -> bytes | None:
        """Return the id of the last message of a stream that was delivered: `add()` takes it as `after`.

        Before the first message, it is the position at which the subscription began. Works offline.

        Args:
            channel: a stream of this subscription; `str` is encoded as UTF-8.

        Returns:
            The id; `b"0"` at the beginning of all that is kept. None: not known yet.

        Raises:
            ValueError: the subscription does not have this stream.
            TypeError: the name is not `str` or `bytes`.
        """
        self._messages._hub.enter()
        name = to_bytes(channel, "a channel")
        if name not in self._subscriber.names:
            raise ValueError(f"{quote(name)} is not a stream of this subscription: {self!r}; add it first")
        position = self._subscriber.position(name)
        return b"0" if position == b"" else position

    def add(self, *channels: str | bytes, after: str | bytes | None = None) -> None:
        """Follow more streams. Without `after`, streams that are already in the subscription are ignored.

        Returns at once, and works offline. Hundreds of streams are subscribed to in the next iterations of the loop,
        some in each. `stats()` counts them from then on.

        Args:
            channels: names; `str` is encoded as UTF-8.
            after: where to begin. None: with what is appended after the activation. An id: with the message behind it,
                for example the last one that a client has got. `"0"`: with the oldest message that is kept. With
                `durable`, a saved position comes first.

        Raises:
            ValueError: `after` is no id, or a stream is in the subscription already: remove it first. Or a name is too
                long. No stream was added.
            TooManyChannels: `max_channels` would be exceeded. No stream was added.
            SubscriptionIsClosed: the subscription or its multiplexer is closed.
            MultiplexerIsClosed: the multiplexer drains.
            TypeError: a name, or `after`, is not `str` or `bytes`.
        """
        messages, hub = self._messages, self._messages._hub
        messages._check_open()
        longest = hub.limits.max_name_bytes
        names = dict.fromkeys(to_names(channels, "a channel", longest))
        position = to_position(after)
        hub.enter()
        if hub.draining:
            raise MultiplexerIsClosed
        if hub.postpone(partial(self.add, *names, after=after)):
            return
        subscriber = self._subscriber
        new = subscriber.without_known(names)
        if after is not None and len(new) < len(names):
            known = next(name for name in names if name in subscriber.names)
            raise ValueError(f"{quote(known)} is in this subscription already; remove it, and add it with `after`")
        hub.admit(messages._kind, new)
        with hub.budget.critical:
            messages._check_open()  # a finalizer may have closed it, or have added some of the streams
            new = subscriber.without_known(new)
            if len(new) <= SLICE_STEPS:
                subscriber.follow(new, position)
                return
            subscriber.joining.update(dict.fromkeys(new, position))
        hub.joining += len(new)
        hub.slices.begin(partial(messages.join, name) for name in new)

    def remove(self, *channels: str | bytes) -> None:
        """Leave streams. Others are ignored.

        Returns at once, and works offline. No callback is called for them any more. With `durable`, their positions are
        saved. Hundreds of streams are unsubscribed in the next iterations of the loop, some in each. `stats()` counts
        them until then.

        Args:
            channels: names; `str` is encoded as UTF-8.

        Raises:
            SubscriptionIsClosed: the subscription or its multiplexer is closed.
            TypeError, ValueError: a name is invalid. No stream was removed.
        """
        self._messages._check_open()
        removed = to_names(channels, "a channel")
        self._messages._hub.enter()
        if not self._messages._hub.postpone(partial(self.remove, *removed)):
            self._remove(removed)

    def clear(self) -> None:
        """Leave all streams, and raise errors, as `remove()` does. The subscription stays open."""
        self._messages._check_open()
        self._messages._hub.enter()
        if not self._messages._hub.postpone(self.clear):
            self._remove(None)

    def _remove(self, removed: list[bytes] | None) -> None:
        """Leave some streams, or, for None, all: hundreds of them in time slices."""
        messages, hub, subscriber = self._messages, self._messages._hub, self._subscriber
        messages._inbox.flush()
        with hub.budget.critical:
            messages._check_open()
            rest = subscriber.remove(removed)
        if rest:
            hub.slices.begin(partial(subscriber.unsubscribe, name) for name in [*rest])

    def close(self) -> None:
        """Leave all streams, at once and for good.

        No callback is called after this. Buffered messages are forgotten. An async callback that is being awaited is
        cancelled, unless it calls `close()`. With `durable`, the positions are saved in the background, and `aclose()`
        of the multiplexer waits for that. Works offline. Without effect when the subscription is closed already.
        """
        self._messages.close()

    async def commit(self) -> None:
        """Save the positions now, and wait until Redis has them. Only with `durable`.

        A position is the last message that the consumer is through with: its callback has ended, or it was read.
        Offline, it waits for a connection until `publish_timeout`.

        Raises:
            RuntimeError: the subscription has no `durable`.
            ConnectionLost, redis.exceptions.ResponseError: they may not be saved, and are tried again within a second.
            SubscriptionIsClosed: the subscription or its multiplexer is closed.
        """
        if self._subscriber.durable is None:
            raise RuntimeError("this subscription keeps no positions; make one with durable=name")
        self._messages._check_open()
        self._messages._hub.enter()
        self._delivery.finish()
        await self._subscriber.streams.positions.save(self._subscriber)

    async def wait_for_activation(self, *names: str | bytes, timeout: float | None = None) -> None:
        """Wait until streams of this subscription are active, all at the same time: subscribed, their positions known.

        Offline, it waits for the connection. Cancelling it changes nothing else.

        Args:
            names: streams of this subscription; `str` is encoded as UTF-8. None given: all of them.
            timeout: seconds to wait. None: no limit.

        Raises:
            TimeoutError: not all of these streams are active within `timeout`.
            SubscriptionRefused: the server rejects one of these streams.
            SubscriptionIsClosed: the subscription or its multiplexer is closed, or was closed during the wait.
            TypeError, ValueError: a name or the timeout is invalid, or is not of this subscription.
        """
        await self._messages.wait_for_activation(*names, timeout=timeout)

    async def get(self, timeout: float | None = None) -> StreamMessage[T]:
        """Wait for the next message, and return it.

        Offline, it returns buffered messages, then waits. A cancelled `get()` loses no message.

        Args:
            timeout: seconds to wait. None: no limit. 0: return a buffered message, or raise `TimeoutError`.

        Returns:
            The message, with its payload decoded.

        Raises:
            TimeoutError: no message arrived within `timeout`.
            SubscriptionIsClosed: the subscription or its multiplexer is closed, or was closed during the wait.
            RuntimeError: the subscription has `on_message`, is read by `events()`, or another task is reading it.
            TypeError, ValueError: the timeout is invalid.
        """
        self._delivery.finish()
        return self._delivery.read(await self._messages.get(timeout))

    def get_nowait(self) -> StreamMessage[T]:
        """Return the next buffered message, without waiting. Works offline.

        Returns:
            The message, with its payload decoded.

        Raises:
            asyncio.QueueEmpty: no message is buffered.
            SubscriptionIsClosed, RuntimeError: as for `get()`.
        """
        self._delivery.finish()
        return self._delivery.read(self._messages.get_nowait())

    def __aiter__(self) -> Self:
        """Read the messages one by one. The iteration ends when the subscription closes."""
        self._messages.__aiter__()
        return self

    async def __anext__(self) -> StreamMessage[T]:
        self._delivery.finish()
        return self._delivery.read(await self._messages.__anext__())

    def events(self) -> AsyncIterator[StreamEvent[T]]:
        """Read everything in order: `Activation`, `StreamMessage`, `MessageGap` and `Disconnect`.

        It begins here: each stream that is active already gets its `Activation` first, and buffered messages follow.
        The iteration ends when the subscription closes. Offline, it waits. A cancelled step of the iteration loses no
        event. From now on, the subscription cannot be read in another way.

        Returns:
            The iterator. After a `Disconnect`, the messages go on with the next one behind the last, or with a
            `MessageGap`.

        Raises:
            RuntimeError: the subscription has `on_message` or another callback for its events. While iterating: another
                task is reading the subscription.
        """
        if self._delivery.on_gap is not None:
            raise RuntimeError("this subscription has on_gap; make one without callbacks to read events()")
        return StreamEvents(self, self._delivery, self._messages.events())

    async def __aenter__(self) -> Self:
        await self._messages.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return repr(self._messages)


class _StreamMessages(MessageSubscription[Any]):
    """The messages of one stream subscription, each with its id."""

    __slots__ = ("_kind", "subscriber")

    _inbox: StreamInbox
    _inbox_classes = (StreamInbox, ObservedStreamInbox)

    def __init__(self, hub: Hub, consumer: Consumer, durable: bytes | None) -> None:
        super().__init__(hub, consumer, "a stream subscription")
        self._kind = hub.deployment.stream_kind
        register, unregister = partial(hub.deployment.add, self._kind), partial(hub.remove, self._kind)
        self.subscriber = StreamSubscriber(hub._streams, self._inbox, durable, register, unregister)
        if durable is not None:
            hub.durable.add(self)

    @property
    def _names(self) -> Collection[bytes]:
        return self.subscriber.names

    def join(self, name: bytes) -> None:
        """Follow a stream that add() has left for later."""
        self._hub.joining -= 1
        with self._hub.budget.critical:
            if not (self.closed or self._hub.draining):
                self.subscriber.join(name)

    @property
    def _subscriber(self) -> Subscriber:
        return self.subscriber

    def _has_active(self, name: bytes) -> bool:
        return self.subscriber.has_active(name)

    def _close(self, reason: str | None) -> None:
        if not self._inbox.closed:
            super()._close(reason)
            if self._inbox.closed:  # otherwise it is postponed, and needs the names
                self.subscriber.end()

    async def _consumed(self) -> None:
        await super()._consumed()
        if self.subscriber.durable is not None and not self._inbox.closed:
            with suppress(ConnectionLost):  # aclose() tries again
                await self.subscriber.streams.positions.save(self.subscriber)

    def __repr__(self) -> str:
        text = self._describe(f"streams={len(self._names)}").replace("_StreamMessages", "StreamSubscription", 1)
        return text.replace(" dropped=0", " lagging" if self.subscriber.is_lagging else "")
