"""Where a URL leads, for the commands that ask the server itself. The multiplexer has checked the URL before."""

from __future__ import annotations

__all__ = ["Target", "new_client", "read_target"]

from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from .. import Multiplexer

_DEFAULT_SENTINEL_PORT = 26_379
_DIRECT_TIMEOUT = 3.0  # seconds to connect, and for a reply


@dataclass(frozen=True)
class Target:
    """A server, or the master of a service of Sentinels."""

    options: dict[str, Any]
    """Those of a connection of redis-py."""
    sentinels: tuple[tuple[str, int], ...] = ()
    service: str = ""


def read_target(url: str) -> Target:
    """Read a URL.

    Raises:
        ValueError: it cannot be used. The text repeats nothing of it.
    """
    Multiplexer(url)
    scheme, _, rest = url.partition(":")
    base, _, via = scheme.lower().replace("valkey", "redis").partition("+")
    sentinels: tuple[tuple[str, int], ...] = ()
    service = ""
    if via:
        user, at, places = rest.removeprefix("//").rpartition("@")
        places, _, query = places.partition("?")
        hosts, service, db, *_ = *places.split("/"), ""
        sentinels = tuple(_read_host(host) for host in hosts.split(","))
        rest = f"//{user}{at}localhost/{db}?{query}"
    options = {**parse_url(f"{base}:{rest}"), "decode_responses": False}
    options |= {"protocol": 2, "socket_connect_timeout": _DIRECT_TIMEOUT, "socket_timeout": _DIRECT_TIMEOUT}
    options["retry"] = Retry(NoBackoff(), 0)
    return Target(options, sentinels, unquote(service))


def _read_host(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        return unquote(text).strip("[]"), _DEFAULT_SENTINEL_PORT
    return unquote(host).strip("[]"), int(port)


def new_client(target: Target) -> Redis:
    """Make a client of the server, which the caller closes."""
    if not target.sentinels:
        return Redis.from_pool(ConnectionPool(**target.options))
    options = {name: value for name, value in target.options.items() if name not in ("host", "port")}
    tls = options.pop("connection_class", None) is SSLConnection
    shared = {name: value for name, value in options.items() if name.startswith(("socket_", "ssl_"))}
    sentinel = Sentinel(target.sentinels, sentinel_kwargs={**shared, "ssl": tls})
    client: Redis = sentinel.master_for(target.service, **{**options, "ssl": tls})
    return client
