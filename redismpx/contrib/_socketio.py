"""The classes of python-socketio that our managers extend, with types: it has none."""

from __future__ import annotations

__all__ = ["AsyncPubSubManager", "BaseManager", "Packet", "PubSubManager"]

from typing import TYPE_CHECKING, Any

from socketio.packet import Packet

if TYPE_CHECKING:

    class BaseManager:
        """The members that our managers override or use."""

        channel: str
        host_id: str
        json: Any
        rooms: dict[str, Any]
        server: Any
        basic_enter_room: Any
        basic_leave_room: Any
        enter_room: Any
        initialize: Any
        pre_connect: Any
        _handle_callback: Any
        _handle_disconnect: Any

        def __init__(self, **options: Any) -> None: ...

    class AsyncPubSubManager(BaseManager):
        """The one for `socketio.AsyncServer`."""

    class PubSubManager(BaseManager):
        """The one without an event loop."""

else:
    from socketio.async_pubsub_manager import AsyncPubSubManager
    from socketio.base_manager import BaseManager
    from socketio.pubsub_manager import PubSubManager
