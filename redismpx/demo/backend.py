"""The demo's one multiplexer, and the Redis client beside it that counts and kills."""

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
from .errors import CannotStart, Refused
from .vocabulary import PROMISE_PREFIX

CONNECT_TIMEOUT = 5.0  # seconds
PUBLISH_TIMEOUT = 1.0  # seconds; the page waits so long for what it said


class Backend:
    """What all sessions share. Close it with `aclose()`; needs a running event loop."""

    def __init__(self, url: str) -> None:
        options: dict[str, Any] = {"socket_connect_timeout": 3.0}
        try:
            options |= parse_url(url)
        except ValueError:
            # What redis-py says may hold a piece of the password.
            raise CannotStart(
                "the Redis URL cannot be used; it should look like redis://host:6379 or rediss://user:password@host, "
                "with special characters percent-encoded"
            ) from None
        self._name = f"redismpx-demo-{secrets.token_hex(4)}"  # by which Redis tells our connections from others
        options |= {"client_name": self._name, "decode_responses": False, "retry": Retry(NoBackoff(), 1)}
        self._redis = Redis.from_pool(ConnectionPool(**options))
        self.where: str = str(options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}")
        self.mpx: Multiplexer = Multiplexer(self._redis, publish_timeout=PUBLISH_TIMEOUT)
        self.promises: PromiseSubscription = self.mpx.new_promise_subscription(PROMISE_PREFIX)
        self.clients: set[object] = set()  # the chat clients that are connected

    async def connect(self) -> None:
        """Wait until there is a connection. Raises `CannotStart`."""
        try:
            await self.mpx.connect(CONNECT_TIMEOUT)
        except TimeoutError as error:
            raise CannotStart(f"{str(error).rstrip('.')}. Is it running? Choose a server with --redis") from error

    async def publish(self, channel: bytes, payload: bytes) -> None:
        """Publish a message. Raises `Refused` when Redis does not take it."""
        try:
            await self.mpx.publish(channel, payload)
        except (RedisMPXError, RedisError) as error:
            raise Refused(f"Redis did not take it: {error}") from error

    async def cut(self) -> int:
        """Let Redis kill the multiplexer's connection; return how many there were. Raises `Refused`."""
        try:
            connections = await self._connections()
            for connection in connections:
                await self._redis.client_kill_filter(_id=connection["id"])
        except (RedisError, OSError) as error:
            raise Refused(f"Redis did not kill it: {error}") from error
        return len(connections)

    async def counters(self) -> dict[str, object]:
        """Count what is there: what the multiplexer knows, and what Redis sees of it."""
        try:
            connections = len(await self._connections())
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
        """Close the multiplexer, then the client. Closing twice is fine."""
        await self.mpx.aclose()
        await self._redis.aclose()

    async def _connections(self) -> list[dict[str, str]]:
        """Ask Redis for the Pub/Sub connections that are ours."""
        return [c for c in await self._redis.client_list(_type="pubsub") if c["name"] == self._name]
