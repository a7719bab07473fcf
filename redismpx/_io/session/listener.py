"""A subscriber that belongs to the multiplexer itself, beside the subscriptions of its users."""

from __future__ import annotations

from collections.abc import Iterable

from ...errors import ConnectionLost, SubscriptionRefused
from .subscriber import Deliver


class Listener:
    """Listens on a channel of its own, and acts on its messages. It handles each at once, and never fails."""

    title: str
    """The name of its task."""
    channel: bytes
    deliver: Deliver

    async def run(self) -> None:
        """Act, for as long as the multiplexer lives."""

    def flush(self) -> None:
        """Do nothing: no message is deferred."""

    def accept(self, result: object) -> None:
        """Do nothing: `deliver` returns None."""

    def failed(self, error: BaseException) -> None:
        """Do nothing: `deliver` does not raise."""

    def activate(self, name: bytes) -> None:
        """Take note that the channel is subscribed."""

    def disconnect(self, error: ConnectionLost, lost: Iterable[bytes] | None = None) -> None:
        """Take note that the channel is not subscribed any more."""

    def refuse(self, error: SubscriptionRefused) -> None:
        """Take note that the server rejected the channel."""
