"""Replies that are taken before redis-py reads them. Knows no command."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class Tap(asyncio.Protocol):
    """Stands before the protocol of a transport. What `take` does not take goes on to it, and so does all else.

    `on_end` is called when the other end has closed the connection, or the connection is lost.
    """

    def __init__(self, transport: asyncio.Transport, take: Callable[[bytes], bool], on_end: Callable[[], None]) -> None:
        protocol: Any = transport.get_protocol()
        self._protocol = protocol
        self._take = take
        self._on_end = on_end

    def data_received(self, data: bytes) -> None:
        if not self._take(data):
            self._protocol.data_received(data)

    def pass_on(self, data: bytes) -> None:
        """Let the protocol have data that `take` has taken. Only before `on_end` returns."""
        self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        self._on_end()
        keep_open: bool | None = self._protocol.eof_received()
        return keep_open

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_end()
        self._protocol.connection_lost(exc)
