"""The task that reads a subscription: one at a time, and not for longer than its time slice. Touches no message."""

from __future__ import annotations

import asyncio
from time import monotonic

from ..._core.wire import IdentityEnum
from ..runtime.tasks import TIME_SLICE


class ReaderState(IdentityEnum):
    """What the reading task does."""

    AWAY = "away"  # it handles a message, or there is no such task
    WAITING = "waiting"  # for an event
    YIELDING = "yielding"  # it lets the loop do other things


READER_TRANSITIONS: dict[ReaderState, frozenset[ReaderState]] = {
    ReaderState.AWAY: frozenset({ReaderState.WAITING, ReaderState.YIELDING}),
    ReaderState.WAITING: frozenset({ReaderState.AWAY}),
    ReaderState.YIELDING: frozenset({ReaderState.AWAY}),
}


class Reader:
    """Suspends the reading task of one subscription. A second task that reads meanwhile gets a `RuntimeError`."""

    __slots__ = ("_future", "_yielded", "state")

    def __init__(self) -> None:
        self.state = ReaderState.AWAY
        self._future: asyncio.Future[None] | None = None
        self._yielded = 0.0  # when the task last let the loop do other things

    @property
    def is_waiting(self) -> bool:
        """Whether the task waits, and was not woken yet."""
        return self._future is not None and not self._future.done()

    @property
    def is_due_to_yield(self) -> bool:
        """Whether the time slice of the task is over."""
        return monotonic() - self._yielded > TIME_SLICE

    def check(self) -> None:
        """Raise if another task is suspended here."""
        if self.state is not ReaderState.AWAY:
            raise RuntimeError("another task is reading this subscription; it has one reader at a time")

    async def wait(self) -> None:
        """Wait for `wake()`."""
        self._future = asyncio.get_running_loop().create_future()
        self._move(ReaderState.WAITING)
        try:
            await self._future
        finally:
            self._move(ReaderState.AWAY)
            self._future = None
        self._yielded = monotonic()

    async def yield_to_loop(self) -> None:
        """Let the loop do other things, and begin a new time slice."""
        self._move(ReaderState.YIELDING)
        try:
            await asyncio.sleep(0)
        finally:
            self._move(ReaderState.AWAY)
        self._yielded = monotonic()

    def wake(self) -> None:
        """Wake the task, if it waits."""
        future = self._future
        if future is not None and not future.done():
            future.set_result(None)

    def _move(self, state: ReaderState) -> None:
        if state not in READER_TRANSITIONS[self.state]:
            raise AssertionError(f"{self.state} to {state}")
        self.state = state
