"""The events that wait for a subscription's consumer: in order, bounded, counted. No I/O, no clock."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from .budget import MAX_LENDERS, SHARED_SIZE, Budget
from .event_list import EventList
from .events import QueuedSignal, pairs, take_whole
from .overflow import Overflow

BATCH_SIZE = 32  # messages that are popped and counted together

DEFERRED = object()
"""What put() returns when commit() is to be called once no more messages are at hand."""
FULL = object()
"""What put() returns when commit() is to be called at once."""

Losses: TypeAlias = dict[Any, int]
"""How many messages were dropped for lack of room, by the owner of the buffer."""


class Buffer(EventList):
    """A FIFO of messages and signals: at most `max_pending` messages, and no more bytes than the budget allows.

    Beyond that the oldest message is dropped, or the newest. An empty buffer takes one message of any size. When the
    buffers of a budget together are too large, the largest drops messages. Messages arrive many at a time and are
    counted together: put() adds to `fresh`; commit() is called at the end of the burst, and before any other change.
    They leave many at a time, too: the consumer pops from `batch`, and calls pop_message() when that is empty.
    A finalizer may interrupt both half way through a message: the number of items is odd then, and the last one stays.
    """

    __slots__ = ("_budget", "_lent", "_lent_size", "_max_pending", "_overflow", "_quiet", "_rearm_at", "_room",
                 "_shared_from", "batch", "ceiling", "floor", "fresh", "limit", "overflowing", "owner", "rank",
                 "size")  # fmt: skip

    def __init__(self, max_pending: int, budget: Budget, overflow: Overflow, owner: object) -> None:
        super().__init__()
        self.fresh: list[bytes] = []
        self.batch: list[bytes] = []
        """The oldest messages, the next one last: ..., payload, channel. Never the last message of the buffer."""
        self.overflowing: bool = False
        """Whether messages were dropped, and the consumer has not caught up since."""
        self.limit: str = ""
        """The option for which the last message was dropped."""
        self.size = self.rank = self.floor = 0
        self.ceiling: int = budget.small
        self.owner, self._max_pending, self._overflow, self._budget = owner, max_pending, overflow, budget
        self._rearm_at = max_pending // 2
        self._room = 2 * max_pending  # items that `fresh` may have, as far as their number goes
        self._quiet = 0  # items that `fresh` may have before put() returns anything
        self._lent = self._lent_size = 0  # items that `batch` had at first, and their bytes; 0 if no batch is lent
        self._shared_from = sys.maxsize  # from this position on, the budget counts long payloads once

    def __len__(self) -> int:
        """Messages pending."""
        return self.count + (len(self.fresh) + len(self.batch) - self._lent) // 2

    def __bool__(self) -> bool:
        """Whether anything is pending, a message or a signal."""
        return self.signals > 0 or len(self) > 0

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
        if self.fresh:  # otherwise a finalizer has cleared the buffer
            self._quiet = self._room
            self._budget.uncounted.add(self)
        return DEFERRED

    def commit(self) -> Losses:
        """Count the fresh messages, in one go if there is room for all of them; return which messages were dropped.

        There must be some. Messages of other buffers may be dropped, too.
        """
        budget = self._budget
        critical = budget.critical
        critical.is_entered = True  # here and in pop_message(), `with` would take too much time
        try:
            fresh, self.fresh, self._quiet = self.fresh, [], 0
            if len(fresh) & 1:
                self.fresh = fresh
                fresh = take_whole(fresh)
            size = sum(map(len, fresh))
            budget.uncounted.discard(self)
            if len(fresh) <= self._room and self._is_roomy(size):
                self._items += fresh
                self._grow(len(fresh) // 2, size)
                losses = _NO_LOSSES
            else:
                losses = {}
                self._squeeze(fresh, size, losses)
            self._room = 2 * (self._max_pending - self.count) + self._lent - len(self.batch)
        finally:
            critical.is_entered = False
            if critical.postponed:
                critical.catch_up()
        return losses

    def _is_roomy(self, size: int) -> bool:
        """Whether messages of so many bytes fit easily, and each may be counted for itself."""
        budget, is_shared = self._budget, self._shared_from != sys.maxsize
        return not is_shared and self.size + size <= budget.each and budget.size + size <= budget.loose

    def _squeeze(self, fresh: list[bytes], size: int, losses: Losses) -> None:
        """Add messages for which room may have to be made; count in `losses` what is dropped."""
        budget = self._budget
        self.recall()
        budget.recall(size)
        is_tight = budget.size + size > budget.loose
        if not self.count:
            self._shared_from = sys.maxsize
        if is_tight and self._shared_from == sys.maxsize:
            self._shared_from = len(self._items)
        dropped = self._add_fitting(fresh) if self._drops_newest else self._add_all(fresh, size)
        if dropped:
            losses[self.owner] = losses.get(self.owner, 0) + dropped
        if is_tight:
            if not self.rank:
                budget.sort(self)
            while budget.is_exceeded and (largest := budget.largest(self)) is not None:
                losses[largest.owner] = losses.get(largest.owner, 0) + largest.make_room()
        self._tidy()

    def _add_fitting(self, fresh: list[bytes]) -> int:
        """Add messages as long as there is room; return how many were dropped."""
        dropped = 0
        for channel, data in pairs(fresh):
            size = len(channel) + len(data)
            if self.count and self._exceeds(1, size):
                dropped += 1
            else:
                self._append([channel, data], size)
        return dropped

    def _add_all(self, fresh: list[bytes], size: int) -> int:
        """Add messages, and drop the oldest until the others fit; return how many were dropped."""
        before = self.count + len(fresh) // 2
        self._append(fresh, size)
        while self.count > 1 and self._exceeds(0, 0):
            self._drop_oldest()
        return before - self.count

    def disconnect(self, argument: object, names: frozenset[bytes] | None, lost: Iterable[bytes] | None = None) -> int:
        """Add a disconnect as EventList does; return how many messages were dropped for it."""
        return self._dropped_by(super().disconnect, argument, names, lost)

    def merge_some(self) -> int:
        """Merge some disconnects as EventList does; return how many messages were dropped for it."""
        return self._dropped_by(super().merge_some)

    def remove(self, names: frozenset[bytes]) -> int:
        """Remove all that is queued about these names; return how many messages that were."""
        return self._dropped_by(super().remove, names)

    def _dropped_by(self, change: Callable[..., int], *arguments: object) -> int:
        with self._budget.critical:
            self.recall()
            dropped = change(*arguments)
            self._rearm()
        return dropped

    def clear(self) -> int:
        """Remove everything; return how many messages that were."""
        with self._budget.critical:
            dropped = len(self)
            self.recall()
            self._unshare(0)
            self._grow(-self.count, -self.size)
            self._shared_from = sys.maxsize
            self._budget.uncounted.discard(self)
            take_whole(self.fresh)
            self._quiet = 0
            self._clear()
            self._rearm()
        return dropped

    def close(self) -> int:
        """Remove everything, for good; return how many messages that were."""
        dropped = self.clear()
        self._budget = Budget()  # another method may have been about to begin
        self.detach()
        return dropped

    def detach(self) -> None:
        """Have put() return FULL from now on: a finalizer may have interrupted it at its beginning."""
        self._room = self._quiet = -1

    # --- events out

    def pop_message(self, most: int = 0) -> tuple[bytes, bytes] | None:
        """Remove and return the oldest event, if that is a message. Lends up to `most` with it; 0: `BATCH_SIZE`."""
        batch = self.batch
        if not batch:
            critical = self._budget.critical
            critical.is_entered = True
            try:
                if self._lent:
                    self.recall()
                if self.signals or self.count < 2 or self.overflowing or not self._is_roomy(0):
                    # Something is to be looked at after each message, the last one among them; or the room is tight.
                    return self._pop_one()
                self._lend(most or BATCH_SIZE)
                return batch.pop(), batch.pop()
            finally:
                critical.is_entered = False
                if critical.postponed:
                    critical.catch_up()
        return batch.pop(), batch.pop()

    def pop_signal(self) -> QueuedSignal | None:
        with self._budget.critical:
            return super().pop_signal()

    def _pop_one(self) -> tuple[bytes, bytes] | None:
        """Pop one message, and count it at once."""
        if not self.count or (self.signals and self.signal_is_next):
            return None
        items, head = self._items, self._skip()
        channel, data = items[head], items[head + 1]
        self._remove_message(head)
        self._skip()
        self._tidy()
        if self.overflowing:
            self._rearm()
        return channel, data

    def _lend(self, most: int) -> None:
        """Move the next messages to the batch, which is counted when it is used up or recalled.

        The batch ends before the first removed event, so that recall() restores all positions.
        """
        items, head = self._items, self._skip() if self._removed else self._head
        chunk = items[head : head + 2 * min(most, self.count - 1)]
        if self._removed and None in chunk:
            del chunk[chunk.index(None) :]
        self._lent = lent = len(chunk)
        self._lent_size = sum(map(len, chunk))
        items[head : head + lent] = (None,) * lent  # or the payloads would outlive their consumption
        self._head = head + lent
        self.batch.extend(reversed(chunk))
        lenders = self._budget.lenders
        if len(lenders) >= MAX_LENDERS:
            lenders.pop().recall()
        lenders.add(self)

    def recall(self) -> None:
        """Move what is left of the batch back to the list, and count it exactly."""
        if not self._lent:
            return
        with self._budget.critical:
            rest = take_whole(self.batch)
            consumed, size = (self._lent - len(rest)) // 2, self._lent_size - sum(map(len, rest))
            rest.reverse()
            self._lent = self._lent_size = 0
            self._budget.lenders.discard(self)
            self._grow(-consumed, -size)
            if rest:
                self._head -= len(rest)
                self._items[self._head : self._head + len(rest)] = rest
                self._oldest = self._head
            else:
                self._tidy()

    # --- the room

    @property
    def _drops_newest(self) -> bool:
        return self._overflow in (Overflow.DROP_NEWEST, Overflow.CLOSE)

    def _exceeds(self, count: int, size: int) -> bool:
        """Whether more messages of so many bytes are too many for this buffer. Without a batch that is lent."""
        if self.count + count > self._max_pending:
            self.limit = "max_pending"
        elif self.size + size > self._budget.each:
            self.limit = "max_pending_bytes"
        else:
            return False
        return True

    def make_room(self) -> int:
        """Drop a message, so that other buffers have room; return how many were dropped. No batch may be lent."""
        self.limit = "max_total_pending_bytes"
        if self._overflow is Overflow.CLOSE:
            return self.clear()
        (self._drop_newest if self._drops_newest else self._drop_oldest)()
        self._tidy()
        return 1

    def _append(self, messages: list[bytes], size: int) -> None:
        if self._shared_from != sys.maxsize:
            for data in [data for data in messages[1::2] if len(data) >= SHARED_SIZE]:
                self._budget.share(data)
        self._items += messages
        self._grow(len(messages) // 2, size)

    def _remove_message(self, position: int) -> None:
        items = self._items
        channel, data = items[position], items[position + 1]
        items[position] = items[position + 1] = None
        self._removed += 1
        if position >= self._shared_from and len(data) >= SHARED_SIZE:
            self._budget.unshare(data)
        self._grow(-1, -len(channel) - len(data))

    def _count_off(self, start: int, count: int, size: int) -> None:
        self._unshare(start)
        if start < self._shared_from < sys.maxsize:  # later messages get these positions
            self._shared_from = start
        self._grow(-count, -size)

    def _unshare(self, start: int) -> None:
        for channel, data in pairs(self._items[max(start, self._shared_from) :]):
            if channel is not None and len(data) >= SHARED_SIZE:
                self._budget.unshare(data)

    def _grow(self, count: int, size: int) -> None:
        """Take note that so many messages and bytes were added, or, if negative, removed."""
        budget = self._budget
        budget.pending += count
        budget.size += size
        self.count += count
        self.size = size = self.size + size
        if not self.floor <= size < self.ceiling or (self.rank > 0 and self.count == 1):
            budget.sort(self)

    def _rearm(self) -> None:
        """End the episode of an overflow, if the consumer has caught up."""
        if len(self) <= self._rearm_at and 2 * self.size <= self._budget.each and not self._budget.is_tight:
            self.overflowing = False

    def _compact(self) -> None:
        if self._shared_from != sys.maxsize:
            self._shared_from = self._compacted(self._shared_from)
        super()._compact()


_NO_LOSSES: Losses = {}  # never written to
