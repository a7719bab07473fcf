"""Waking the tasks that wait for a change. Keeps no state: a notification without a waiter is lost."""

from __future__ import annotations

import asyncio


class Notifier:
    """Wakes the tasks that are waiting. Costs next to nothing while none is."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: asyncio.Event | None = None

    async def wait(self) -> None:
        """Wait for the next notification."""
        if self._event is None:
            self._event = asyncio.Event()
        await self._event.wait()

    def notify(self) -> None:
        """Wake all waiting tasks."""
        if self._event is not None:
            self._event.set()
            self._event = None
