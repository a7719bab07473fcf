"""broadcaster (https://github.com/encode/broadcaster): a backend for it, and a class that takes its place."""

from __future__ import annotations

__all__ = ["Broadcast", "Event", "MultiplexerBackend", "Subscriber"]

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from .. import Multiplexer
from ._feed import GapFeed, GapHook, Transport

if TYPE_CHECKING:
    from broadcaster import BroadcastBackend
    from broadcaster import Event as BackendEvent
else:  # Broadcast does not need the package; and there is another one with its name, which has no such class
    BroadcastBackend = object

_STREAMS = "redis-stream://"  # the scheme of broadcaster


class Event(NamedTuple):
    """A message, as a `Subscriber` returns it."""

    channel: str
    """The channel on which the message was published."""
    message: str
    """The payload. The `repr` shows only its length."""

    def __repr__(self) -> str:
        return f"Event(channel={self.channel!r}, message=<{len(self.message)} characters>)"


_new_event: Callable[[tuple[str, str]], Event] = partial(tuple.__new__, Event)  # in half the time of Event()


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
                        print(event.message)  # hello
                        break
    """

    def __init__(
        self, url: str | Multiplexer, *, stream: bool = False, on_gap: GapHook[str] | None = None, **options: Any
    ) -> None:
        self._transport = _transport(url, stream, options)
        self._on_gap = on_gap
        self._feeds: set[GapFeed[str, Event]] = set()

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
        await _publish(self._transport, channel, message)

    @asynccontextmanager
    async def subscribe(self, channel: str) -> AsyncIterator[Subscriber]:
        """Subscribe to a channel for the duration of a block.

        The subscriber gets each message that is published after the block has begun. Offline, it waits for the
        connection. Each subscriber has a subscription of its own: a slow one delays no other, and buffers at most
        `max_pending` messages.

        Raises:
            SubscriptionRefused, TooManyChannels, MultiplexerIsClosed: as for `Multiplexer.subscribe()`.
        """
        feed = GapFeed(self._transport, self._on_gap, bytes.decode, _new_event)
        self._feeds.add(feed)
        try:
            feed.add(channel.encode())
            await feed.sub.wait_for_activation()
            yield Subscriber(feed)
        finally:
            self._feeds.discard(feed)
            feed.sub.close()


class Subscriber:
    """The messages of a channel. Made by `Broadcast.subscribe()`, and read by one task at a time.

    `async for event in subscriber` ends when the block of `Broadcast.subscribe()` ends, or at `Broadcast.disconnect()`.
    """

    def __init__(self, feed: GapFeed[str, Event]) -> None:
        self._feed = feed

    async def get(self) -> Event:
        """Wait for the next message, and return it. Offline, it waits. A cancelled `get()` loses no message.

        Raises:
            SubscriptionIsClosed: the subscriber or its multiplexer is closed.
        """
        return await self._feed.next()

    def __aiter__(self) -> Self:
        """Read the messages one by one."""
        return self

    def __anext__(self) -> Awaitable[Event]:
        return self._feed.__anext__()


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

    Example:
        ::

            broadcast = broadcaster.Broadcast(backend=MultiplexerBackend("redis://localhost:6379"))
            async with broadcast, broadcast.subscribe("chatroom") as subscriber:
                await broadcast.publish("chatroom", "hello")
                event = await subscriber.get()
                print(event.message)  # hello
    """

    def __init__(
        self, url: str | Multiplexer, *, stream: bool = False, on_gap: GapHook[str] | None = None, **options: Any
    ) -> None:
        from broadcaster import Event

        self._event: type[BackendEvent] = Event
        self._transport = _transport(url, stream, options)
        self._on_gap = on_gap

    async def connect(self) -> None:
        """Open the multiplexer. Works offline."""
        await self._transport.open()
        self._feed = GapFeed(self._transport, self._on_gap, bytes.decode, lambda item: self._event(*item))

    async def disconnect(self) -> None:
        """Close the multiplexer, unless it is yours. Works offline."""
        self._feed.sub.close()
        await self._transport.close()

    async def subscribe(self, group: str) -> None:
        """Subscribe to a channel. Returns before Redis has confirmed it; `publish()` waits for that."""
        # broadcaster forgets the first of two subscribers who come while this waits: nothing is awaited here.
        self._feed.add(group.encode())

    async def unsubscribe(self, group: str) -> None:
        """Unsubscribe from a channel."""
        self._feed.remove(group.encode())

    async def publish(self, channel: str, message: Any) -> None:
        """Publish a message. The subscribers of this process that came before it get it, as all others."""
        await self._feed.joined(channel.encode())
        await _publish(self._transport, channel, message)

    async def next_published(self) -> BackendEvent:
        """Wait for the next message, and return it.

        Raises:
            SubscriptionIsClosed: the multiplexer is closed.
        """
        return await self._feed.next()


def _transport(url: str | Multiplexer, stream: bool, options: dict[str, Any]) -> Transport:
    if isinstance(url, str) and url.startswith(_STREAMS):
        return Transport(url.replace(_STREAMS, "redis://", 1), True, options)
    return Transport(url, stream, options)


async def _publish(transport: Transport, channel: str, message: Any) -> None:
    payload = repr(message) if type(message) in (int, float) else message  # as redis-py does
    mpx = transport.multiplexer
    await (mpx.append if transport.is_stream else mpx.publish)(channel, payload)
