"""URLs beyond those of redis-py: the schemes of Valkey, and a master behind Sentinels. No error repeats a URL."""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from urllib.parse import unquote

from redis.asyncio import Redis
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.sentinel import Sentinel

from .connection import Address

__all__ = ["ParsedURL", "SentinelService", "UnusableURL", "new_sentinel_client", "read_url"]

_SCHEMES = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss", "unix": "unix"}
_SENTINEL_PORT = "26379"
_SENTINEL_FORM = "redis+sentinel://user:password@host:port,host:port/service/db"
_SENTINEL_REST = re.compile(
    r"//(?P<user>[^/?#]*@)?(?P<hosts>[^/?#@]*)(?:/(?P<service>[^/?#@]*))?(?:/(?P<db>[^/?#@]*))?(?P<query>\?[^#@]*)?"
)
_SEVERAL_HOSTS = re.compile(r"//([^/?#]*@)?[^/?#@]*,[^@]*\Z")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::([0-9]{1,5}))?")


class UnusableURL(ValueError):
    """A URL that says what is wrong with it. The text repeats nothing from the URL."""


class SentinelService(NamedTuple):
    """A master that Sentinels name."""

    sentinels: list[Address]
    service: str


class ParsedURL(NamedTuple):
    """A URL that redis-py understands, and, behind Sentinels, where its server is found."""

    url: str
    behind: SentinelService | None


def read_url(url: str) -> ParsedURL:
    """Translate a URL to one that redis-py understands.

    Raises `UnusableURL`, or another `ValueError` if a special character may belong to the user or the password.
    """
    scheme, _, rest = url.partition(":")
    base, plus, via = scheme.lower().partition("+")
    if base not in _SCHEMES or (plus and (via != "sentinel" or base == "unix")):
        raise UnusableURL(
            "it has one of the schemes redis://, rediss:// (with TLS), valkey://, valkeys:// (with TLS) and unix://; "
            f"for Sentinels it is {_SENTINEL_FORM}, with rediss+sentinel:// for TLS"
        )
    if not plus:
        if _SEVERAL_HOSTS.match(rest) and base != "unix":
            raise UnusableURL(f"it names several hosts; for Sentinels it is {_SENTINEL_FORM}")
        return ParsedURL(f"{_SCHEMES[base]}:{rest}", None)
    match = _SENTINEL_REST.fullmatch(rest)
    if match is None:
        raise ValueError
    user, hosts, service, db, query = (part or "" for part in match.groups())
    if not service:
        raise UnusableURL(f"it names no service of the Sentinels; it is {_SENTINEL_FORM}")
    if service.isdecimal() and not db:
        raise UnusableURL(f"is its last part a service or a database? Write /service/db: {_SENTINEL_FORM}")
    if db and not (db.isascii() and db.isdecimal()):
        raise UnusableURL(f"the database after the service must be a number: {_SENTINEL_FORM}")
    behind = SentinelService([_read_host(host) for host in hosts.split(",")], unquote(service))
    return ParsedURL(f"{_SCHEMES[base]}://{user}localhost/{db}{query}", behind)


def _read_host(text: str) -> Address:
    match = _HOST.fullmatch(text)
    if match is None or int(match[2] or _SENTINEL_PORT) > 65_535:
        raise UnusableURL(f"a Sentinel is a host and a port; the URL is {_SENTINEL_FORM}")
    return unquote(match[1]).strip("[]"), int(match[2] or _SENTINEL_PORT)


def new_sentinel_client(parsed: ParsedURL, options: dict[str, Any]) -> Redis:
    """Make a client for a master behind Sentinels.

    User, password and options are for the master. The Sentinels get the options of sockets and TLS too, and a user and
    a password of their own: `sentinel_username`, `sentinel_password`.
    """
    assert parsed.behind is not None
    of_url = dict(parse_url(parsed.url))
    if of_url.keys() & {"sentinel_username", "sentinel_password"}:
        raise UnusableURL("sentinel_username and sentinel_password are not for the URL; pass them beside it")
    options = {**options, **of_url}
    shared: dict[str, Any] = {"ssl": True} if options.pop("connection_class", None) is SSLConnection else {}
    theirs = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    for name in ("host", "port"):
        options.pop(name, None)
    shared |= {name: value for name, value in options.items() if name.startswith(("socket_", "ssl_"))}
    try:
        sentinels = Sentinel(parsed.behind.sentinels, sentinel_kwargs=shared | theirs)
    except TypeError as error:
        raise TypeError(f"an option that redis-py does not know: {error}") from None
    client: Redis = sentinels.master_for(parsed.behind.service, **(shared | options))
    return client
