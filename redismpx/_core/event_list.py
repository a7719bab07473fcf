"""The events of a buffer in one list: removed by name in time that does not depend on the others. Has no bounds.

Each event has two items, oldest first:

    channel, payload    a message
    None, signal        an activation, a disconnect or an error
    None, None          an event that was removed, or popped

Not a tuple for each: many tuples would make the garbage collector walk the whole heap again and again. A removed event
leaves its two items behind, so the positions of the others stay valid; `_compact()` deletes such items many at a time.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterable, Iterator
from typing import Any

SLACK = 64  # items of removed events that may be left behind before anything is done about them


class Signal(enum.Enum):
    """The kinds of events that are not messages. Signals are never dropped for lack of room."""

    ACTIVATION = "activation"
    DISCONNECT = "disconnect"
    ERROR = "error"


class QueuedSignal:
    """A signal in the buffer: its kind, its argument, and the names that it is about; None stands for all names."""

    __slots__ = ("argument", "kind", "lost", "names")

    def __init__(
        self, kind: Signal, argument: object, names: set[bytes] | None, lost: set[bytes] | None = None
    ) -> None:
        self.kind = kind
        self.argument = argument
        self.names = names
        self.lost = lost
        """For a disconnect of all names: those that were active then and are still subscribed to; None: unknown."""


class _Index:
    """Where in the list of a buffer the events about each name are, among them some that are gone."""

    __slots__ = ("end", "limit", "places", "size")

    def __init__(self, start: int) -> None:
        self.places: dict[bytes, list[int]] = {}
        self.end = start  # the events before this position are indexed
        self.size = 0  # of all lists
        self.limit = sys.maxsize  # when there are more, it is built again


class EventList:
    """Messages and signals in order. A subclass adds and removes messages, counts them, and keeps bounds."""

    __slots__ = ("_full_gap", "_head", "_index", "_items", "_oldest", "_removed", "count", "signals")

    def __init__(self) -> None:
        self.signals: int = 0
        """How many signals are queued."""
        self.count: int = 0
        """How many messages are queued, as far as they are counted."""
        self._items: list[Any] = []  # see the top of this module
        self._head = 0  # position of the next event; all items before it are None
        self._removed = 0  # removed events from there on
        self._oldest = 0  # no message is between `_head` and this position
        self._full_gap = -1  # position of a queued disconnect of all names; no later disconnect is queued
        self._index: _Index | None = None  # made when something is removed: nothing else needs it

    @property
    def signal_is_next(self) -> bool:
        """Whether the oldest event is a signal."""
        return self.signals > 0 and self._items[self._skip()] is None

    def signal(self, kind: Signal, argument: object, name: bytes) -> None:
        """Add an activation or an error."""
        self._add_signal(QueuedSignal(kind, argument, {name}))

    def disconnect(self, argument: object, names: frozenset[bytes] | None, lost: Iterable[bytes] | None = None) -> int:
        """Add a disconnect of these names, or, for None, of all; return how many messages were dropped for it.

        `lost` has the names that were active, if `names` is None: when the last of them is removed, the disconnect is.

        A name of which an earlier disconnect is still queued is not repeated: its connection between the two came and
        went unseen. Both are one gap for the consumer, and what was received between them is dropped. So reconnects
        cannot fill the buffer of a stuck consumer.
        """
        if names is None and self._full_gap >= 0:
            dropped = self._drop_after_full_gap()
        elif names is None:
            self._full_gap = len(self._items)
            self._add_signal(QueuedSignal(Signal.DISCONNECT, argument, None, None if lost is None else set(lost)))
            return 0
        else:
            dropped, places, new = 0, self._places(), set(names)
            for name in names:
                gap = self._gap_of(places.get(name, ()))
                if gap >= 0:
                    new.discard(name)
                    dropped += self._remove(name, gap + 2)
            if new:
                self._add_signal(QueuedSignal(Signal.DISCONNECT, argument, new))
        self._tidy()
        return dropped

    def _drop_after_full_gap(self) -> int:
        """Remove what was queued after a disconnect of all names; return how many messages that were.

        The error about a name stays, if the name was not activated after it: it is not reported again.
        """
        before = self.count
        activated: set[bytes] = set()
        for position in range(len(self._items) - 2, self._full_gap, -2):
            signal: QueuedSignal | None = self._items[position + 1]
            if self._items[position] is not None:
                self._remove_message(position)
            elif signal is not None and signal.names is not None:
                if signal.kind is Signal.ERROR and not signal.names <= activated:
                    continue
                activated |= signal.names
                self._remove_signal(position)
        return before - self.count

    def _gap_of(self, places: Any) -> int:
        """Return the position of the last disconnect queued that is about a name with these places; -1 if none is."""
        if self._full_gap >= 0:
            return self._full_gap
        for position in reversed(places):
            if position < self._head:
                break
            signal = self._items[position + 1]
            if self._items[position] is None and signal is not None and signal.kind is Signal.DISCONNECT:
                return int(position)
        return -1

    def pop_signal(self) -> QueuedSignal | None:
        """Remove and return the oldest event, if that is a signal."""
        if not self.signal_is_next:
            return None
        signal: QueuedSignal = self._items[self._head + 1]
        self._remove_signal(self._head)
        self._skip()
        self._tidy()
        return signal

    def remove(self, names: frozenset[bytes]) -> int:
        """Remove all that is queued about these names; return how many messages that were.

        A disconnect loses these names, and is removed if it has no others.
        """
        self._places()
        dropped = sum([self._remove(name, 0) for name in names])
        if self._full_gap >= 0:
            gap: QueuedSignal = self._items[self._full_gap + 1]
            if gap.lost is not None:
                gap.lost -= names
                if not gap.lost:
                    self._remove_signal(self._full_gap)
        self._tidy()
        return dropped

    def _clear(self) -> None:
        """Remove everything."""
        self._items.clear()
        self._head = self.count = self._removed = self._oldest = self.signals = 0
        self._full_gap, self._index = -1, None

    # --- one event

    def _add_signal(self, signal: QueuedSignal) -> None:
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

    def _remove_message(self, position: int) -> None:
        raise NotImplementedError  # a subclass counts it

    def _remove_signal(self, position: int) -> None:
        self._items[position + 1] = None
        self.signals -= 1
        self._removed += 1
        if position == self._full_gap:
            self._full_gap = -1

    def _remove(self, name: bytes, start: int) -> int:
        """Remove what is queued about an indexed name from position `start` on; return how many messages that were."""
        assert self._index is not None
        places, before = self._index.places.pop(name, ()), self.count
        kept = []
        for position in places:
            signal = self._items[position + 1]
            if position < start:
                kept.append(position)
            elif self._items[position] is not None:
                self._remove_message(position)
            elif signal is not None:  # popped and removed events are still in the index
                signal.names.discard(name)
                if not signal.names:
                    self._remove_signal(position)
        if kept:
            self._index.places[name] = kept
        return before - self.count

    def _places(self) -> dict[bytes, list[int]]:
        """Return where the events about each name are, after indexing those that are not indexed yet."""
        index, items = self._index, self._items
        if index is None or index.size > index.limit:
            self._index = index = _Index(self._head)
        places, start = index.places, max(index.end, self._head)
        for position, channel in zip(range(start, len(items), 2), items[start::2], strict=True):
            if channel is not None:
                places.setdefault(channel, []).append(position)
                index.size += 1
            elif (signal := items[position + 1]) is not None and signal.names is not None:
                for name in signal.names:
                    places.setdefault(name, []).append(position)
                index.size += len(signal.names)
        if index.limit == sys.maxsize:
            index.limit = 2 * index.size + SLACK
        index.end = len(items)
        return places

    def _tidy(self) -> None:
        """Delete what popped and removed events left behind, when that is a quarter of the list."""
        waste = self._head + 2 * self._removed
        if 4 * waste > len(self._items) + SLACK and (self._index is None or waste > len(self._index.places)):
            self._compact()  # to build the index again costs no more than to pop and remove these events did

    def _compacted(self, position: int) -> int:
        """Return what _compact() makes of a position."""
        head = self._skip()
        return max(0, position - head - 2 * self._items[head + 1 : position : 2].count(None))

    def _compact(self) -> None:
        """Delete what popped and removed events left behind. The index must be built again."""
        items, head = self._items, self._skip() if self._removed else self._head
        if self._full_gap >= 0:
            self._full_gap = self._compacted(self._full_gap)
        del items[:head]
        if self._removed:
            self._items = [item for pair in pairs(items) if pair[1] is not None for item in pair]
        self._head = self._removed = self._oldest = 0
        self._index = None


def pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Take channel, payload, channel, ... two by two."""
    one_by_one = iter(items)
    return zip(one_by_one, one_by_one, strict=True)
