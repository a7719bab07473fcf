"""A chat client: one WebSocket, one `ChannelSubscription`."""

from __future__ import annotations

__all__ = ["CLIENT_NAMES", "MAX_CHAT_PENDING", "MAX_ROOMS", "ChatWebSocket"]

import re
from typing import Any

from starlette.websockets import WebSocket

from .. import ConnectionLost
from .backend import Backend
from .errors import RequestRejected
from .protocol import ROOM_PREFIX, channel_of, encode_chat_message, room_of
from .websocket import DemoWebSocket

CLIENT_NAMES = ("Ada", "Ben", "Cleo", "Dora", "Emil", "Fay", "Gus", "Hana", "Ivo", "June", "Kofi", "Lena")
_CLIENT_NAME = re.compile(rf"({'|'.join(CLIENT_NAMES)})( [2-9]\d?)?")
MAX_ROOMS = 20
MAX_CHAT_PENDING = 1000  # messages that are buffered for a slow page


class ChatWebSocket(DemoWebSocket):
    """One chat client. It joins rooms, leaves rooms and publishes to them.

    Its subscription has the numbers, too: the messages of a room do not say how many were missed, and numbers do.
    """

    def __init__(self, socket: WebSocket, backend: Backend) -> None:
        super().__init__(socket, backend)
        wanted = socket.query_params.get("name", "")  # of a client that has lost its WebSocket
        taken = {chat._name for chat in backend.clients if isinstance(chat, ChatWebSocket)}
        self._name: str = wanted if _CLIENT_NAME.fullmatch(wanted) and wanted not in taken else _free_name(taken)
        self._last_number: int | None = None
        self._subscription = backend.mpx.new_channel_subscription(
            self.on_message,
            self.on_disconnect,
            self.on_activation,
            on_error=self.on_error,
            max_pending=MAX_CHAT_PENDING,
        )

    async def run(self) -> None:
        """Handle requests until the WebSocket closes, then close the subscription."""
        self._backend.clients.add(self)
        try:
            async with self._subscription:
                await self.send("welcome", name=self._name)
                self._subscription.add(self._backend.ticker.channel)
                await super().run()
        finally:
            self._backend.clients.discard(self)

    async def handle(self, request: dict[str, Any]) -> None:
        """Join a room, leave a room, or publish to a room."""
        match request:
            case {"do": "join", "room": room}:
                channel = channel_of(room)
                if len(self._rooms) >= MAX_ROOMS:
                    raise RequestRejected(f"a client can be in at most {MAX_ROOMS} rooms; leave one first")
                self._subscription.add(channel)
                await self._send_rooms()
            case {"do": "leave", "room": room}:
                self._subscription.remove(channel_of(room))
                await self._send_rooms()
            case {"do": "say", "room": room, "text": text}:
                channel = channel_of(room)
                if channel not in self._subscription.channels:
                    raise RequestRejected("join the room first")
                await self._backend.publish(channel, encode_chat_message(self._name, text))
            case _:
                raise RequestRejected("unknown request; a chat client can join, leave and say")

    async def on_activation(self, channel: bytes) -> None:
        """Send that Redis has confirmed the subscription to a room."""
        if channel.startswith(ROOM_PREFIX):
            await self.send("activation", room=room_of(channel))

    async def on_disconnect(self, error: ConnectionLost) -> None:
        """Send that messages of the rooms may be missed, if there are rooms."""
        if self._rooms:
            await super().on_disconnect(error)

    async def on_message(self, channel: bytes, payload: bytes) -> None:
        """Send a chat message to the page. Of the numbers, send how many are missing."""
        if channel.startswith(ROOM_PREFIX):
            await super().on_message(channel, payload)
            return
        last, self._last_number = self._last_number, int(payload)
        if last is not None and self._last_number > last + 1:
            await self.send("missed", numbers=self._last_number - last - 1)

    @property
    def _rooms(self) -> list[str]:
        return sorted(room_of(name) for name in self._subscription.channels if name.startswith(ROOM_PREFIX))

    async def _send_rooms(self) -> None:
        await self.send("rooms", rooms=self._rooms)


def _free_name(taken: set[str]) -> str:
    rounds = 1
    while True:
        for name in CLIENT_NAMES:
            candidate = name if rounds == 1 else f"{name} {rounds}"
            if candidate not in taken:
                return candidate
        rounds += 1
