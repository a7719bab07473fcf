"""From the options of a redis-py client to a connection that has shaken hands. Retrying is the session's."""

from __future__ import annotations

import asyncio
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ...errors import plain
from ..runtime.log import logger
from .endpoint import Pool

DIAL_TIMEOUT = 30.0  # seconds for a whole dial; redis-py's own timeouts (5 s by default) bound each of its steps
NEXT_ADDRESS_AFTER = 0.25  # seconds before a host's next address is tried too (RFC 8305)


async def dial(pool: Pool, *, side_by_side: bool = False) -> AbstractConnection:
    """Make a connection with all the options of a redis-py client, and do its handshake.

    A server that is to be a master, by Sentinel's word or by that of the nodes of a cluster, is asked whether it is.
    What a server may refuse is done without: RESP3, a name for the connection, and that question.

    `side_by_side` tries all addresses of the host, rather than one after the other. That is not done without need:
    asyncio forgets to close a socket when such a dial is cancelled just as it succeeds. Raises what redis-py raises.
    """
    without_hello = without_name = False
    while True:
        connection: AbstractConnection = pool.make_connection()
        connection.retry = Retry(NoBackoff(), 0)
        connection.health_check_interval = 0  # it would read beside our reader
        connection.maint_notifications_config = None  # which our reader does not act on, so they are not asked for
        if without_hello:
            connection.protocol = 2
        if without_name:
            connection.client_name = None
        if side_by_side:
            _try_side_by_side(connection)
        try:
            async with asyncio.timeout(DIAL_TIMEOUT):
                await connection.connect()
                if getattr(pool, "is_master", False):
                    await _check_role(connection)
                if not without_hello and pool.connection_kwargs.get("protocol") is None:
                    await _speak_resp2(connection)
        except ResponseError as error:
            await connection.disconnect(nowait=True)
            text = hide_arguments(error)
            # Old servers and some proxies know no HELLO, and redis-py does not fall back by itself.
            if not without_hello and ("unknown command" in text.lower() or "NOPROTO" in text):
                logger.info("the server refused HELLO (%s); falling back to RESP2", plain(text))
                without_hello = True
            # A user may lack the right to CLIENT SETNAME, and a name is for those who watch only.
            elif not without_name and connection.client_name and isinstance(error, NoPermissionError):
                logger.info("the server refused a command (%s); trying without a client name", plain(text))
                without_name = True
            else:
                raise
        except TimeoutError as error:
            await connection.disconnect(nowait=True)
            ask_another_first(pool)
            raise RedisTimeoutError(f"not connected after {DIAL_TIMEOUT:g} s") from error
        except BaseException:  # also when cancelled: a dial that failed leaves nothing open; whoever called says why
            await connection.disconnect(nowait=True)
            raise
        else:
            return connection


async def _check_role(connection: Any) -> None:
    """Leave a master that was demoted, and of which not everybody has heard yet."""
    await connection.send_command("ROLE")
    try:
        role, *_ = await connection.read_response()
    except ResponseError as error:  # no right to ask, or a server where the command was renamed
        logger.debug("whether this is a master cannot be told (%s)", plain(str(error)))
        return
    if role not in (b"master", "master"):
        raise RedisConnectionError(f"{connection.host}:{connection.port} is not a master any more")


def ask_another_first(pool: Any) -> None:
    """Begin with the next Sentinel the next time: the first one may have used up the whole dial, and would again.

    redis-py asks one after the other, and by default each of them eleven times, with 5 seconds for every time.
    """
    sentinels = getattr(getattr(pool, "sentinel_manager", None), "sentinels", None)
    if sentinels:
        sentinels.append(sentinels.pop(0))


async def _speak_resp2(connection: AbstractConnection) -> None:
    """Go back to RESP2 after a handshake in RESP3, which tells better what is wrong.

    What RESP3 pushes, parsers make a subclass of list of, and taking that apart costs a fifth of all that is done for
    a message. Nothing else in RESP3 is of use here.
    """
    await connection.send_command("HELLO", 2)
    await connection.read_response()


def hide_arguments(error: BaseException) -> str:
    """Take out of an error what must not be seen, and return the rest of its text.

    Who does not know a command repeats its arguments: those of HELLO and AUTH are the password.
    """
    text, found, _ = str(error).partition(", with args")
    if found:
        error.args = (text,)
    return text


def transport_of(connection: AbstractConnection) -> asyncio.Transport | None:
    """Return the transport of a connection that has dialled; None where it has none that can be taken over.

    Not public, and unchanged from redis-py 5 to 8. fakeredis has none, or one that only says whether it is closing.
    """
    transport: Any = getattr(getattr(connection, "_writer", None), "transport", None)
    return transport if hasattr(transport, "set_protocol") else None


def _try_side_by_side(connection: Any) -> None:
    """Keep an address of the host that swallows everything from using up the time of the others.

    redis-py does not ask asyncio for it. uvloop cannot do it, nor can eager tasks before Python 3.12.8 and 3.13.1
    (https://github.com/python/cpython/issues/124639).
    """
    arguments = getattr(connection, "_connection_arguments", None)  # not public; without it, one after the other
    loop = asyncio.get_running_loop()
    if arguments is not None and isinstance(loop, asyncio.BaseEventLoop) and loop.get_task_factory() is None:
        connection._connection_arguments = lambda: {"happy_eyeballs_delay": NEXT_ADDRESS_AFTER, **arguments()}
