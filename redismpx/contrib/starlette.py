"""Starlette and FastAPI: a lifespan, Server-Sent Events, and WebSockets that get the events of a subscription."""

from __future__ import annotations

__all__ = ["EventStream", "ServerSentEvent", "bridge", "get_multiplexer", "last_event_id", "lifespan"]

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, suppress
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

from starlette.background import BackgroundTask
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from .. import Activation, Disconnect, Message, MessageGap, Multiplexer, StreamMessage
from ._application import KEY, Application
from ._client import SendTimeout, beside

_GRACE = 1.0  # seconds for the frame that closes a WebSocket
_RESTART, _TRY_AGAIN_LATER = 1012, 1013  # close codes, https://www.iana.org/assignments/websocket
_LINE_END = re.compile("\r\n|\r|\n")
_TYPES: dict[type, str] = {Activation: "activation", Disconnect: "disconnect", MessageGap: "gap"}
_Frame: TypeAlias = str | bytes | None
_Sent: TypeAlias = "ServerSentEvent | str | None"
_Event = TypeVar("_Event")
_Event_co = TypeVar("_Event_co", covariant=True)


class _Subscription(Protocol[_Event_co]):
    """A subscription that is read by its events."""

    def events(self) -> AsyncIterator[_Event_co]: ...
    def close(self) -> None: ...


def lifespan(multiplexer: Multiplexer) -> Callable[[object], AbstractAsyncContextManager[Mapping[str, Any]]]:
    """Open a multiplexer when an application starts, and close it when the application ends. Works offline.

    When uvicorn shuts down, each `EventStream` ends first. The multiplexer stays open until all requests are completed.
    No signal handler is replaced. Each start of the application opens the multiplexer again.

    Args:
        multiplexer: the multiplexer. `get_multiplexer()` returns it.

    Returns:
        The `lifespan` of a `Starlette` or `FastAPI` application. A lifespan of your own may enter it, and yield what
        it yields.

    Example:
        ::

            mpx = Multiplexer("redis://localhost:6379")
            app = Starlette(lifespan=lifespan(mpx))
    """

    @asynccontextmanager
    async def run(app: object) -> AsyncIterator[Mapping[str, Any]]:
        application = Application(multiplexer)
        async with multiplexer:
            ending = asyncio.create_task(application.end_streams_at_shutdown(), name="redismpx lifespan")
            try:
                yield {KEY: application}
            finally:
                ending.cancel()
                await asyncio.wait([ending])

    return run


def get_multiplexer(connection: HTTPConnection) -> Multiplexer:
    """Return the multiplexer of the application's `lifespan()`. Also a dependency of FastAPI.

    Args:
        connection: a request or a WebSocket.

    Raises:
        RuntimeError: the application has no such lifespan.
    """
    multiplexer = Application.of(connection.scope).multiplexer
    if multiplexer is None:
        raise RuntimeError("the application has no multiplexer: pass lifespan=lifespan(mpx), or yield its state too")
    return multiplexer


# --- Server-Sent Events


class ServerSentEvent(NamedTuple):
    """An event for an `EventSource` (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

    data: str = ""
    """The data: any number of lines."""
    event: str | None = None
    """The type, for which the client listens. None: `message`."""
    id: str | None = None
    """What the client sends as `Last-Event-ID` when it reconnects. None: the id of an earlier event."""

    def __bytes__(self) -> bytes:
        lines = [f"data: {line}\n" for line in _LINE_END.split(self.data)]
        for field, value in (("event", self.event), ("id", self.id)):
            if value is not None:
                if _LINE_END.search(value) or "\0" in value:
                    raise ValueError(f"the {field} of a ServerSentEvent must be one line without NUL")
                lines.insert(0, f"{field}: {value}\n")
        return "".join([*lines, "\n"]).encode(errors="replace")


def _encode(event: object) -> ServerSentEvent | str:
    if not isinstance(event, (Message, StreamMessage)):
        return ServerSentEvent(event=_TYPES[type(event)])
    data = event.data.decode(errors="replace") if isinstance(event.data, bytes) else event.data
    if isinstance(data, str):
        return data
    raise TypeError(f"an EventStream of {type(data).__name__} needs `encode`, which converts it to a text")


def last_event_id(connection: HTTPConnection) -> str | None:
    """Return the id of the last stream message that a client has: `after` of `StreamSubscription.add()`.

    A browser that reconnects sends it as `Last-Event-ID`. Also a dependency of FastAPI.

    Returns:
        The id, or None if there is none, or it is not the id of a stream message.

    Example:
        ::

            async def feed(request: Request) -> EventStream:
                sub = get_multiplexer(request).new_stream_subscription()
                sub.add("feed", after=last_event_id(request))
                return EventStream(sub)
    """
    found = re.fullmatch("[0-9]{1,19}-[0-9]{1,19}", connection.headers.get("last-event-id", ""))
    return found and found[0]


class EventStream(Response):
    """A response that sends the events of a subscription as Server-Sent Events, and closes the subscription at its end.

    It ends when the client leaves, when the subscription or its multiplexer closes, and, with `lifespan()`, when
    uvicorn shuts down. Offline, it sends heartbeats. Each stream message is sent with its id: to resume, begin the
    stream, one in each subscription, at `last_event_id()`.

    Args:
        sub: a subscription without callbacks. Its `max_pending` and `overflow` apply to a slow client.
        encode: converts each event to a `ServerSentEvent`, to its data, or to None, which is not sent; or returns an
            awaitable of these. An exception ends the response. Default: the payload of a message is the data; the other
            events have no data, and the types `activation`, `disconnect` and `gap`.
        heartbeat: seconds without an event after which a comment is sent.
        send_timeout: seconds after which a client that does not read is disconnected.

    Example:
        ::

            async def news(request: Request) -> EventStream:
                sub = get_multiplexer(request).new_channel_subscription(max_pending=100)
                sub.add("news")
                return EventStream(sub)
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        sub: _Subscription[_Event],
        encode: Callable[[_Event], _Sent | Awaitable[_Sent]] = _encode,
        *,
        heartbeat: float = 15.0,
        send_timeout: float = 10.0,
    ) -> None:
        self.status_code = 200
        self.background: BackgroundTask | None = None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._sub: _Subscription[Any] = sub
        self._encode: Callable[[Any], Any] = encode
        self._heartbeat = heartbeat
        self._send_timeout = send_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, as ASGI describes."""
        application = Application.of(scope)
        with closing(self._sub):
            if scope["method"] == "HEAD" or application.is_stopping:
                self._sub.close()
            async with beside(partial(_wait_until_left, receive), "redismpx event stream") as block:
                application.streams[block] = self._sub.close
                start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
                with closing(SendTimeout(block, self._send_timeout, scope["path"])) as sending:
                    with sending:
                        await send(start)
                    events = self._sub.events()
                    while chunk := await self._next_chunk(events):
                        with sending:
                            await send({"type": "http.response.body", "body": chunk, "more_body": True})
                    with sending:
                        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _next_chunk(self, events: AsyncIterator[object]) -> bytes:
        """Wait for an event that is sent, and return its lines: none at the end of the events."""
        while True:
            try:
                async with asyncio.timeout(self._heartbeat):
                    event = await anext(events)
            except TimeoutError:
                return b": heartbeat\n\n"
            except StopAsyncIteration:
                return b""
            sent = self._encode(event)
            if not (sent is None or isinstance(sent, (str, ServerSentEvent))):
                sent = await sent
            if sent is not None:
                sent = ServerSentEvent(sent) if isinstance(sent, str) else sent
                if sent.id is None and isinstance(event, StreamMessage):
                    sent = sent._replace(id=event.id.decode())
                return bytes(sent)


async def _wait_until_left(receive: Receive, block: asyncio.Timeout) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# --- WebSockets


@asynccontextmanager
async def bridge(
    websocket: WebSocket,
    sub: _Subscription[_Event],
    encode: Callable[[_Event], _Frame | Awaitable[_Frame]],
    *,
    send_timeout: float = 10.0,
) -> AsyncIterator[None]:
    """Send the events of a subscription to a WebSocket during the block, and close the subscription at its end.

    The block receives from the WebSocket. It is cancelled when the subscription closes, or when the client does not
    read for `send_timeout`. Then the WebSocket is closed: with code 1012 (service restart) if the multiplexer of
    `lifespan()` is closed, otherwise with 1013 (try again later), as for a slow client whose subscription has
    `overflow="close"`. A client that leaves causes no error. Offline, the WebSocket stays open.

    Args:
        websocket: an accepted WebSocket.
        sub: a subscription without callbacks. Its `max_pending` and `overflow` apply to a slow client.
        encode: converts each event to a frame of text or of `bytes`, or to None, which is not sent; or returns an
            awaitable of these. An exception cancels the block, and is raised.
        send_timeout: seconds after which a client that does not read is disconnected.

    Example:
        ::

            async def chat(websocket: WebSocket) -> None:
                await websocket.accept()
                async with mpx.subscribe("chat", decode=bytes.decode) as sub:
                    async with bridge(websocket, sub, lambda event: getattr(event, "data", None)):
                        async for text in websocket.iter_text():
                            await mpx.publish("chat", text)
    """
    with closing(sub):
        forward = partial(_forward, websocket, sub, encode, send_timeout)
        async with beside(forward, "redismpx bridge") as block:
            yield
        if block.expired():
            multiplexer = Application.of(websocket.scope).multiplexer
            is_restart = multiplexer is not None and multiplexer.stats().state == "closed"
            with suppress(WebSocketDisconnect, RuntimeError, TimeoutError):  # closed already; or buffers are full
                async with asyncio.timeout(_GRACE):
                    await websocket.close(_RESTART if is_restart else _TRY_AGAIN_LATER)


async def _forward(
    websocket: WebSocket,
    sub: _Subscription[_Event],
    encode: Callable[[_Event], Any],
    send_timeout: float,
    block: asyncio.Timeout,
) -> None:
    with closing(SendTimeout(block, send_timeout, websocket.scope["path"])) as sending:
        async for event in sub.events():
            frame = encode(event)
            if not (frame is None or isinstance(frame, (str, bytes))):
                frame = await frame
            if frame is None:
                continue
            kind = "text" if isinstance(frame, str) else "bytes"
            try:
                with sending:
                    await websocket.send({"type": "websocket.send", kind: frame})
            except (WebSocketDisconnect, RuntimeError) as error:
                if websocket.application_state is WebSocketState.CONNECTING:
                    raise  # it is not accepted
                # The client has left. The block learns that from receive(), and may publish a last message before.
                if isinstance(error, WebSocketDisconnect):
                    websocket.application_state = WebSocketState.CONNECTED  # or receive() would raise another error
                await asyncio.get_running_loop().create_future()
