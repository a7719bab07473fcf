"""The events of a buffer in one list: removed by name in time that does not depend on the others. Has no bounds.

The events module has the form of the list. A removed event leaves its two items behind, so the positions of the others
stay valid; `_compact()` deletes such items many at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from itertools import chain, compress, islice, repeat
from operator import is_not
from typing import Any

from .event_index import EventIndex
from .events import QueuedSignal, Signal, pairs

SLACK = 64  # items of removed events that may be left behind before anything is done about them
SEARCH = 32  # events that are looked at in the time of one search for a name
MERGED_AT_ONCE = 256  # names whose disconnects are merged in about a millisecond


class EventList(ABC):
    """Messages and signals in order. A subclass adds and removes messages, counts them, and keeps bounds."""

    __slots__ = ("_full_gap", "_gaps", "_head", "_index", "_items", "_last_gap", "_oldest", "_removed", "_tail",
                 "_unmerged", "count", "signals")  # fmt: skip

    def __init__(self) -> None:
        self.signals: int = 0
        """How many signals are queued."""
        self.count: int = 0
        """How many messages are queued, as far as they are counted."""
        self._items: list[Any] = []
        self._head = 0  # position of the next event; all items before it are None
        self._removed = 0  # removed events from there on
        self._oldest = 0  # no message is between `_head` and this position
        self._tail = (0, 0)  # with a list of this length, no message is from this position on
        self._gaps = 0  # disconnects that are queued
        self._unmerged: list[bytes] = []  # the names that may be in more than one of them
        self._last_gap = 0  # with such names, no disconnect of some names is from this position on
        self._full_gap = -1  # position of a queued disconnect of all names; no later disconnect is queued
        self._index: EventIndex | None = None  # made when something is removed: nothing else needs it

    @property
    def signal_is_next(self) -> bool:
        """Whether the oldest event is a signal."""
        return self.signals > 0 and self._items[self._skip()] is None

    @property
    def has_disconnect(self) -> bool:
        """Whether a disconnect is queued."""
        return self._gaps > 0

    @property
    def is_merging(self) -> bool:
        """Whether merge_some() is to be called."""
        return bool(self._unmerged)

    @property
    def next_channel(self) -> bytes | None:
        """The channel of the oldest message that is counted; None if there is none."""
        channels = islice(self._items, self._head, None, 2)
        return next((channel for channel in channels if channel is not None), None)

    def signal(self, kind: Signal, argument: object, name: bytes) -> None:
        """Add an activation, a gap or an error."""
        self._add_signal(name if kind is Signal.ACTIVATION else QueuedSignal(kind, argument, {name}))

    def disconnect(self, argument: object, names: frozenset[bytes] | None, lost: Iterable[bytes] | None = None) -> int:
        """Add a disconnect of these names, or, for None, of all; return how many messages were dropped for it.

        `lost` has the names that were active, if `names` is None: when the last of them is removed, the disconnect is.

        A name of which an earlier disconnect is still queued is not repeated: its connection between the two came and
        went unseen. Both are one gap for the consumer, and what was received between them is dropped. So reconnects
        cannot fill the buffer of a stuck consumer. Disconnects of some names are merged later, by merge_some().
        """
        before = self.count
        if names is None:
            if self._full_gap >= 0:
                self._drop_after_full_gap()
                self._items[self._full_gap + 1].is_merged = True
            else:
                self._full_gap, self._gaps = len(self._items), self._gaps + 1
                gap = QueuedSignal(Signal.DISCONNECT, argument, None, None if lost is None else set(lost))
                self._add_signal(gap)
        elif self._full_gap >= 0:
            self._remove_events(names, self._full_gap + 2)
        else:
            self._gaps += 1
            self._add_signal(QueuedSignal(Signal.DISCONNECT, argument, names))
            if self._gaps > 1:
                self._unmerged += names
                self._last_gap = len(self._items)
        self._tidy()
        return before - self.count

    def merge_some(self) -> int:
        """Merge the disconnects of some names with earlier ones; return how many messages were dropped for it.

        It takes about a millisecond, and is to be called until `is_merging` is False. All events of a name are merged
        in one call, so they are in order before and after it, whatever is popped, added or removed meanwhile.
        """
        before = self.count
        if self._gaps < 2:
            self._unmerged.clear()
        elif self._index is None or self._index.end < self._last_gap:
            self._grow_index()  # not to the end of the list: messages may be added faster than they are indexed
        else:
            names = self._unmerged[-MERGED_AT_ONCE:]
            del self._unmerged[-MERGED_AT_ONCE:]
            for name in names:
                self._merge(name)
        self._tidy()
        return before - self.count

    def active_before(self, active: Iterable[bytes]) -> set[bytes]:
        """Return the names that were active before the queued events; `active` has the names that are active after."""
        names = set(active)
        channels, others = self._items[self._head :: 2], self._items[self._head + 1 :: 2]
        for channel, signal in zip(reversed(channels), reversed(others), strict=True):
            if channel is None and type(signal) is bytes:
                names.discard(signal)
            elif channel is None and signal is not None and signal.kind is Signal.DISCONNECT:
                names |= (signal.lost or set()) if signal.names is None else signal.names
        return names

    def pop_signal(self) -> QueuedSignal | None:
        """Remove and return the oldest event, if that is a signal."""
        if not self.signal_is_next:
            return None
        signal = self._items[self._head + 1]
        if type(signal) is bytes:
            signal = QueuedSignal(Signal.ACTIVATION, signal, {signal})
        self._remove_signal(self._head)
        self._skip()
        self._tidy()
        assert isinstance(signal, QueuedSignal)
        return signal

    def remove(self, names: frozenset[bytes]) -> int:
        """Remove all that is queued about these names; return how many messages that were.

        A disconnect loses these names, and is removed if it has no others.
        """
        before = self.count
        self._remove_events(names, self._head)
        if self._full_gap >= 0:
            gap: QueuedSignal = self._items[self._full_gap + 1]
            if gap.lost is not None:
                gap.lost -= names
                if not gap.lost:
                    self._remove_signal(self._full_gap)
        self._tidy()
        return before - self.count

    def _clear(self) -> None:
        """Remove everything."""
        self._items.clear()
        self._head = self.count = self._removed = self._oldest = self.signals = self._gaps = 0
        self._full_gap, self._index, self._tail, self._last_gap = -1, None, (0, 0), 0
        self._unmerged.clear()

    # --- gaps

    def _drop_after_full_gap(self) -> None:
        """Remove what was queued after a disconnect of all names.

        The error about a name stays, if the name was not activated after it: it is not reported again.
        """
        start = self._full_gap + 2
        channels, others = self._items[start::2], self._items[start + 1 :: 2]
        is_message = list(map(is_not, channels, repeat(None)))
        dropped = sum(is_message)
        signals, errors = len(channels) - dropped, []
        if not {QueuedSignal, type(None)}.isdisjoint(map(type, others)):
            activated: set[bytes] = set()
            for channel, signal in zip(reversed(channels), reversed(others), strict=True):
                if channel is None and type(signal) is bytes:
                    activated.add(signal)
                elif signal is None:
                    signals -= 1
                elif channel is None and signal.kind is Signal.ERROR and not signal.names <= activated:
                    errors.append(signal)
        self._count_off(start, dropped, sum(map(len, compress(chain(channels, others), is_message * 2))))
        del self._items[start:]
        self.signals -= signals
        self._removed -= len(channels) - signals - dropped
        self._oldest, self._index, self._tail = min(self._oldest, start), None, (0, 0)
        self._last_gap = min(self._last_gap, start)
        for signal in reversed(errors):
            self._add_signal(signal)

    def _merge(self, name: bytes) -> None:
        """Merge the gaps of a name: keep its first disconnect, and remove its later events up to the last one."""
        assert self._index is not None
        places = self._index.find_indexed(name, self._items)
        gaps = [position for position in places if self._is_gap(position)]
        if len(gaps) > 1:
            for position in places[places.index(gaps[0]) + 1 : places.index(gaps[-1]) + 1]:
                self._remove_event(position, name)

    def _is_gap(self, position: int) -> bool:
        signal = self._items[position + 1]
        return type(signal) is QueuedSignal and signal.kind is Signal.DISCONNECT

    # --- one event

    def _add_signal(self, signal: QueuedSignal | bytes) -> None:
        self._items += (None, signal)
        self.signals += 1

    def _skip(self) -> int:
        """Move the head to the oldest event; return its position."""
        items, head = self._items, self._head
        while self._removed and items[head + 1] is None:
            head += 2
            self._removed -= 1
        self._head = head
        return head

    @abstractmethod
    def _remove_message(self, position: int) -> None:
        """Remove the message at a position, and count it."""

    def _drop_oldest(self) -> None:
        """Remove the oldest message. There must be one."""
        items, position = self._items, max(self._oldest, self._head)
        while items[position] is None:
            position += 2
        self._remove_message(position)
        self._oldest = position + 2

    def _drop_newest(self) -> None:
        """Remove the newest message. There must be one."""
        items, (length, end) = self._items, self._tail
        position = (end if length == len(items) else len(items)) - 2
        while items[position] is None:
            position -= 2
        self._remove_message(position)
        self._tail = len(items), position

    @abstractmethod
    def _count_off(self, start: int, count: int, size: int) -> None:
        """Count the messages from a position on, and their bytes, as removed; they are deleted then."""

    def _remove_signal(self, position: int) -> None:
        self._gaps -= self._is_gap(position)
        self._items[position + 1] = None
        self.signals -= 1
        self._removed += 1
        if position == self._full_gap:
            self._full_gap = -1

    def _remove_event(self, position: int, name: bytes) -> None:
        """Remove what an event has to do with a name."""
        channel, signal = self._items[position], self._items[position + 1]
        if channel is not None:
            self._remove_message(position)
        elif type(signal) is QueuedSignal and signal.names is not None and len(signal.names) > 1:
            signal.forget((name,))
        elif signal is not None:
            self._remove_signal(position)

    # --- the events about some names

    def _is_worth_a_sweep(self, names: frozenset[bytes]) -> bool:
        """Whether a look at every event takes less time than a search for each of these names.

        If the answer is False, some more events were indexed. A search looks through the events that are not.
        """
        items = self._items
        queued = len(items) - self._head
        return 2 * SEARCH * len(names) > queued or len(names) * self._grow_index().left(items) > queued

    def _grow_index(self) -> EventIndex:
        """Index some more events; return the index."""
        if self._index is None or (self._index.is_outdated and not self._unmerged):
            self._index = EventIndex(self._head)
        self._index.grow(self._items, self._head)
        return self._index

    def _remove_events(self, names: frozenset[bytes], start: int) -> None:
        """Remove the events about these names from a position on."""
        if not self._is_worth_a_sweep(names):
            for name in names:
                for position in self._find(name):
                    if position >= start:
                        self._remove_event(position, name)
            return
        items, activations = self._items, 0
        for position, (channel, signal) in zip(range(start, len(items), 2), pairs(items[start:]), strict=True):
            if channel is not None:
                if channel in names:
                    self._remove_message(position)
            elif type(signal) is bytes:
                if signal in names:
                    items[position + 1] = None
                    activations += 1
            elif signal is not None and signal.names is not None:
                signal.forget(names)
                if not signal.names:
                    self._remove_signal(position)
        self.signals -= activations
        self._removed += activations

    def _find(self, name: bytes) -> list[int]:
        """Return the positions of the events about a name, in order. A sweep must not be worth its time."""
        assert self._index is not None
        return self._index.find(name, self._items)

    # --- the list

    def _tidy(self) -> None:
        """Delete what popped and removed events left behind, when that is half of the list."""
        if self._unmerged:
            return  # merge_some() needs a complete index, and might never get it
        waste = self._head + 2 * self._removed
        if 2 * waste > len(self._items) + SLACK and (self._index is None or waste > len(self._index)):
            self._compact()  # to build the index again costs no more than to pop and remove these events did

    def _compacted(self, position: int) -> int:
        """Return what _compact() makes of a position."""
        head = self._skip()
        return max(0, position - head - 2 * self._items[head + 1 : position : 2].count(None))

    def _compact(self) -> None:
        """Delete what popped and removed events left behind. The index must be built again."""
        items, head = self._items, self._skip()
        if self._full_gap >= 0:
            self._full_gap = self._compacted(self._full_gap)
        del items[:head]
        if self._removed:
            is_kept = list(map(is_not, items[1::2], repeat(None)))
            kept: list[Any] = [None] * (2 * sum(is_kept))
            kept[::2] = compress(items[::2], is_kept)
            kept[1::2] = compress(items[1::2], is_kept)
            self._items = kept
        self._head = self._removed = self._oldest = 0
        self._index, self._tail = None, (0, 0)
