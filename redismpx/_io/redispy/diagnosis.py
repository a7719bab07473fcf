"""What redis-py's options and exceptions mean, in words: where it dials, why that failed, what it dialled."""

from __future__ import annotations

import ssl
from typing import Any

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.connection import Connection, SSLConnection
from redis.exceptions import AuthenticationError, InvalidResponse
from redis.exceptions import TimeoutError as RedisTimeoutError

from ..._core.wire import Refusal, read_refusal
from .endpoint import Pool


def describe(pool: Pool) -> str:
    """Where connections go: a host and port, a path, or a Sentinel service. Never a user or password."""
    service = getattr(pool, "service_name", None)
    options = pool.connection_kwargs
    return str(service or options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}")


def explain(pool: Pool, error: BaseException) -> str:
    """Say why a dial failed; ask about TLS where it looks as if only one side speaks it."""
    cut_off = "closed by server" in str(error) or isinstance(error.__context__, ConnectionResetError)
    hint = ""
    if speaks_tls(pool):
        if cut_off or isinstance(error, RedisTimeoutError):
            hint = " (rediss:// speaks TLS: does this port?)"
    elif issubclass(pool.connection_class, Connection) and (cut_off or isinstance(error, InvalidResponse)):
        hint = " (does this port want TLS? That is rediss://)"
    text = str(error) or repr(error)
    for sentinel in getattr(getattr(pool, "sentinel_manager", None), "sentinels", ()):
        # redis-py shows all their options before it says what is wrong with them.
        text = text.replace(str(sentinel), describe(sentinel.connection_pool))
    return f"cannot connect to {describe(pool)}: {text}{hint}"


def speaks_tls(pool: Pool) -> bool:
    """Whether its connections are TLS."""
    return issubclass(pool.connection_class, SSLConnection)


def trusts_anybody(pool: Pool) -> bool:
    """Whether TLS is spoken without looking to whom, because the options say so."""
    options = pool.connection_kwargs
    is_checked = options.get("ssl_cert_reqs", "required") not in (None, "none", ssl.CERT_NONE)
    return speaks_tls(pool) and not (is_checked and options.get("ssl_check_hostname", True))


def must_be_mended(cause: BaseException | None) -> bool:
    """Whether it is a password or a certificate that is wrong, which no waiting heals."""
    return (
        isinstance(cause, AuthenticationError)
        or (isinstance(cause, Exception) and read_refusal(cause)[0] is Refusal.FATAL)
        or isinstance(getattr(cause, "__context__", None), ssl.SSLCertVerificationError)
    )


async def is_cluster_node(redis: Redis | RedisCluster) -> bool | None:
    """Ask the server whether it is a node of a cluster; None: it does not say, and most likely is none."""
    if isinstance(redis, RedisCluster):
        return True
    try:
        reply: Any = await redis.execute_command("HELLO")  # without arguments it changes nothing, and needs no right
    except Exception:  # noqa: BLE001, old servers and proxies know no HELLO
        return None
    words = [word for pair in reply.items() for word in pair] if isinstance(reply, dict) else list(reply)
    return any(word in (b"cluster", "cluster") for word in words)
