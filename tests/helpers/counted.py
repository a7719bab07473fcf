"""A list that counts how much of it is read: work, rather than time."""

from __future__ import annotations

import sys
from typing import Any


class Counted(list[Any]):
    """Counts the items that are read by position, in slices or by index()."""

    def __init__(self, items: list[Any]) -> None:
        super().__init__(items)
        self.reads = 0

    def __getitem__(self, key: Any) -> Any:
        item = super().__getitem__(key)
        self.reads += len(item) if isinstance(key, slice) else 1
        return item

    def index(self, item: Any, start: Any = 0, stop: Any = sys.maxsize) -> int:
        found = len(self)
        try:
            return (found := super().index(item, start, stop))
        finally:
            self.reads += found - start
