"""Litestar: a backend for its channels plugin (https://docs.litestar.dev/latest/usage/channels.html)."""

from __future__ import annotations

__all__ = ["MultiplexerChannelsBackend"]

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable
from contextlib import suppress
from typing import Any

from litestar.channels.backends.base import ChannelsBackend

from .. import Multiplexer
from ._feed import ACTIVE_WITHIN, GapFeed, GapHook, Transport
from ._records import Records

_READ_AT_ONCE = 1_000  # messages that are read at a time


class MultiplexerChannelsBackend(ChannelsBackend):
    """A backend: `ChannelsPlugin(backend=MultiplexerChannelsBackend("redis://localhost:6379"), channels=["news"])`.

    All channels of an application have one connection. After a lost connection it reconnects, and subscribes to all
    channels again.

    Args:
        redis: a URL, as for the `Multiplexer`; or a `Multiplexer`, which stays yours.
        history: the number of messages of each channel that Redis keeps, as a stream. New subscribers may get them, and
            a lost connection loses none: see `Multiplexer.append()`. 0: channels are plain Pub/Sub.
        max_age: with `history`, the seconds after its last message for which a channel is kept. None: no limit.
        key_prefix: comes before the name of each channel in Redis.
        on_gap: called with a channel and an error where messages of the channel are missing. After a `ConnectionLost`,
            it is called when the channel is active again: load the current state then. The other errors are
            `SlowConsumer`, `SubscriptionRefused` and, with `history`, `MessageGap`. If it returns bytes for a
            `ConnectionLost` or a `MessageGap`, the subscribers of the channel get these in the place of the gap. A
            plain function. None: gaps are in the log.
        options: the options of the `Multiplexer`; only with a URL.

    Raises:
        TypeError, ValueError: an argument is invalid.

    Example:
        ::

            backend = MultiplexerChannelsBackend("redis://localhost:6379", history=100)
            app = Litestar(plugins=[ChannelsPlugin(backend=backend, channels=["news"])])
    """

    def __init__(
        self,
        redis: str | Multiplexer,
        *,
        history: int = 0,
        max_age: float | None = 3_600,
        key_prefix: str = "",
        on_gap: GapHook[bytes] | None = None,
        **options: Any,
    ) -> None:
        self._transport = Transport(redis, history > 0, options)
        self._history = history
        self._max_age = max_age
        self._prefix = key_prefix
        self._on_gap = on_gap
        self._records = Records()

    async def on_startup(self) -> None:
        """Open the multiplexer. Works offline."""
        await self._transport.open()
        self._feed = GapFeed(self._transport, self._on_gap, None, lambda item: item, self._prefix)

    async def on_shutdown(self) -> None:
        """Close the multiplexer, unless it is yours. Works offline."""
        self._feed.sub.close()
        await self._transport.close()

    async def publish(self, data: bytes, channels: Iterable[str]) -> None:
        """Publish a message to channels, in one batch. It is sent at most once.

        The subscribers of this process that came before it get it, as all others.

        Raises:
            ConnectionLost: as for `Multiplexer.publish()`. Some of the channels may have got the message. Messages of
                `ChannelsPlugin.publish()`, for which nobody waits, are reported in the log instead.
        """
        try:
            await asyncio.gather(*[self._publish(self._name(channel), data) for channel in set(channels)])
        except Exception as error:
            if not _is_worker():
                raise
            self._records.log(logging.WARNING, "a message of ChannelsPlugin.publish() is lost: %s", error)

    async def _publish(self, name: bytes, data: bytes) -> None:
        await self._feed.joined(name)
        mpx = self._transport.multiplexer
        if self._transport.is_stream:
            await mpx.append(name, data, max_length=self._history, max_age=self._max_age)
        else:
            await mpx.publish(name, data)

    async def subscribe(self, channels: Iterable[str]) -> None:
        """Subscribe to channels, and wait until Redis has confirmed them.

        Without a connection, it returns after 5 s. The channels become active when there is one.

        Raises:
            SubscriptionRefused: the server rejects one of the channels.
        """
        names = [self._name(channel) for channel in channels]
        self._feed.add(*names)
        with suppress(TimeoutError, ValueError):  # offline; or removed meanwhile
            await self._feed.sub.wait_for_activation(*names, timeout=ACTIVE_WITHIN)

    async def unsubscribe(self, channels: Iterable[str]) -> None:
        """Unsubscribe from channels. Returns at once, and works offline."""
        self._feed.remove(*[self._name(channel) for channel in channels])

    async def stream_events(self) -> AsyncGenerator[tuple[str, bytes], None]:
        """Read the messages of all subscribed channels, until the multiplexer closes. Offline, it waits."""
        async for channel, data in self._feed:
            yield channel, data

    async def get_history(self, channel: str, limit: int | None = None) -> list[bytes]:
        """Read the last messages of a channel, oldest first.

        Args:
            channel: the channel.
            limit: how many messages to return at most. None: `history` messages.

        Raises:
            NotImplementedError: the backend has no `history`.
            ConnectionLost: there is no connection.
        """
        if not self._history:
            raise NotImplementedError("no messages are kept: pass history=N to MultiplexerChannelsBackend")
        found: list[bytes] = []
        after = b"0"
        while True:  # Redis keeps some more than `history`
            page = await self._transport.multiplexer.history(self._name(channel), after=after, limit=_READ_AT_ONCE)
            found = [*found, *(message.data for message in page)][-min(limit or self._history, self._history) :]
            if len(page) < _READ_AT_ONCE:
                return found
            after = page[-1].id

    def _name(self, channel: str) -> bytes:
        return (self._prefix + channel).encode()


def _is_worker() -> bool:
    """Tell whether the plugin's own task publishes: an exception would end it, and no later message would go out."""
    task = asyncio.current_task()
    return task is not None and getattr(task.get_coro(), "__qualname__", "") == "ChannelsPlugin._pub_worker"
