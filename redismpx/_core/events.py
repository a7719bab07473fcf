"""The events of a buffer, as a list has them. No I/O, no clock.

Each event has two items in the list, oldest first:

    channel, payload    a message
    None, name          an activation
    None, signal        a disconnect or an error
    None, None          an event that was removed, or popped

Not an object for each: many objects would make the garbage collector walk the whole heap again and again.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator
from typing import Any


class Signal(enum.Enum):
    """The kinds of events that are not messages. Signals are never dropped for lack of room."""

    ACTIVATION = "activation"
    DISCONNECT = "disconnect"
    GAP = "gap"
    ERROR = "error"


class QueuedSignal:
    """A signal in the buffer: its kind, its argument, and the names that it is about; None stands for all names."""

    __slots__ = ("argument", "is_merged", "kind", "lost", "names")

    def __init__(
        self, kind: Signal, argument: Any, names: set[bytes] | frozenset[bytes] | None, lost: set[bytes] | None = None
    ) -> None:
        self.kind = kind
        self.argument = argument
        self.names = names
        self.lost = lost
        """For a disconnect of all names: those that were active then and are still subscribed to; None: unknown."""
        self.is_merged: bool = False
        """For a disconnect of all names: whether it stands for later ones, too."""

    def forget(self, names: Collection[bytes]) -> None:
        """Take note that the signal is not about these names any more. It must not be about all names."""
        known = self.names
        assert known is not None
        if len(names) > len(known):
            self.names = known.difference(names)
        else:  # most often a few of very many, which are copied once
            if not isinstance(known, set):
                known = self.names = set(known)
            known.difference_update(names)


def pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Take channel, payload, channel, ... two by two."""
    one_by_one = iter(items)
    return zip(one_by_one, one_by_one, strict=True)


def take_whole(items: list[bytes]) -> list[bytes]:
    """Remove and return all but the last item of an odd number of items; see `Buffer`."""
    whole = items[: len(items) & ~1]
    del items[: len(whole)]
    return whole


def names_of(signal: QueuedSignal | None) -> Collection[bytes]:
    """Return the names that a disconnect or an error is about; none for a disconnect of all names."""
    return () if signal is None or signal.names is None else signal.names


def is_about(items: list[Any], position: int, name: bytes) -> bool:
    """Tell whether the event at a position is about a name."""
    channel, signal = items[position], items[position + 1]
    if channel is not None:
        return bool(channel == name)
    return bool(signal == name) if type(signal) is bytes else name in names_of(signal)
