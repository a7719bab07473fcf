"""Between the topics of one process and Redis. All methods are for the thread of the multiplexer's loop.

It must never call a subscriber itself: where those are called is decided by the `Topics`.
"""

from __future__ import annotations

__all__ = ["Relay", "RelayEvents"]

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from .. import ChannelSubscription, ConnectionLost, MessageGap, Multiplexer, StreamMessage, StreamSubscription
from .._core.topic_tree import Words
from ..pattern import PatternSubscription
from .wire import Names, names_of


class RelayEvents(NamedTuple):
    """What is called with the events from Redis, in their order. Nothing of this raises."""

    on_message: Callable[[bytes | None, bytes], object]
    """The name of the topic, or None in a stream, and the payload. Each message once."""
    on_disconnect: Callable[[ConnectionLost], object]
    on_activation: Callable[[Words], object]
    on_gap: Callable[[MessageGap], object]
    on_error: Callable[[Exception], object]


class Relay:
    """Subscribes to what the filters of one process cover, and publishes its messages."""

    def __init__(self, mpx: Multiplexer, prefix: bytes, events: RelayEvents, *, is_stream: bool) -> None:
        self._mpx = mpx
        self._prefix = prefix
        self._events = events
        self._is_stream = is_stream
        self._followers: dict[Words, int] = {}  # how many consumers each filter has
        self._filters: dict[bytes, set[Words]] = {}  # by the names of the channels and patterns that they need
        self._active: set[bytes] = set()  # of these names
        self._patterns: dict[bytes, PatternSubscription[bytes]] = {}
        self._channels: ChannelSubscription[bytes] | StreamSubscription[bytes] | None = None
        self._last: tuple[bytes, bytes] | None = None
        """The last channel and payload: a message comes once for each name that matches its channel, in a row."""
        self._outcomes: dict[asyncio.Future[Any], None] = {}
        """Of the messages that have not reached Redis yet."""

    # --- receiving

    def follow(self, words: Words) -> None:
        """Receive the messages that a filter covers, for one more consumer."""
        count = self._followers.get(words, 0)
        if not count:
            names = self._names(words)
            try:
                with self._mpx._hub.unobserved():
                    for name in names.patterns:
                        self._add_pattern(name, words)
                    for name in names.channels:
                        self._add_channel(name, words)
            except BaseException:  # also Ctrl-C: nobody follows the filter then
                self._remove(words)
                raise
            if self._is_active(words):
                asyncio.get_running_loop().call_soon(self._report_active, words)
        self._followers[words] = count + 1

    def leave(self, words: Words) -> None:
        """Take note that a filter has one consumer less."""
        count = self._followers.pop(words, 0)
        if count > 1:
            self._followers[words] = count - 1
        elif count:
            self._remove(words)

    def _names(self, words: Words) -> Names:
        return Names((self._prefix + b":",), ()) if self._is_stream else names_of(self._prefix, words)

    def _add_pattern(self, name: bytes, words: Words) -> None:
        if name not in self._patterns:
            self._patterns[name] = self._mpx.new_pattern_subscription(
                name, self._receive, self._lose, self._activate, on_error=self._events.on_error
            )
        self._filters.setdefault(name, set()).add(words)

    def _add_channel(self, name: bytes, words: Words) -> None:
        if self._channels is None and self._is_stream:
            self._channels = self._mpx.new_stream_subscription(
                self._receive_entry, self._events.on_gap, self._lose, self._activate, on_error=self._events.on_error
            )
        elif self._channels is None:
            self._channels = self._mpx.new_channel_subscription(
                self._receive, self._lose, self._activate, on_error=self._events.on_error
            )
        self._channels.add(name)
        self._filters.setdefault(name, set()).add(words)

    def _remove(self, words: Words) -> None:
        names = self._names(words)
        for name in (*names.channels, *names.patterns):
            filters = self._filters.get(name, set())
            filters.discard(words)
            if not filters and self._filters.pop(name, None) is not None:
                self._active.discard(name)
                if name in self._patterns:
                    self._patterns.pop(name).close()
                elif self._channels is not None:
                    self._channels.remove(name)

    def _receive(self, channel: bytes, payload: bytes) -> None:
        message = channel, payload
        if message != self._last:
            self._last = message
            self._events.on_message(channel[len(self._prefix) + 1 :], payload)

    def _receive_entry(self, message: StreamMessage[bytes]) -> None:
        self._events.on_message(None, message.data)

    def _activate(self, name: bytes) -> None:
        self._active.add(name)
        for words in tuple(self._filters.get(name, ())):
            if self._is_active(words):
                self._events.on_activation(words)

    def _is_active(self, words: Words) -> bool:
        names = self._names(words)
        return self._active.issuperset(names.channels) and self._active.issuperset(names.patterns)

    def _report_active(self, words: Words) -> None:
        if words in self._followers and self._is_active(words):
            self._events.on_activation(words)

    def _lose(self, error: ConnectionLost) -> None:
        if self._active:  # the first one of the subscriptions that this loss concerns
            self._active.clear()
            self._events.on_disconnect(error)

    async def wait_for_activation(self, timeout: float | None) -> None:
        """Wait until the messages of all filters are received."""
        async with asyncio.timeout(timeout):
            for subscription in (self._channels, *self._patterns.values()):
                if subscription is not None:
                    await subscription.wait_for_activation()

    # --- sending

    @property
    def unsent(self) -> int:
        """The number of messages that have not reached Redis yet."""
        return len(self._outcomes)

    def publish(self, channel: bytes, payload: bytes) -> None:
        """Begin to publish a message, after all earlier ones. Its outcome goes to `on_error` if it is an error."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Any]
        if self._is_stream:
            outcome = loop.create_task(self._mpx.append(channel, payload))
        else:
            outcome = loop.create_future()
            self._mpx._begin_publish(channel, payload, outcome, sharded=False)
        self._outcomes[outcome] = None
        outcome.add_done_callback(partial(self._published, channel))

    def _published(self, channel: bytes, outcome: asyncio.Future[Any]) -> None:
        del self._outcomes[outcome]
        error = None if outcome.cancelled() else outcome.exception()
        if isinstance(error, Exception):
            error.add_note(f"a message on {channel[:100]!r} did not reach the other processes")
            self._events.on_error(error)

    async def flush(self) -> None:
        """Wait until all messages so far have reached Redis; raise the error of the first one that has not."""
        outcomes = tuple(self._outcomes)
        if outcomes:
            await asyncio.wait(outcomes)
        for outcome in outcomes:
            if not outcome.cancelled():
                outcome.result()

    def close(self) -> None:
        """Receive nothing any more."""
        for subscription in (self._channels, *self._patterns.values()):
            if subscription is not None:
                subscription.close()
        self._channels = None
        self._last = None
        for held in (self._patterns, self._followers, self._filters, self._active):
            held.clear()
