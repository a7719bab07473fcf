"""Functions that a thread calls at a fixed interval."""

from __future__ import annotations

__all__ = ["PeriodicThread"]

import threading
from collections.abc import Callable
from time import monotonic

from ..topics.periodic import next_number, noted_periodic
from .locks import Event


class PeriodicThread:
    """Calls a function at an interval, in a daemon thread. A late call leaves out the deadlines it has missed."""

    def __init__(self, function: Callable[[], object], interval: float, report: Callable[[Exception], None]) -> None:
        self._function = function
        self._interval = interval
        self._report = report
        self._is_ending = Event()
        self._thread = threading.Thread(target=self._run, name="redismpx periodic", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        start, number = monotonic(), 0
        while True:
            number = next_number(number, monotonic() - start, self._interval)
            if self._is_ending.wait(max(0.0, start + number * self._interval - monotonic())):
                return
            try:
                self._function()
            except Exception as error:  # noqa: BLE001, users' code
                self._report(noted_periodic(error, self._function, self._interval))

    def end(self) -> None:
        """Call the function no more."""
        self._is_ending.set()

    def join(self, timeout: float) -> None:
        """Wait until a call that runs has returned, but not in that call itself."""
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)
