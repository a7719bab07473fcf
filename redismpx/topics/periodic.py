"""Functions that are called at a fixed interval. Deadlines are multiples of the interval since the start: no drift."""

from __future__ import annotations

__all__ = ["F", "Periodic", "next_number", "noted_periodic"]

import asyncio
from collections.abc import Callable
from math import floor
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[[], object])
"""A function that is called at an interval."""


def next_number(number: int, elapsed: float, interval: float) -> int:
    """Return the number of the next deadline: the one behind `number`, or, if it is late, the first in the future.

    Deadline `n` is `n` intervals after the start; `elapsed` is the time since then.
    """
    return max(number, floor(elapsed / interval)) + 1


class Periodic:
    """Calls a function at an interval, in the loop that runs. A late call leaves out the deadlines it has missed."""

    def __init__(self, function: Callable[[], Any], interval: float, report: Callable[[Exception], None]) -> None:
        self._function = function
        self._interval = interval
        self._report = report
        self._is_waiting = False
        self._is_ending = False
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        start, number = loop.time(), 0
        while not self._is_ending:
            number = next_number(number, loop.time() - start, self._interval)
            self._is_waiting = True
            await asyncio.sleep(start + number * self._interval - loop.time())
            self._is_waiting = False
            try:
                result = self._function()
                if asyncio.iscoroutine(result):
                    await result
            except asyncio.CancelledError as cause:
                if self._task.cancelling():
                    raise
                error = RuntimeError(
                    "a CancelledError left the function: a task or future that it awaits was cancelled"
                )
                error.__cause__ = cause
                self._report(noted_periodic(error, self._function, self._interval))
            except Exception as error:  # noqa: BLE001, users' code
                self._report(noted_periodic(error, self._function, self._interval))

    def end(self) -> asyncio.Task[None]:
        """Call the function no more; return the task, which ends when a call that runs has returned."""
        self._is_ending = True
        if self._is_waiting:
            self._task.cancel()
        return self._task

    def cancel(self) -> None:
        """End at once, in the middle of a call, too."""
        self._task.cancel()


def noted_periodic(error: Exception, function: Callable[[], Any], interval: float) -> Exception:
    """Add to an error which function raised it."""
    error.add_note(f"{function!r} is called every {interval} s")
    return error
