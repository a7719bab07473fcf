"""The blocking subscriptions to channels, patterns and keys."""

from __future__ import annotations

__all__ = ["ChannelSubscription", "KeySubscription", "PatternSubscription"]

from types import TracebackType
from typing import Self

from ..arguments import to_bytes
from ..channel import ChannelSubscription as AsyncChannelSubscription
from ..errors import MultiplexerIsClosed, SubscriptionIsClosed
from ..keys import KeyEvent
from ..keys import KeySubscription as AsyncKeySubscription
from ..message import Activation, Disconnect
from ..pattern import PatternSubscription as AsyncPatternSubscription
from ..typing import T
from .described import described_by
from .hand_over import HandOver
from .reading import MessageSubscription, Readable, Reading


@described_by(AsyncChannelSubscription)
class ChannelSubscription(MessageSubscription[T]):
    """Any number of channels with one consumer. Made by `Multiplexer.new_channel_subscription()`.

    The events of each channel are an activation, its messages, and a disconnect when the connection is lost; after the
    reconnect they begin again with an activation. They end when the channel is removed.
    """

    __slots__ = ("_channels",)

    def __init__(self, subscription: AsyncChannelSubscription[T], hand_over: HandOver) -> None:
        super().__init__(subscription, hand_over)
        self._channels = subscription

    @property
    def channels(self) -> frozenset[bytes]:
        return self._border.portal.call(lambda: self._channels.channels)

    def add(self, *channels: str | bytes) -> None:
        self._border.portal.call(lambda: self._channels.add(*channels))

    def remove(self, *channels: str | bytes) -> None:
        self._border.portal.release(lambda: self._remove(channels))

    def _remove(self, channels: tuple[str | bytes, ...]) -> None:
        self._channels.remove(*channels)
        self._hand_over.forget({to_bytes(channel, "a channel") for channel in channels})

    def clear(self) -> None:
        self._border.portal.release(self._clear)

    def _clear(self) -> None:
        self._channels.clear()
        self._hand_over.forget(None)


@described_by(AsyncPatternSubscription)
class PatternSubscription(MessageSubscription[T]):
    """All channels that match one pattern. Made by `Multiplexer.new_pattern_subscription()`.

    A consumer that subscribes to a channel both by its name and by a pattern gets each message twice. A pattern must be
    trusted input: a stranger who may choose it can read every channel.
    """

    __slots__ = ("_pattern",)

    def __init__(self, subscription: AsyncPatternSubscription[T], hand_over: HandOver) -> None:
        super().__init__(subscription, hand_over)
        self._pattern = subscription.pattern

    @property
    def pattern(self) -> bytes:
        return self._pattern


@described_by(AsyncKeySubscription)
class KeySubscription(Reading[KeyEvent, KeyEvent | Activation | Disconnect]):
    """The events of all keys that match a pattern. Made by `Multiplexer.new_key_subscription()`.

    In a cluster, each primary publishes the events of its own keys. So the subscription listens to every primary; for a
    single key, to the primary that owns it. It is active when all of them have confirmed it. When the connection to one
    of them is lost, or another node has taken over its keys, `on_disconnect` names that primary. The events of the
    other primaries go on meanwhile. The order of events is kept for each primary.
    """

    __slots__ = ("__weakref__", "_hand_over", "_keys")

    def __init__(self, keys: AsyncKeySubscription, hand_over: HandOver) -> None:
        self._keys = keys
        self._hand_over = hand_over

    @property
    def pattern(self) -> bytes:
        return self._keys.pattern

    @property
    def active(self) -> bool:
        return self._hand_over.portal.call(lambda: self._keys.active)

    @property
    def closed(self) -> bool:
        return self._hand_over.portal.call(lambda: self._keys.closed)

    def close(self) -> None:
        """Unsubscribe, at once and for good. Iterations that read the subscription end.

        No callback begins after this; one that runs goes on to its end. Buffered events are dropped. Works offline.
        Without effect when the subscription is closed already.
        """
        self._hand_over.portal.release(self._close)

    def _close(self) -> None:
        self._keys.close()
        self._hand_over.end()

    def wait_for_activation(self, *, timeout: float | None = None) -> None:
        try:
            self._hand_over.portal.wait(lambda: self._keys.wait_for_activation(timeout=timeout))
        except MultiplexerIsClosed:
            raise SubscriptionIsClosed from None

    @property
    def _readable(self) -> Readable:
        return self._keys

    async def _ask_for_activation(self) -> None:
        await self._keys.wait_for_activation(timeout=0)

    def __repr__(self) -> str:
        return self._hand_over.portal.call(lambda: repr(self._keys))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
