"""Waking everybody who waits for a change."""

from __future__ import annotations

import asyncio


class Notifier:
    """Wakes whoever waits at the moment, and keeps nothing. Free of cost while nobody waits."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: asyncio.Event | None = None

    async def wait(self) -> None:
        """Wait for the next pulse."""
        if self._event is None:
            self._event = asyncio.Event()
        await self._event.wait()

    def notify(self) -> None:
        """Wake all that wait."""
        if self._event is not None:
            self._event.set()
            self._event = None
