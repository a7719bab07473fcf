"""A chat client: one WebSocket, one `ChannelSubscription`."""

from __future__ import annotations

__all__ = ["MAX_PENDING", "MAX_ROOMS", "NAMES", "Chat"]

from typing import Any

from starlette.websockets import WebSocket

from .backend import Backend
from .errors import Refused
from .session import Session
from .vocabulary import channel_of, dump, room_of

NAMES = ("Ada", "Ben", "Cleo", "Dora", "Emil", "Fay", "Gus", "Hana", "Ivo", "June", "Kofi", "Lena")
MAX_ROOMS = 20
MAX_PENDING = 1000  # messages that wait for a slow page


class Chat(Session):
    """Joins rooms, leaves rooms, and talks in them."""

    def __init__(self, socket: WebSocket, backend: Backend) -> None:
        super().__init__(socket, backend)
        self._name: str = _free_name({chat._name for chat in backend.clients if isinstance(chat, Chat)})
        self._subscription = backend.mpx.new_channel_subscription(
            self.on_message, self.on_disconnect, self.on_activation, on_error=self.on_error, max_pending=MAX_PENDING
        )

    async def run(self) -> None:
        """Live as long as the WebSocket: its end is the subscription's end."""
        self._backend.clients.add(self)
        try:
            async with self._subscription:
                await self.tell("welcome", name=self._name)
                await super().run()
        finally:
            self._backend.clients.discard(self)

    async def do(self, request: dict[str, Any]) -> None:
        """Join, leave or say."""
        match request:
            case {"do": "join", "room": room}:
                channel = channel_of(room)
                if len(self._subscription.channels) >= MAX_ROOMS:
                    raise Refused(f"{MAX_ROOMS} rooms are enough; leave one first")
                self._subscription.add(channel)
                await self._tell_rooms()
            case {"do": "leave", "room": room}:
                self._subscription.remove(channel_of(room))
                await self._tell_rooms()
            case {"do": "say", "room": room, "text": text}:
                channel = channel_of(room)
                if channel not in self._subscription.channels:
                    raise Refused("join the room first")
                await self._backend.publish(channel, dump(self._name, text))
            case _:
                raise Refused("a chat client can join, leave and say")

    async def on_activation(self, channel: bytes) -> None:
        """Tell that Redis has confirmed a room."""
        await self.tell("activation", room=room_of(channel))

    async def _tell_rooms(self) -> None:
        await self.tell("rooms", rooms=sorted(map(room_of, self._subscription.channels)))


def _free_name(taken: set[str]) -> str:
    rounds = 1
    while True:
        for name in NAMES:
            candidate = name if rounds == 1 else f"{name} {rounds}"
            if candidate not in taken:
                return candidate
        rounds += 1
