"""The events that wait for a subscription's consumer: in order, bounded, counted. No I/O, no clock."""

from __future__ import annotations

import enum
import sys

from .event_list import EventList, pairs

BATCH_SIZE = 32  # messages that are popped and counted together

DEFERRED = object()
"""What put() returns when commit() is to be called once no more messages are at hand."""
FULL = object()
"""What put() returns when commit() is to be called at once."""


class Overflow(enum.Enum):
    """Which message is dropped when a subscription's buffer is full: in number, or in bytes."""

    DROP_OLDEST = "drop_oldest"
    """The oldest message in the buffer."""
    DROP_NEWEST = "drop_newest"
    """The message that has just arrived."""
    LATEST = "latest"
    """Always the earlier message of the same channel; with more than `max_pending` channels, the oldest message."""
    CLOSE = "close"
    """The message that has just arrived, and the subscription is closed."""


class Budget:
    """The bytes of names and payloads that may be pending: in each buffer, and in all of a multiplexer together.

    No buffer may hold more than is left free for all. So there is always room for one more, however many are full.
    """

    __slots__ = ("each", "lenders", "total", "used")

    def __init__(self, each: int | None = None, total: int | None = None) -> None:
        self.each: int = sys.maxsize if each is None else each
        self.total: int = sys.maxsize if total is None else total
        self.used: int = 0
        """The bytes that the buffers have counted. For a lent batch that is what it had at first."""
        self.lenders: set[Buffer] = set()
        """The buffers that have lent a batch."""

    def recall(self) -> None:
        """Make `used` exact."""
        for buffer in tuple(self.lenders):
            buffer.recall()


class Buffer(EventList):
    """A FIFO of messages and signals: at most `max_pending` messages, and no more bytes than the budget allows.

    Beyond that the oldest message is dropped, or the newest. Messages arrive many at a time and are counted together:
    put() adds to `fresh`; commit() is called at the end of the burst, and before any other change. They leave many at
    a time, too: the consumer pops from `batch`, and calls pop_message() when that is empty.
    """

    __slots__ = ("_budget", "_bytes", "_drop_newest", "_lent", "_max_pending", "_quiet", "_rearm_at", "_room", "batch",
                 "fresh", "overflowing")  # fmt: skip

    def __init__(self, max_pending: int, budget: Budget, drop_newest: bool = False) -> None:
        super().__init__()
        self.fresh: list[bytes] = []
        """The newest messages, not counted yet: channel, payload, channel, ..."""
        self.batch: list[bytes] = []
        """The oldest messages, the next one last: ..., payload, channel. Never the last message of the buffer, so the
        consumer need not look at the buffer after each."""
        self.overflowing: bool = False
        """Whether messages were dropped, and the consumer has not caught up since."""
        self._max_pending = max_pending
        self._drop_newest = drop_newest
        self._rearm_at = max_pending // 2
        self._room = 2 * max_pending  # items that `fresh` may have, as far as their number goes
        self._quiet = 0  # items that `fresh` may have before put() returns anything
        self._budget = budget
        self._bytes = 0  # of all messages, without `fresh`
        self._lent: int | None = None  # of these, the bytes that `batch` had at first; None if no batch is lent

    def __len__(self) -> int:
        """Messages pending."""
        return self._count + (len(self.fresh) + len(self.batch)) // 2

    def __bool__(self) -> bool:
        """Whether anything is pending, a message or a signal."""
        return self.signals > 0 or len(self) > 0

    @property
    def pending_bytes(self) -> int:
        """The bytes of the messages pending."""
        return self._bytes - (self._lent or 0) + sum(map(len, self.batch)) + sum(map(len, self.fresh))

    # --- events in

    def put(self, channel: bytes, data: bytes) -> object:
        """Add a message that commit() will count; return DEFERRED, FULL, or None if nothing is to be done."""
        fresh = self.fresh
        fresh.append(channel)
        fresh.append(data)
        return self._remind() if len(fresh) > self._quiet else None

    def _remind(self) -> object:
        if len(self.fresh) > self._room:
            return FULL
        self._quiet = self._room
        return DEFERRED

    def commit(self) -> int:
        """Count the fresh messages, in one go if there is room for all of them; return how many were dropped.

        There must be some.
        """
        fresh, self.fresh, self._quiet = self.fresh, [], 0
        messages, size, dropped = len(fresh) // 2, sum(map(len, fresh)), 0
        if self._fits(messages, size) or self._fits_exactly(messages, size):
            self._append(fresh, size)
        else:
            dropped = self._squeeze(fresh, size)
        self._room = 2 * (self._max_pending - self._count) - len(self.batch)
        return dropped

    def _squeeze(self, fresh: list[bytes], size: int) -> int:
        """Add messages for which there is no room; return how many were dropped."""
        dropped = 0
        if self._drop_newest:
            for channel, data in pairs(fresh):
                size = len(channel) + len(data)
                if self._fits(1, size):
                    self._append((channel, data), size)
                else:
                    dropped += 1
        else:
            self._append(fresh, size)
            while self._count and not self._fits(0, 0):
                self._drop_oldest()
                dropped += 1
            self._tidy()
        return dropped

    def disconnect(self, argument: object, names: frozenset[bytes] | None) -> int:
        """Add a disconnect as EventList does; return how many messages were dropped for it."""
        self.recall()
        dropped = super().disconnect(argument, names)
        self._rearm()
        return dropped

    def remove(self, names: frozenset[bytes]) -> int:
        """Remove all that is queued about these names; return how many messages that were."""
        self.recall()
        dropped = super().remove(names)
        self._rearm()
        return dropped

    def clear(self) -> int:
        """Remove everything; return how many messages that were."""
        dropped = len(self)
        self.recall()
        self._grow(-self._bytes)
        self.fresh.clear()
        self._quiet = 0
        self._clear()
        self._rearm()
        return dropped

    # --- events out

    def pop_message(self) -> tuple[bytes, bytes] | None:
        """Remove and return the oldest event, if that is a message: its channel and payload."""
        batch = self.batch
        if not batch:
            if self._lent is not None:
                self.recall()
            if self.signals or self._count < 2 or self.overflowing or 2 * self._budget.used > self._budget.total:
                # Something is to be looked at after each message, the last one among them; or the room is tight.
                return self._pop_one()
            self._lend()
        return batch.pop(), batch.pop()

    def _pop_one(self) -> tuple[bytes, bytes] | None:
        """Pop one message, and count it at once."""
        if not self._count or (self.signals and self.signal_is_next):
            return None
        items, head = self._items, self._skip()
        channel, data = items[head], items[head + 1]
        self._remove_message(head)
        self._skip()
        self._tidy()
        if self.overflowing:
            self._rearm()
        return channel, data

    def _lend(self) -> None:
        """Move the next messages to the batch, which is counted when it is used up or recalled.

        The batch ends before the first removed event, so that recall() restores all positions.
        """
        items, head = self._items, self._skip() if self._removed else self._head
        chunk = items[head : head + 2 * min(BATCH_SIZE, self._count - 1)]
        if self._removed and None in chunk:
            del chunk[chunk.index(None) :]
        size = len(chunk)
        items[head : head + size] = _NONES[:size]  # or the payloads would outlive their consumption
        self._head = head + size
        self._count -= size // 2
        chunk.reverse()
        self.batch.extend(chunk)
        self._lent = sum(map(len, chunk))
        self._budget.lenders.add(self)

    def recall(self) -> None:
        """Move what is left of the batch back to the list, and count it exactly."""
        batch = self.batch
        if self._lent is None:
            return
        self._grow(sum(map(len, batch)) - self._lent)
        self._lent = None
        self._budget.lenders.discard(self)
        if batch:
            self._head -= len(batch)
            self._items[self._head : self._head + len(batch)] = batch[::-1]
            self._count += len(batch) // 2
            self._oldest = self._head
            batch.clear()
        else:
            self._tidy()

    def _drop_oldest(self) -> None:
        items, position = self._items, max(self._oldest, self._head)
        while items[position] is None:
            position += 2
        self._remove_message(position)
        self._oldest = position + 2

    # --- the room

    def _fits(self, messages: int, size: int) -> bool:
        """Whether there is room for so many messages of so many bytes, as far as they are counted."""
        budget, pending = self._budget, self._bytes + size
        return (
            len(self) + messages <= self._max_pending
            and pending <= budget.each
            and pending <= budget.total - budget.used - size  # what would be left free
        )

    def _fits_exactly(self, messages: int, size: int) -> bool:
        """Whether there is room, after everything is counted exactly."""
        if self._budget.lenders:
            self._budget.recall()
            return self._fits(messages, size)
        return False

    def _grow(self, size: int) -> None:
        self._bytes += size
        self._budget.used += size

    def _rearm(self) -> None:
        """End the episode of an overflow, if the consumer has caught up."""
        budget = self._budget
        if len(self) <= self._rearm_at and self._bytes <= min(budget.each, budget.total - budget.used) // 2:
            self.overflowing = False


class Latest(Buffer):
    """A buffer in which only the newest message of each channel is pending; beyond the bounds the oldest is dropped.

    Each is counted at once and none is lent, for each may be replaced.
    """

    __slots__ = ("_newest",)

    def __init__(self, max_pending: int, budget: Budget) -> None:
        super().__init__(max_pending, budget)
        self._newest: dict[bytes, int] = {}  # position of the newest message of each channel; it may be gone
        self._room = -1
        self._rearm_at = 0  # replacing is the purpose: an episode lasts until the consumer has caught up

    def commit(self) -> int:
        fresh, self.fresh = self.fresh, []
        dropped = 0
        for channel, data in pairs(fresh):
            position = self._newest.get(channel, -1)
            if position >= self._head and self._items[position] is not None:
                self._remove_message(position)
                dropped += 1
            self._newest[channel] = len(self._items)
            dropped += self._squeeze([channel, data], len(channel) + len(data))
        return dropped

    def pop_message(self) -> tuple[bytes, bytes] | None:
        return self._pop_one()

    def clear(self) -> int:
        self._newest.clear()
        return super().clear()

    def _compact(self) -> None:
        super()._compact()
        channels = enumerate(self._items[::2])
        self._newest = {channel: 2 * number for number, channel in channels if channel is not None}


_NONES = (None,) * (2 * BATCH_SIZE)


def new_buffer(max_pending: int, overflow: Overflow, budget: Budget) -> Buffer:
    """Return a buffer that drops messages as `overflow` says."""
    if overflow is Overflow.LATEST:
        return Latest(max_pending, budget)
    return Buffer(max_pending, budget, drop_newest=overflow is not Overflow.DROP_OLDEST)
