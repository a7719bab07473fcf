"""Deadlines for many items at a time: one timer serves all items with the same timeout."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from typing import Generic, TypeVar

EXPIRED_AT_ONCE = 256  # items that expire in one iteration of the loop, at most

Item = TypeVar("Item")


class Deadlines(Generic[Item]):
    """Calls `expire` with each item whose deadline has passed, unless the item was removed before."""

    def __init__(self, expire: Callable[[Item], None]) -> None:
        self._expire = expire
        self._queues: dict[float, _Queue[Item]] = {}

    def add(self, item: Item, seconds: float) -> None:
        """Set the deadline of `item` to `seconds` from now."""
        queue = self._queues.get(seconds)
        if queue is None:
            queue = self._queues[seconds] = _Queue(self._expire)
        queue.add(item, seconds)

    def remove(self, item: Item, seconds: float) -> None:
        """Forget an item that was added with the same `seconds`, also one that expires just now."""
        queue = self._queues.get(seconds)
        if queue is not None and queue.remove(item):
            self._queues.pop(seconds, None)


class _Queue(Generic[Item]):
    """The items with one timeout, in the order of their deadlines."""

    __slots__ = ("_expire", "_items", "_loop", "_timer")

    def __init__(self, expire: Callable[[Item], None]) -> None:
        self._expire = expire
        self._items: OrderedDict[Item, float] = OrderedDict()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None  # for the first item, or for one before it that was removed

    def add(self, item: Item, seconds: float) -> None:
        when = self._items[item] = self._loop.time() + seconds
        if self._timer is None:
            self._timer = self._loop.call_at(when, self._expire_due)

    def remove(self, item: Item) -> bool:
        """Remove an item, if it is there; return whether none is left."""
        self._items.pop(item, None)
        if self._items:
            return False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return True

    def _expire_due(self) -> None:
        now = next_look = self._loop.time()
        due: list[Item] = []
        with suppress(RuntimeError):  # a finalizer has removed an item during the copy: look again at once
            due = [*islice(self._items, EXPIRED_AT_ONCE)]
        for item in due:
            when = self._items.get(item, now)
            if when > now:
                next_look = when
                break
            if self._items.pop(item, None) is not None:  # otherwise a finalizer has removed it
                self._expire(item)
        self._timer = self._loop.call_at(next_look, self._expire_due) if self._items else None
