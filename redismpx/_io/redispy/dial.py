"""From the options of a redis-py client to a connection after its handshake. Never retries."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ...errors import plain
from ..runtime.log import logger
from .connection import Connection
from .credentials import is_streaming
from .pool import Pool
from .secrets import Secrets

DIAL_TIMEOUT = 30.0  # seconds for a whole dial; redis-py's own timeouts (5 s by default) bound each of its steps
NEXT_ADDRESS_AFTER = 0.25  # seconds before the next address of a host is tried too (RFC 8305)


async def dial(pool: Pool, *, side_by_side: bool = False) -> Connection:
    """Make a connection with all the options of a redis-py client, and do its handshake.

    A server that Sentinel or the nodes of a cluster call a master is asked for its role. The connection does without
    what a server may reject: RESP3, a client name, and the question for the role.

    Args:
        pool: the options.
        side_by_side: try all addresses of the host at once, rather than one after the other. Not the default: asyncio
            forgets to close a socket when such a dial is cancelled just as it succeeds.

    Raises:
        Exception: whatever redis-py raises. Nothing is left open then, nor when the dial is cancelled.
    """
    protocol = pool.connection_kwargs.get("protocol")
    if protocol is None and is_streaming(pool.connection_kwargs.get("credential_provider")):
        protocol = 3  # with which a connection can log in again beside its subscriptions
    if str(protocol) != "2":
        try:
            return await _attempt(pool, protocol, side_by_side=side_by_side)
        except Exception as error:
            # Old servers and many proxies reject HELLO, each in other words, and redis-py does not fall back by itself.
            if not _may_be_about_hello(error):
                raise
            logger.info("the server rejected the handshake (%s); falling back to RESP2", plain(str(error)))
    return await _attempt(pool, 2, side_by_side=side_by_side)


def _may_be_about_hello(error: Exception) -> bool:
    """Tell whether the server answered, and not that a password is wrong or missing: then RESP2 may work."""
    if isinstance(error, RedisConnectionError):
        return isinstance(error, BusyLoadingError) or str(error) == "Invalid RESP version"
    return isinstance(error, (ResponseError, AttributeError))  # AttributeError: the reply to HELLO was no map


async def _attempt(pool: Pool, protocol: Any, *, side_by_side: bool) -> Connection:
    """Dial once, with one protocol; None: RESP3 for the handshake, then RESP2."""
    secrets = Secrets(pool)
    raw: AbstractConnection = pool.make_connection()
    secrets.watch(raw)
    _close_at_once(raw)
    health_check_interval = raw.health_check_interval
    raw.retry = Retry(NoBackoff(), 0)
    raw.health_check_interval = 0  # redis-py's check would read beside our reader
    raw.maint_notifications_config = None  # our reader does not act on them
    raw.protocol = int(protocol or 3)  # redis-py 7 would begin with RESP2
    name, raw.client_name = raw.client_name, None  # without the right to set it, redis-py would give up
    if side_by_side:
        _try_side_by_side(raw)
    try:
        async with asyncio.timeout(DIAL_TIMEOUT):
            await raw.connect()
            connection = Connection(raw, health_check_interval, secrets, is_resp3=str(protocol) == "3")
            if name:
                await _optional(connection.call("CLIENT", "SETNAME", name), "the client name")
            if getattr(pool, "is_master", False):
                await _check_role(connection)
            if protocol != 2:
                await _optional(_say_hello(connection, protocol), "HELLO")
    except GeneratorExit:  # collected with its loop, which runs nothing any more
        raise
    except BaseException as error:  # also when cancelled: a dial that failed leaves nothing open; the caller logs it
        await raw.disconnect(nowait=True)
        secrets.hide_in(error)
        if isinstance(error, TimeoutError):
            ask_another_first(pool)
            raise RedisTimeoutError(f"not connected after {DIAL_TIMEOUT:g} s") from error
        raise
    return connection


def _close_at_once(raw: Any) -> None:
    """Have redis-py abort a connection that it gives up.

    It would close it. Over TLS that waits until the other end agrees, for up to 30 seconds.
    """
    disconnect = raw.disconnect

    async def abort(**options: Any) -> None:
        transport: Any = getattr(getattr(raw, "_writer", None), "transport", None)
        if hasattr(transport, "abort"):  # fakeredis has no transport, or one that only tells whether it is closing
            transport.abort()
        try:
            await disconnect(**(options | {"nowait": True}))
        except Exception as error:  # noqa: BLE001, the class of the connection may be the user's
            logger.debug("a connection did not close properly (%s)", type(error).__name__)

    raw.disconnect = abort


async def _optional(question: Awaitable[Any], what: str) -> Any:
    """Return the reply of the server; None if it is an error, because the connection works without it."""
    try:
        return await question
    except ResponseError as error:
        logger.debug("the server rejected %s (%s); going on without", what, plain(str(error)))
        return None


async def _check_role(connection: Connection) -> None:
    """Reject a master that was demoted, which not every Sentinel or node knows yet."""
    reply = await _optional(connection.call("ROLE"), "ROLE")  # no right, or the command was renamed
    role = reply[0] if isinstance(reply, list) and reply else "master"
    if role not in (b"master", "master"):
        raise RedisConnectionError("{}:{} is not a master any more".format(*connection.address))


def ask_another_first(pool: Any) -> None:
    """Begin with the next Sentinel the next time: the first one may have used up the whole dial, and would again.

    redis-py asks one after the other, and by default each of them eleven times, with 5 seconds for every time.
    """
    sentinels = getattr(getattr(pool, "sentinel_manager", None), "sentinels", None)
    if sentinels:
        sentinels.append(sentinels.pop(0))


async def _say_hello(connection: Connection, protocol: object) -> None:
    """Note the role of the server, and go back to RESP2 after a handshake in RESP3, whose errors say more.

    Parsers make a subclass of list of each RESP3 push, and unpacking that costs a fifth of all the work for a message.
    Nothing else in RESP3 is of use here. But a `protocol` that the options name is kept.
    """
    await connection.hello(*([2] if protocol is None else []))


def _try_side_by_side(connection: Any) -> None:
    """Keep an address of the host that swallows everything from using up the time of the others.

    redis-py does not ask asyncio for it. uvloop cannot do it, nor can eager tasks before Python 3.12.8 and 3.13.1
    (https://github.com/python/cpython/issues/124639).
    """
    arguments = getattr(connection, "_connection_arguments", None)  # not public; without it, one after the other
    loop = asyncio.get_running_loop()
    if arguments is not None and isinstance(loop, asyncio.BaseEventLoop) and loop.get_task_factory() is None:
        connection._connection_arguments = lambda: {"happy_eyeballs_delay": NEXT_ADDRESS_AFTER, **arguments()}
