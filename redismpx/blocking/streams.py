"""The blocking subscription to streams."""

from __future__ import annotations

__all__ = ["StreamSubscription"]

from types import TracebackType
from typing import Any, Generic, Self

from ..arguments import to_bytes
from ..errors import MultiplexerIsClosed, SubscriptionIsClosed
from ..message import StreamEvent, StreamMessage
from ..stream import StreamSubscription as AsyncStreamSubscription
from ..typing import T
from .described import described_by
from .hand_over import HandOver
from .reading import Reading


@described_by(AsyncStreamSubscription)
class StreamSubscription(Reading[StreamMessage[T], StreamEvent[T]], Generic[T]):
    """Any number of streams with one consumer. Made by `Multiplexer.new_stream_subscription()`.

    The events of each stream are those of a channel: an activation, its messages, and a disconnect when the connection
    is lost. After the reconnect the messages go on where they ended: those that were missed are read from Redis. If
    Redis does not have them any more, there is a gap in their place.
    """

    __slots__ = ("__weakref__", "_hand_over", "_streams")

    def __init__(self, streams: AsyncStreamSubscription[T], hand_over: HandOver) -> None:
        self._streams = streams
        self._hand_over = hand_over

    @property
    def channels(self) -> frozenset[bytes]:
        return self._hand_over.portal.call(lambda: self._streams.channels)

    @property
    def active(self) -> frozenset[bytes]:
        return self._hand_over.portal.call(lambda: self._streams.active)

    @property
    def closed(self) -> bool:
        return self._hand_over.portal.call(lambda: self._streams.closed)

    @property
    def lagging(self) -> bool:
        return self._hand_over.portal.call(lambda: self._streams.lagging)

    @property
    def dropped(self) -> int:
        """The number of messages that were on their way to a thread when their stream was removed."""
        return self._hand_over.portal.call(lambda: self._hand_over.dropped)

    def position(self, channel: str | bytes) -> bytes | None:
        """Return the id of the last message of a stream that left the buffer: `add()` takes it as `after`.

        A thread that reads takes up to 256 messages at a time; with `durable`, one. The ids of its messages are exact.

        Args:
            channel: a stream of this subscription; `str` is encoded as UTF-8.

        Returns:
            The id; `b"0"` at the beginning of all that is kept. None: not known yet.

        Raises:
            ValueError: the subscription does not have this stream.
            TypeError: the name is not `str` or `bytes`.
        """
        return self._hand_over.portal.call(lambda: self._streams.position(channel))

    def add(self, *channels: str | bytes, after: str | bytes | None = None) -> None:
        self._hand_over.portal.call(lambda: self._streams.add(*channels, after=after))

    def remove(self, *channels: str | bytes) -> None:
        self._hand_over.portal.release(lambda: self._remove(channels))

    def _remove(self, channels: tuple[str | bytes, ...]) -> None:
        self._streams.remove(*channels)
        self._hand_over.forget({to_bytes(channel, "a channel") for channel in channels})

    def clear(self) -> None:
        self._hand_over.portal.release(self._clear)

    def _clear(self) -> None:
        self._streams.clear()
        self._hand_over.forget(None)

    def close(self) -> None:
        """Leave all streams, at once and for good. Iterations that read the subscription end.

        No callback begins after this; one that runs goes on to its end. Buffered messages are forgotten. With
        `durable`, the positions are saved in the background. Works offline. Without effect when the subscription is
        closed already.
        """
        self._hand_over.portal.release(self._close)

    def _close(self) -> None:
        self._streams.close()
        self._hand_over.end()

    def commit(self) -> None:
        try:
            self._hand_over.portal.wait(self._streams.commit)
        except MultiplexerIsClosed:
            raise SubscriptionIsClosed from None

    def wait_for_activation(self, *names: str | bytes, timeout: float | None = None) -> None:
        try:
            self._hand_over.portal.wait(lambda: self._streams.wait_for_activation(*names, timeout=timeout))
        except MultiplexerIsClosed:
            raise SubscriptionIsClosed from None

    @property
    def _readable(self) -> Any:
        return self._streams

    async def _ask_for_activation(self) -> None:
        await self._streams.wait_for_activation(timeout=0)

    def __repr__(self) -> str:
        return self._hand_over.portal.call(lambda: repr(self._streams))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
