"""The way of one subscription through one stream: from pages to its inbox. Reads nothing itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from ..._core.buffer import DEFERRED
from ..._core.recovery import Cursor, CursorState, HistoryGap, Page, PageRequest, Stream
from ...errors import SubscriptionRefused
from .inbox import StreamInbox

MESSAGES_AT_ONCE = 64  # messages of a page that are delivered between two looks at the clock


class CursorOwner(Protocol):
    """The streams of one subscription."""

    inbox: StreamInbox
    durable: bytes | None
    leaving: dict[bytes, StreamCursor]

    def begin(self, cursor: StreamCursor) -> None:
        """Read on from the position, which is known now."""

    def announce(self, cursor: StreamCursor) -> None:
        """Notify the consumer that it gets the messages of a stream from here on."""

    def wait_for_consumer(self, cursor: StreamCursor) -> None:
        """Read on from a stream when the consumer has handled all that is queued."""


class StreamCursor(Cursor):
    """The way of one subscription through one stream, and what its consumer has of it."""

    __slots__ = ("done", "handed", "is_active", "is_announced", "is_loaded", "is_refused", "may_go_back", "reported",
                 "subscriber")  # fmt: skip

    def __init__(self, stream: Stream, subscriber: CursorOwner, position: bytes | None, *, is_loaded: bool) -> None:
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

    @property
    def is_left(self) -> bool:
        """Whether the subscription has left the stream, but the channel is still registered."""
        return self.subscriber.leaving.get(self.stream.name) is self

    def receive(self, items: list[bytes | HistoryGap], request: PageRequest, page: Page) -> Iterator[None]:
        """Deliver what a page has for it, and yield now and then; then go on behind the page.

        While this is suspended, the position is the last message delivered.
        """
        if self.is_left:
            return
        if self.is_refused:
            self.is_refused = False
            self.subscriber.inbox.refusals.pop(self.stream.name, None)
        if not self.is_announced:
            self.subscriber.announce(self)
        inbox, name, end = self.subscriber.inbox, self.stream.name, self.position
        items = self._compare_with_reported(items, request, page)
        left = inbox.consumer.max_pending - inbox.pending
        leaving = self.subscriber.leaving
        for number, item in enumerate(items, 1):
            if self.request is not request or (leaving and self.is_left):
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
        if self.request is request and not self.is_left:
            self.position = end
            for raw in self.stream.go_on(self, request, page):
                self._deliver(raw)
                if self.state is not CursorState.LIVE or self.is_left:
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
        if not (self.is_refused or self.is_left):
            self.is_refused = True
            self.subscriber.inbox.refuse(error)
