"""The demo's multiplexer, and a Redis client that counts and kills the multiplexer's connections."""

from __future__ import annotations

__all__ = ["CONNECT_TIMEOUT", "PUBLISH_TIMEOUT", "Backend"]

import secrets
from typing import Any

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from .. import Multiplexer, PromiseSubscription, RedisMPXError
from .errors import CannotStart, RequestRejected
from .protocol import PROMISE_PREFIX

CONNECT_TIMEOUT = 5.0  # seconds
PUBLISH_TIMEOUT = 1.0  # seconds, after which the page shows that a message was not published


class Backend:
    """What all WebSockets of the demo share. Needs a running event loop; close it with `aclose()`."""

    def __init__(self, url: str) -> None:
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
        self._name = f"redismpx-demo-{secrets.token_hex(4)}"  # tells our connections from others in CLIENT LIST
        options |= {"client_name": self._name, "decode_responses": False, "retry": Retry(NoBackoff(), 1)}
        self._redis = Redis.from_pool(ConnectionPool(**options))
        self.address: str = str(
            options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
        )
        self.mpx: Multiplexer = Multiplexer(self._redis, publish_timeout=PUBLISH_TIMEOUT)
        self.promises: PromiseSubscription = self.mpx.new_promise_subscription(PROMISE_PREFIX)
        self.clients: set[object] = set()  # the open chat WebSockets

    async def connect(self) -> None:
        """Wait until the multiplexer is connected. Raises `CannotStart` after `CONNECT_TIMEOUT`."""
        try:
            await self.mpx.connect(CONNECT_TIMEOUT)
        except TimeoutError as error:
            raise CannotStart(
                f"{str(error).rstrip('.')}. Start Redis there, or choose another server with --redis"
            ) from error

    async def publish(self, channel: bytes, payload: bytes) -> None:
        """Publish a message. Raises `RequestRejected` if it cannot be published."""
        try:
            await self.mpx.publish(channel, payload)
        except (RedisMPXError, RedisError) as error:
            raise RequestRejected(f"not published: {error}") from error

    async def kill_connections(self) -> int:
        """Let Redis kill the multiplexer's connections and return their number. Raises `RequestRejected`."""
        try:
            connections = await self._list_connections()
            for connection in connections:
                await self._redis.client_kill_filter(_id=connection["id"])
        except (RedisError, OSError) as error:
            raise RequestRejected(f"Redis cannot kill the connection: {error}") from error
        return len(connections)

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
            "state": stats.state,
        }

    async def aclose(self) -> None:
        """Close the multiplexer, then the client. Further calls do nothing."""
        await self.mpx.aclose()
        await self._redis.aclose()

    async def _list_connections(self) -> list[dict[str, str]]:
        """Return the entries of CLIENT LIST that are Pub/Sub connections of this backend."""
        return [c for c in await self._redis.client_list(_type="pubsub") if c["name"] == self._name]
