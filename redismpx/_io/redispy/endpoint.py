"""Where connections go, decided before each dial."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from .connection import Connection
from .credentials import Follower, Login, follow
from .dial import DIAL_TIMEOUT, dial
from .errors import await_reply, describe, explain, skips_tls_verification
from .pool import Pool


class Endpoint:
    """The server of a client. Its subclasses have several to choose from, or know what to do when it fails."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        """The options of the last dial, or of the first one."""

    def __str__(self) -> str:
        return describe(self.pool)

    @property
    def host(self) -> str:
        """The host name of the server."""
        return str(self.pool.connection_kwargs.get("host"))

    def follow_credentials(self, log_in: Callable[[Login], None]) -> Follower | None:
        """Call `log_in` in the running loop with each new token, if the credential provider pushes tokens."""
        return follow(self.pool.connection_kwargs.get("credential_provider"), log_in)

    @property
    def skips_tls_verification(self) -> bool:
        """Whether connections speak TLS without verifying the server."""
        return skips_tls_verification(self.pool)

    @property
    def silence(self) -> str:
        """What is known while the server has not answered yet."""
        return await_reply(self.pool)

    async def dial(self, *, side_by_side: bool = False) -> Connection:
        """Connect and do the handshake. Raises whatever redis-py raises; see `dial.dial()`."""
        return await dial(self.pool, side_by_side=side_by_side)

    async def call(self, *words: str | bytes | int) -> Any:
        """Dial, send one command, return its reply, and close the connection."""
        async with asyncio.timeout(DIAL_TIMEOUT):
            connection = await self.dial()
            try:
                return await connection.call(*words)
            finally:
                await connection.release()

    def failed(self) -> None:
        """Take note that a dial failed, or that a connection was lost."""

    def explain(self, error: BaseException) -> str:
        """Return why a dial failed."""
        return explain(self.pool, error)
