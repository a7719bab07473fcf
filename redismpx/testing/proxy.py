"""A TCP proxy on loopback that simulates the faults of a network."""

from __future__ import annotations

__all__ = ["Flow", "Proxy", "stop_accepting"]

import asyncio
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Self

_PIECES = 20  # in a second, at a limited rate


@dataclass
class Flow:
    """What happens to the bytes of one direction. Changes apply to the next bytes.

    Example:
        ::

            with Proxy(6379) as proxy:
                slow: Flow = proxy.to_client
                slow.rate = 10_000  # bytes per second
    """

    hole: bool = False
    """Bytes are swallowed. A connection that lost bytes passes no more, because the rest would make no sense."""
    stall: bool = False
    """Bytes are held back, so that the sender's buffers fill, until this is false again."""
    delay: float = 0.0
    """Seconds by which each piece is delayed."""
    chunk: int | None = None
    """The number of bytes in one piece."""
    limit: int | None = None
    """The number of bytes after which a connection is closed."""
    rate: float | None = None
    """Bytes per second, for each connection."""
    corrupt: Callable[[bytes], bytes] | None = None
    """Replaces each piece."""

    def split(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the next piece of these bytes, and the rest."""
        size = self.chunk or (len(data) if self.rate is None else ceil(self.rate / _PIECES))
        return data[:size], data[size:]


@dataclass(eq=False)
class _Pair:
    """One client's connection and the proxy's own to the server."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    heard: float = 0.0
    passed: dict[int, int] = field(default_factory=dict)
    holes: set[int] = field(default_factory=set)
    left: int | None = None  # bytes that the client still gets before the connection is reset
    edit: Callable[[bytes], bytes] | None = None

    def end(self, *, reset: bool) -> None:
        for writer in (self.client, self.server):
            if reset:
                with suppress(OSError, AttributeError):  # a closed connection; with TLS it has no socket then
                    sock = writer.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort() if reset else writer.close()


def _ignore_lost_clients(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Ignore clients that end their connection, also during a TLS handshake, which asyncio logs as an error."""
    if not isinstance(context.get("exception"), OSError):
        loop.default_exception_handler(context)


class Proxy:
    """Forwards connections to a port. It runs in a thread, so that a busy test loop does not delay it.

    Any thread may call its methods and change its attributes, also between two awaits in an event loop: no call waits
    for a client or a server.

    Args:
        target: forward new connections to this port of this computer, or to this host and port.
        tls: speak TLS with the clients.
        host: listen on this address.

    Example:
        ::

            with Proxy(6379) as proxy, Multiplexer(proxy.url) as mpx:
                mpx.connect(timeout=5)
                print(proxy.cut())  # 1
    """

    def __init__(
        self, target: int | tuple[str, int], tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
    ) -> None:
        self.target = target
        """The port of this computer, or the host and port, that new connections are forwarded to."""
        self.to_server: Flow = Flow()
        self.to_client: Flow = Flow()
        self.idle_limit: float | None = None
        """Seconds of silence after which a connection is silently dropped, as a firewall does."""
        self.refusing: bool = False
        """Whether new connections are reset as soon as they are accepted."""
        self.new_edit: Callable[[], Callable[[bytes], bytes]] | None = None
        """Makes, for each connection, a function that replaces the pieces for the client."""
        self.accepted: list[float] = []
        """When each connection was accepted, by the clock of asyncio's loops."""
        self.port: int = 0
        self._tls = tls
        self._host = host
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_ignore_lost_clients)
        self._connections: set[_Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return f"redis{'s' if self._tls else ''}://localhost:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._open).result(5)
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def cut(self) -> int:
        """Close every connection properly; return their number."""
        return self._end_all(reset=False)

    def reset(self) -> int:
        """Reset every connection; return their number."""
        return self._end_all(reset=True)

    def reset_after(self, count: int | None) -> None:
        """Reset each connection that is open now as soon as its client has got this many more bytes; None: never."""

        async def begin() -> None:
            for connection in self._connections:
                connection.left = count

        self._call(begin).result(5)

    def heal(self) -> None:
        """Forward everything again. Swallowed bytes stay lost, and their connections dead."""
        self.to_server = Flow()
        self.to_client = Flow()
        self.idle_limit = None
        self.refusing = False
        self.reset_after(None)

    def stop_listening(self) -> None:
        """Close the listening port, so that connections are refused."""

        async def stop() -> None:
            assert self._server is not None
            await stop_accepting(self._server)

        self._call(stop).result(5)

    def listen_again(self) -> None:
        """Open the port again that `stop_listening()` has closed."""
        self._call(self._open).result(5)

    # --- in the thread

    def _call(self, function: Callable[[], Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(function(), self._loop)

    def _end_all(self, *, reset: bool) -> int:
        async def end() -> int:
            connections = tuple(self._connections)
            for connection in connections:
                connection.end(reset=reset)
            return len(connections)

        count: int = self._call(end).result(5)
        return count

    async def _open(self) -> None:
        self._server = await asyncio.start_server(
            self._accept, self._host, self.port, ssl=self._tls, ssl_handshake_timeout=5 if self._tls else None
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        assert self._server is not None
        await stop_accepting(self._server)
        for connection in tuple(self._connections):
            connection.end(reset=True)
        for _ in range(200):  # a connection in the middle of its TLS handshake takes a while to end
            others = asyncio.all_tasks() - {asyncio.current_task()}
            # The loop refers to closed transports, which have no socket any more, until they are freed.
            transports = [each for each in getattr(self._loop, "_transports", {}).values() if each._sock is not None]
            if not (others or transports):
                break
            await asyncio.sleep(0.005)
            for task in others:
                task.cancel()
            for transport in transports:
                transport.abort()

    async def _accept(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.accepted.append(self._loop.time())
        connection = _Pair(to_client, to_client)
        try:
            if self.refusing:
                connection.end(reset=True)
                return
            host, port = ("127.0.0.1", self.target) if isinstance(self.target, int) else self.target
            from_server, connection.server = await asyncio.open_connection(host, port)
            connection.edit = self.new_edit and self.new_edit()
            connection.heard = self._loop.time()
            self._connections.add(connection)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(connection, from_client, connection.server, 0))
                pumps.create_task(self._pump(connection, from_server, to_client, 1))
        except (OSError, asyncio.CancelledError, ExceptionGroup):
            pass
        finally:
            self._tasks.discard(task)
            self._connections.discard(connection)
            connection.end(reset=False)
            if self._tls is not None:  # otherwise it would wait for the client's close_notify
                to_client.transport.abort()

    async def _pump(
        self, connection: _Pair, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: int
    ) -> None:
        while True:
            data = await reader.read(65536)
            while self._flow(way).stall:  # noqa: ASYNC110, any thread may change it
                await asyncio.sleep(0.002)
            if not data:
                if connection.holes:  # neither side notices the end
                    await asyncio.Event().wait()
                raise EOFError
            now = self._loop.time()
            if self.idle_limit is not None and now - connection.heard > self.idle_limit:
                connection.holes |= {0, 1}
            connection.heard = now
            if way and connection.edit is not None:
                data = connection.edit(data)
            while data:
                flow = self._flow(way)
                if flow.hole:
                    connection.holes.add(way)
                if way in connection.holes:
                    break
                piece, data = flow.split(data)
                await self._send(connection, writer, way, piece)

    async def _send(self, connection: _Pair, writer: asyncio.StreamWriter, way: int, piece: bytes) -> None:
        """Send one piece as its flow says."""
        flow = self._flow(way)
        if flow.limit is not None:
            piece = piece[: max(0, flow.limit - connection.passed.get(way, 0))]
        if flow.corrupt is not None:
            piece = flow.corrupt(piece)
        if flow.delay:
            await asyncio.sleep(flow.delay)
        elif flow.rate:
            await asyncio.sleep(len(piece) / flow.rate)
        elif flow.chunk is not None:
            await asyncio.sleep(0)
        left = connection.left if way else None
        writer.write(piece[:left])
        await writer.drain()
        connection.passed[way] = connection.passed.get(way, 0) + len(piece)
        if flow.limit is not None and connection.passed[way] >= flow.limit:
            raise EOFError
        if left is not None:
            connection.left = left - len(piece)
            if connection.left <= 0:
                connection.end(reset=True)
                raise EOFError

    def _flow(self, way: int) -> Flow:
        return self.to_client if way else self.to_server


async def stop_accepting(server: asyncio.Server) -> None:
    """Close an asyncio server.

    First stop accepting and let the loop turn: a connection that was just accepted when the server closes would stay
    open.
    """
    loop = asyncio.get_running_loop()
    if isinstance(loop, asyncio.BaseEventLoop):
        for listener in server.sockets:
            loop.remove_reader(listener.fileno())
        for _ in range(3):
            await asyncio.sleep(0)
    server.close()
