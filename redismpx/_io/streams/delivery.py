"""From the live form of a message of a stream to its consumer, and what the consumer is through with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any, Generic, Self

from ..._core.recovery import HistoryGap
from ...errors import MessageGap
from ...message import (
    Activation,
    Disconnect,
    Message,
    OnGap,
    OnStreamMessage,
    StreamEvent,
    StreamMessage,
    new_stream_message,
)
from ...typing import Decode, T
from ..delivery.consumer import Consumer
from ..runtime.awaitable import is_awaitable
from ..runtime.tasks import adopt
from .cursor import StreamCursor
from .subscriber import StreamSubscriber


class StreamDelivery(Generic[T]):
    """From the live form of a message to the consumer. Does not keep the subscription alive."""

    __slots__ = ("_decode", "_last", "_on_message", "on_gap", "subscriber")

    subscriber: StreamSubscriber

    def __init__(self, on_message: OnStreamMessage[T] | None, on_gap: OnGap | None, decode: Decode[T] | None) -> None:
        self._on_message = on_message
        self._decode = decode
        self.on_gap = on_gap
        self._last: StreamCursor | None = None  # of the message that was read last, with durable

    def consumer(self, consumer: Consumer) -> Consumer:
        """Return a consumer that gets the messages of a stream subscription in their live form."""
        if self._on_message is None:
            return consumer._replace(decode=self._parse, on_gap=self._call_on_gap)
        return consumer._replace(on_message=self._call, decode=None, on_gap=self._call_on_gap)

    def _parse(self, raw: bytes) -> tuple[bytes, Any]:
        _, entry_id, data = raw.split(b" ", 2)
        return entry_id, data if self._decode is None else self._decode(data)

    def _call(self, channel: bytes, raw: bytes) -> object:
        """Call the callback with a message in its live form."""
        cursor = self.subscriber.cursors.get(channel)
        if cursor is None:
            return None
        _, entry_id, data = raw.split(b" ", 2)
        return self.call(cursor, entry_id, data)

    def call(self, cursor: StreamCursor, entry_id: bytes, data: Any) -> object:
        """Call the callback with a message."""
        subscriber, channel = self.subscriber, cursor.stream.name
        cursor.handed = entry_id
        if self._decode is not None:
            try:
                data = self._decode(data)
            except BaseException as error:  # noqa: BLE001, users' code
                subscriber.through(cursor)
                return subscriber.inbox.report_undecodable(channel, data, error)
            if subscriber.inbox.closed or subscriber.cursors.get(channel) is not cursor:  # decode did that
                return None
        message = new_stream_message((channel, data, entry_id))
        assert self._on_message is not None
        if subscriber.durable is None:
            return self._on_message(message)
        try:
            result = self._on_message(message)
        except BaseException:  # the caller reports it; a message that was handled is not handed over again
            subscriber.through(cursor)
            raise
        if is_awaitable(result):
            return self._await(result, cursor)
        subscriber.through(cursor)
        return result

    async def _await(self, result: Awaitable[object], cursor: StreamCursor) -> None:
        """Await a callback, and note that the consumer is through with its message, unless it was cancelled."""
        adopt(result)
        try:
            await result
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException:  # as in call()
            self.subscriber.through(cursor)
            raise
        self.subscriber.through(cursor)

    def _call_on_gap(self, argument: tuple[StreamCursor, HistoryGap]) -> object:
        error = self.miss(argument)
        return self.subscriber.inbox.reporter.report(error) if self.on_gap is None else self.on_gap(error)

    def miss(self, argument: tuple[StreamCursor, HistoryGap]) -> MessageGap:
        """Return the gap for the consumer, which gets it now."""
        cursor, gap = argument
        self.subscriber.missed(cursor, gap)
        return MessageGap(cursor.stream.name, gap.after, gap.before, gap.reason)

    def read(self, message: Message[Any]) -> StreamMessage[T]:
        """Return a message for the reader, which gets it now."""
        entry_id, data = message.data
        cursor = self.subscriber.handed(message.channel, entry_id)
        if self.subscriber.durable is not None:
            self._last = cursor
        return new_stream_message((message.channel, data, entry_id))

    def finish(self) -> None:
        """Note that the reader is through with the message that it got last."""
        if self._last is not None:
            self.subscriber.through(self._last)
            self._last = None


class StreamEvents(Generic[T]):
    """Iterates over the events of a stream subscription, which it keeps alive."""

    __slots__ = ("_delivery", "_events", "_subscription")

    def __init__(self, subscription: object, delivery: StreamDelivery[T], events: AsyncIterator[Any]) -> None:
        self._subscription = subscription
        self._delivery = delivery
        self._events = events

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamEvent[T]:
        self._delivery.finish()
        event: Any = await self._events.__anext__()
        if isinstance(event, Message):
            return self._delivery.read(event)
        if isinstance(event, (Activation, Disconnect)):
            return event
        return self._delivery.miss(event)
