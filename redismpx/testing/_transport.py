"""A connection without a socket: an asyncio transport whose other end is an object of this process."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from .proxy import Flow

_POLL = 0.002  # seconds; while bytes are held back, any thread may change the flow


class _Lane:
    """The bytes of one direction, which arrive in a later turn of the loop, as the flow says. None: the end."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, flow: Callable[[], Flow], deliver: Callable[[bytes | None], None]
    ) -> None:
        self._loop = loop
        self._flow = flow
        self._deliver = deliver
        self._waiting: deque[tuple[float, bytes | None]] = deque()
        self._handle: asyncio.Handle | None = None
        self._is_closed = False
        self.is_paused = False

    def send(self, data: bytes | None) -> None:
        """Send bytes, or the end, from the thread of the loop."""
        delay = self._flow().delay
        self._waiting.append((self._loop.time() + delay if delay else 0.0, data))
        self.go_on()

    def go_on(self) -> None:
        """Deliver what waits, in the next turn of the loop."""
        if self._handle is None and not self._is_closed and not self.is_paused:
            self._handle = self._loop.call_soon(self._run)

    def drop(self) -> None:
        """Forget the bytes that wait because of a fault: their connection ends."""
        if self._flow().stall or self._flow().rate:
            self._waiting.clear()

    def close(self) -> None:
        """Deliver nothing any more."""
        self._is_closed = True
        self._waiting.clear()
        if self._handle is not None:
            self._handle.cancel()

    def _run(self) -> None:
        self._handle = None
        while self._waiting and not self.is_paused:
            due, data = self._waiting[0]
            flow = self._flow()
            if flow.stall and data is not None:
                self._handle = self._loop.call_later(_POLL, self._run)
                return
            if due > self._loop.time():
                self._handle = self._loop.call_at(due, self._run)
                return
            self._waiting.popleft()
            if flow.rate and data is not None:
                data, rest = flow.split(data)
                if rest:
                    self._waiting.appendleft((self._loop.time() + len(data) / flow.rate, rest))
            self._deliver(data)


class MemoryTransport(asyncio.Transport):
    """The client's end of a connection. Its methods are called in its loop; those of the server may come from others.

    Args:
        protocol: the client's protocol.
        flows: return what happens to the bytes to the server and to the client now.
        receive: gets the bytes for the server, in the loop of the client.
        closed: called once when the connection ends.
    """

    def __init__(
        self,
        protocol: asyncio.BaseProtocol,
        flows: Callable[[], tuple[Flow, Flow]],
        receive: Callable[[bytes], None],
        closed: Callable[[], None],
    ) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._protocol: Any = protocol
        self._receive = receive
        self._closed = closed
        self._is_closing = False
        self._to_server = _Lane(self._loop, lambda: flows()[0], self._deliver_to_server)
        self._to_client = _Lane(self._loop, lambda: flows()[1], self._deliver_to_client)
        self.left: int | None = None
        """Bytes that the client still gets before the connection is reset; None: no limit."""
        protocol.connection_made(self)

    # --- the server's side, from any thread

    def reply(self, data: bytes | None) -> None:
        """Send bytes, or the end of the connection, to the client."""
        self.do(lambda: self._to_client.send(data))

    def cut(self) -> None:
        """Close the connection, as a proxy does: what it holds back is lost, and the end passes."""

        def end() -> None:
            self._to_client.drop()
            self._to_client.send(None)

        self.do(end)

    def do(self, function: Callable[[], None]) -> None:
        """Call a function in the loop of the client."""
        if asyncio._get_running_loop() is self._loop:
            function()
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function)

    # --- the client's side

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._is_closing:
            self._to_server.send(bytes(data))

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._end(None)

    def abort(self) -> None:
        self._end(None)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def pause_reading(self) -> None:
        self._to_client.is_paused = True

    def resume_reading(self) -> None:
        self._to_client.is_paused = False
        self._to_client.go_on()

    def is_reading(self) -> bool:
        return not self._to_client.is_paused and not self._is_closing

    def can_write_eof(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def _deliver_to_server(self, data: bytes | None) -> None:
        if data is not None:
            self._receive(data)

    def _deliver_to_client(self, data: bytes | None) -> None:
        if data is None:
            if not self._protocol.eof_received():
                self._end(None)
            return
        self._pass_on(data[: self.left])
        if self.left is not None:
            self.left -= len(data)
            if self.left <= 0:
                self._end(ConnectionResetError("connection reset by a fault"))

    def _pass_on(self, data: bytes) -> None:
        protocol = self._protocol
        if not isinstance(protocol, asyncio.BufferedProtocol):
            protocol.data_received(data)
            return
        while data:
            buffer: Any = protocol.get_buffer(len(data))
            size = min(len(buffer), len(data))
            buffer[:size] = data[:size]
            data = data[size:]
            protocol.buffer_updated(size)

    def _end(self, error: Exception | None) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._to_server.close()
            self._to_client.close()
            self._closed()
            self._loop.call_soon(self._protocol.connection_lost, error)
