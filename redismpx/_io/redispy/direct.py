"""Clients of redis-py that ask a server a few questions, for the command line. They do not try a second time."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from .client import client_from_url
from .errors import describe, speaks_tls

__all__ = ["DirectServer", "Redis", "RedisError", "ResponseError"]

_DIRECT_TIMEOUT = 3.0  # seconds to connect, and for a reply


class DirectServer:
    """A server, or the master of a service of Sentinels, with clients that `async with` closes.

    Raises `ValueError` for a URL that cannot be used, as the multiplexer does, and for an option that it has.
    """

    def __init__(self, url: str, **options: Any) -> None:
        options |= {"protocol": 2, "socket_connect_timeout": _DIRECT_TIMEOUT, "socket_timeout": _DIRECT_TIMEOUT}
        try:
            self.client: Redis = client_from_url(url, options)
        except TypeError as error:
            raise ValueError(str(error)) from None
        pool: Any = self.client.connection_pool
        self.has_tls: bool = speaks_tls(pool)
        self.service: str = getattr(pool, "service_name", "")
        """The name of the service of Sentinels, if they know the server."""
        theirs = pool.sentinel_manager.sentinels if self.service else ()
        self.sentinels: dict[str, Redis] = {describe(each.connection_pool): each for each in theirs}
        """The clients of the Sentinels by their addresses."""
        for client in (self.client, *self.sentinels.values()):
            client.set_retry(Retry(NoBackoff(), 0))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for client in (self.client, *self.sentinels.values()):
            await client.aclose()
