"""What the three subscriptions share: a place in the multiplexer, an inbox, an end."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Collection
from types import TracebackType
from typing import Protocol, Self

from ._core.wire import Kind
from ._io.inbox import Callbacks, Host, Inbox
from .arguments import check_seconds
from .errors import ConnectionLost, SubscriptionIsClosed, SubscriptionRefused


class Hub(Host, Protocol):
    """What a subscription needs of its multiplexer."""

    @property
    def outage(self) -> ConnectionLost | None:
        """Why there is no connection now; None while there is one."""

    def enter(self) -> None:
        """Begin a public call: bind to the running loop, or refuse it."""

    def attach(self, kind: Kind, name: bytes, subscriber: Inbox) -> None:
        """Want a name."""

    def detach(self, kind: Kind, name: bytes, subscriber: Inbox) -> bool:
        """Stop wanting a name; tell whether it was active."""
        ...

    def join(self, subscription: Subscription) -> None:
        """Take in a subscription, to be closed at the end."""

    def leave(self, subscription: Subscription) -> None:
        """Let go of a subscription that is closed."""


class Subscription(ABC):
    """The base of all subscriptions. Made by a multiplexer."""

    __slots__ = ("__weakref__", "_hub", "_inbox")

    _kind: Kind

    def __init__(self, hub: Hub, callbacks: Callbacks, label: str, max_pending: int) -> None:
        self._hub = hub
        self._inbox = Inbox(callbacks, label, max_pending, hub)
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
        self._hub.enter()
        for name in self._names:
            self._hub.detach(self._kind, name, self._inbox)
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
        try:
            async with asyncio.timeout(timeout):
                while not self._is_active():
                    await self._inbox.moved.wait()
        except TimeoutError:
            missing = len(self._names) - self._inbox.active
            outage = self._hub.outage
            reason = "the server has not confirmed them yet" if outage is None else outage.reason
            raise TimeoutError(
                f"{missing} of {len(self._names)} names not active after {timeout} s ({reason}): {self!r}"
            ) from outage

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


class CallbackSubscription(Subscription):
    """A subscription whose messages go to callbacks, and may have to wait for them."""

    __slots__ = ()

    @property
    def pending(self) -> int:
        """Messages received and waiting for `on_message`."""
        return self._inbox.pending

    @property
    def dropped(self) -> int:
        """Messages dropped so far, because more than `max_pending` waited."""
        return self._inbox.dropped
