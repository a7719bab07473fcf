"""A server in this process, for tests that make a thousand of them a second: Pub/Sub, and nothing that is kept."""

from __future__ import annotations

__all__ = ["MemoryConnection", "MemoryServer"]

import asyncio
import inspect
import threading
from typing import Any

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection

from ._pubsub import PubSub, PubSubClient
from ._transport import MemoryTransport
from .proxy import Flow

_NAME = "MemoryServer"

# redis-py 8 reads its version from the metadata of its package for each connection, which takes two milliseconds.
_WITHOUT_DRIVER_INFO: dict[str, Any] = (
    {"driver_info": None} if "driver_info" in inspect.signature(AbstractConnection.__init__).parameters else {}
)


class MemoryServer:
    """A server in this process, without a socket: connections speak RESP to it in memory.

    It has channels, patterns and sharded channels, PUBLISH and SPUBLISH, PUBSUB, PING, HELLO and rights; so
    subscriptions, promises and requests work with it. It keeps no data: streams and key events need a real server, and
    a command that it does not have is an error that says so. There is nothing to start or to stop. Event loops in
    several threads may use it.

    Give it to `Faults`; without faults, `client()` is enough.

    Example:
        ::

            server = MemoryServer()
            async with server.client() as redis, Multiplexer(redis) as mpx, mpx.subscribe("news") as sub:
                print(await mpx.publish("news", "hello"))  # 1
    """

    def __init__(self) -> None:
        self.lock: threading.RLock = threading.RLock()
        self.pubsub: PubSub = PubSub()
        self.transports: set[MemoryTransport] = set()
        self.flows: tuple[Flow, Flow] = Flow(), Flow()
        self.dropped: set[bytes] = self.pubsub.dropped
        self.is_refusing: bool = False

    def client(self, **options: Any) -> Redis:
        """Return a new redis-py client of this server. Close it yourself.

        Args:
            options: options of `redis.asyncio.Redis`, such as `protocol=2`.
        """
        pool = ConnectionPool(connection_class=MemoryConnection, server=self, path=_NAME, **options)
        return Redis.from_pool(pool)

    def connect(self, protocol: asyncio.BaseProtocol) -> MemoryTransport:
        """Connect a protocol of the running loop.

        Raises:
            ConnectionRefusedError: a fault keeps the server away.
        """
        if self.is_refusing:
            raise ConnectionRefusedError("the server refuses connections because of a fault")
        session = PubSubClient(self.pubsub, lambda data: transport.reply(data))

        def receive(data: bytes) -> None:
            with self.lock:
                session.receive(data)

        def closed() -> None:
            with self.lock:
                session.end()
                self.transports.discard(transport)

        transport = MemoryTransport(protocol, lambda: self.flows, receive, closed)
        with self.lock:
            self.transports.add(transport)
        return transport


class MemoryConnection(AbstractConnection):
    """What redis-py connects with: the `connection_class` of a pool.

    Args:
        server: the server to connect to.
        path: what log records and errors show as its address.
        options: options of redis-py's connections.
    """

    def __init__(self, server: MemoryServer, path: str, **options: Any) -> None:
        self._server = server
        self.path = path  # which log records and errors show
        super().__init__(**_WITHOUT_DRIVER_INFO, **options)

    def repr_pieces(self) -> Any:
        """Return what the `repr` shows."""
        return [("path", self.path), ("db", self.db)]

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        self._reader = reader
        self._writer = asyncio.StreamWriter(self._server.connect(protocol), protocol, reader, loop)

    def _host_error(self) -> str:
        return self.path

    def _error_message(self, exception: BaseException) -> str:
        return f"{self._host_error()}: {exception}"
