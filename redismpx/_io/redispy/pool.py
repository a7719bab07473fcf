"""The part of redis-py's connection pools that is used here: their options, and an unconnected connection."""

from __future__ import annotations

from typing import Any, Protocol

from redis.asyncio.connection import AbstractConnection


class Pool(Protocol):
    """What is used of a connection pool of redis-py. A node of a cluster stands in for one, too."""

    @property
    def connection_class(self) -> Any:
        """The class of its connections."""

    @property
    def connection_kwargs(self) -> dict[str, Any]:
        """The options of its connections."""
        ...

    def make_connection(self) -> AbstractConnection:
        """Make a connection that has not dialled yet. It takes no place in the pool."""
        ...
