"""The demo's multiplexer, the numbers that it gets, and the faults that the page can cause."""

from __future__ import annotations

__all__ = [
    "CONNECT_TIMEOUT",
    "NUMBERS_TOPIC",
    "PING_INTERVAL",
    "PUBLISH_TIMEOUT",
    "REQUEST_TIMEOUT",
    "Backend",
    "Embedded",
]

import asyncio
import secrets
from typing import Any, NamedTuple

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.exceptions import RedisError

from .. import Multiplexer, PromiseSubscription, RedisMPXError
from ..embedded import Server
from ..testing import Faults
from ..topics import Topics
from .errors import CannotStart, RequestRejected
from .protocol import PROMISE_PREFIX
from .ticker import Ticker

CONNECT_TIMEOUT = 5.0  # seconds
PUBLISH_TIMEOUT = 1.0  # seconds, after which the page shows that a message was not published
REQUEST_TIMEOUT = 1.0  # seconds, after which the page shows that a request has failed
PING_INTERVAL = 1.0  # seconds; like the backoff, it is short, so that nobody has to wait for what the page shows
NUMBERS_TOPIC = "numbers"


class Embedded(NamedTuple):
    """The server of the demo's own, and the faults that can happen to it."""

    server: Server
    faults: Faults


class Backend:
    """What all WebSockets of the demo share. Needs a running event loop; close it with `aclose()`.

    Args:
        url: the URL for the multiplexer.
        embedded: the server behind this URL. Without it, a cut is the only fault that the page can cause.
    """

    def __init__(self, url: str, embedded: Embedded | None = None) -> None:
        options: dict[str, Any] = {"socket_connect_timeout": 3.0}
        try:
            Multiplexer(url)  # reads the URL more strictly than redis-py
            options |= parse_url(url)
        except (TypeError, ValueError):
            # The error of redis-py may contain a part of the password, so it is neither shown nor chained.
            raise CannotStart(
                "the Redis URL is invalid; it must look like redis://host:6379 or rediss://user:password@host, "
                "with special characters percent-encoded"
            ) from None
        self._embedded = embedded
        self.server_url: str = url if embedded is None else embedded.server.url
        """The URL of the server itself, for other programs. It changes when the embedded server has restarted."""
        token = secrets.token_hex(4)  # several demos may use one server
        self._name = f"redismpx-demo-{token}"  # tells our connections from others in CLIENT LIST
        options |= {"client_name": self._name, "decode_responses": False, "retry": Retry(NoBackoff(), 1)}
        self._redis = Redis.from_pool(ConnectionPool(**options))
        self._control = self._redis  # counts and kills connections; past the faults, once the numbers are published
        self._host: str = options.get("host", "localhost")
        self._port: int = options.get("port", 6379)
        self._path: str | None = options.get("path")
        self.mpx: Multiplexer = Multiplexer(
            self._redis,
            publish_timeout=PUBLISH_TIMEOUT,
            backoff=ExponentialWithJitterBackoff(base=0.05, cap=1.0),
            ping_interval=PING_INTERVAL,
            ping_timeout=PING_INTERVAL,
        )
        self.promises: PromiseSubscription = self.mpx.new_promise_subscription(PROMISE_PREFIX)
        self.topics: Topics = Topics(self.mpx, prefix=f"demo-{token}", on_error=_ignore)
        self.ticker: Ticker = Ticker(lambda number: self.topics.publish(NUMBERS_TOPIC, number=number))
        self._squares = f"demo:square:{token}"
        self.mpx.serve(self._squares, lambda request: request.body**2, decode=int, encode=str, on_error=_ignore)
        self.clients: set[object] = set()  # the open chat WebSockets
        self.fault: str | None = None  # the one that goes on

    @property
    def address(self) -> str:
        """Where the server is, without a password."""
        return self._path or f"{self._host}:{self._port}"

    def facts(self) -> dict[str, object]:
        """Return what the page says about the server: how to publish with redis-cli, and what can be tried."""
        if self._embedded is not None:
            where = f"-u {self.server_url}"
        else:
            where = f"-s {self._path}" if self._path else f"-h {self._host} -p {self._port}"
        return {
            "command": f"redis-cli {where} PUBLISH demo:room:lobby hello",
            "embedded": self._embedded is not None,
            "channel": self.ticker.channel,
            "stream": self.ticker.stream,
        }

    async def connect(self) -> None:
        """Wait until the multiplexer is connected, and start the numbers. Raises `CannotStart`."""
        try:
            await self.mpx.connect(CONNECT_TIMEOUT)
        except TimeoutError as error:
            raise CannotStart(
                f"{str(error).rstrip('.')}. Start Redis there, or choose another server with --redis"
            ) from error
        self._begin()

    def _begin(self) -> None:
        """Start what talks to the server itself, past the faults. A restart changes its URL."""
        if self._embedded is not None:
            self.server_url = self._embedded.server.url
            self._control = Redis.from_url(self.server_url)
        self.ticker.start(self.server_url)

    async def _end(self) -> None:
        await self.ticker.stop()
        await self._control.aclose()

    async def publish(self, channel: bytes, payload: bytes) -> None:
        """Publish a message. Raises `RequestRejected` if it cannot be published."""
        try:
            await self.mpx.publish(channel, payload)
        except (RedisMPXError, RedisError) as error:
            raise RequestRejected(f"not published: {error}") from error

    async def ask(self, number: int) -> int | None:
        """Request the square of a number from the service; return the reply, or None if the request failed."""
        try:
            return await self.mpx.request(self._squares, number, timeout=REQUEST_TIMEOUT, encode=str, decode=int)
        except (RedisMPXError, RedisError):
            return None

    async def cause(self, fault: str, seconds: float) -> None:
        """Let a fault happen, and wait for its end. Raises `RequestRejected` if it cannot happen now."""
        if self.fault is not None:
            raise RequestRejected("one fault at a time: wait for the end of the last one")
        self.fault = fault
        try:
            if self._embedded is None:
                await self._kill_connections()
            elif fault == "restart":
                await self._end()
                await self._embedded.faults.arestart()
                self._begin()
            else:
                faults = self._embedded.faults
                with faults.refuse() if fault == "cut" else faults.freeze():
                    await asyncio.sleep(seconds)
        finally:
            self.fault = None

    async def _kill_connections(self) -> None:
        """Let Redis kill the multiplexer's connections. Raises `RequestRejected`."""
        try:
            for connection in await self._list_connections():
                await self._control.client_kill_filter(_id=connection["id"])
        except (RedisError, OSError) as error:
            raise RequestRejected(f"Redis cannot kill the connection: {error}") from error

    async def counters(self) -> dict[str, object]:
        """Return the counters of the multiplexer, and the number of its connections that Redis reports."""
        try:
            connections = len(await self._list_connections())
        except (RedisError, OSError):
            connections = None
        stats = self.mpx.stats()
        return {
            "clients": len(self.clients),
            "rooms": stats.channels,
            "subscriptions": stats.subscriptions,
            "connections": connections,
            "reconnects": max(0, stats.connections - 1),
            "messages": stats.messages,
            "published": self.ticker.number,
            "state": stats.state,
            "fault": self.fault,
        }

    async def aclose(self) -> None:
        """Close everything. Further calls do nothing."""
        await self._end()
        self.topics.close()
        await self.mpx.aclose()
        await self._redis.aclose()

    async def _list_connections(self) -> list[dict[str, str]]:
        """Return the entries of CLIENT LIST that are Pub/Sub connections of this backend."""
        return [c for c in await self._control.client_list(_type="pubsub") if c["name"] == self._name]


def _ignore(error: Exception) -> None:
    """Do nothing: the page shows which numbers and replies are missing while the connection is lost."""
