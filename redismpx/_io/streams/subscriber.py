"""The streams of one subscription: from live messages to its inbox. Reads nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from ..._core.recovery import CursorState, HistoryGap, Stream
from ...errors import ConnectionLost, SubscriptionRefused, narrow
from ...observing import Missed
from ..delivery.event_queue import QueueState
from .cursor import StreamCursor
from .inbox import StreamInbox


class Saved(NamedTuple):
    """A position to save."""

    name: bytes
    position: bytes
    may_go_back: bool


class PositionStore(Protocol):
    """Where the positions of subscriptions with `durable` are kept."""

    def load(self, cursor: StreamCursor) -> None:
        """Load the position of a cursor; then it begins."""

    def save_soon(self, subscriber: StreamSubscriber) -> None:
        """Save the positions of a subscriber soon."""

    def save_in_background(self, subscriber: StreamSubscriber) -> None:
        """Save the positions of a subscriber, without a wait."""

    async def save(self, subscriber: StreamSubscriber, positions: Sequence[Saved]) -> None:
        """Save positions."""


class Source(Protocol):
    """What the streams of one multiplexer have in common."""

    @property
    def positions(self) -> PositionStore:
        """The positions that are kept in Redis."""
        ...

    def open(self, name: bytes) -> Stream:
        """Return the stream of a name, which another cursor joins now."""
        ...

    def close(self, cursor: StreamCursor) -> None:
        """Remove a cursor."""

    def hasten(self, stream: Stream) -> None:
        """Read the next page of a stream without a pause."""


class StreamSubscriber:
    """Subscribes to the channels of the streams of one subscription. Implements `Subscriber`."""

    def __init__(self, streams: Source, inbox: StreamInbox, durable: bytes | None) -> None:
        self.streams = streams
        self.inbox = inbox
        self.durable = durable
        self.cursors: dict[bytes, StreamCursor] = {}
        self.call: Callable[[StreamCursor, bytes, bytes], object] | None = None
        """Calls the callback with a message of a cursor: its id and payload. None: messages are read, or followed."""
        inbox.connect(self._fell_behind, self._caught_up, self.undecodable)

    def add(self, names: Iterable[bytes], position: bytes | None) -> None:
        """Follow more streams from a position on."""
        for name in names:
            stream = self.streams.open(name)
            self.cursors[name] = StreamCursor(stream, self, position, is_loaded=self.durable is None)

    def remove(self, names: Iterable[bytes]) -> int:
        """Leave streams; return how many of them the consumer takes for active."""
        if self.durable is not None:
            self.streams.positions.save_in_background(self)
        cursors = [self.cursors.pop(name) for name in names if name in self.cursors]
        for cursor in cursors:
            self.streams.close(cursor)
        return sum([cursor.is_announced for cursor in cursors])

    @property
    def is_lagging(self) -> bool:
        """Whether messages wait in the stream, because the consumer is slow."""
        return any(cursor.state is CursorState.LAGGING for cursor in [*self.cursors.values()])

    # --- Subscriber

    def deliver(self, channel: bytes, raw: bytes) -> object:
        """Take a live message."""
        cursor = self.cursors.get(channel)
        if cursor is None or not cursor.take(raw):
            return None
        if self.call is not None and self.inbox.state is QueueState.IDLE:  # most often; the message is parsed already
            return self.call(cursor, cursor.stream.id, cursor.stream.data)
        return self.inbox.deliver(channel, raw)

    def accept(self, result: object) -> None:
        """Take the result of `deliver`."""
        self.inbox.accept(result)

    def flush(self) -> None:
        """Do what `deliver` deferred."""
        self.inbox.flush()

    def failed(self, error: BaseException) -> None:
        """Take the exception that `deliver` raised."""
        self.inbox.failed(error)

    def activate(self, name: bytes) -> None:
        """Take note that a channel is active."""
        cursor = self.cursors.get(name)
        if cursor is not None:
            cursor.is_active = True
            self.begin(cursor)

    def begin(self, cursor: StreamCursor) -> None:
        """Read on from the position, which is loaded first if it is in Redis."""
        if not cursor.is_loaded:
            self.streams.positions.load(cursor)
            return
        if cursor.position is not None:
            self.announce(cursor)
        if cursor.is_active and cursor.state is CursorState.WAITING:  # the callback may have removed it
            self.streams.hasten(cursor.stream)
            cursor.activate(is_behind=self.inbox.is_behind)

    def announce(self, cursor: StreamCursor) -> None:
        """Notify the consumer that it gets the messages of a stream from here on."""
        if cursor.handed is None:
            cursor.handed = cursor.position
        if cursor.is_announced or not cursor.is_active:
            return
        cursor.is_announced = True
        self.inbox.activate(cursor.stream.name)

    def disconnect(self, error: ConnectionLost, lost: Iterable[bytes] | None = None) -> None:
        """Take note that the connection is lost, or some channels on it."""
        names = [*self.cursors] if error.names is None else error.names
        announced = []
        for name in names:
            cursor = self.cursors.get(name)
            if cursor is None or not cursor.is_active:
                continue
            cursor.deactivate()
            if cursor.is_announced:
                announced.append(name)
            cursor.is_active = cursor.is_announced = False
        if announced:
            if error.names is not None and len(announced) < len(error.names):
                error = narrow(error, frozenset(announced))
            self.inbox.disconnect(error, announced)

    def refuse(self, error: SubscriptionRefused) -> None:
        """Take note that the server rejected a channel."""
        self.inbox.refuse(error)

    # --- a consumer that is behind

    def wait_for_consumer(self, cursor: StreamCursor) -> None:
        """Read on from a stream when the consumer has handled all that is queued."""
        self.inbox.is_behind = True
        cursor.lag()
        self.inbox.flush()

    def _fell_behind(self) -> None:
        for cursor in [*self.cursors.values()]:
            cursor.lag()

    def _caught_up(self) -> None:
        for cursor in [*self.cursors.values()]:
            if cursor.state in (CursorState.LAGGING, CursorState.WAITING):
                if cursor.handed is not None:
                    cursor.position = cursor.handed
                if cursor.state is CursorState.LAGGING:
                    cursor.read()

    # --- what the consumer has

    def handed(self, name: bytes, entry_id: bytes) -> StreamCursor | None:
        """Take note that the consumer got a message."""
        cursor = self.cursors.get(name)
        if cursor is not None:
            cursor.handed = entry_id
        return cursor

    def undecodable(self, name: bytes, raw: bytes) -> None:
        """Take note that the consumer cannot get a message."""
        cursor = self.handed(name, raw.split(b" ", 2)[1])
        if cursor is not None:
            self.through(cursor)

    def missed(self, cursor: StreamCursor, gap: HistoryGap) -> None:
        """Take note that the consumer got a gap."""
        self.inbox.missed(Missed(cursor.stream.name, gap.after, gap.before, gap.reason))
        cursor.may_go_back = True
        if gap.before is None:
            cursor.handed = gap.position
            cursor.reported = None
            if self.durable is not None:
                self.through(cursor)
        else:
            cursor.reported = gap

    def through(self, cursor: StreamCursor) -> None:
        """Take note that the consumer is through with the last message that it got."""
        if self.durable is not None:
            cursor.done = cursor.handed
            self.streams.positions.save_soon(self)

    def take_unsaved(self) -> list[Saved]:
        """Return the positions that are not saved yet. They count as saved from here on."""
        found = []
        for cursor in [*self.cursors.values()]:
            if cursor.done is not None:
                found.append(Saved(cursor.stream.name, cursor.done, cursor.may_go_back))
                cursor.done, cursor.may_go_back = None, False
        return found

    def put_back(self, positions: Iterable[Saved]) -> None:
        """Take note that positions were not saved after all."""
        for name, position, may_go_back in positions:
            cursor = self.cursors.get(name)
            if cursor is not None and cursor.done is None:
                cursor.done, cursor.may_go_back = position, may_go_back

    def end(self) -> None:
        """Save the positions that are not saved, and leave all streams."""
        self.remove([*self.cursors])
