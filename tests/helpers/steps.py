"""Interrupt a coroutine at a chosen suspension."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any


class Steps:
    """Awaits a coroutine, and calls `strike` when the coroutine suspends for the n-th time."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], at: int, strike: Callable[[], object]) -> None:
        self.struck = False
        self._coroutine = coroutine
        self._at = at
        self._strike = strike

    def __await__(self) -> Generator[Any, Any, Any]:
        suspensions = 0
        error: BaseException | None = None
        while True:
            try:
                awaited = self._coroutine.send(None) if error is None else self._coroutine.throw(error)
            except StopIteration as end:
                return end.value
            suspensions += 1
            if suspensions == self._at:
                self.struck = True
                self._strike()
            error = None
            try:
                yield awaited
            except BaseException as thrown:
                error = thrown

    async def run(self) -> Any:
        return await self

    async def outcome(self) -> Any:
        """Return what the coroutine returned or raised."""
        try:
            return await self
        except BaseException as error:
            return error
