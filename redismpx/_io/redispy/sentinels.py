"""The Sentinels of a client, asked over connections of our own.

redis-py asks them over the pools of their clients, whose connections belong to the loop and the process in which they
were made, and it checks neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.sentinel import MasterNotFoundError, SentinelConnectionPool, SlaveNotFoundError

from .connection import Address
from .dial import DIAL_TIMEOUT, ask_another_first
from .endpoint import Endpoint
from .errors import describe
from .pool import Pool

__all__ = ["SentinelEndpoint", "SentinelPool"]


class SentinelPool:
    """The service of a Sentinel client in the place of its connection pool, which is left as it is."""

    def __init__(self, theirs: SentinelConnectionPool) -> None:
        self._theirs = theirs
        self.connection_class: Any = theirs.connection_class
        self.service_name: str = theirs.service_name
        self.is_master: bool = theirs.is_master
        self.check_connection: bool = theirs.check_connection
        self.sentinel_manager: Any = copy.copy(theirs.sentinel_manager)
        self.sentinel_manager.sentinels = [_Sentinel(client) for client in theirs.sentinel_manager.sentinels]

    @property
    def connection_kwargs(self) -> dict[str, Any]:
        """The options of a connection."""
        return {**self._theirs.connection_kwargs, "connection_pool": self}

    def make_connection(self) -> AbstractConnection:
        """Make a connection that has not dialled yet. It asks for the address when it does."""
        connection: AbstractConnection = self.connection_class(**self.connection_kwargs)
        return connection

    async def get_master_address(self) -> Address:
        """Ask the Sentinels for the master. Raises whatever redis-py raises."""
        host, port = await self.sentinel_manager.discover_master(self.service_name)
        return host, port

    async def rotate_slaves(self) -> AsyncIterator[Address]:
        """Return the replicas in any order, then the master."""
        replicas = list(await self.sentinel_manager.discover_slaves(self.service_name))
        random.shuffle(replicas)
        for host, port in replicas:
            yield host, port
        with contextlib.suppress(MasterNotFoundError):
            yield await self.get_master_address()
        raise SlaveNotFoundError(f"No slave found for {self.service_name!r}")


class _Sentinel:
    """One Sentinel, with the part of redis-py's client that `discover_master` and `discover_slaves` use."""

    def __init__(self, client: Redis) -> None:
        self.connection_pool: Pool = client.connection_pool
        """The options."""

    def __str__(self) -> str:
        return describe(self.connection_pool)

    async def sentinel_masters(self) -> dict[str, dict[str, Any]]:
        """Return the masters by the names of their services."""
        reply = await Endpoint(self.connection_pool).call("SENTINEL", "MASTERS")
        return {state["name"]: state for state in map(_parse_state, reply)}

    async def sentinel_slaves(self, service_name: str) -> list[dict[str, Any]]:
        """Return the replicas of a service."""
        reply = await Endpoint(self.connection_pool).call("SENTINEL", "SLAVES", service_name)
        return list(map(_parse_state, reply))


def _parse_state(reply: Any) -> dict[str, Any]:
    """Read what a Sentinel tells about one server: a map, or in RESP2 a list of keys and values."""
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    state: dict[str, Any] = {_text(key): _text(value) for key, value in pairs}
    flags = state["flags"].split(",")
    return state | {
        "port": int(state["port"]),
        "num-other-sentinels": int(state.get("num-other-sentinels", 0)),
        "is_master": "master" in flags,
        "is_sdown": "s_down" in flags,
        "is_odown": "o_down" in flags,
    }


def _text(word: Any) -> str:
    return word.decode() if isinstance(word, bytes) else str(word)


class SentinelEndpoint(Endpoint):
    """The master of a Sentinel service. The Sentinels are asked for it at each dial."""

    def __init__(self, pool: SentinelPool) -> None:
        super().__init__(pool)
        self._pool = pool

    @property
    def service(self) -> bytes:
        """The name of the service."""
        return str(self._pool.service_name).encode()

    def is_named(self, address: Address, named: Sequence[bytes]) -> bool:
        """Tell whether a Sentinel means the server at an address when it names a host and a port.

        With `force_master_ip` the host of each master is replaced before it is dialled, so only the port tells.
        """
        host, port = address
        is_forced = getattr(self._pool.sentinel_manager, "_force_master_ip", None) is not None
        return list(named) == [named[0] if is_forced and named else host.encode(), b"%d" % port]

    async def master(self) -> Address | None:
        """Ask the Sentinels which server is the master; None if they did not answer in time.

        Raises whatever redis-py raises, for example when no Sentinel can be reached.
        """
        try:
            async with asyncio.timeout(DIAL_TIMEOUT):
                return await self._pool.get_master_address()
        except TimeoutError:
            ask_another_first(self._pool)
            return None
