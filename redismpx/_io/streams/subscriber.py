"""The streams of one subscription: from live messages and pages to its inbox. Reads nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from ..._core.buffer import DEFERRED
from ..._core.recovery import Cursor, CursorState, HistoryGap, Page, PageRequest, Stream
from ...errors import ConnectionLost, SubscriptionRefused, narrow
from ...observing import Missed
from ..delivery.event_queue import QueueState
from .inbox import StreamInbox

MESSAGES_AT_ONCE = 64  # messages of a page that are delivered between two looks at the clock


class Saved(NamedTuple):
    """A position to save."""

    name: bytes
    position: bytes
    may_go_back: bool


class StreamCursor(Cursor):
    """The way of one subscription through one stream, and what its consumer has of it."""

    __slots__ = ("done", "handed", "is_active", "is_announced", "is_loaded", "is_refused", "may_go_back", "reported",
                 "subscriber")  # fmt: skip

    def __init__(
        self, stream: Stream, subscriber: StreamSubscriber, position: bytes | None, *, is_loaded: bool
    ) -> None:
        super().__init__(stream, position)
        self.subscriber = subscriber
        self.handed: bytes | None = position
        """The id of the last message that the consumer got."""
        self.done: bytes | None = None
        """The id of the last message that the consumer is through with, if that is not saved yet."""
        self.may_go_back: bool = False
        """Whether this position may be before the one that is saved: the history of the stream has changed."""
        self.reported: HistoryGap | None = None
        """The last gap that the consumer got, if that names the first message behind it."""
        self.is_active: bool = False
        """Whether the channel is subscribed."""
        self.is_announced: bool = False
        """Whether the consumer was notified of that; its position is known then."""
        self.is_loaded: bool = is_loaded
        """Whether its position is not to be loaded any more."""
        self.is_refused: bool = False
        """Whether the server rejects to read the stream."""

    def receive(self, items: list[bytes | HistoryGap], request: PageRequest, page: Page) -> Iterator[None]:
        """Deliver what a page has for it, and yield now and then; then go on behind the page.

        While this is suspended, the position is the last message delivered.
        """
        if self.is_refused:
            self.is_refused = False
            self.subscriber.inbox.refusals.pop(self.stream.name, None)
        if not self.is_announced:
            self.subscriber.announce(self)
        inbox, name, end = self.subscriber.inbox, self.stream.name, self.position
        items = self._compare_with_reported(items, request, page)
        left = inbox.consumer.max_pending - inbox.pending
        for number, item in enumerate(items, 1):
            if self.request is not request:
                return
            if isinstance(item, HistoryGap):
                inbox.gap((self, item), name)
                continue
            if left <= 0 and inbox.pending:
                self.subscriber.wait_for_consumer(self)
                return
            left -= 1
            self._deliver(item)
            if number % MESSAGES_AT_ONCE == 0 and self.request is request:
                inbox.flush()
                left = inbox.consumer.max_pending - inbox.pending
                self.position = item.split(b" ", 2)[1]
                yield
        if self.request is request:
            self.position = end
            for raw in self.stream.go_on(self, request, page):
                self._deliver(raw)
                if self.state is not CursorState.LIVE:
                    break
        inbox.flush()

    def _compare_with_reported(
        self, items: list[bytes | HistoryGap], request: PageRequest, page: Page
    ) -> list[bytes | HistoryGap]:
        """Return what a page has, without the gap that the consumer got last, or with a longer one in its place.

        The consumer expects the first message behind that gap. It had no room in the queue, and may be lost meanwhile.
        A stream that was deleted begins again at 0-0, so a consumer at 0-0 cannot know that from the link of a message.
        """
        gap = self.reported
        if gap is None or not gap.after == self.handed == request.position:
            return items
        if not items:
            return [gap._replace(before=None, reason="expired")] if page.is_end else items
        first = items[0]
        if isinstance(first, HistoryGap):
            return items[1:] if first.before == gap.before else items
        entry_id = first.split(b" ", 2)[1]
        return [gap._replace(before=entry_id, reason="restarted"), *items]

    def _deliver(self, raw: bytes) -> None:
        """Deliver a message, as the dispatcher does."""
        inbox = self.subscriber.inbox
        try:
            result = inbox.deliver(self.stream.name, raw)
        except BaseException as error:  # noqa: BLE001, users' code
            inbox.failed(error)
        else:
            if result is not None and result is not DEFERRED:
                inbox.accept(result)

    def fail(self, error: SubscriptionRefused) -> None:
        """Take note that the server rejects to read the stream."""
        if not self.is_refused:
            self.is_refused = True
            self.subscriber.inbox.refuse(error)


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
