"""One client's changing set of channels."""

from __future__ import annotations

from ._core.wire import Kind
from ._io.inbox import Callbacks
from .arguments import to_bytes
from .subscription import CallbackSubscription, Hub


class ChannelSubscription(CallbackSubscription):
    """Any number of channels, one set of callbacks. Made by `Multiplexer.new_channel_subscription()`.

    Each channel goes through Activation, Message, ..., Disconnect, Activation, ... in that order, until it is removed.
    """

    __slots__ = ("_channels",)

    _kind = Kind.CHANNEL

    def __init__(self, hub: Hub, callbacks: Callbacks, max_pending: int) -> None:
        self._channels: set[bytes] = set()
        super().__init__(hub, callbacks, "a channel subscription", max_pending)

    @property
    def channels(self) -> frozenset[bytes]:
        """The channels that are wanted, active or not."""
        return frozenset(self._channels)

    def add(self, *channels: str | bytes) -> None:
        """Want more channels; those that are wanted already are left as they are.

        Returns at once, and works offline: `on_activation` is called later with each channel, when Redis has
        confirmed it. `str` stands for its UTF-8. Raises `TypeError` or `ValueError` for what cannot be a name, before
        anything is changed, and `SubscriptionIsClosed`.
        """
        self._check_open()
        names = [to_bytes(channel, "a channel") for channel in channels]
        self._hub.enter()
        for name in names:
            if name not in self._channels:
                self._channels.add(name)
                self._hub.attach(self._kind, name, self._inbox)

    def remove(self, *channels: str | bytes) -> None:
        """Stop wanting channels; those that are not wanted are passed over.

        Returns at once, and works offline. From then on no callback is called for them, also not for messages that
        wait. Raises as `add()` does.
        """
        self._check_open()
        names = [to_bytes(channel, "a channel") for channel in channels]
        self._hub.enter()
        for name in names:
            if name in self._channels:
                self._channels.remove(name)
                was_active = self._hub.detach(self._kind, name, self._inbox)
                self._inbox.forget(name, was_active, last=not self._channels)

    def clear(self) -> None:
        """Stop wanting all channels, as `remove()` does. The subscription stays open."""
        self.remove(*self._channels)

    @property
    def _names(self) -> set[bytes]:
        return self._channels

    def __repr__(self) -> str:
        return self._describe(f"channels={len(self._channels)}")
