"""Count the bytecode instructions of one operation, by function. The counts are exact on a busy machine, too."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType

TOOL_NAME = "redismpx benchmarks"


class Bytecodes:
    """Counts bytecode instructions in all threads inside `counted()`. Needs Python 3.12."""

    def __init__(self) -> None:
        self._counts: Counter[CodeType] = Counter()
        self._operations = 1

    @contextmanager
    def counted(self, operations: int) -> Iterator[None]:
        """Count the instructions inside the block, which runs `operations` operations."""
        self._operations = operations
        monitoring = sys.monitoring
        monitoring.use_tool_id(monitoring.PROFILER_ID, TOOL_NAME)
        monitoring.register_callback(monitoring.PROFILER_ID, monitoring.events.INSTRUCTION, self._count)
        monitoring.set_events(monitoring.PROFILER_ID, monitoring.events.INSTRUCTION)
        try:
            yield
        finally:
            monitoring.set_events(monitoring.PROFILER_ID, 0)
            monitoring.free_tool_id(monitoring.PROFILER_ID)

    def _count(self, code: CodeType, offset: int) -> None:
        self._counts[code] += 1

    def report(self, lines: int = 15) -> str:
        """Return the number of instructions for each operation, and the functions with the most."""
        rows = [(sum(self._counts.values()), "bytecodes for each operation")]
        rows += [(count, f"in {code.co_qualname}") for code, count in self._counts.most_common(lines)]
        return "\n".join(f"{count / self._operations:8.1f}  {what}" for count, what in rows)
