"""A subscription whose messages are passed to a callback, or read one by one."""

from __future__ import annotations

__all__ = ["MessageSubscription"]

import asyncio
import warnings
from collections.abc import AsyncIterator
from typing import Generic, Self

from ._core.events import Signal
from ._io.delivery.bulk import read_many
from ._io.delivery.worker import argument_of
from .arguments import check_seconds
from .errors import SubscriptionIsClosed
from .message import Activation, Disconnect, Event, Message, new_message, new_messages
from .subscription import Subscription
from .typing import T


class MessageSubscription(Subscription, Generic[T]):
    """A subscription whose messages go to `on_message`; without `on_message`, it is read."""

    __slots__ = ()

    _source: bytes | None = None
    """The pattern of a pattern subscription; None for channels."""

    @property
    def pending(self) -> int:
        """The number of buffered messages: received, and not yet delivered."""
        return self._inbox.pending

    @property
    def dropped(self) -> int:
        """The number of messages dropped so far.

        A message is dropped when the buffer is full, when `decode` raises, or when its channel is removed or the
        subscription closed while it is buffered. The messages received are those delivered, dropped and pending.
        """
        return self._inbox.dropped

    async def get(self, timeout: float | None = None) -> Message[T]:
        """Wait for the next message, and return it.

        Offline, it returns buffered messages, then waits. A cancelled `get()` loses no message.

        Args:
            timeout: seconds to wait. None: no limit. 0: return a buffered message, or raise `TimeoutError`.

        Returns:
            The message, with its payload decoded.

        Raises:
            TimeoutError: no message arrived within `timeout`. If there is no connection, the `ConnectionLost` is its
                `__cause__`.
            SubscriptionIsClosed: the subscription or its multiplexer is closed, or was closed during the wait.
            RuntimeError: the subscription has `on_message`, is read by `events()`, or another task is reading it.
            TypeError, ValueError: the timeout is invalid.
        """
        self._check_read()
        check_seconds(timeout, "timeout")
        self._check_open()
        self._hub.enter()
        message: object
        try:
            if timeout is None:
                message = await self._inbox.read()
            elif (message := self._inbox.read_nowait()) is None:  # also with a timeout of 0
                async with asyncio.timeout(timeout):
                    message = await self._inbox.read()
        except EOFError:
            raise SubscriptionIsClosed from None
        except TimeoutError:
            raise TimeoutError(f"no message within {timeout} s: {self!r}") from self._hub.outage(self._kind)
        assert isinstance(message, tuple)
        return new_message((*message, self._source))

    def get_nowait(self) -> Message[T]:
        """Return the next buffered message, without waiting. Works offline.

        Returns:
            The message, with its payload decoded.

        Raises:
            asyncio.QueueEmpty: no message is buffered.
            SubscriptionIsClosed: the subscription or its multiplexer is closed.
            RuntimeError: the subscription has `on_message`, is read by `events()`, or another task is reading it.

        Example:
            ::

                try:
                    message = sub.get_nowait()
                except asyncio.QueueEmpty:
                    print("no message yet")  # no message yet
        """
        self._check_read()
        self._check_open()
        self._hub.enter()
        if self._hub.budget.critical.is_open or len(self._inbox.batch) & 1:  # a finalizer has interrupted another call
            raise asyncio.QueueEmpty
        message = self._inbox.read_nowait()
        if message is None:
            raise asyncio.QueueEmpty
        return new_message((*message, self._source))

    def __aiter__(self) -> Self:
        """Read the messages one by one. The iteration ends when the subscription closes."""
        self._check_read()
        self._hub.enter()
        return self

    async def __anext__(self) -> Message[T]:
        if batch := self._inbox.batch:
            return new_message((batch.pop(), batch.pop(), self._source))
        try:
            message = self._inbox.read_in_turn()
            if message is None:
                self._hub.enter()
                message = await self._inbox.read()
        except EOFError:
            raise StopAsyncIteration from None
        assert isinstance(message, tuple)
        return new_message((*message, self._source))

    def _read_many(self, most: int, size: int) -> list[Message[T]]:
        """Return buffered messages, as `read_many()` does; for readers that hand them on."""
        return new_messages(read_many(self._inbox, most, size), self._source)

    def events(self) -> AsyncIterator[Event[T]]:
        """Read everything in order: each `Activation`, each `Message`, and each `Disconnect`, where the gap lies.

        The events begin here: each name that is active already gets its `Activation` first, and buffered messages
        follow. The iteration ends when the subscription closes. Offline, it waits. A cancelled step of the iteration
        loses no event. From now on, the subscription cannot be read in another way.

        Returns:
            The iterator.

        Raises:
            RuntimeError: the subscription has `on_message`, `on_disconnect` or `on_activation`. While iterating:
                another task is reading the subscription.

        Example:
            ::

                await mpx.publish("news", "hello")
                async for event in sub.events():
                    match event:
                        case Activation(name):
                            print("active:", name)  # active: b'news'
                        case Message(channel, data):
                            print(channel, data)  # b'news' b'hello'
                            sub.close()  # ends the iteration
                        case Disconnect(error):
                            print("messages may be missed until the next activation:", error.reason)
        """
        if self._inbox.consumer.has_callbacks:
            raise RuntimeError("this subscription has callbacks for its events; make one without them to read events()")
        self._hub.enter()
        is_first = not self._inbox.reads_events
        return _Events(self, self._inbox.read_events(self.active) if is_first else set())

    def __del__(self) -> None:  # at any moment, in any thread
        inbox = getattr(self, "_inbox", None)  # None: __init__ raised
        if inbox is None or inbox.closed or inbox.consumer.has_callbacks:
            return
        if self._hub.abandon(self) and self._names:
            warnings.warn(
                f"{self!r} is closed, because nobody refers to it and it has no callbacks; close it when it is not "
                "needed any more, or keep a reference to it",
                ResourceWarning,
                stacklevel=1,
                source=self,
            )

    def _check_read(self) -> None:
        inbox = self._inbox
        if inbox.consumer.on_message is not None:
            raise RuntimeError("this subscription has on_message, so it cannot be read; make one without on_message")
        if inbox.reads_events:
            raise RuntimeError("events() reads this subscription, so it cannot be read in another way")


class _Events(Generic[T]):
    """Iterates over the events of a subscription, which it keeps alive."""

    __slots__ = ("_active", "_subscription")

    def __init__(self, subscription: MessageSubscription[T], active: set[bytes]) -> None:
        self._subscription = subscription
        self._active = active  # names whose activations come first

    def __aiter__(self) -> Self:
        return self

    def _read_many(self, most: int, size: int) -> list[Message[T]]:
        return [] if self._active else self._subscription._read_many(most, size)

    async def __anext__(self) -> Event[T]:
        if self._active:
            return Activation(self._active.pop())
        inbox, source = self._subscription._inbox, self._subscription._source
        if batch := inbox.batch:
            return new_message((batch.pop(), batch.pop(), source))
        try:
            event = inbox.read_in_turn()
            if event is None:
                self._subscription._hub.enter()
                event = await inbox.read()
        except EOFError:
            raise StopAsyncIteration from None
        if isinstance(event, tuple):
            channel, data = event
            return new_message((channel, data, source))
        if event.kind is Signal.ACTIVATION:
            return Activation(event.argument)
        if event.kind is Signal.GAP:  # only a stream has gaps, and makes something else of it
            return event.argument  # type: ignore[no-any-return]
        return Disconnect(argument_of(event))
