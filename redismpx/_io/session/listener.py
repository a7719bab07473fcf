"""A subscriber of the multiplexer's own, beside those of its users."""

from __future__ import annotations

from ...errors import ConnectionLost, SubscriptionRefused
from .dispatcher import Deliver


class Listener:
    """Listens on a channel of its own, and acts on what it hears. It takes its messages at once, and never fails."""

    title: str
    """What its task is called."""
    channel: bytes
    deliver: Deliver

    async def run(self) -> None:
        """Act, for as long as the multiplexer lives."""

    def flush(self) -> None:
        """Nothing is put off."""

    def accept(self, result: object) -> None:
        """There is nothing to take: `deliver` returns None."""

    def failed(self, error: BaseException) -> None:
        """There is nothing to fail."""

    def activate(self, name: bytes) -> None:
        """Take note that the channel is heard."""

    def disconnect(self, error: ConnectionLost) -> None:
        """Take note that it is not heard any more."""

    def refuse(self, error: SubscriptionRefused) -> None:
        """Take note that it will not be heard."""
