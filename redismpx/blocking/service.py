"""Services whose handlers run in threads."""

from __future__ import annotations

__all__ = ["Service"]

from ..service import Service as AsyncService
from .described import described_by
from .hand_over import Border
from .subscription import Subscription


@described_by(AsyncService)
class Service(Subscription[AsyncService]):
    """Replies to the requests on one channel, or on all channels that match a pattern.

    Made by `Multiplexer.serve()`.
    """

    __slots__ = ("_threads",)

    def __init__(self, subscription: AsyncService, border: Border, threads: int) -> None:
        super().__init__(subscription, border)
        self._threads = threads
        self._border.workers.limit += threads

    @property
    def in_flight(self) -> int:
        """The number of requests that are being handled: at most `threads`."""
        return self._border.portal.call(lambda: self._subscription.in_flight)

    @property
    def pending(self) -> int:
        return self._border.portal.call(lambda: self._subscription.pending)

    @property
    def dropped(self) -> int:
        return self._border.portal.call(lambda: self._subscription.dropped)

    def close(self) -> None:
        """Unsubscribe, at once and for good. Replies of handlers that still run are not sent any more.

        Buffered requests are discarded. To let the handlers end first, use `Multiplexer.drain()`. May be called
        offline, and more than once.
        """
        super().close()

    def _close(self) -> None:
        if not self._subscription.closed:
            self._border.workers.limit -= self._threads
        super()._close()
