"""One connection's life, never reused: dialled through redis-py, then read, written and pinged here."""

from __future__ import annotations

import asyncio
import enum
import logging
import math
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from .._core.wire import NOT_ENOUGH, new_parser
from ..errors import ConnectionLost
from .tasks import Tasks

logger = logging.getLogger("redismpx")

DIAL_TIMEOUT = 30.0  # seconds for a whole dial; redis-py's own timeouts (5 s by default) bound each of its steps
READ_SIZE = 64 * 1024
SLICE_SIZE = 16 * 1024  # hiredis moves what is left in its buffer at every reply: less in it, less to move
DOUBT = 0.1  # seconds between the end of a ping's time and the verdict; see Link._watch

Receive = Callable[[Callable[[], object]], int]
"""Takes replies out of a parser's `gets` until it has none left; returns how many there were."""


class Phase(enum.Enum):
    """Where a link is in its life."""

    LIVE = "live"
    PINGED = "pinged"  # nothing was heard for ping_interval, and a PING is out
    DOUBTED = "doubted"  # nothing was heard for ping_timeout more
    LOST = "lost"


MOVES: dict[Phase, frozenset[Phase]] = {
    Phase.LIVE: frozenset({Phase.PINGED, Phase.LOST}),
    Phase.PINGED: frozenset({Phase.LIVE, Phase.DOUBTED, Phase.LOST}),
    Phase.DOUBTED: frozenset({Phase.LIVE, Phase.LOST}),
    Phase.LOST: frozenset(),
}


class Link(asyncio.BufferedProtocol):
    """A connection after its handshake. `lost` resolves, once, with why it ended."""

    def __init__(
        self,
        connection: AbstractConnection,
        receive: Receive,
        owes_answer: Callable[[], bool],
        send_ping: Callable[[], None],
        ping_interval: float | None,
        ping_timeout: float,
        tasks: Tasks,
    ) -> None:
        self._connection = connection
        self._receive = receive
        self._owes_answer = owes_answer
        self._send_ping = send_ping
        self._ping_interval = ping_interval
        self._ping_timeout = ping_timeout
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[ConnectionLost] = self._loop.create_future()
        self.phase = Phase.LIVE
        self._parser = new_parser()
        self._buffer = bytearray(READ_SIZE)
        self._view = memoryview(self._buffer)
        self._heard = self._loop.time()  # when the last complete reply came
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[object] | None = None

    def open(self) -> None:
        """Take the connection over from redis-py, and begin to read."""
        # Not public, and unchanged from redis-py 5 to 8. Where there is no transport (fakeredis), replies are polled.
        transport = getattr(getattr(self._connection, "_writer", None), "transport", None)
        if transport is None:
            self._task = self._tasks.start(self._poll(), "redismpx reader")
        else:
            reader: Any = self._connection._reader
            self._transport = transport
            transport.pause_reading()  # uvloop chooses how to read when reading begins
            transport.set_protocol(self)
            transport.resume_reading()
            if reader._buffer:
                self._take(reader._buffer, len(reader._buffer))
            if reader.at_eof():
                self._lose("the server closed the connection")
        if self.phase is Phase.LIVE:
            self._watch_in(self._ping_interval)

    def write(self, data: bytes) -> None:
        """Send bytes; to a link that is lost, nothing."""
        if self.phase is Phase.LOST:
            return
        if self._transport is not None:
            if not self._transport.is_closing():
                self._transport.write(data)
        else:
            writer: Any = self._connection._writer
            try:
                writer.writelines([data])
            except Exception as error:  # noqa: BLE001, as in _take
                self._lose(str(error) or repr(error), error)

    def abort(self, reason: str) -> None:
        """End the link at once, whatever its other end does."""
        self._lose(reason)

    async def release(self) -> None:
        """Give redis-py back what is left of a lost link."""
        await self._connection.disconnect(nowait=True)

    # --- reading

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view  # not the bytearray: asyncio's TLS fills slices of it, and a slice of that would be a copy

    def buffer_updated(self, nbytes: int) -> None:
        self._take(self._buffer, nbytes)

    def eof_received(self) -> None:
        self._lose("the server closed the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose("the server closed the connection" if exc is None else str(exc) or repr(exc), exc)

    def _take(self, data: bytearray, size: int) -> None:
        parser = self._parser
        try:
            for start in range(0, size, SLICE_SIZE):
                parser.feed(data, start, min(SLICE_SIZE, size - start))  # type: ignore[arg-type]
                if self._receive(parser.gets):
                    self._hear()
        except Exception as error:  # noqa: BLE001, the parsers raise anything on garbage; all of it means the same
            self._lose(f"protocol error: {error}", error)

    async def _poll(self) -> None:
        """Read replies one by one through redis-py."""
        replies: deque[object] = deque()
        read = partial(
            self._connection.read_response,
            disable_decoding=True,
            timeout=math.inf,
            disconnect_on_error=False,
            push_request=True,
        )
        try:
            while True:
                try:
                    replies.append(await read())
                except ResponseError as error:
                    replies.append(error)
                self._receive(lambda: replies.popleft() if replies else NOT_ENOUGH)
                self._hear()
        except Exception as error:  # noqa: BLE001, as in _take
            self._lose(str(error) or repr(error), error)

    # --- the end

    def _hear(self) -> None:
        """Note that a complete reply came, an error too: that is life."""
        self._heard = self._loop.time()
        if self.phase is Phase.PINGED or self.phase is Phase.DOUBTED:
            self._move(Phase.LIVE)
            self._watch_in(self._ping_interval)

    def _watch(self) -> None:
        """Ping when nothing was heard for ping_interval, or an answer is owed; give up when a ping brings nothing.

        The verdict waits for DOUBT after the ping's time is over: when this process itself stood still, timers may run
        before the socket is read, and what it holds is read in between.
        """
        assert self._ping_interval is not None
        if self.phase is Phase.LIVE:
            silent = self._loop.time() - self._heard
            if silent < self._ping_interval and not self._owes_answer():
                self._watch_in(self._ping_interval - silent)
            else:
                self._move(Phase.PINGED)
                self._watch_in(self._ping_timeout)
                self._send_ping()
        elif self.phase is Phase.PINGED:
            self._move(Phase.DOUBTED)
            self._watch_in(DOUBT)
        else:
            self._lose(f"no answer to PING within {self._ping_timeout:g} s")

    def _watch_in(self, delay: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if delay is None else self._loop.call_later(delay, self._watch)

    def _move(self, phase: Phase) -> None:
        if phase not in MOVES[self.phase]:
            raise AssertionError(f"{self.phase} to {phase}")
        logger.debug("link %s -> %s", self.phase.value, phase.value)
        self.phase = phase

    def _lose(self, reason: str, cause: BaseException | None = None) -> None:
        if self.phase is Phase.LOST:
            return
        self._move(Phase.LOST)
        self._watch_in(None)
        if self._task is not None:
            self._task.cancel()
        if self._transport is not None:
            self._transport.abort()
        error = ConnectionLost(reason)
        error.__cause__ = cause
        if not self.lost.done():  # who awaited it may have been cancelled
            self.lost.set_result(error)


async def dial(pool: ConnectionPool, protocol: int | None = None) -> AbstractConnection:
    """Make a connection with all the options of a redis-py client, and do its handshake.

    `protocol` replaces the RESP version of the options. Raises what redis-py raises.
    """
    connection: AbstractConnection = pool.make_connection()
    connection.retry = Retry(NoBackoff(), 0)  # retrying is the supervisor's
    connection.health_check_interval = 0  # it would read beside our reader
    if protocol is not None:
        connection.protocol = protocol
    try:
        async with asyncio.timeout(DIAL_TIMEOUT):
            await connection.connect()
    except ResponseError as error:
        await connection.disconnect(nowait=True)
        # Old servers and some proxies know no HELLO, and redis-py does not fall back by itself.
        if protocol is None and ("unknown command" in str(error).lower() or "NOPROTO" in str(error)):
            logger.info("the server refused HELLO (%s); falling back to RESP2", error)
            return await dial(pool, protocol=2)
        raise
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    return connection
