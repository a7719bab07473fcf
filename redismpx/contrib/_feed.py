"""Messages for an interface that has no place for gaps: the adapters for broadcaster and Litestar."""

from __future__ import annotations

__all__ = ["ACTIVE_WITHIN", "GapFeed", "GapHook", "Transport"]

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Generic, Self, TypeAlias, TypeVar

from .. import (
    Activation,
    ChannelSubscription,
    ConnectionLost,
    DecodeError,
    Disconnect,
    Message,
    Multiplexer,
    SlowConsumer,
    StreamMessage,
    StreamSubscription,
    SubscriptionIsClosed,
    SubscriptionRefused,
)
from ._records import Records

ACTIVE_WITHIN = 5.0  # seconds, after which a call goes on without a connection

_Data = TypeVar("_Data")
_Item = TypeVar("_Item")
GapHook: TypeAlias = Callable[[str, Exception], _Data | None]
"""Called with a channel and an error where messages are missing; may return a message in their place."""


class Transport:
    """A multiplexer, opened and closed here unless it is the application's, and whether its channels are streams."""

    def __init__(self, redis: str | Multiplexer, is_stream: bool, options: dict[str, Any]) -> None:
        self._is_owner = isinstance(redis, str)
        if not isinstance(redis, Multiplexer):
            redis = Multiplexer(redis, **options)
        elif options:
            raise TypeError(f"{', '.join(options)}: these are options of the Multiplexer; pass them to it")
        self.multiplexer = redis
        self.is_stream: bool = is_stream
        self.records: Records = Records()

    async def open(self) -> None:
        if self._is_owner:
            await self.multiplexer.__aenter__()

    async def close(self) -> None:
        if self._is_owner:
            await self.multiplexer.aclose()


class GapFeed(Generic[_Data, _Item]):
    """The messages of one subscription, with one of the application in the place of a gap, as the framework has them.

    Iterate over it, until the subscription closes.
    """

    def __init__(
        self,
        transport: Transport,
        on_gap: GapHook[_Data] | None,
        decode: Callable[[bytes], _Data] | None,
        new_item: Callable[[tuple[str, _Data]], _Item],
        prefix: str = "",
    ) -> None:
        self._is_stream = transport.is_stream
        self._records = transport.records
        self._on_gap = on_gap
        self._new_item = new_item
        self._prefix = prefix.encode()
        on_error = None if on_gap is None else self._on_error  # None: the on_error of the multiplexer
        self._multiplexer = mpx = transport.multiplexer
        new: Any = mpx.new_stream_subscription if self._is_stream else mpx.new_channel_subscription
        self.sub: ChannelSubscription[_Data] | StreamSubscription[_Data] = new(decode=decode, on_error=on_error)
        self._next_event: Callable[[], Awaitable[Any]] = self.sub.events().__anext__
        self._names: dict[bytes, str] = {}  # each channel as a text, without the prefix
        self._first: dict[bytes, int] = {}
        """Channels whose activation is not read yet: each with the first connection on which it may be active."""
        self._joining: set[bytes] = set()  # the channels that were never active, as far as this feed was told
        self._lost: dict[bytes, ConnectionLost] = {}  # channels that were, and will be again

    def add(self, *names: bytes) -> None:
        self.sub.add(*names)
        new = [name for name in names if name not in self._names]
        self._joining.update(new)
        if new and not self._is_stream:
            # Without other channels, no loss is unread that is older than the new ones.
            self._first.update(dict.fromkeys(new, self._connection() if self._names else 0))
        self._names.update((name, self._name(name)) for name in names)

    def remove(self, *names: bytes) -> None:
        self.sub.remove(*names)
        self._joining.difference_update(names)
        for name in names:
            self._first.pop(name, None)
            self._lost.pop(name, None)
            self._names.pop(name, None)

    async def joined(self, name: bytes) -> None:
        """Wait until a channel that was added just now is active, so that a message of this process is not missed."""
        if name in self._joining:
            with suppress(TimeoutError, ValueError, SubscriptionIsClosed, SubscriptionRefused):
                await self.sub.wait_for_activation(name, timeout=ACTIVE_WITHIN)
                self._joining.discard(name)

    async def next(self) -> _Item:
        """Wait for the next item, and return it. Raises `SubscriptionIsClosed` at the end."""
        try:
            return await self.__anext__()
        except StopAsyncIteration:
            raise SubscriptionIsClosed from None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _Item:
        while True:
            event = await self._next_event()
            if isinstance(event, (Message, StreamMessage)):
                return self._new_item((self._names[event.channel], event.data))
            match event:
                case Activation(name):
                    self._joining.discard(name)
                    self._first.pop(name, None)
                    error: Exception | None = self._lost.pop(name, None)
                case Disconnect(lost):
                    self._lost.update({} if self._is_stream else dict.fromkeys(self._lost_by(lost), lost))
                    continue
                case _:
                    name, error = event.channel, event
            if error is not None and (data := self._report(name, error)) is not None:
                return self._new_item((self._name(name), data))

    def _lost_by(self, lost: ConnectionLost) -> frozenset[bytes]:
        """Return the channels that were active when the connection was lost.

        The error may stand for later losses, too: the activations between them were dropped.
        """
        if lost.names is not None:
            return lost.names
        active, connection = self.sub.active, self._connection()
        return self.sub.channels - {
            name
            for name, first in self._first.items()
            if first == connection or (name in self._joining and name not in active)
        }

    def _connection(self) -> int:
        """Return the number of the connection, or of the next one."""
        return self._multiplexer.stats().connections + (not self._multiplexer.connected)

    def _on_error(self, error: Exception) -> None:
        match error:
            case SlowConsumer() if not self._is_stream:  # a slow reader of streams misses nothing
                for name in self.sub.channels:
                    self._report(name, error)
            case DecodeError(channel=name) | SubscriptionRefused(name=name):
                self._report(name, error)

    def _report(self, name: bytes, error: Exception) -> _Data | None:
        try:
            return None if self._on_gap is None else self._on_gap(self._name(name), error)
        except Exception:  # noqa: BLE001, users' code
            self._records.log(logging.ERROR, "on_gap raised, for %r", name, exc_info=True)
            return None

    def _name(self, name: bytes) -> str:
        return name.removeprefix(self._prefix).decode()
