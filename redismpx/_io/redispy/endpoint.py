"""Where connections go, asked before each dial."""

from __future__ import annotations

from typing import Any, Protocol

from redis.asyncio.connection import AbstractConnection


class Pool(Protocol):
    """What is used of a connection pool of redis-py. A node of a cluster can be used as one, too."""

    @property
    def connection_class(self) -> Any:
        """What makes a connection."""

    @property
    def connection_kwargs(self) -> dict[str, Any]:
        """And of which options."""
        ...

    def make_connection(self) -> AbstractConnection:
        """Make a connection that has not dialled yet, and that is the caller's."""
        ...

    async def get_connection(self) -> AbstractConnection:
        """Lend a connection that has dialled."""
        ...

    async def release(self, connection: AbstractConnection) -> None:
        """Take a connection back."""


class Endpoint(Protocol):
    """Leads to a server, or to one of several."""

    @property
    def pool(self) -> Pool:
        """Where it led last; where it will lead, if it was not asked yet."""
        ...

    async def find(self) -> Pool:
        """Tell where to go. Raises what redis-py raises."""
        ...

    def failed(self) -> None:
        """Take note that it led nowhere, or that what was there is lost."""


class FixedEndpoint:
    """The endpoint of a client for one server, or for a Sentinel service, whose connections look for the master."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    async def find(self) -> Pool:
        """Return the client's pool, always."""
        return self.pool

    def failed(self) -> None:
        """There is nowhere else to go."""
