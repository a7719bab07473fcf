"""The base of all subscriptions: an inbox for the events of one consumer, and the end."""

from __future__ import annotations

__all__ = ["MessageSubscription", "Subscription"]

import asyncio
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Generic, Self
from weakref import WeakMethod

from ._core.overflow import Overflow
from ._core.wire import Kind
from ._io.delivery.consumer import Consumer
from ._io.delivery.inbox import Inbox
from ._io.hub import Hub
from .arguments import check_seconds
from .errors import SubscriptionIsClosed, SubscriptionRefused
from .message import Message, new_message
from .typing import T


class Subscription(ABC):
    """The base of all subscriptions. Made by a multiplexer."""

    __slots__ = ("__weakref__", "_hub", "_inbox")

    _kind: Kind

    def __init__(self, hub: Hub, consumer: Consumer, label: str) -> None:
        self._hub = hub
        # Only the hub keeps a subscription alive: the inbox, which the registry refers to, must not.
        close = _weakly(self.close) if consumer.overflow is Overflow.CLOSE else None
        self._inbox = Inbox(consumer, label, hub.delivery, close)
        hub.join(self, keep=consumer.has_callbacks)

    @property
    def closed(self) -> bool:
        """Whether the subscription, or its multiplexer, was closed."""
        return self._inbox.closed

    @property
    def active(self) -> frozenset[bytes]:
        """The names of this subscription that Redis has confirmed on the present connection: it gets their messages.

        Empty while there is no connection, and when the subscription is closed.
        """
        if self.closed or not self._inbox.active:  # most often there is no connection
            return frozenset()
        names = tuple(self._names)
        return frozenset([name for name in names if self._hub.is_active(self._kind, name, self._inbox)])

    def close(self) -> None:
        """Unsubscribe from everything, at once and for good.

        No callback is called after this. Buffered messages are dropped. An async callback that is being awaited is
        cancelled, unless it calls `close()`, itself or by way of a task that it has started. Very many channels are
        unsubscribed in the next iterations of the loop. Works offline. Without effect when the subscription is closed
        already.
        """
        if self._inbox.closed:
            return
        self._hub.check()
        self._end()
        self._hub.release(self._kind, self._names, self._inbox)
        self._hub.leave(self)

    def _end(self) -> None:
        """End, without a look at what is subscribed."""
        self._inbox.close()

    async def wait_for_activation(self, timeout: float | None = None) -> None:
        """Wait until every name of this subscription is active on the server.

        Offline, it waits for the connection. Cancelling it changes nothing else.

        Args:
            timeout: seconds to wait. None: no limit.

        Raises:
            TimeoutError: not all names are active within `timeout`. If there is no connection, the `ConnectionLost` is
                its `__cause__`.
            SubscriptionRefused: the server rejects one of the names.
            SubscriptionIsClosed: the subscription or its multiplexer is closed, or was closed during the wait.
            TypeError, ValueError: the timeout is invalid.
        """
        check_seconds(timeout, "timeout")
        self._hub.enter()
        if self._is_active():
            return
        try:
            async with asyncio.timeout(timeout):
                while not self._is_active():
                    await self._inbox.wait()
        except TimeoutError:
            missing = len(self._names) - self._inbox.active
            outage = self._hub.outage(self._kind)
            reason = "the server has not confirmed them yet" if outage is None else outage.reason
            raise TimeoutError(
                f"{missing} of {len(self._names)} names not active within {timeout} s ({reason}): {self!r}"
            ) from outage

    async def _consumed(self) -> None:
        """Wait until the consumer has handled all events received so far."""
        while not (self._inbox.idle or self._inbox.closed):
            await self._inbox.wait()

    @property
    @abstractmethod
    def _names(self) -> Collection[bytes]:
        """The subscribed names, active or not."""

    def _is_active(self) -> bool:
        """Tell whether all names are active. Raise an error if they cannot become active."""
        self._check_open()
        for refusal in self._inbox.refusals.values():
            raise SubscriptionRefused(refusal.kind, refusal.name, refusal.reason)
        return self._inbox.active == len(self._names)

    def _check_open(self) -> None:
        if self._inbox.closed:
            raise SubscriptionIsClosed

    def _describe(self, subject: str) -> str:
        inbox = self._inbox
        state = "closed" if inbox.closed else f"active={inbox.active}/{len(self._names)}"
        return f"<{type(self).__name__} {subject} {state} pending={inbox.pending} dropped={inbox.dropped}>"

    async def __aenter__(self) -> Self:
        self._hub.enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _weakly(method: Callable[[], object]) -> Callable[[], object]:
    """Return a function that calls a method, but does not keep its object alive."""
    reference = WeakMethod(method)

    def call() -> None:
        alive = reference()
        if alive is not None:
            alive()

    return call


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
            RuntimeError: the subscription has `on_message`, or another task is reading it.
            TypeError, ValueError: the timeout is invalid.
        """
        self._check_read()
        check_seconds(timeout, "timeout")
        self._check_open()
        self._hub.enter()
        try:
            if timeout is None:
                channel, data = await self._inbox.read()
            elif (message := self._inbox.read_nowait()) is not None:  # also with a timeout of 0
                channel, data = message
            else:
                async with asyncio.timeout(timeout):
                    channel, data = await self._inbox.read()
        except EOFError:
            raise SubscriptionIsClosed from None
        except TimeoutError:
            raise TimeoutError(f"no message within {timeout} s: {self!r}") from self._hub.outage(self._kind)
        return new_message((channel, data, self._source))

    def get_nowait(self) -> Message[T]:
        """Return the next buffered message, without waiting. Works offline.

        Returns:
            The message, with its payload decoded.

        Raises:
            asyncio.QueueEmpty: no message is buffered.
            SubscriptionIsClosed: the subscription or its multiplexer is closed.
            RuntimeError: the subscription has `on_message`, or another task is reading it.
        """
        self._check_read()
        self._check_open()
        self._hub.enter()
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
        return new_message((*message, self._source))

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
        if not self._inbox.is_read:
            raise RuntimeError("this subscription has on_message, so it cannot be read; make one without on_message")
