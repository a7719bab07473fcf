"""What redis-py's options and exceptions mean, in words: where a connection goes, and why a dial failed."""

from __future__ import annotations

import ssl

from redis.asyncio.connection import Connection, SSLConnection
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    InvalidResponse,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from ..._core.wire import ErrorKind, classify_error
from .pool import Pool

__all__ = [
    "MOVING",
    "MovedError",
    "NoScriptError",
    "ReadOnlyError",
    "RedisTimeoutError",
    "ResponseError",
    "await_reply",
    "describe",
    "explain",
    "is_transient",
    "needs_operator",
    "skips_tls_verification",
    "speaks_tls",
]


MOVING = (AskError, TryAgainError)
"""What a node of a cluster answers about a key whose slot is being moved just now."""

_TLS_HINT = " (rediss:// speaks TLS: does this port?)"
_LOGIN_HINT = " (no password was given: redis://user:password@host)"


def describe(pool: Pool) -> str:
    """Return where connections go: a host and port, a path, or a Sentinel service. Never a user or password."""
    service = getattr(pool, "service_name", None)
    options = pool.connection_kwargs
    return str(service or options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}")


def explain(pool: Pool, error: BaseException) -> str:
    """Return why a dial failed, with a hint where a password is missing, or only one side seems to speak TLS."""
    options = pool.connection_kwargs
    cut_off = "closed by server" in str(error) or isinstance(error.__context__, ConnectionResetError)
    hint = ""
    if isinstance(error, AuthenticationError) and not (options.get("password") or options.get("credential_provider")):
        hint = _LOGIN_HINT
    elif speaks_tls(pool):
        if cut_off or isinstance(error, RedisTimeoutError):
            hint = _TLS_HINT
    elif issubclass(pool.connection_class, Connection) and (cut_off or isinstance(error, InvalidResponse)):
        hint = " (does this port want TLS? That is rediss://)"
    text = str(error) or repr(error)
    return f"cannot connect to {describe(pool)}: {text}{hint}"


def await_reply(pool: Pool) -> str:
    """Return what is known while the server has not answered yet."""
    return f"no reply from Redis at {describe(pool)} yet{_TLS_HINT if speaks_tls(pool) else ''}"


def skips_tls_verification(pool: Pool) -> bool:
    """Tell whether connections speak TLS without verifying the server, because the options say so."""
    options = pool.connection_kwargs
    is_verified = options.get("ssl_cert_reqs", "required") not in (None, "none", ssl.CERT_NONE)
    return speaks_tls(pool) and not (is_verified and options.get("ssl_check_hostname", True))


def speaks_tls(pool: Pool) -> bool:
    """Tell whether connections speak TLS."""
    return issubclass(pool.connection_class, SSLConnection)


def needs_operator(cause: BaseException | None) -> bool:
    """Tell whether a password or a certificate is wrong: somebody has to fix it, retrying does not."""
    return (
        isinstance(cause, AuthenticationError)
        or (isinstance(cause, Exception) and classify_error(cause)[0] is ErrorKind.FATAL)
        or isinstance(getattr(cause, "__context__", None), ssl.SSLCertVerificationError)
    )


def is_transient(error: ResponseError) -> bool:
    """Tell whether a server rejects a command only for now: it is busy, or no node of the cluster serves the slot."""
    return isinstance(error, ClusterDownError) or classify_error(error)[0] is ErrorKind.TRANSIENT
