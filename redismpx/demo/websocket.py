"""The base of the demo's WebSocket handlers: it receives requests, sends messages and reports errors to the page."""

from __future__ import annotations

__all__ = ["DemoWebSocket"]

import json
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from .. import ConnectionLost
from .backend import Backend
from .errors import RequestRejected
from .protocol import decode_chat_message, parse_request, room_of


class DemoWebSocket(ABC):
    """One WebSocket. `run()` returns when the page closes it."""

    def __init__(self, socket: WebSocket, backend: Backend) -> None:
        self._socket = socket
        self._backend = backend

    async def run(self) -> None:
        """Handle requests until the WebSocket closes."""
        while (event := await self._socket.receive())["type"] != "websocket.disconnect":
            request: dict[str, Any] = {}
            try:
                request = parse_request(event.get("text"))
                await self.handle(request)
            except RequestRejected as rejection:
                await self.send("error", text=str(rejection), do=request.get("do"))

    @abstractmethod
    async def handle(self, request: dict[str, Any]) -> None:
        """Carry out one request. Raises `RequestRejected`."""

    async def send(self, kind: str, **facts: object) -> None:
        """Send the page one message. Does nothing if the WebSocket is closed."""
        # A closed WebSocket raises one of these two, depending on how far the closing handshake got. json.dumps()
        # escapes to ASCII, because the text may contain lone surrogates, which cannot be encoded as UTF-8.
        with suppress(WebSocketDisconnect, RuntimeError):
            await self._socket.send_text(json.dumps({"type": kind, **facts}))

    # --- callbacks. They are coroutine functions, so a slow page delays only its own subscription.

    async def on_message(self, channel: bytes, payload: bytes) -> None:
        """Send a chat message to the page."""
        await self.send("message", room=room_of(channel), **decode_chat_message(payload))

    async def on_disconnect(self, error: ConnectionLost) -> None:
        """Send that the connection to Redis is lost, so messages may be missed."""
        await self.send("disconnect", reason=error.reason)

    async def on_error(self, error: Exception) -> None:
        """Send an error of the subscription: Redis rejects a name, or the page reads too slowly."""
        await self.send("error", text=str(error), do=None)
