"""What the three subscriptions share: a place in the multiplexer, an inbox, an end."""

from __future__ import annotations

__all__ = ["MessageSubscription", "Subscription"]

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Collection
from types import TracebackType
from typing import Generic, Self

from ._core.wire import Kind
from ._io.delivery.inbox import Consumer, Inbox
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
        self._inbox = Inbox(consumer, label, self, hub)
        hub.join(self)

    @property
    def closed(self) -> bool:
        """Whether it was closed, by itself or with its multiplexer."""
        return self._inbox.closed

    def close(self) -> None:
        """Leave everything, at once and for good.

        No callback is called after this; messages that wait are forgotten; an async callback that is being awaited is
        cancelled, unless it is the one that calls this. Closing twice, or offline, is fine.
        """
        if self._inbox.closed:
            return
        self._hub.check()
        self._hub.remove(self._kind, self._names, self._inbox)
        self._inbox.close()
        self._hub.leave(self)

    async def wait_for_activation(self, timeout: float | None = None) -> None:
        """Wait until every name of this subscription is active on the server.

        Offline it goes on waiting, for `timeout` seconds at most; None waits as long as it takes. Cancelling it changes
        nothing else. Raises `TimeoutError` after the timeout, `SubscriptionRefused` when the server refuses one of the
        names, `SubscriptionIsClosed` when it is closed before or meanwhile.
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
                f"{missing} of {len(self._names)} names not active after {timeout} s ({reason}): {self!r}"
            ) from outage

    async def _consumed(self) -> None:
        """Wait until the consumer is through with all that was received."""
        while not (self._inbox.idle or self._inbox.closed):
            await self._inbox.wait()

    @property
    @abstractmethod
    def _names(self) -> Collection[bytes]:
        """The names that it wants."""

    def _is_active(self) -> bool:
        """Whether all is active; raise what makes waiting for it futile."""
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


class MessageSubscription(Subscription, Generic[T]):
    """A subscription whose messages go to `on_message`, or, without one, are read."""

    __slots__ = ()

    _source: bytes | None = None
    """The pattern by which its messages come, if it is one."""

    @property
    def pending(self) -> int:
        """Messages received and waiting for the consumer."""
        return self._inbox.pending

    @property
    def dropped(self) -> int:
        """Messages dropped so far.

        Because more than `max_pending` waited, because they could not be decoded, or because they still waited when
        their channel was removed or the subscription closed. Received are: those handed over, those dropped, and those
        pending.
        """
        return self._inbox.dropped

    async def get(self, timeout: float | None = None) -> Message[T]:
        """Wait for the next message, for `timeout` seconds at most; None waits as long as it takes.

        Offline it goes on waiting. A cancelled `get()` loses nothing. Raises `TimeoutError`; `SubscriptionIsClosed`,
        also when closed meanwhile; `RuntimeError` for a subscription that has `on_message`, or that another task is
        reading.
        """
        self._check_read()
        check_seconds(timeout, "timeout")
        self._check_open()
        self._hub.enter()
        try:
            if timeout is None:
                channel, data = await self._inbox.read()
            elif (message := self._inbox.read_nowait()) is not None:  # even with no time at all
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
        """Return the next message, if one waits.

        Raises `asyncio.QueueEmpty` if none does, and otherwise what `get()` raises.
        """
        self._check_read()
        self._check_open()
        self._hub.enter()
        message = self._inbox.read_nowait()
        if message is None:
            raise asyncio.QueueEmpty
        return new_message((*message, self._source))

    def __aiter__(self) -> Self:
        """Read message by message; the iteration ends when the subscription closes."""
        self._check_read()
        return self

    async def __anext__(self) -> Message[T]:
        if hand := self._inbox.hand:
            return new_message((hand.pop(), hand.pop(), self._source))
        try:
            channel, data = self._inbox.read_in_turn() or await self._inbox.read()
        except EOFError:
            raise StopAsyncIteration from None
        return new_message((channel, data, self._source))

    def _check_read(self) -> None:
        if not self._inbox.is_read:
            raise RuntimeError("this subscription has on_message, which gets its messages; make one without it to read")
