"""The loss of a connection: which subscribers had active names, and which of them are notified. No I/O, no clock."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import Generic

from .entry import Entry, S, SubscriberState

CHUNK = 512  # names of very many that are changed together


class Loss(Generic[S]):
    """The subscribers that had active names when a connection was lost, with these names.

    A subscriber may have a hundred thousand names. They are collected in chunks; then it is notified of all of them
    together; then they change to waiting, in chunks again.
    """

    __slots__ = ("_active", "_names", "_notified", "_subscriber")

    def __init__(self) -> None:
        self._active: dict[S, list[Entry[S]]] = defaultdict(list)
        self._subscriber: S | None = None  # the one that is being notified
        self._names: set[bytes] = set()  # its active names, as far as they are collected
        self._notified = False  # whether it is notified of them

    def add(self, entry: Entry[S], subscriber: S) -> None:
        """Add a name that was active for a subscriber."""
        self._active[subscriber].append(entry)

    @property
    def notified(self) -> S | None:
        """The subscriber that is notified of the loss, but some of its names have not changed to waiting yet."""
        return self._subscriber if self._notified else None

    def has_notified(self, subscriber: S) -> bool:
        """Tell whether that is this subscriber."""
        return self._notified and subscriber == self._subscriber

    def remove(self, entry: Entry[S], subscriber: S) -> bool:
        """Take note that a subscriber was removed from a name; return whether it was notified of the loss before."""
        if subscriber == self._subscriber:
            self._names.discard(entry.name)
        return self.has_notified(subscriber)

    def each(self) -> Iterator[tuple[S, Collection[bytes]] | None]:
        """Yield each subscriber with the names that it has lost. None is yielded now and then.

        The names are a live set: a name that is removed before the set is copied is not in it.
        """
        for subscriber in tuple(self._active):
            entries = self._active.pop(subscriber)
            self._subscriber, self._names, self._notified = subscriber, set(), False
            for number, entry in enumerate(entries, 1):
                if entry.state_of(subscriber) is SubscriberState.ACTIVE:
                    self._names.add(entry.name)
                if number % CHUNK == 0:
                    yield None
            if not self._names:
                continue
            self._notified = True
            yield subscriber, self._names
            self._names = set()
            for number, entry in enumerate(entries, 1):
                if entry.state_of(subscriber) is SubscriberState.ACTIVE:
                    entry.set_state(subscriber, SubscriberState.WAITING)
                if number % CHUNK == 0:
                    yield None
        self._subscriber = None
