"""The base of all blocking subscriptions, which is also that of services."""

from __future__ import annotations

__all__ = ["Subscription"]

from types import TracebackType
from typing import Generic, Self, TypeVar

from ..errors import MultiplexerIsClosed, SubscriptionIsClosed
from ..subscription import Subscription as AsyncSubscription
from .described import described_by
from .hand_over import Border

_A = TypeVar("_A", bound=AsyncSubscription)


@described_by(AsyncSubscription)
class Subscription(Generic[_A]):
    """The base of all subscriptions. Made by a multiplexer. Any thread may call the methods."""

    __slots__ = ("__weakref__", "_border", "_subscription")

    def __init__(self, subscription: _A, border: Border) -> None:
        self._subscription = subscription
        self._border = border

    @property
    def closed(self) -> bool:
        return self._border.portal.call(lambda: self._subscription.closed)

    @property
    def active(self) -> frozenset[bytes]:
        return self._border.portal.call(lambda: self._subscription.active)

    def close(self) -> None:
        """Unsubscribe from everything, at once and for good. Iterations that read the subscription end.

        No callback begins after this; one that runs goes on to its end. Buffered messages are dropped. Works offline.
        Without effect when the subscription is closed already.
        """
        self._border.portal.release(self._close)

    def _close(self) -> None:
        self._subscription.close()

    def wait_for_activation(self, *names: str | bytes, timeout: float | None = None) -> None:
        try:
            self._border.portal.wait(lambda: self._subscription.wait_for_activation(*names, timeout=timeout))
        except MultiplexerIsClosed:
            raise SubscriptionIsClosed from None

    def __repr__(self) -> str:
        return self._border.portal.call(lambda: repr(self._subscription))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
