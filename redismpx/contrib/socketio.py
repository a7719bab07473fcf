"""Socket.IO: managers for python-socketio, with a Redis channel for each room that the clients of a server are in."""

from __future__ import annotations

__all__ = ["AsyncMultiplexerManager", "MultiplexerManager"]

import asyncio
import inspect
import logging
import uuid
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeAlias

from .. import Disconnect, Message, Multiplexer, SubscriptionIsClosed, SubscriptionRefused, blocking
from ._records import Records, log
from ._socketio import AsyncPubSubManager, BaseManager, Packet, PubSubManager

_ACTIVATION_TIMEOUT = 1.0  # seconds that a client waits for the channel of a room
_COPIES = 1000  # that are remembered; those of one event are published together
_Message: TypeAlias = dict[str, Any]


class _Addressed(BaseManager):
    """What both managers share: where a message of the base class goes, and its payload.

    A namespace is the room None, and each client is alone in the room of its sid. A server has a channel, too, for the
    replies of clients.
    """

    def _name(self, namespace: str, room: object = None) -> bytes:
        """Return the channel of a room; with the id of a server instead of a namespace, that of the server."""
        name = f"{self.channel}#{namespace}" if room is None else f"{self.channel}#{namespace}#{room}"
        return name.encode(errors="surrogatepass")  # a client may have chosen the room

    def _address(self, message: _Message) -> tuple[list[bytes], bytes]:
        """Return the channels of a message, and the payload."""
        method, attachments = message["method"], []
        if method == "callback":
            names = [self._name(message["host_id"])]
            # The base class encodes the binary data of events, but not of replies.
            message, attachments = Packet.deconstruct_binary({**message, "args": list(message["args"])})
        else:
            room = message["room" if method in ("emit", "close_room") else "sid"]
            rooms = room if isinstance(room, (list, tuple)) else [room]
            names = list(dict.fromkeys(self._name(message["namespace"], each) for each in rooms))
            if len(names) > 1:
                message = {**message, "copy": uuid.uuid4().hex}
        texts = [b64encode(attachment).decode() for attachment in attachments]
        return names, self.json.dumps([self.host_id, message, *texts]).encode()


class AsyncMultiplexerManager(_Addressed, AsyncPubSubManager):
    """A client manager for `socketio.AsyncServer`: each server receives the events of its own clients' rooms only.

    Each room that has a client of this server is a Redis channel, and so is each client. When `enter_room()` returns,
    and when a client learns its sid, the channel is active: an event that another process emits from then on is not
    missed. This takes one round trip, for the first client of a room. Offline, it takes a second at most, and the
    server goes on alone: its own events reach its own clients.

    After a lost connection, all rooms are subscribed again. The clients miss what other processes emitted meanwhile: a
    warning in the log and the callbacks say so.

    When an event does not reach Redis within the `publish_timeout` of the multiplexer, `emit()` raises
    `ConnectionLost`. The clients of this server have the event then.

    Args:
        redis: a URL, or a `Multiplexer`. The multiplexer is yours, also that of a URL: close `multiplexer` when the
            server shuts down.
        channel: the beginning of the names of all channels. All servers and other processes have the same one.
        write_only: whether this process only emits, and has no server. Its calls belong to one event loop.
        logger, json: as in the managers of python-socketio.
        on_disconnect: called with the exception when rooms are no longer active: clients miss events from here on. It
            is called once, until all rooms are active again. This and `on_reconnect` may be coroutine functions.
        on_reconnect: called when all rooms are active again that Redis permits. Emit an event with `ignore_queue=True`
            here, upon which clients load the current state.

    Raises:
        TypeError, ValueError: the URL is invalid.

    Example:
        ::

            manager = AsyncMultiplexerManager("redis://localhost:6379")
            server = socketio.AsyncServer(async_mode="asgi", client_manager=manager)
            await manager.multiplexer.aclose()  # when the server shuts down
    """

    name = "asyncmultiplexer"
    thread: object = None

    def __init__(
        self,
        redis: str | Multiplexer = "redis://localhost:6379",
        channel: str = "socketio",
        write_only: bool = False,
        logger: Any = None,
        json: Any = None,
        *,
        on_disconnect: Callable[[Exception], object] | None = None,
        on_reconnect: Callable[[], object] | None = None,
    ) -> None:
        super().__init__(channel=channel, write_only=write_only, logger=logger, json=json)
        self.multiplexer: Multiplexer = Multiplexer(redis) if isinstance(redis, str) else redis
        """The multiplexer. Await its `aclose()` when the server shuts down."""
        self._on_disconnect = on_disconnect
        self._on_reconnect = on_reconnect
        self._sub = None if write_only else self.multiplexer.new_channel_subscription(decode=self._decode)
        self._seen: deque[str] = deque(maxlen=_COPIES)
        self._is_interrupted = False
        self._records = Records()
        self._tasks: set[asyncio.Task[None]] = set()

    def initialize(self) -> None:
        """Receive from now on. The server calls it when the first client connects. Without effect when called again."""
        if self.thread is None:
            if self._sub is not None:
                self._sub.add(self._name(self.host_id))
            super().initialize()

    # --- rooms

    def basic_enter_room(self, sid: str, namespace: str, room: Any, eio_sid: str | None = None) -> None:
        """Add a client of this server to a room, and subscribe to its channel."""
        super().basic_enter_room(sid, namespace, room, eio_sid=eio_sid)
        if self._sub is not None:
            self._sub.add(self._name(namespace, room))

    def basic_leave_room(self, sid: str, namespace: str, room: Any) -> None:
        """Remove a client of this server from a room. When it was the last one, unsubscribe from the channel."""
        super().basic_leave_room(sid, namespace, room)
        # Clients leave also after the multiplexer is closed.
        if self._sub is not None and not self._sub.closed and room not in self.rooms.get(namespace, ()):
            self._sub.remove(self._name(namespace, room))

    async def pre_connect(self, eio_sid: str, namespace: str) -> str | None:
        """Add a client to its namespace and its own room, and wait until they are active."""
        sid: str | None = await super().pre_connect(eio_sid, namespace)
        if sid is not None:
            await self._activated(self._name(namespace), self._name(namespace, sid))
        return sid

    async def enter_room(self, sid: str, namespace: str, room: Any, eio_sid: str | None = None) -> None:
        """Add a client to a room, and wait until the room is active.

        For a client of another server, it publishes a request, and does not wait until it is fulfilled.
        """
        await super().enter_room(sid, namespace, room, eio_sid=eio_sid)
        if room in self.rooms.get(namespace, ()):
            await self._activated(self._name(namespace, room))

    async def _activated(self, *names: bytes) -> None:
        if self._sub is None or self._is_interrupted:
            return
        try:
            with suppress(ValueError):  # the last client has left meanwhile
                await self._sub.wait_for_activation(*names, timeout=_ACTIVATION_TIMEOUT)
        except TimeoutError as error:
            self._interrupt(error)

    # --- messages

    async def _publish(self, data: _Message) -> None:
        if data.get("callback"):  # the reply must find this server, which may have no client yet
            self.initialize()
            await self._activated(self._name(self.host_id))
        names, payload = self._address(data)
        await asyncio.gather(*(self.multiplexer.publish(name, payload) for name in names))

    def _decode(self, payload: bytes) -> _Message | None:
        """Return the message of a payload; None for one of this server, which has handled it already."""
        if payload.startswith(b'["%b"' % self.host_id.encode()):
            return None
        _, message, *texts = self.json.loads(payload)
        if texts:
            message = Packet.reconstruct_binary(message, [b64decode(text) for text in texts])
        return {**message, "method": message["method"]}  # raises if it is no message

    async def _listen(self) -> AsyncIterator[_Message]:
        assert self._sub is not None
        async for event in self._sub.events():
            if isinstance(event, Disconnect):
                self._interrupt(event.error)
            elif isinstance(event, Message) and event.data is not None and self._is_first(event.data):
                # The application may take any time, or wait for a later message.
                if event.data["method"] == "callback":
                    self._start(self._call("callback", self._handle_callback, event.data))
                elif event.data["method"] == "disconnect":
                    self._start(self._call("disconnect", self._handle_disconnect, event.data))
                else:
                    yield event.data
        raise asyncio.CancelledError  # the multiplexer is closed; the base class would log an error otherwise

    def _is_first(self, message: _Message) -> bool:
        """Tell whether this is the first copy of an event: one for several rooms comes by the channel of each."""
        copy = message.get("copy")
        if copy in self._seen:
            return False
        if copy is not None:
            self._seen.append(copy)
        return True

    async def _handle_disconnect(self, message: _Message) -> None:
        if self.server is not None:  # the base class assumes one
            await super()._handle_disconnect(message)

    # --- gaps

    def _interrupt(self, error: Exception) -> None:
        if not self._is_interrupted:
            self._is_interrupted = True
            self._start(self._recover(error))

    async def _recover(self, error: Exception) -> None:
        text = "Socket.IO clients miss what other processes emit, until all rooms are active again: %s"
        log(logging.WARNING, text, error)
        await self._call("on_disconnect", self._on_disconnect, error)
        assert self._sub is not None
        refused: dict[bytes, SubscriptionRefused] = {}
        while missing := self._sub.channels - self._sub.active - refused.keys():
            for name in missing:  # one by one: each one that is refused would end the wait for all
                try:
                    await asyncio.sleep(0)  # many may be active by now
                    with suppress(ValueError):  # the last client of a room has left meanwhile
                        await self._sub.wait_for_activation(name)
                except SubscriptionIsClosed:
                    return
                except SubscriptionRefused as refusal:
                    refused[name] = refusal
        self._is_interrupted = False
        if refused:
            log(logging.ERROR, "%d Socket.IO rooms stay inactive: %s", len(refused), next(iter(refused.values())))
        else:
            log(logging.INFO, "all rooms of Socket.IO are active again")
        await self._call("on_reconnect", self._on_reconnect)

    async def _call(self, name: str, callback: Callable[..., object] | None, *arguments: object) -> None:
        try:
            result = callback and callback(*arguments)
            if inspect.isawaitable(result):
                await result
        except Exception:  # noqa: BLE001, users' code
            self._records.log(logging.ERROR, f"{name} of Socket.IO raised an exception", exc_info=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="redismpx socketio")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class MultiplexerManager(_Addressed, PubSubManager):
    """A client manager for processes that have no event loop and no server, and only emit.

    Any thread may call it, unless an event loop runs there. Offline, a call raises `ConnectionLost` after the
    `publish_timeout` of the multiplexer.

    Args:
        redis: a URL, or a `redismpx.blocking.Multiplexer`.
        channel: as for `AsyncMultiplexerManager`.
        write_only: must be True, as for the managers of python-socketio.
        logger, json: as in the managers of python-socketio.

    Raises:
        TypeError, ValueError: the URL is invalid, or `write_only` is not True.

    Example:
        ::

            manager = MultiplexerManager("redis://localhost:6379", write_only=True)
            manager.emit("price", {"EUR": 1.08}, room="currencies")
    """

    name = "multiplexer"

    def __init__(
        self,
        redis: str | blocking.Multiplexer = "redis://localhost:6379",
        channel: str = "socketio",
        write_only: bool = False,
        logger: Any = None,
        json: Any = None,
    ) -> None:
        if not write_only:
            raise ValueError("a MultiplexerManager needs write_only=True; AsyncMultiplexerManager is for servers")
        super().__init__(channel=channel, write_only=write_only, logger=logger, json=json)
        self.multiplexer: blocking.Multiplexer = blocking.Multiplexer(redis) if isinstance(redis, str) else redis
        """The multiplexer. At the exit of the interpreter, it ends by itself."""

    def _publish(self, data: _Message) -> None:
        names, payload = self._address(data)
        for name in names:
            self.multiplexer.publish(name, payload)

    def _handle_disconnect(self, message: _Message) -> None:
        if self.server is not None:  # the base class assumes one
            super()._handle_disconnect(message)
