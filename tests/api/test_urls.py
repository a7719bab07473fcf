"""URLs with the schemes of Valkey and of Sentinels: what they mean, and which are refused."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.sentinel import SentinelConnectionPool

from redismpx import Multiplexer
from redismpx._io.redispy.client import client_from_url

PASSWORD = "canary-password"
TLS = ("rediss", "valkeys")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("valkey://localhost:7000/2", "redis://localhost:7000/2"),
        ("valkeys://user:x@localhost?ssl_cert_reqs=none", "rediss://user:x@localhost?ssl_cert_reqs=none"),
        ("VALKEY://localhost", "redis://localhost"),
    ],
)
def test_a_scheme_of_valkey_means_that_of_redis(ours: str, theirs: str) -> None:
    """`valkey://` is `redis://`, and `valkeys://` is `rediss://`, with everything behind it."""
    pool, other = client_from_url(ours, {}).connection_pool, Redis.from_url(theirs).connection_pool
    assert pool.connection_class is other.connection_class
    names = ("host", "port", "db", "username", "password", "ssl_cert_reqs")
    found, expected = ([each.connection_kwargs.get(name) for name in names] for each in (pool, other))
    assert found == expected


@pytest.mark.parametrize("scheme", ["redis", "rediss", "valkey", "valkeys"])
def test_a_url_of_sentinels_has_all_their_addresses(scheme: str) -> None:
    """Hosts and ports are the Sentinels'; the path has the service and the database; the rest is the master's."""
    url = f"{scheme}+sentinel://chat:p%40ss@one,two:7,[::1]:8/my%20service/3?socket_timeout=2&client_name=me"
    client = client_from_url(url, {"sentinel_password": PASSWORD, "ssl_ca_certs": "ca"} if scheme in TLS else {})
    pool = client.connection_pool
    assert isinstance(pool, SentinelConnectionPool)
    assert (pool.service_name, pool.is_master) == ("my service", True)
    expected = {"db": 3, "username": "chat", "password": "p@ss", "socket_timeout": 2.0, "client_name": "me"}
    assert {name: pool.connection_kwargs[name] for name in expected} == expected
    pools = [sentinel.connection_pool for sentinel in pool.sentinel_manager.sentinels]
    addresses = [(each.connection_kwargs["host"], each.connection_kwargs["port"]) for each in pools]
    assert addresses == [("one", 26379), ("two", 7), ("::1", 8)]
    for each in (pool, *pools):
        is_tls = issubclass(each.connection_class, SSLConnection)
        assert is_tls == (scheme in TLS)
        assert is_tls or issubclass(each.connection_class, Connection)
        assert not is_tls or each.connection_kwargs["ssl_ca_certs"] == "ca"
    for each in pools:
        assert each.connection_kwargs["socket_timeout"] == 2.0
        assert each.connection_kwargs["password"] == (PASSWORD if scheme in TLS else None)


def test_the_masters_password_is_never_the_sentinels() -> None:
    """The user and password of the URL go to the master only; the Sentinels get those that are named for them."""
    manager = client_from_url("redis+sentinel://u:master@one/main", {}).connection_pool.sentinel_manager
    options = manager.sentinels[0].connection_pool.connection_kwargs
    assert (options["username"], options["password"]) == (None, None)
    given = {"sentinel_username": "s", "sentinel_password": PASSWORD}
    pool = client_from_url("redis+sentinel://u:master@one/main", given).connection_pool
    theirs = pool.sentinel_manager.sentinels[0].connection_pool.connection_kwargs
    assert (theirs["username"], theirs["password"]) == ("s", PASSWORD)
    assert (pool.connection_kwargs["username"], pool.connection_kwargs["password"]) == ("u", "master")
    assert PASSWORD not in repr(Multiplexer("redis+sentinel://u:master@one/main", **given))


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (f"redis+sentinel://:{PASSWORD}@one,two", "names no service"),
        (f"redis+sentinel://:{PASSWORD}@one,two/", "names no service"),
        (f"redis+sentinel://:{PASSWORD}@one/0", "service or a database"),
        (f"redis+sentinel://:{PASSWORD}@one/main/first", "must be a number"),
        (f"redis+sentinel://:{PASSWORD}@one:two/main", "a host and a port"),
        (f"redis+sentinel://:{PASSWORD}@one:99999/main", "a host and a port"),
        (f"redis+sentinel://:{PASSWORD}@one,,two/main", "a host and a port"),
        (f"redis+sentinel://:{PASSWORD}@/main", "a host and a port"),
        (f"redis+sentinel://one/main?sentinel_password={PASSWORD}", "beside it"),
        (f"redis+sentinel://one/main?db={PASSWORD}", "Invalid value"),
        (f"redis+sentinel://:{PASSWORD}@one/main/0/more", "%40"),
        (f"redis+sentinel://:{PASSWORD}@one/main#0", "%40"),
        (f"redis://:{PASSWORD}@one:1,two:2/0", r"several hosts.*redis\+sentinel://"),
        (f"unix+sentinel://:{PASSWORD}@one/main", "schemes"),
        (f"redis+cluster://:{PASSWORD}@one/main", "schemes"),
        (f"redis+://:{PASSWORD}@one/main", "schemes"),
    ],
)
def test_a_url_that_is_not_clear_is_refused(address: str, text: str) -> None:
    """A URL that could mean two things, or nothing, raises with the form to write, and without its password."""
    with pytest.raises(ValueError, match=text) as caught:
        Multiplexer(address)
    assert PASSWORD not in repr(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("option", ["bogus", "ssl_bogus", "socket_bogus"])
def test_an_unknown_option_of_a_sentinel_url_is_named(option: str) -> None:
    """An option that redis-py does not know raises, and is named, wherever it would go."""
    with pytest.raises(TypeError, match=f"redis-py does not know.*{option}"):
        Multiplexer("rediss+sentinel://one/main", **{option: 1})
    with pytest.raises(TypeError, match="sentinel_password"):
        Multiplexer("redis://one", sentinel_password=PASSWORD)
