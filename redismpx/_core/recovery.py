"""When a message of a stream may be delivered, and what to read when it may not. No I/O, no clock.

A live message carries the id of the entry before it: `<previous id> <id> <payload>`. It is delivered to a cursor if the
previous id is the position of the cursor. Otherwise the cursor waits for a page: the entries behind its position. The
entries of a page have the same links, and each link that is broken is a gap. Nothing else moves a position, so a live
message that is ignored is never lost: the next message, or the check of the tail, finds that its link is broken.

Cursors with one position share one page. While any cursor waits, the newest live messages are kept; when a page has
reached the end of the stream, its cursors go on with the messages that follow it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from .wire import IdentityEnum

ZERO = b"0-0"
"""The last id of a stream without a history."""
RECENT = 1_024  # live messages of one stream that are kept while a cursor waits
RECENT_BYTES = 1 << 20  # and their bytes
COVERED = 128  # ids of a page whose live messages may still be on their way
ID_LENGTH = 41  # of the longest id of an entry: two numbers of 64 bits


def id_key(entry_id: bytes) -> tuple[int, int]:
    """Return a key by which ids are sorted."""
    milliseconds, _, number = entry_id.partition(b"-")
    return int(milliseconds), int(number)


def is_id(text: bytes) -> bool:
    """Tell whether these bytes are the id of an entry."""
    milliseconds, _, number = text.partition(b"-")  # a regular expression would take twice the time
    return milliseconds.isdigit() and number.isdigit() and len(text) <= ID_LENGTH


class HistoryGap(NamedTuple):
    """Entries that are not in the stream any more."""

    after: bytes
    """The id of the last message before the gap."""
    before: bytes | None
    """The id of the first message behind the gap; None if there is none yet."""
    reason: str
    """`"trimmed"`, `"restarted"` or `"expired"`."""
    position: bytes
    """The position behind the gap; after it, `before` is the first message."""


StreamItem: TypeAlias = bytes | HistoryGap
"""What a cursor gets: a message in its live form, or a gap."""


class Page(NamedTuple):
    """A part of a stream, as one atomic step has read it."""

    last: bytes
    """The last id that the stream has given to an entry; ZERO if there is no stream."""
    is_anchored: bool
    """Whether nothing between the position and the first entry can be missing."""
    is_end: bool
    """Whether no entry follows."""
    ids: Sequence[bytes]
    """The ids of its entries."""
    links: Sequence[bytes]
    """The previous id that each entry has; empty for a foreign entry, which was not appended here."""
    payloads: Sequence[bytes]


class CursorState(IdentityEnum):
    """Where a cursor gets its next message from."""

    WAITING = "waiting"  # the channel is not active
    READING = "reading"  # from a page that was asked for
    LIVE = "live"  # from the channel
    LAGGING = "lagging"  # from a page, once its consumer has caught up


class Cursor:
    """The way of one subscription through one stream."""

    __slots__ = ("position", "request", "restart", "state", "stream")

    def __init__(self, stream: Stream, position: bytes | None) -> None:
        self.stream = stream
        self.position: bytes | None = position
        """The id of the last message delivered. Empty: all kept entries follow. None: new entries follow."""
        self.state: CursorState = CursorState.WAITING
        self.request: PageRequest | None = None
        """What it waits for, in the state READING."""
        self.restart: bytes | None = None
        """In the state READING: the live message that began a new history, after all messages of the one before."""
        stream.cursors[self] = None

    def take(self, raw: bytes) -> bool:
        """Take a live message; return whether it is to be delivered now."""
        stream = self.stream
        if raw is not stream.raw:
            stream.receive(raw)
        if self.state is not CursorState.LIVE or not stream.id:
            return False
        if stream.previous == self.position:
            self.position = stream.id
            return True
        if stream.id not in stream.covered and stream.id != self.position:
            self.read(stream.id if stream.previous == ZERO else None)
        return False

    def activate(self, *, is_behind: bool = False) -> None:
        """Begin: the channel is active from now on. If its consumer is behind, the cursor waits for it."""
        if is_behind:
            self.state = CursorState.LAGGING
        else:
            self.read()

    def deactivate(self) -> None:
        """Wait for the channel."""
        self._leave(CursorState.WAITING)

    def lag(self) -> None:
        """Wait until the consumer has caught up."""
        if self.state is CursorState.LIVE:
            self.state = CursorState.LAGGING
        elif self.state is CursorState.READING:
            self._leave(CursorState.LAGGING)

    def read(self, restart: bytes | None = None) -> None:
        """Ask for a page behind the position."""
        if self.state is CursorState.READING:
            return
        self.state, self.restart = CursorState.READING, restart
        self.stream.readers += 1
        self.stream.want(self)

    def remove(self) -> None:
        """Leave the stream."""
        self._leave(CursorState.WAITING)
        self.stream.cursors.pop(self, None)

    def _leave(self, state: CursorState) -> None:
        if self.state is CursorState.READING:
            self.stream.leave(self)
        self.state = state


class PageRequest:
    """A page that several cursors wait for. From when it is sent, no other cursor joins it."""

    __slots__ = ("cursors", "frames", "position")

    def __init__(self, position: bytes | None) -> None:
        self.position = position
        self.cursors: list[Cursor] = []
        self.frames = 0
        """How many live messages were received before it was sent: the page has all of these."""

    @property
    def is_needed(self) -> bool:
        """Whether a cursor still waits for it."""
        return any(cursor.request is self for cursor in self.cursors)


class Stream:
    """What the cursors of one stream share. It calls `on_wanted` when a page is to be read."""

    __slots__ = ("_on_wanted", "_size", "covered", "cursors", "data", "frames", "id", "name", "previous", "raw",
                 "readers", "recent", "wanted")  # fmt: skip

    def __init__(self, name: bytes, on_wanted: Callable[[Stream], None]) -> None:
        self.name = name
        self._on_wanted = on_wanted
        self.cursors: dict[Cursor, None] = {}
        self.readers: int = 0
        """How many cursors wait for a page."""
        self.wanted: OrderedDict[bytes | None, PageRequest] = OrderedDict()
        """The pages to read, by their positions. No other dictionary gives very many in order fast."""
        self.raw: bytes = b""
        """The last live message. All cursors get the same object."""
        self.previous: bytes = b""
        self.id: bytes = b""
        """The id of this message; empty if it is malformed."""
        self.data: bytes = b""
        """Its payload."""
        self.frames: int = 0
        """How many live messages were received."""
        self.recent: deque[tuple[bytes, bytes, bytes]] = deque()
        """The newest of them while a cursor waits: previous id, id, and the message."""
        self._size = 0
        self.covered: dict[bytes, None] = {}
        """Ids of a page whose live messages may still be on their way."""

    # --- live messages

    def receive(self, raw: bytes) -> None:
        """Take note of a live message, before the cursors take it."""
        self.raw = raw
        try:
            previous, entry_id, self.data = raw.split(b" ", 2)
        except ValueError:
            previous = entry_id = b""
        first, _, second = entry_id.partition(b"-")  # as is_id() does, without the time for a call
        if not (first.isdigit() and second.isdigit()) or len(entry_id) > ID_LENGTH:  # not ours
            self.previous = self.id = b""
            return
        self.previous, self.id = previous, entry_id
        self.frames += 1
        if self.covered and self.id not in self.covered:
            self.covered.clear()
        if self.readers:
            self.recent.append((self.previous, self.id, raw))
            self._size += len(raw)
            while len(self.recent) > RECENT or (self._size > RECENT_BYTES and len(self.recent) > 1):
                self._size -= len(self.recent.popleft()[2])

    # --- pages

    def want(self, cursor: Cursor) -> None:
        """Note that a cursor waits for a page."""
        request = self.wanted.get(cursor.position)
        if request is None:
            request = self.wanted[cursor.position] = PageRequest(cursor.position)
        request.cursors.append(cursor)
        cursor.request = request
        self._on_wanted(self)

    def leave(self, cursor: Cursor) -> None:
        """Note that a cursor does not wait for a page any more."""
        cursor.request = None
        self.readers -= 1
        if not self.readers:
            self.recent.clear()
            self._size = 0

    def next_request(self) -> PageRequest | None:
        """Return the next page to read; it counts as sent. None if no page is wanted."""
        while self.wanted:
            _, request = self.wanted.popitem(last=False)
            if request.is_needed:
                request.frames = self.frames
                return request
        return None

    def fail(self, request: PageRequest) -> None:
        """Take note that a page could not be read: it is wanted again."""
        for cursor in request.cursors:
            if cursor.request is request:
                self.want(cursor)

    def answer(self, request: PageRequest, page: Page) -> Iterator[tuple[Cursor, list[StreamItem]]]:
        """Take a page; yield each cursor that waits for it, and what it gets. Then `go_on()` is called with the cursor.

        The caller may change cursors between two steps. A cursor that does not call `go_on()` has left.
        """
        self.cover(page)
        results: dict[bytes | None, tuple[list[StreamItem], bytes]] = {}
        for cursor in request.cursors:
            if cursor.request is not request:
                continue
            result = results.get(cursor.restart)
            if result is None:
                result = results[cursor.restart] = verify(request.position, page, cursor.restart)
            items, cursor.position = result
            cursor.restart = None
            yield cursor, items

    def cover(self, page: Page) -> None:
        """Note the newest ids of a page."""
        if page.is_end:
            for entry_id in page.ids[-COVERED:]:
                self.covered[entry_id] = None
            while len(self.covered) > COVERED:
                del self.covered[next(iter(self.covered))]

    def go_on(self, cursor: Cursor, request: PageRequest, page: Page) -> list[bytes]:
        """Let a cursor go on behind a page; return the live messages that follow it at once."""
        if cursor.request is not request or cursor.position is None:
            return []  # it has left meanwhile
        if not page.is_end:
            self.want(cursor)
            return []
        first = max(0, len(self.recent) - (self.frames - request.frames))
        following = self._following(cursor.position, first)
        if following is None:
            self.want(cursor)
            return []
        if following:
            cursor.position = following[-1][1]
        self.leave(cursor)
        cursor.state = CursorState.LIVE
        return [raw for _, _, raw in following]

    def _following(self, position: bytes, first: int) -> list[tuple[bytes, bytes, bytes]] | None:
        """Return the live messages that follow a position without a gap; None if that cannot be told.

        All live messages before the one with the number `first` are in the page that ended at the position.
        """
        recent = list(self.recent)[first:]
        for number, (previous, entry_id, _) in enumerate(recent):
            if previous == position or entry_id == position:
                following = recent[number + (entry_id == position) :]
                ids = [position, *(entry_id for _, entry_id, _ in following)]
                return following if [previous for previous, _, _ in following] == ids[:-1] else None
        if not recent or id_key(recent[-1][1]) <= id_key(position):
            return []  # the page was faster than all of them
        return None

    def look(self, frames: int, page: Page) -> None:
        """Take the end of the stream, read while no live message arrived: cursors at another position read on.

        A stream that is gone has no message for them. If it expired, they have had all its messages.
        """
        if frames == self.frames and page.last != ZERO:
            for cursor in [*self.cursors]:
                if cursor.state is CursorState.LIVE and cursor.position != page.last:
                    cursor.read()


def verify(position: bytes | None, page: Page, restart: bytes | None = None) -> tuple[list[StreamItem], bytes]:
    """Return what a cursor at a position gets of a page, and its new position.

    `restart` is the first entry of a new history that is no gap, because all of the history before it was delivered.
    """
    if position is None:
        return [], page.last
    items: list[StreamItem] = []
    at, is_proven = position, page.is_anchored or not position
    for entry_id, link, data in zip(page.ids, page.links, page.payloads, strict=True):
        previous = link if link == at or is_id(link) else b""  # an entry of others may have a field of this name
        if previous:
            if at and previous != at and not (previous == ZERO and entry_id == restart):
                reason = "trimmed" if id_key(previous) > id_key(at) else "restarted"
                items.append(HistoryGap(at, entry_id, reason, previous))
        elif not is_proven:  # it does not say what was before it
            items.append(HistoryGap(at, entry_id, "trimmed", entry_id))
        items.append(b"%b %b %b" % (previous or at or ZERO, entry_id, data))
        at, is_proven = entry_id, True
    if page.is_end and page.last != at:
        if at:
            is_trimmed = id_key(page.last) > id_key(at)
            reason = "trimmed" if is_trimmed else "expired" if page.last == ZERO else "restarted"
            items.append(HistoryGap(at, None, reason, page.last))
        at = page.last
    return items, at
