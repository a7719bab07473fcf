"""Deadlines for many items at a time: one timer serves all items with the same timeout."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
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
        """Forget an item that was added with the same `seconds` and has not expired."""
        if self._queues[seconds].remove(item):
            del self._queues[seconds]


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
        """Remove an item; return whether none is left."""
        del self._items[item]
        if self._items:
            return False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return True

    def _expire_due(self) -> None:
        self._timer = None
        now = self._loop.time()
        due: list[Item] = []
        for item, when in self._items.items():
            if when > now or len(due) == EXPIRED_AT_ONCE:
                self._timer = self._loop.call_at(when, self._expire_due)
                break
            due.append(item)
        for item in due:
            self._expire(item)
