"""The room that all buffers of one multiplexer share, and which of them makes room for the others. No I/O, no clock."""

from __future__ import annotations

import sys
from collections import OrderedDict, defaultdict
from heapq import nlargest
from itertools import islice
from operator import attrgetter
from typing import Protocol

from .critical import CriticalSection

SHARED_SIZE = 1024  # bytes of a payload from which on it is worth the time to count it once
SMALL = 4096  # the part of the total below which a buffer is not ranked, as long as there is room
MAX_LENDERS = 1024  # buffers that may have lent a batch at a time; bounds the time of recall()
SINGLE = -64  # added to the rank of a buffer with a single message: it comes after all others


class Holder(Protocol):
    """A buffer, as its budget knows it."""

    fresh: list[bytes]
    """The messages that are not counted yet: channel, payload, channel, ..."""
    count: int
    """The other messages. Of a lent batch, what it had at first."""
    size: int
    """The bytes of these messages."""
    rank: int
    """Grows by one with each factor of 2 in size; 0 if the budget has no rank for it."""
    floor: int
    ceiling: int
    """With a size from `floor` to below `ceiling`, the rank does not change."""

    owner: object
    """The key of its losses."""

    def recall(self) -> None:
        """Take back the batch that is lent."""

    def make_room(self) -> int:
        """Drop messages; return how many."""
        ...


class Budget:
    """The bytes of names and payloads that may be pending: in each buffer, and in all of a multiplexer together.

    Until half of the total is used, a payload is counted for each buffer that has it, which takes no time. Beyond, the
    budget is tight: what arrives then is counted once, if it is long. When the total is used up, `largest()` selects a
    buffer that drops messages.
    """

    __slots__ = ("_half", "_ranks", "_shared", "critical", "each", "lenders", "loose", "pending", "size", "small",
                 "uncounted")  # fmt: skip

    def __init__(self, each: int | None = None, total: int | None = None) -> None:
        total = sys.maxsize if total is None else total
        self.each: int = sys.maxsize if each is None else each
        self.loose: int = total // 2
        """The budget is tight beyond this size: half of the total, and the bytes that are counted more than once."""
        self.small: int = total // SMALL
        """A buffer with less than this has a rank only if it got messages while the budget was tight."""
        self.pending: int = 0
        """The messages that the buffers have counted. Of a lent batch, what it had at first."""
        self.size: int = 0
        """The bytes of these messages, in each buffer."""
        self.lenders: set[Holder] = set()
        """The buffers that have lent a batch."""
        self.uncounted: set[Holder] = set()
        """The buffers with messages that are not counted yet."""
        self.critical: CriticalSection = CriticalSection()
        """The changes that are going on, of the buffers and of all else that the multiplexer keeps."""
        self._half = total - self.loose
        self._shared: dict[int, int] = {}  # by the identity of a payload that is counted once: how many buffers have it
        self._ranks: defaultdict[int, OrderedDict[Holder, None]] = defaultdict(OrderedDict)

    @property
    def is_tight(self) -> bool:
        """Whether more than half of the total is used."""
        return self.size > self.loose

    @property
    def is_exceeded(self) -> bool:
        """Whether more is pending than the total, with each shared payload counted once."""
        return self.size > self.loose + self._half

    @property
    def totals(self) -> tuple[int, int]:
        """How many messages are pending now, and their bytes in each buffer."""
        if not self.critical.is_open:  # otherwise a finalizer asks
            self.recall()
        fresh = [holder.fresh for holder in [*self.uncounted]]
        return self.pending + sum(map(len, fresh)) // 2, self.size + sum([sum(map(len, items)) for items in fresh])

    def recall(self, size: int = sys.maxsize) -> None:
        """Count lent batches exactly, until all are, or the budget with `size` more bytes is not tight."""
        while self.lenders and self.size + size > self.loose:
            self.lenders.pop().recall()

    # --- long payloads

    def share(self, data: bytes) -> None:
        """Take note that one more buffer has a long payload, and keeps it until `unshare()`."""
        holders = self._shared[id(data)] = self._shared.get(id(data), 0) + 1
        if holders > 1:
            self.loose += len(data)

    def unshare(self, data: bytes) -> None:
        """Take note that a buffer removes a long payload."""
        holders = self._shared.pop(id(data)) - 1
        if holders:
            self._shared[id(data)] = holders
            self.loose -= len(data)

    # --- large buffers

    def sort(self, holder: Holder) -> None:
        """Give a buffer the rank of its size."""
        size, known = holder.size, holder.rank
        holder.rank, holder.floor, holder.ceiling = 0, 0, self.small
        if size and (size >= self.small or self.is_tight):
            holder.rank = rank = size.bit_length()
            holder.floor, holder.ceiling = 1 << (rank - 1), 1 << rank
            if holder.count == 1:
                holder.rank += SINGLE
                holder.ceiling = size + 1  # it has another rank with the next message, however short
        if holder.rank != known:
            if known:
                self._ranks[known].pop(holder, None)
            if holder.rank:
                self._ranks[holder.rank][holder] = None

    def holders(self, count: int) -> list[Holder]:
        """Return the largest buffers that have a rank, the largest first. Those with a single message come last."""
        found: list[Holder] = []
        for rank in sorted(self._ranks, reverse=True):
            if len(found) < count:
                found += nlargest(count - len(found), self._ranks[rank], attrgetter("size"))
        return found

    def largest(self, newcomer: Holder) -> Holder | None:
        """Return one of the largest buffers; those of one rank take turns.

        A buffer with a single message comes after all others. `newcomer` is left out if it has a single message: so a
        subscription always gets its next message, however large that is, and however much the others hold.
        """
        for rank in sorted(self._ranks, reverse=True):
            holders = self._ranks[rank]
            for holder in islice(holders, 2):
                if rank > 0 or holder is not newcomer:
                    holders.move_to_end(holder)
                    return holder
        return None
