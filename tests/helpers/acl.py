"""Users of a server who have few rights."""

from __future__ import annotations

from redis.asyncio import Redis

from redismpx import Multiplexer

from .backoffs import QUICK
from .servers import Server

# The rules of both are those in docs/how-to/secure.md.
SUBSCRIBER = "resetkeys resetchannels &chat:* -@all +subscribe +unsubscribe +psubscribe +punsubscribe +ping"
PUBLISHER = "resetkeys resetchannels &chat:* -@all +publish"
LIMITED = "resetkeys resetchannels -@all +subscribe +unsubscribe +psubscribe +punsubscribe +ping"
"""The rules of the user `limited`: no channel is permitted."""


async def set_user(admin: Redis, name: str, password: str, rules: str) -> None:
    """Create a user, or replace its password and rules."""
    await admin.execute_command("ACL", "SETUSER", name, "reset", "on", f">{password}", *rules.split())


async def set_limited_user(admin: Redis, *rules: str) -> None:
    """Create or replace the user `limited`, which gets `rules` on top of LIMITED."""
    await set_user(admin, "limited", "secret", " ".join((LIMITED, *rules)))


def limited(server: Server, **options: object) -> Multiplexer:
    """Return a multiplexer that connects as the user `limited`."""
    return Multiplexer(server.url, username="limited", password="secret", backoff=QUICK, **options)  # type: ignore[arg-type]
