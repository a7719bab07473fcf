"""Where in a list of events the events about each name are. No I/O, no clock."""

from __future__ import annotations

import sys
from bisect import bisect_left
from contextlib import suppress
from typing import Any

from .events import QueuedSignal, is_about, names_of, pairs

OUTDATED = 64  # events that are indexed in vain before the index is built again
INDEXED_AT_ONCE = 2048  # events that are indexed at a time, at least: in about a millisecond
INDEXED_PART = 64  # this part of the events that are not indexed yet is indexed at a time, if it is more
FEW = 64  # names of a disconnect that are indexed; one with more of them is looked at in each search


class EventIndex:
    """The positions of the events about each name. It grows little by little: to index all at once may take too long.

    It may have positions of events that are gone. The events at other positions must not change.
    """

    __slots__ = ("_limit", "_long", "_places", "_searched", "_signals", "_size", "end")

    def __init__(self, start: int) -> None:
        self.end: int = start
        """The events before this position are indexed."""
        self._places: dict[bytes, int | list[int]] = {}  # no list for a single place: most names have one
        self._long: list[int] = []  # positions of the disconnects of more than FEW names
        self._signals: list[int] = []  # positions of disconnects and errors, also of some that are not indexed yet
        self._searched = start  # all such events before this position are in `_signals`, if they are not indexed
        self._size = 0  # of all places
        self._limit = sys.maxsize

    def __len__(self) -> int:
        """How many names have been indexed."""
        return len(self._places)

    @property
    def is_outdated(self) -> bool:
        """Whether it has so many events that are gone that it is to be built again."""
        return self._size > self._limit

    def left(self, items: list[Any]) -> int:
        """Return how many items are not indexed yet."""
        return len(items) - self.end

    def find_indexed(self, name: bytes, items: list[Any]) -> list[int]:
        """Return the positions of the events about a name that are indexed, in order."""
        known = self._places.get(name, ())
        found = [*self._long, known] if isinstance(known, int) else [*self._long, *known]
        found.sort()
        return [position for position in found if is_about(items, position, name)]

    def find(self, name: bytes, items: list[Any]) -> list[int]:
        """Return the positions of the events about a name, in order."""
        found: list[int] = []
        if self.end < len(items):
            position = self.end
            with suppress(ValueError):  # no more events
                while True:
                    found.append(position := items.index(name, position) & ~1)
                    position += 2
            self._find_signals(items)
            signals = self._signals[bisect_left(self._signals, self.end) :]
            found += [position for position in signals if name in names_of(items[position + 1])]
            found.sort()
        return self.find_indexed(name, items) + [position for position in found if is_about(items, position, name)]

    def _find_signals(self, items: list[Any]) -> None:
        """Find the disconnects and errors that were added since the last call."""
        start, self._searched = max(self.end, self._searched), len(items)
        others = enumerate(items[start + 1 :: 2])
        self._signals += [start + 2 * number for number, other in others if type(other) is QueuedSignal]

    def grow(self, items: list[Any], head: int) -> None:
        """Index some more events. There is none before `head`."""
        start = max(self.end, head)
        left = (len(items) - start) // 2
        self.end = end = start + 2 * min(left, max(INDEXED_AT_ONCE, left // INDEXED_PART))
        places = self._places
        for position, (channel, signal) in zip(range(start, end, 2), pairs(items[start:end]), strict=True):
            names = names_of(signal) if type(signal) is not bytes else (signal if channel is None else channel,)
            if len(names) > FEW:
                self._long.append(position)
                continue
            for name in names:
                known = places.setdefault(name, position)
                if isinstance(known, list):
                    known.append(position)
                elif known != position:
                    places[name] = [known, position]
                self._size += 1
        if self._limit == sys.maxsize and self.end == len(items):
            self._limit = 2 * self._size + OUTDATED
