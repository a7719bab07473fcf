"""A changing set of channels: those of one client, for example."""

from __future__ import annotations

__all__ = ["ChannelSubscription", "ShardedChannelSubscription"]

from collections.abc import Collection, Iterator
from functools import partial
from itertools import filterfalse

from ._core.wire import Kind
from ._io.delivery.consumer import Consumer
from ._io.hub import Hub
from ._io.runtime.slices import SLICE_STEPS, Step
from .arguments import to_names
from .errors import MultiplexerIsClosed
from .reading import MessageSubscription
from .typing import T

_STEP_NAMES = 8  # channels that a step subscribes to, when there are very many
_NONE_JOINING: dict[bytes, None] = {}  # of all subscriptions without such channels; never written to


class ChannelSubscription(MessageSubscription[T]):
    """Any number of channels with one consumer. Made by `Multiplexer.new_channel_subscription()`.

    The events of each channel are an activation, its messages, and a disconnect when the connection is lost; after the
    reconnect they begin again with an activation. They end when the channel is removed.
    """

    __slots__ = ("_channels", "_joining")

    _kind = Kind.CHANNEL
    _label = "a channel subscription"

    def __init__(self, hub: Hub, consumer: Consumer) -> None:
        self._channels: set[bytes] = set()
        self._joining: dict[bytes, None] = _NONE_JOINING  # the channels to subscribe to in time slices
        super().__init__(hub, consumer, self._label)

    @property
    def channels(self) -> frozenset[bytes]:
        """The channels of this subscription, active or not."""
        return frozenset(self._channels)

    def add(self, *channels: str | bytes) -> None:
        """Subscribe to more channels. Channels that are already in the subscription are ignored.

        Returns at once, and works offline: `on_activation` is called later with each channel, when Redis has
        confirmed it. Thousands of channels are subscribed to in the next iterations of the loop, some in each.
        `stats()` counts them from then on.

        Args:
            channels: names; `str` is encoded as UTF-8.

        Raises:
            TooManyChannels: `max_channels` would be exceeded. No channel was added.
            SubscriptionIsClosed: the subscription or its multiplexer is closed.
            MultiplexerIsClosed: the multiplexer drains.
            TypeError, ValueError: a name is not `str` or `bytes`, or is too long. No channel was added.

        Example:
            ::

                sub.add("news", "weather")
        """
        self._check_open()
        names = dict.fromkeys(to_names(channels, "a channel", self._hub.limits.max_name_bytes))
        self._hub.enter()
        if self._hub.draining:
            raise MultiplexerIsClosed
        if self._hub.postpone(partial(self.add, *names)):
            return
        new = self._without_known(names)
        self._hub.admit(self._kind, new)
        with self._hub.budget.critical:
            self._check_open()  # a finalizer may have closed it, or have added some of the channels
            new = self._without_known(new)
            self._channels.update(new)
            are_many = len(new) > SLICE_STEPS * _STEP_NAMES
            if are_many:
                self._joining = self._joining | new if self._joining else new
            else:
                self._subscribe(new)
        if are_many:
            self._hub.joining += len(new)
            self._hub.slices.begin(self._subscribe_in_steps([*new]))

    def _without_known(self, names: dict[bytes, None]) -> dict[bytes, None]:
        """Return those of the names that the subscription does not have."""
        known = self._channels
        return names if known.isdisjoint(names) else dict.fromkeys(filterfalse(known.__contains__, names))

    def _subscribe_in_steps(self, names: list[bytes]) -> Iterator[Step]:
        for start in range(0, len(names), _STEP_NAMES):
            yield partial(self._join, names[start : start + _STEP_NAMES])

    def _join(self, names: list[bytes]) -> None:
        """Subscribe to channels that are in the subscription already, unless they were removed meanwhile."""
        self._hub.joining -= len(names)
        with self._hub.budget.critical:
            joining = [name for name in names if self._joining.pop(name, False) is None]
            if joining and not (self.closed or self._hub.closed or self._hub.draining):
                self._subscribe(joining)
            if not self._joining:
                self._joining = _NONE_JOINING

    def _subscribe(self, names: Collection[bytes]) -> None:
        for name in self._inbox.leaving.intersection(names):
            self._unsubscribe(name)
        self._hub.deployment.add(self._kind, names, self._inbox)

    def remove(self, *channels: str | bytes) -> None:
        """Unsubscribe from channels. Channels that are not in the subscription are ignored.

        Returns at once, and works offline. No callback is called for these channels any more; their buffered messages
        are dropped, and counted as dropped. Thousands of channels are unsubscribed in the next iterations of the loop,
        some in each. `stats()` counts them until then.

        Args:
            channels: names; `str` is encoded as UTF-8.

        Raises:
            SubscriptionIsClosed: the subscription or its multiplexer is closed.
            TypeError, ValueError: a name is invalid. No channel was removed.
        """
        self._check_open()
        removed = to_names(channels, "a channel")
        self._hub.enter()
        if self._hub.postpone(partial(self.remove, *removed)):
            return
        self._remove(removed)

    def clear(self) -> None:
        """Unsubscribe from all channels, as `remove()` does. The subscription stays open.

        Raises:
            SubscriptionIsClosed: the subscription or its multiplexer is closed.
        """
        self._check_open()
        self._hub.enter()
        if not self._hub.postpone(self.clear):
            self._remove(None)

    def _remove(self, removed: list[bytes] | None) -> None:
        """Remove some channels, or, for None, all: from the registry in time slices, if they are many."""
        self._inbox.flush()
        with self._hub.budget.critical:
            self._check_open()
            total = len(self._channels)
            if removed is None:
                leaving, self._channels, self._joining = self._channels, set(), _NONE_JOINING
            else:
                leaving = self._channels.intersection(removed)
                self._channels -= leaving
                if self._joining:
                    for name in leaving:
                        self._joining.pop(name, None)
            names = frozenset(leaving)
            are_many = len(names) > SLICE_STEPS
            if are_many:
                were_active = self._count_active(names, total)
                self._inbox.leave(leaving)
            else:
                were_active = self._hub.remove(self._kind, names, self._inbox)
            self._inbox.forget(names, were_active, rest=bool(self._channels))
        if are_many:
            self._hub.slices.begin(partial(self._unsubscribe, name) for name in names)

    def _count_active(self, names: frozenset[bytes], total: int) -> int:
        """Return how many of these channels are active: all or none, most often. `total` has the others, too."""
        active = self._inbox.active
        if active in (0, total):
            return min(active, len(names))
        return sum(map(self._has_active, names))

    def _unsubscribe(self, name: bytes) -> None:
        """Unsubscribe from a channel that is removed already, unless add() has done so to subscribe to it again."""
        if name in self._inbox.leaving:
            self._hub.remove(self._kind, (name,), self._inbox)
            self._inbox.left(name)

    @property
    def _names(self) -> set[bytes]:
        return self._channels

    def __repr__(self) -> str:
        return self._describe(f"channels={len(self._channels)}")


class ShardedChannelSubscription(ChannelSubscription[T]):
    """A channel subscription for sharded Pub/Sub: each message stays within the shard that owns the channel's slot.

    Its channels are separate from other channels: it receives the messages that are published with `sharded=True`, and
    no others. When the slot of a channel moves to another node, or its node is lost, only the channels concerned get a
    disconnect and an activation.
    """

    __slots__ = ()

    _kind = Kind.SHARD_CHANNEL
    _label = "a sharded channel subscription"
