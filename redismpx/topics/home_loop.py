"""The loop of an asyncio multiplexer, and calls of other threads that run there."""

from __future__ import annotations

__all__ = ["HomeLoop"]

import asyncio
from collections.abc import Callable

from ..errors import MultiplexerIsClosed
from .subscription import running_loop


class HomeLoop:
    """The first loop that runs during a call. Before that, functions are called at once: no loop is in their way."""

    def __init__(self, report: Callable[[Exception], None]) -> None:
        self._report = report
        self._loop: asyncio.AbstractEventLoop | None = None

    def enter(self) -> None:
        """Take the loop that runs now."""
        self._loop = running_loop()

    def call(self, function: Callable[[], object]) -> None:
        """Call a function: at once in the thread of the loop, otherwise soon, and then `report` gets its error.

        Raises:
            MultiplexerIsClosed: the loop is closed.
        """
        running = running_loop()
        if running is not None and (self._loop is None or self._loop.is_closed()):
            self._loop = running
        if self._loop is None or running is self._loop:
            function()
            return
        try:
            self._loop.call_soon_threadsafe(self._call_and_report, function)
        except RuntimeError:
            raise MultiplexerIsClosed from None

    def _call_and_report(self, function: Callable[[], object]) -> None:
        try:
            function()
        except Exception as error:  # noqa: BLE001, there is no caller
            self._report(error)
