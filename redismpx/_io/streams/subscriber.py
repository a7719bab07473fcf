"""The streams of one subscription: from live messages to its inbox. Reads nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from itertools import chain, repeat
from typing import Any, Protocol

from ..._core.recovery import CursorState, HistoryGap, Stream
from ...errors import ConnectionLost, SubscriptionRefused, narrow
from ...observing import Missed
from ..delivery.event_queue import QueueState
from ..runtime.slices import SLICE_STEPS, Slices
from .cursor import StreamCursor
from .inbox import StreamInbox


class PositionStore(Protocol):
    """Where the positions of subscriptions with `durable` are kept."""

    def load(self, cursor: StreamCursor) -> None:
        """Load the position of a cursor; then it begins."""

    def save_soon(self, subscriber: StreamSubscriber) -> None:
        """Save the positions of a subscriber soon."""

    async def save(self, subscriber: StreamSubscriber) -> None:
        """Save the positions of a subscriber now."""

    def save_left(self, subscriber: StreamSubscriber, cursors: list[StreamCursor]) -> None:
        """Save the positions of cursors that a subscriber leaves, without a wait."""


class Source(Protocol):
    """What the streams of one multiplexer have in common."""

    @property
    def slices(self) -> Slices:
        """Do what takes long for very many streams."""
        ...

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


class StreamNames(Collection[bytes]):
    """The names of the streams of one subscription, also of those that `add()` has left for the next iterations."""

    def __init__(self, *parts: dict[bytes, Any]) -> None:
        self._parts = parts  # without a common name

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __iter__(self) -> Iterator[bytes]:
        return chain(*[[*part] for part in self._parts])

    def __contains__(self, name: object) -> bool:
        return any(name in part for part in self._parts)


class StreamSubscriber:
    """Subscribes to the channels of the streams of one subscription. Implements `Subscriber`."""

    def __init__(
        self,
        streams: Source,
        inbox: StreamInbox,
        durable: bytes | None,
        register: Callable[[Collection[bytes], StreamSubscriber], object],
        unregister: Callable[[Collection[bytes], StreamSubscriber], object],
    ) -> None:
        self._register, self._unregister = register, unregister
        self.streams = streams
        self.inbox = inbox
        self.durable = durable
        self.cursors: dict[bytes, StreamCursor] = {}
        self.joining: dict[bytes, bytes | None] = {}
        """The positions of streams that are going to be followed."""
        self.leaving: dict[bytes, StreamCursor] = {}
        """The cursors that were removed and whose channels are still registered."""
        self._losses: list[set[bytes]] = []  # the names of each loss of which the consumer is not notified yet
        self.call: Callable[[StreamCursor, bytes, bytes], object] | None = None
        """Calls the callback with a message of a cursor: its id and payload. None: messages are read, or followed."""
        inbox.connect(self._fell_behind, self._caught_up, self.undecodable)

    @property
    def names(self) -> StreamNames:
        """The streams of the subscription."""
        return StreamNames(self.cursors, self.joining)

    def without_known(self, names: Iterable[bytes]) -> list[bytes]:
        """Return those of the names that the subscription does not have."""
        cursors, joining = self.cursors, self.joining
        return [name for name in names if name not in cursors and name not in joining]

    def position(self, name: bytes) -> bytes | None:
        """Return the id of the last message of a stream that the consumer got, or where the stream begins."""
        cursor = self.cursors.get(name)
        return self.joining[name] if cursor is None else cursor.handed

    def follow(self, names: Collection[bytes], position: bytes | None) -> None:
        """Follow more streams from a position on."""
        for name in names:
            if name in self.leaving:
                self.unsubscribe(name)
            stream = self.streams.open(name)
            self.cursors[name] = StreamCursor(stream, self, position, is_loaded=self.durable is None)
        self._register(names, self)

    def join(self, name: bytes) -> None:
        """Follow a stream that is in `joining`, unless it was removed meanwhile."""
        if name in self.joining:
            self.follow((name,), self.joining.pop(name))

    def remove(self, removed: Iterable[bytes] | None) -> Collection[bytes]:
        """Leave these streams, or, for None, all: the consumer gets no event of them any more.

        If they are many, return them: unsubscribe() is to be called with each.
        """
        active, total = self.inbox.active, len(self.cursors)
        if removed is None:
            left, self.cursors = self.cursors, {}
            self.joining.clear()
        else:
            left = self._take(removed)
        if active in (0, total):  # most often
            were_active = min(active, len(left))
        else:
            were_active = sum([cursor.is_announced or self._is_losing(name) for name, cursor in left.items()])
        self.leaving |= left
        for loss in self._losses:
            loss.difference_update(left)
        if self.durable is not None:
            self.streams.positions.save_left(self, [*left.values()])
        rest: Collection[bytes] = left
        if len(left) <= SLICE_STEPS:
            for name in left:
                self.unsubscribe(name)
            rest = ()
        self.inbox.forget(frozenset(left), were_active, rest=bool(self.cursors))
        return rest

    def _take(self, removed: Iterable[bytes]) -> dict[bytes, StreamCursor]:
        """Take out and return the cursors of these streams."""
        pop, joining = self.cursors.pop, self.joining
        left = {}
        for name in removed:
            cursor = pop(name, None)
            if cursor is not None:
                left[name] = cursor
            elif joining:
                joining.pop(name, None)
        return left

    def unsubscribe(self, name: bytes) -> None:
        """Unsubscribe from a stream that was left, unless follow() has done so to follow it again."""
        with self.inbox.context.budget.critical:
            if name in self.leaving:
                self._unregister((name,), self)
                self.streams.close(self.leaving.pop(name))

    def has_active(self, name: bytes) -> bool:
        """Tell whether the consumer takes a stream for active."""
        cursor = self.cursors.get(name)
        return cursor is not None and (cursor.is_announced or self._is_losing(name))

    def _is_losing(self, name: bytes) -> bool:
        """Tell whether a stream is lost, and the consumer is not notified of that yet."""
        return any(name in loss for loss in self._losses)

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
        if cursor.is_left:
            return
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

    def disconnect(self, error: ConnectionLost, lost: Iterable[bytes] | None = None) -> Iterator[None] | None:
        """Take note that the connection is lost, or some channels on it."""
        names = [*self.cursors] if error.names is None else error.names
        steps = self._lose(error, names)
        if len(names) > SLICE_STEPS:
            return steps
        for _ in steps:
            pass
        return None

    def _lose(self, error: ConnectionLost, names: Collection[bytes]) -> Iterator[None]:
        """Deactivate the cursors of these names, one in each step, and notify the consumer at the end.

        Until then, the consumer takes the names for active. A name that is removed meanwhile is not lost.
        """
        announced = set[bytes]()
        self._losses.append(announced)
        for name in names:
            cursor = self.cursors.get(name)
            if cursor is not None and cursor.is_active:
                cursor.deactivate()
                if cursor.is_announced:
                    announced.add(name)
                cursor.is_active = cursor.is_announced = False
            yield
        self._losses = [loss for loss in self._losses if loss is not announced]
        if announced:
            if error.names is not None and len(announced) < len(error.names):
                error = narrow(error, frozenset(announced))
            self.inbox.disconnect(error, announced)

    def refuse(self, error: SubscriptionRefused) -> None:
        """Take note that the server rejected a channel."""
        if error.name in self.cursors:
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
        lagging = []
        for cursor in [*self.cursors.values()]:
            if cursor.state in (CursorState.LAGGING, CursorState.WAITING):
                if cursor.handed is not None:
                    cursor.position = cursor.handed
                if cursor.state is CursorState.LAGGING:
                    lagging.append(cursor)
        self.streams.slices.begin(partial(self._read_on, cursor) for cursor in lagging)

    def _read_on(self, cursor: StreamCursor) -> None:
        if cursor.state is CursorState.LAGGING and not (self.inbox.is_behind or self.inbox.closed):
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

    def end(self) -> None:
        """Save the positions that are not saved, and leave all streams, whose channels are registered no longer."""
        cursors, self.cursors = [*self.cursors.values()], {}
        self.joining.clear()
        if self.durable is not None:
            self.streams.positions.save_left(self, [*cursors])
        close = self.streams.close  # one by one: to free all of them together would take long
        self.streams.slices.begin(repeat(lambda: close(cursors.pop()), len(cursors)))
