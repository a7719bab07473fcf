"""A list that counts how much of it is read: work, rather than time."""

from __future__ import annotations

from typing import Any


class Counted(list[Any]):
    """Counts the items that are read by position or in slices."""

    def __init__(self, items: list[Any]) -> None:
        super().__init__(items)
        self.reads = 0

    def __getitem__(self, key: Any) -> Any:
        item = super().__getitem__(key)
        self.reads += len(item) if isinstance(key, slice) else 1
        return item
