"""The interface between a session and an object that subscribes to names. It has no code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeAlias

from ...errors import ConnectionLost, SubscriptionRefused


class Deliver(Protocol):
    """Takes the channel and the payload of a message."""

    def __call__(self, channel: bytes, data: bytes, /) -> object: ...


class Subscriber(Protocol):
    """An object that gets the events of the names that it subscribes to.

    No method may block. Only `deliver` may raise.
    """

    @property
    def deliver(self) -> Deliver:
        """Takes a message. It is often the very function that a user gave, so it is looked up anew for each message.

        If it returns DEFERRED, `flush` is called once all messages that were parsed together are delivered.
        """
        ...

    def accept(self, result: object) -> None:
        """Take the result of `deliver`, unless it is None or DEFERRED."""

    def flush(self) -> None:
        """Do the work that `deliver` deferred by returning DEFERRED."""

    def failed(self, error: BaseException) -> None:
        """Take the exception that `deliver` raised."""

    def activate(self, name: bytes) -> None:
        """Take note that a name is active."""

    def disconnect(self, error: ConnectionLost, lost: Iterable[bytes] | None = None) -> Iterator[None] | None:
        """Take note that the connection is lost, or some names on it.

        `lost` yields the names that were active, if `error.names` is None. It must be iterated at once, or not at all.
        If hundreds of names are lost, short steps may be left; the caller takes all of them before anything else that
        concerns these names.
        """

    def refuse(self, error: SubscriptionRefused) -> None:
        """Take note that the server rejected a name."""


Subscribers: TypeAlias = tuple[Subscriber, ...]
