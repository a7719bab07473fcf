"""The base of all subscriptions: an inbox for the events of one consumer, and the end."""

from __future__ import annotations

__all__ = ["Subscription"]

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from functools import partial
from types import TracebackType
from typing import Self
from weakref import WeakMethod

from ._core.overflow import Overflow
from ._core.wire import Kind
from ._io.delivery.consumer import Consumer
from ._io.delivery.inbox import Inbox
from ._io.delivery.observed import ObservedInbox
from ._io.hub import Hub
from ._io.session.subscriber import Subscriber
from .arguments import check_seconds, to_bytes
from .errors import SubscriptionIsClosed, SubscriptionRefused, quote


class Subscription(ABC):
    """The base of all subscriptions. Made by a multiplexer."""

    __slots__ = ("__weakref__", "_hub", "_inbox")

    _kind: Kind
    _inbox_classes: tuple[type[Inbox], type[Inbox]] = (Inbox, ObservedInbox)  # without observers, and with some

    def __init__(self, hub: Hub, consumer: Consumer, label: str) -> None:
        self._hub = hub
        # Only the hub keeps a subscription alive: the inbox, which the registry refers to, must not.
        close = _weakly(self._close, "overflow") if consumer.overflow is Overflow.CLOSE else None
        self._inbox = self._inbox_classes[hub.delivery.watch is not None](consumer, label, hub.delivery, close)
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
        names = [*self._names]
        return frozenset([name for name in names if self._has_active(name)])

    def close(self) -> None:
        """Unsubscribe from everything, at once and for good.

        No callback is called after this. Buffered messages are dropped. An async callback that is being awaited is
        cancelled, unless it calls `close()`, itself or by way of a task that it has started. Thousands of channels are
        unsubscribed in the next iterations of the loop. Works offline. Without effect when the subscription is closed
        already.
        """
        self._close(None)

    def _close(self, reason: str | None) -> None:
        if self._inbox.closed:
            return
        self._hub.check()
        if self._hub.postpone(partial(self._close, reason)):
            return
        self._end(reason)
        self._hub.release(self._kind, self._names, self._subscriber)
        self._hub.leave(self)

    def _end(self, reason: str | None) -> None:
        """End, without a look at what is subscribed; `reason` says why, unless the subscription was asked to."""
        self._inbox.close(reason)

    async def wait_for_activation(self, *names: str | bytes, timeout: float | None = None) -> None:
        """Wait until names of this subscription are active on the server, all at the same time.

        Offline, it waits for the connection. Cancelling it changes nothing else.

        Args:
            names: channels of this subscription, or its pattern; `str` is encoded as UTF-8. None given: all names of
                the subscription, with those that are added during the wait.
            timeout: seconds to wait. None: no limit.

        Raises:
            TimeoutError: not all of these names are active within `timeout`. If there is no connection, the
                `ConnectionLost` is its `__cause__`.
            SubscriptionRefused: the server rejects one of these names.
            SubscriptionIsClosed: the subscription or its multiplexer is closed, or was closed during the wait.
            ValueError: the subscription does not have one of these names, or it was removed during the wait.
            TypeError, ValueError: a name or the timeout is invalid.

        Example:
            ::

                sub.add("news", "weather")
                await sub.wait_for_activation("news", timeout=5)
        """
        check_seconds(timeout, "timeout")
        wanted = {to_bytes(name, "a name") for name in names}
        is_done = partial(self._are_active, wanted, []) if wanted else self._is_active
        self._hub.enter()
        if is_done():
            return
        try:
            async with asyncio.timeout(timeout):
                while not is_done():
                    await self._inbox.wait()
        except TimeoutError:
            total = len(wanted or self._names)
            missing = total - (len(self.active & wanted) if wanted else self._inbox.active)
            reason = self._hub.progress(self._kind)
            raise TimeoutError(
                f"{missing} of {total} names not active within {timeout} s ({reason}): {self!r}"
            ) from self._hub.outage(self._kind)

    async def _consumed(self) -> None:
        """Wait until the consumer has handled all events received so far."""
        while not (self._inbox.idle or self._inbox.closed):
            await self._inbox.wait()

    @property
    def _subscriber(self) -> Subscriber:
        """What the names are subscribed for."""
        return self._inbox

    @property
    @abstractmethod
    def _names(self) -> Collection[bytes]:
        """The subscribed names, active or not."""

    def _is_active(self) -> bool:
        """Tell whether all names are active. Raise an error if they cannot become active."""
        self._check_open()
        for refusal in self._inbox.refusals.values():  # the first one
            raise SubscriptionRefused(refusal.kind, refusal.name, refusal.reason)
        return self._inbox.active == len(self._names)

    def _are_active(self, names: set[bytes], missing: list[bytes]) -> bool:
        """Tell the same of some names. `missing` has those that were not active, for the next call: most still are."""
        self._check_open()
        for name in self._inbox.refusals.keys() & names:  # in a time that grows with the smaller one only
            refusal = self._inbox.refusals.get(name)
            if refusal is not None:  # otherwise a finalizer has just removed the name
                raise SubscriptionRefused(refusal.kind, refusal.name, refusal.reason)
        while missing and self._has_active(missing[-1]):
            missing.pop()
        if not missing:  # others may have been lost since the last call
            missing += [name for name in names if not self._has_active(name)]
        if missing and missing[-1] not in self._names:
            raise ValueError(f"{quote(missing[-1])} is not a name of this subscription: {self!r}; add it first")
        return not missing

    def _has_active(self, name: bytes) -> bool:
        """Tell whether a name is active. A lost connection ends all of them at once, as far as the inbox knows."""
        inbox = self._inbox
        return inbox.active > 0 and name not in inbox.leaving and self._hub.is_active(self._kind, name, inbox)

    def _check_open(self) -> None:
        if self._inbox.closed:
            raise SubscriptionIsClosed

    def _describe(self, subject: str) -> str:
        inbox = self._inbox
        state = "closed" if inbox.closed else f"active={inbox.active}/{len(self._names)}"
        if not (inbox.closed or self._hub.has_loop):
            state = "waits for an event loop"
        return f"<{type(self).__name__} {subject} {state} pending={inbox.pending} dropped={inbox.dropped}>"

    async def __aenter__(self) -> Self:
        self._hub.enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _weakly(method: Callable[[str], object], reason: str) -> Callable[[], object]:
    """Return a function that calls a method with a reason, but does not keep its object alive."""
    reference = WeakMethod(method)

    def call() -> None:
        alive = reference()
        if alive is not None:
            alive(reason)

    return call
