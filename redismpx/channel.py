"""One client's changing set of channels."""

from __future__ import annotations

__all__ = ["ChannelSubscription", "ShardedChannelSubscription"]

from ._core.wire import Kind
from ._io.delivery.inbox import Consumer
from ._io.hub import Hub
from .arguments import to_bytes
from .errors import MultiplexerIsClosed
from .subscription import MessageSubscription
from .typing import T


class ChannelSubscription(MessageSubscription[T]):
    """Any number of channels, one consumer. Made by `Multiplexer.new_channel_subscription()`.

    Each channel goes through Activation, Message, ..., Disconnect, Activation, ... in that order, until it is removed.
    """

    __slots__ = ("_channels",)

    _kind = Kind.CHANNEL
    _label = "a channel subscription"

    def __init__(self, hub: Hub, consumer: Consumer) -> None:
        self._channels: set[bytes] = set()
        super().__init__(hub, consumer, self._label)

    @property
    def channels(self) -> frozenset[bytes]:
        """The channels that are wanted, active or not."""
        return frozenset(self._channels)

    def add(self, *channels: str | bytes) -> None:
        """Want more channels; those that are wanted already are left as they are.

        Returns at once, and works offline: `on_activation` is called later with each channel, when Redis has
        confirmed it. `str` stands for its UTF-8. Raises `TypeError` or `ValueError` for what cannot be a name, and
        `TooManyChannels`, before anything is changed; `SubscriptionIsClosed`; `MultiplexerIsClosed` while the
        multiplexer drains.
        """
        self._check_open()
        longest = self._hub.limits.max_name_bytes
        names = dict.fromkeys([to_bytes(channel, "a channel", longest) for channel in channels])
        self._hub.enter()
        if self._hub.draining:
            raise MultiplexerIsClosed
        new = [name for name in names if name not in self._channels]
        self._hub.admit(self._kind, new)
        self._channels.update(new)
        self._hub.add(self._kind, new, self._inbox)

    def remove(self, *channels: str | bytes) -> None:
        """Stop wanting channels; those that are not wanted are passed over.

        Returns at once, and works offline. From then on no callback is called for them, also not for messages that
        wait: those count as dropped. Raises `TypeError` or `ValueError` as `add()` does, and `SubscriptionIsClosed`.
        """
        self._check_open()
        names = self._channels.intersection([to_bytes(channel, "a channel") for channel in channels])
        self._hub.enter()
        self._channels -= names
        were_active = self._hub.remove(self._kind, names, self._inbox)
        self._inbox.forget(frozenset(names), were_active, rest=bool(self._channels))

    def clear(self) -> None:
        """Stop wanting all channels, as `remove()` does. The subscription stays open."""
        self.remove(*self._channels)

    @property
    def _names(self) -> set[bytes]:
        return self._channels

    def __repr__(self) -> str:
        return self._describe(f"channels={len(self._channels)}")


class ShardedChannelSubscription(ChannelSubscription[T]):
    """The same for sharded Pub/Sub: a message goes to the shard only that has the slot of its channel.

    Its channels are not the same as those of others: what is published with `sharded=True` arrives here, and nothing
    else does. A channel whose slot moves to another node, or whose node is lost, gets its Disconnect and Activation for
    itself.
    """

    __slots__ = ()

    _kind = Kind.SHARD_CHANNEL
    _label = "a sharded channel subscription"
