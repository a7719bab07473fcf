"""The client objects of redis-py: how a URL becomes one, and where a client leads."""

from __future__ import annotations

import inspect
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import AbstractBackoff, FullJitterBackoff
from redis.crc import key_slot
from redis.exceptions import RedisError
from redis.maint_notifications import MaintNotificationsConfig

from .endpoint import Endpoint
from .sentinels import SentinelEndpoint, SentinelPool
from .slot_map import SlotMap
from .urls import UnusableURL, new_sentinel_client, read_url

__all__ = [
    "AbstractBackoff",
    "Redis",
    "RedisCluster",
    "client_from_url",
    "key_slot",
    "publish_backoff",
    "reconnect_backoff",
    "servers_of",
]


def reconnect_backoff() -> AbstractBackoff:
    """Return the default seconds between attempts to connect: full jitter, from 50 ms doubling up to 5 s."""
    return FullJitterBackoff(cap=5.0, base=0.05)


def publish_backoff() -> AbstractBackoff:
    """Return the seconds between attempts to connect for publishing: many processes may try at once."""
    return FullJitterBackoff(cap=1.0, base=0.05)


def servers_of(client: Redis | RedisCluster) -> Endpoint | SentinelEndpoint | SlotMap:
    """Return where a client leads: one server, the master of a Sentinel service, or the nodes of a cluster."""
    if isinstance(client, RedisCluster):
        return SlotMap(client)
    pool = client.connection_pool
    if isinstance(pool, SentinelConnectionPool):
        return SentinelEndpoint(SentinelPool(pool)) if pool.is_master else Endpoint(SentinelPool(pool))
    return Endpoint(pool)


# Off unless the options ask for them: redis-py would let a server redirect all connections of the client. Before 8.1
# redis-py has no such option in asyncio.
_NO_MAINTENANCE_NOTICES: dict[str, Any] = (
    {"maint_notifications_config": MaintNotificationsConfig(enabled=False)}
    if "maint_notifications_config" in inspect.signature(AbstractConnection).parameters
    else {}
)

_ENCODE = (
    "percent-encode special characters, above all in user and password (@ is %40, : is %3A, / is %2F, ? is %3F, "
    "# is %23), or pass username and password beside the URL"
)


def client_from_url(url: str, options: dict[str, Any]) -> Redis:
    """Build a client from a URL and options. Raises `TypeError` or `ValueError` for what cannot work."""
    options = _NO_MAINTENANCE_NOTICES | options
    client, hint = None, _ENCODE
    try:
        parsed = read_url(url)
        if not _is_ambiguous(parsed.url):
            hint = f"check the port, and {_ENCODE}"
            if parsed.behind is None:
                client = Redis.from_url(parsed.url, **options)
            else:
                client = new_sentinel_client(parsed, options)
    except ValueError as error:
        if isinstance(error, UnusableURL) or str(error).startswith("Invalid value for"):
            hint = str(error)
    if client is None:
        # The URL may hold a password, and so may a piece of it that could not be parsed: neither is repeated, and the
        # error of redis-py is not kept as the context of this one.
        raise ValueError(f"the Redis URL cannot be used: {hint}")
    if client.connection_pool.connection_kwargs.get("decode_responses"):
        raise ValueError(
            "names and payloads are bytes here, so decode_responses=True cannot be used; give decode=bytes.decode"
        )
    try:
        client.connection_pool.make_connection()
    except TypeError as error:
        raise TypeError(f"an option that redis-py does not know: {error}") from None
    except RedisError as error:
        raise ValueError(f"an option that redis-py cannot use: {error}") from None
    return client


def _is_ambiguous(url: str) -> bool:
    """Tell whether a special character in a URL may belong to a user or password.

    A piece of the password would be taken for a host, a port, a path or an option then, and be dialled or shown.
    """
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    is_path_of_socket = parts.scheme == "unix" and not host
    return (
        "@" in user
        or user.count(":") > 1
        or ("@" in parts.path and not is_path_of_socket)
        or "@" in parts.query
        or any(option and "=" not in option for option in parts.query.split("&"))
        or "#" in url
    )
