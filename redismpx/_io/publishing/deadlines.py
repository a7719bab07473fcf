"""When the calls of a pipeline are overdue: one timer for all of them. Fails no call itself.

A server has its time to reply while the event loop of this process runs. When the timer comes late, because the loop
was busy, replies may wait unread; so the lost time is added before any call is judged. A call has lost its timeout at
most, also if the process was stopped for an hour. A loop that is always busy reads in between, so the time is not added
for ever.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

LAG = 0.05  # seconds by which a timer may be late while the loop is not busy
LATE_LOOKS = 5  # in a row; the last of them finds calls overdue in any case
LATER = 0.001  # seconds after the last verdict about a batch: a batch ends only then


class CallDeadlines:
    """The next deadline of some calls, and the limit of the batch that is in flight."""

    def __init__(self, timeout: float, on_due: Callable[[], object]) -> None:
        self._timeout = timeout
        self._on_due = on_due
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0  # when it is due: uvloop's handle does not always tell
        self._looks = 0  # late ones in a row
        self._earliest = -math.inf  # when the lost time has been added
        self._limit: asyncio.Timeout | None = None
        self.passed: float = -math.inf
        """Calls with a deadline up to this time of the loop are overdue."""

    def look_at(self, deadline: float) -> None:
        """Call `on_due` at a deadline, or soon if it is over; but not before lost time has been added."""
        if self._timer is None or self._due > deadline:
            self.cancel()
            self._set_timer(deadline)

    def _set_timer(self, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        self._due = max(deadline, self._earliest, loop.time())
        self._timer = loop.call_at(self._due, self._look)

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        late, self._timer = now - self._due, None
        self._looks += 1
        if late < LAG or self._looks == LATE_LOOKS:
            self._looks, self.passed = 0, now
            self._on_due()
            return
        lost = min(late, self._timeout)
        self._earliest = now + lost
        self._set_timer(now)
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(max(self._limit.when() or now, now + LATER) + lost)

    def limit(self, deadline: float) -> asyncio.Timeout:
        """Return the limit of a batch with this last deadline. `end_limit()` is to follow."""
        now = asyncio.get_running_loop().time()  # the timer may be due, and not have come yet
        self._limit = asyncio.timeout_at(max(deadline, self._earliest, now) + LATER)
        return self._limit

    def end_limit(self) -> None:
        """Take note that the batch is over."""
        self._limit = None

    def cancel(self) -> None:
        """Call nothing any more, until the next deadline."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
