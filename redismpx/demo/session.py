"""One WebSocket of the demo: what it asks is read and checked, what it is told is sent, and neither can fail."""

from __future__ import annotations

__all__ = ["Session"]

import json
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from .. import ConnectionLost
from .backend import Backend
from .errors import Refused
from .vocabulary import load, read, room_of


class Session(ABC):
    """The base of both kinds of session. `run()` lasts as long as the WebSocket."""

    def __init__(self, socket: WebSocket, backend: Backend) -> None:
        self._socket = socket
        self._backend = backend

    async def run(self) -> None:
        """Do what the page asks, until it leaves."""
        while (event := await self._socket.receive())["type"] != "websocket.disconnect":
            try:
                await self.do(read(event.get("text")))
            except Refused as refusal:
                await self.tell("error", text=str(refusal))

    @abstractmethod
    async def do(self, request: dict[str, Any]) -> None:
        """Do one thing. Raises `Refused`."""

    async def tell(self, kind: str, **facts: object) -> None:
        """Send the page one message; if it has left, nothing."""
        # Which of the two it is depends on how far the WebSocket is closed. ASCII, for text may hold lone surrogates.
        with suppress(WebSocketDisconnect, RuntimeError):
            await self._socket.send_text(json.dumps({"type": kind, **facts}))

    # --- callbacks: each returns an awaitable, so a slow page delays only its own subscription

    async def on_message(self, channel: bytes, payload: bytes) -> None:
        """Pass a chat message on."""
        await self.tell("message", room=room_of(channel), **load(payload))

    async def on_disconnect(self, error: ConnectionLost) -> None:
        """Tell of the gap that begins."""
        await self.tell("disconnect", reason=error.reason)

    async def on_error(self, error: Exception) -> None:
        """Tell what the multiplexer reports: a name that Redis refuses, a page that reads too slowly."""
        await self.tell("error", text=str(error))
