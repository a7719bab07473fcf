"""The ways in which a connection is lost."""

from __future__ import annotations

from redis.asyncio import Redis

from redismpx import Multiplexer

from .monitor import kill_clients
from .servers import Server
from .waiting import until


async def interrupt(fault: str, server: Server, admin: Redis, mpx: Multiplexer) -> None:
    """End the connection of a multiplexer: "kill" by the server, "freeze" until it gives up, or "restart"."""
    if fault == "kill":
        await kill_clients(admin)
    elif fault == "freeze":
        server.freeze()
        await until(lambda: not mpx.connected)
        server.thaw()
    else:
        server.kill()
        await until(lambda: not mpx.connected)
        server.start()
