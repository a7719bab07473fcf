"""broadcaster (https://github.com/encode/broadcaster): a backend for it, and a class that takes its place."""

from __future__ import annotations

__all__ = ["Broadcast", "Event", "MultiplexerBackend", "Subscriber"]

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias

from .. import (
    Activation,
    ChannelSubscription,
    ConnectionLost,
    DecodeError,
    Disconnect,
    MessageGap,
    Multiplexer,
    SlowConsumer,
    StreamSubscription,
    SubscriptionIsClosed,
    SubscriptionRefused,
)

if TYPE_CHECKING:
    from broadcaster import BroadcastBackend
    from broadcaster import Event as BackendEvent
else:  # Broadcast does not need the package; and there is another one with its name, which has no such class
    BroadcastBackend = object

_STREAMS = "redis-stream://"  # the scheme of broadcaster
_JOIN_TIMEOUT = 5.0  # seconds
_OnGap: TypeAlias = Callable[[str, Exception], str | None]


class Event(NamedTuple):
    """A message, as a `Subscriber` returns it."""

    channel: str
    """The channel on which the message was published."""
    message: str
    """The payload. The `repr` shows only its length."""

    def __repr__(self) -> str:
        return f"Event(channel={self.channel!r}, message=<{len(self.message)} characters>)"


class Broadcast:
    """Publish and subscribe with the interface of broadcaster, without the package.

    Args:
        url: a URL, as for the `Multiplexer`; or a `Multiplexer`, which stays yours. With the scheme `redis-stream`,
            Redis keeps the messages, and a lost connection loses none: see `Multiplexer.append()`.
        stream: the same as the scheme `redis-stream`, for a `Multiplexer`.
        on_gap: called with a channel and an error where messages of the channel are missing, once for each subscriber
            of it. After a `ConnectionLost` it is called when the channel is active again: load the current state then.
            The other errors are `SlowConsumer`, `DecodeError`, `SubscriptionRefused` and, with streams, `MessageGap`.
            If it returns a text for a `ConnectionLost` or a `MessageGap`, the subscriber gets that as a message in the
            place of the gap. A plain function. None: gaps are in the log.
        options: the options of the `Multiplexer`, such as `max_pending` and `overflow` for slow subscribers; only with
            a URL.

    Raises:
        TypeError, ValueError: an argument is invalid.

    Example:
        ::

            async with Broadcast("redis://localhost:6379") as broadcast:
                async with broadcast.subscribe("chatroom") as subscriber:
                    await broadcast.publish("chatroom", "hello")
                    async for event in subscriber:
                        print(event.message)
    """

    def __init__(
        self, url: str | Multiplexer, *, stream: bool = False, on_gap: _OnGap | None = None, **options: Any
    ) -> None:
        self._transport = _Transport(url, stream, options)
        self._on_gap = on_gap
        self._feeds: set[_Feed] = set()

    async def connect(self) -> None:
        """Open the multiplexer. Works offline: it connects in the background, and again after each loss."""
        await self._transport.open()

    async def disconnect(self) -> None:
        """End the iterations of all subscribers, and close the multiplexer, unless it is yours.

        Works offline. `connect()` opens it again.
        """
        for feed in tuple(self._feeds):
            feed.sub.close()
        await self._transport.close()

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.disconnect()

    async def publish(self, channel: str, message: Any) -> None:
        """Publish a message, as `Multiplexer.publish()` does, or with streams as `Multiplexer.append()` does.

        Args:
            channel: the channel.
            message: the payload: `str`, `bytes` or a number.
        """
        await self._transport.publish(channel, message)

    @asynccontextmanager
    async def subscribe(self, channel: str) -> AsyncIterator[Subscriber]:
        """Subscribe to a channel for the duration of a block.

        The subscriber gets each message that is published after the block has begun. Offline, it waits for the
        connection. Each subscriber has a subscription of its own: a slow one delays no other, and buffers at most
        `max_pending` messages.

        Raises:
            SubscriptionRefused, TooManyChannels, MultiplexerIsClosed: as for `Multiplexer.subscribe()`.
        """
        feed = _Feed(self._transport, self._on_gap)
        self._feeds.add(feed)
        try:
            feed.sub.add(channel)
            await feed.sub.wait_for_activation()
            yield Subscriber(feed)
        finally:
            self._feeds.discard(feed)
            feed.sub.close()


class Subscriber:
    """The messages of a channel. Made by `Broadcast.subscribe()`, and read by one task at a time.

    `async for event in subscriber` ends when the block of `Broadcast.subscribe()` ends, or at `Broadcast.disconnect()`.
    """

    def __init__(self, feed: _Feed) -> None:
        self._feed = feed

    async def get(self) -> Event:
        """Wait for the next message, and return it. Offline, it waits. A cancelled `get()` loses no message.

        Raises:
            SubscriptionIsClosed: the subscriber or its multiplexer is closed.
        """
        return Event(*await self._feed.next())

    def __aiter__(self) -> Self:
        """Read the messages one by one."""
        return self

    async def __anext__(self) -> Event:
        try:
            return Event(*await self._feed.next())
        except SubscriptionIsClosed:
            raise StopAsyncIteration from None


class MultiplexerBackend(BroadcastBackend):
    """A backend: `broadcaster.Broadcast(backend=MultiplexerBackend("redis://localhost:6379"))`.

    broadcaster keeps the messages for each of its subscribers in a queue without a bound. `Broadcast` of this module
    has a bound.

    Args:
        url, stream, options: as for `Broadcast`.
        on_gap: as for `Broadcast`, once for each channel. A text that it returns goes to all subscribers of it.

    Raises:
        ImportError: broadcaster is not installed.
        TypeError, ValueError: an argument is invalid.
    """

    def __init__(
        self, url: str | Multiplexer, *, stream: bool = False, on_gap: _OnGap | None = None, **options: Any
    ) -> None:
        from broadcaster import Event

        self._event: type[BackendEvent] = Event
        self._transport = _Transport(url, stream, options)
        self._on_gap = on_gap

    async def connect(self) -> None:
        """Open the multiplexer. Works offline."""
        await self._transport.open()
        self._feed = _Feed(self._transport, self._on_gap)

    async def disconnect(self) -> None:
        """Close the multiplexer, unless it is yours. Works offline."""
        self._feed.sub.close()
        await self._transport.close()

    async def subscribe(self, group: str) -> None:
        """Subscribe to a channel. Returns before Redis has confirmed it; `publish()` waits for that."""
        # broadcaster forgets the first of two subscribers who come while this waits: nothing is awaited here.
        self._feed.sub.add(group)
        self._feed.joining.add(group)

    async def unsubscribe(self, group: str) -> None:
        """Unsubscribe from a channel."""
        self._feed.remove(group)

    async def publish(self, channel: str, message: Any) -> None:
        """Publish a message. The subscribers of this process that came before it get it, as all others."""
        if channel in self._feed.joining:
            with suppress(TimeoutError, ValueError, SubscriptionIsClosed, SubscriptionRefused):
                await self._feed.sub.wait_for_activation(channel, timeout=_JOIN_TIMEOUT)
        await self._transport.publish(channel, message)

    async def next_published(self) -> BackendEvent:
        """Wait for the next message, and return it.

        Raises:
            SubscriptionIsClosed: the multiplexer is closed.
        """
        return self._event(*await self._feed.next())


class _Transport:
    """A multiplexer, and how messages are published."""

    def __init__(self, redis: str | Multiplexer, is_stream: bool, options: dict[str, Any]) -> None:
        self._is_owner = isinstance(redis, str)
        self.is_stream: bool = is_stream
        if isinstance(redis, str):
            self.is_stream = is_stream or redis.startswith(_STREAMS)
            redis = Multiplexer(redis.replace(_STREAMS, "redis://", 1), **options)
        elif options:
            raise TypeError(f"{', '.join(options)}: these are options of the Multiplexer; pass them to it")
        self.multiplexer = redis

    async def open(self) -> None:
        if self._is_owner:
            await self.multiplexer.__aenter__()

    async def close(self) -> None:
        if self._is_owner:
            await self.multiplexer.aclose()

    async def publish(self, channel: str, message: Any) -> None:
        payload = repr(message) if type(message) in (int, float) else message  # as redis-py does
        await (self.multiplexer.append if self.is_stream else self.multiplexer.publish)(channel, payload)


class _Feed:
    """The messages of one subscription, with a text of the application in the place of a gap."""

    def __init__(self, transport: _Transport, on_gap: _OnGap | None) -> None:
        self._is_stream = transport.is_stream
        self._on_gap = on_gap
        on_error = None if on_gap is None else self._on_error  # None: the on_error of the multiplexer
        mpx = transport.multiplexer
        new = mpx.new_stream_subscription if self._is_stream else mpx.new_channel_subscription
        self.sub: ChannelSubscription[str] | StreamSubscription[str] = new(decode=bytes.decode, on_error=on_error)
        self._events: AsyncIterator[Any] = self.sub.events()
        self.joining: set[str] = set()  # channels that were never active
        self._lost: dict[bytes, ConnectionLost] = {}  # channels that were, and will be again

    def remove(self, channel: str) -> None:
        self.sub.remove(channel)
        self.joining.discard(channel)
        self._lost.pop(channel.encode(), None)

    async def next(self) -> tuple[str, str]:
        """Wait for a message, and return its channel and text."""
        async for event in self._events:
            match event:
                case Activation(name):
                    self.joining.discard(name.decode())
                    error: Exception | None = self._lost.pop(name, None)
                case Disconnect(lost):
                    names = self.sub.channels if lost.names is None else lost.names
                    self._lost.update({} if self._is_stream else dict.fromkeys(names, lost))
                    continue
                case MessageGap(channel=name):
                    error = event
                case message:
                    return message.channel.decode(), message.data
            if error is not None and (text := self._report(name, error)) is not None:
                return name.decode(), text
        raise SubscriptionIsClosed

    def _on_error(self, error: Exception) -> None:
        match error:
            case SlowConsumer() if not self._is_stream:  # a slow reader of streams misses nothing
                for name in self.sub.channels:
                    self._report(name, error)
            case DecodeError(channel=name) | SubscriptionRefused(name=name):
                self._report(name, error)

    def _report(self, name: bytes, error: Exception) -> str | None:
        try:
            return self._on_gap and self._on_gap(name.decode(), error)
        except Exception:
            logging.getLogger("redismpx").exception("on_gap raised, for %r", name)
            return None
