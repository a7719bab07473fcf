"""One connection's life after its handshake, never reused: read, written and pinged."""

from __future__ import annotations

import asyncio
import enum
import math
from collections import deque
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError

from ..._core.wire import NOT_ENOUGH, ProtocolViolation, new_parser
from ...errors import ConnectionLost
from ..redispy.dial import transport_of
from ..runtime.log import logger
from ..runtime.tasks import TURN, Tasks

READ_SIZE = 64 * 1024
SLICE_SIZE = 16 * 1024  # hiredis moves what is left in its buffer at every reply: less in it, less to move
DOUBT = 0.1  # seconds between the end of a ping's time and the verdict; see Link._watch

Receive = Callable[[Callable[[], object], float], tuple[int, bool]]
"""Takes replies out of a parser's `gets`, until it has none left or the monotonic clock shows the time given; returns
how many there were, and whether none is left."""


class LinkState(enum.Enum):
    """Where a link is in its life."""

    LIVE = "live"
    PINGED = "pinged"  # nothing was heard for ping_interval, and a PING is out
    DOUBTED = "doubted"  # nothing was heard for ping_timeout more
    LOST = "lost"


LINK_TRANSITIONS: dict[LinkState, frozenset[LinkState]] = {
    LinkState.LIVE: frozenset({LinkState.PINGED, LinkState.LOST}),
    LinkState.PINGED: frozenset({LinkState.LIVE, LinkState.DOUBTED, LinkState.LOST}),
    LinkState.DOUBTED: frozenset({LinkState.LIVE, LinkState.LOST}),
    LinkState.LOST: frozenset(),
}


class Link(asyncio.BufferedProtocol):
    """A connection after its handshake. `lost` resolves, once, with why it ended."""

    def __init__(
        self,
        connection: AbstractConnection,
        receive: Receive,
        oldest_in_flight: Callable[[], object],
        send_ping: Callable[[], None],
        ping_interval: float | None,
        ping_timeout: float,
        tasks: Tasks,
    ) -> None:
        self._connection = connection
        self._receive = receive
        self._oldest_in_flight = oldest_in_flight
        self._owed: tuple[object, float] = (None, 0.0)  # the oldest command without an answer, and since when
        self._send_ping = send_ping
        self._ping_interval = ping_interval
        self._ping_timeout = ping_timeout
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[ConnectionLost] = self._loop.create_future()
        self.state = LinkState.LIVE
        self._parser = new_parser()
        self._buffer = bytearray(READ_SIZE)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0  # what was read into the buffer and not parsed yet
        self._resuming: asyncio.Handle | None = None  # while reading pauses, because a turn was over
        self._heard = self._loop.time()  # when the last complete reply came
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[object] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """The host and port at the other end, as they were dialled."""
        connection: Any = self._connection
        return connection.host, connection.port

    def open(self) -> None:
        """Take the connection over from redis-py, and begin to read."""
        transport = transport_of(self._connection)
        if transport is None:  # fakeredis: replies are polled
            self._task = self._tasks.start(self._poll(), "redismpx reader")
        else:
            reader: Any = self._connection._reader
            self._transport = transport
            transport.pause_reading()  # uvloop chooses how to read when reading begins
            transport.set_protocol(self)
            transport.resume_reading()
            if reader._buffer:
                self._parser.feed(bytes(reader._buffer))
                self._take()
            if transport.is_closing() or reader.at_eof():  # since the handshake
                cause = reader.exception()
                self._lose("the server closed the connection" if cause is None else str(cause) or repr(cause), cause)
        if self.state is LinkState.LIVE:
            self._watch_in(self._ping_interval)

    def write(self, data: bytes) -> None:
        """Send bytes; to a link that is lost, nothing."""
        if self.state is LinkState.LOST:
            return
        if self._transport is not None:
            if not self._transport.is_closing():
                self._transport.write(data)
        else:
            writer: Any = self._connection._writer
            try:
                writer.writelines([data])
            except Exception as error:  # noqa: BLE001, whatever it is made of
                self._lose(str(error) or repr(error), error)

    def guard(self, callback: Callable[[], None]) -> None:
        """Do what the loop was asked to do later. A fault of this library ends the link, and is never silent."""
        try:
            callback()
        except Exception as error:  # noqa: BLE001, whatever it is, the loop's handler is not where anybody looks
            self._lose(f"internal error: {error!r}", error)
            logger.critical("internal error; reconnecting", exc_info=error)

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
        self._start, self._end = 0, nbytes
        self.guard(self._take)

    def eof_received(self) -> None:
        self._lose("the server closed the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose("the server closed the connection" if exc is None else str(exc) or repr(exc), exc)

    def _take(self) -> None:
        """Parse and hand on what was read, for one turn; pause reading and go on in the next tick if more is left."""
        parser = self._parser
        turn_ends = monotonic() + TURN
        try:
            while True:
                heard, is_empty = self._receive(parser.gets, turn_ends)
                if heard:
                    self._hear()
                if not is_empty:
                    break
                if self._start == self._end:
                    self._resume()
                    return
                size = min(SLICE_SIZE, self._end - self._start)
                parser.feed(self._buffer, self._start, size)  # type: ignore[arg-type]
                self._start += size
        except ProtocolViolation as error:
            self._lose(f"protocol error: {error}", error.__cause__ or error)
        if self.state is not LinkState.LOST and self._transport is not None:
            if self._resuming is None:
                self._transport.pause_reading()
            self._resuming = self._loop.call_soon(self.guard, self._take)

    def _resume(self) -> None:
        if self._resuming is not None and self._transport is not None:
            self._resuming = None
            self._transport.resume_reading()

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
                is_empty = False
                while not is_empty:
                    await asyncio.sleep(0)
                    _, is_empty = self._receive(
                        lambda: replies.popleft() if replies else NOT_ENOUGH, monotonic() + TURN
                    )
                self._hear()
        except Exception as error:  # noqa: BLE001, as in write
            self._lose(str(error) or repr(error), error)
        finally:
            self._lose("reading was cancelled")

    # --- the end

    def _hear(self) -> None:
        """Note that a complete reply came, an error too: that is life."""
        self._heard = self._loop.time()
        if self.state is LinkState.PINGED or self.state is LinkState.DOUBTED:
            self._move(LinkState.LIVE)
            self._watch_in(self._ping_interval)

    def _watch(self) -> None:
        """Ping when nothing was heard for ping_interval, or an answer is owed; give up when a ping brings nothing.

        An answer that stays away, though other things come, ends the link after the time of an interval and a ping. The
        verdict waits for DOUBT after the ping's time is over: when this process itself stood still, timers may run
        before the socket is read, and what it holds is read in between.
        """
        assert self._ping_interval is not None
        if self.state is LinkState.LIVE:
            now = self._loop.time()
            silent = now - self._heard
            oldest = self._oldest_in_flight()
            owed, since = self._owed
            if oldest is not owed:
                self._owed = (oldest, now)
            if oldest is not None and oldest is owed and now - since >= self._ping_interval + self._ping_timeout:
                self._lose("no answer to a command")
            elif silent < self._ping_interval and (oldest is None or oldest is owed):
                self._watch_in(self._ping_interval - silent)
            else:
                self._move(LinkState.PINGED)
                self._watch_in(self._ping_timeout)
                self._send_ping()
        elif self.state is LinkState.PINGED:
            self._move(LinkState.DOUBTED)
            self._watch_in(DOUBT)
        else:
            self._lose(f"no answer to PING within {self._ping_timeout:g} s")

    def _watch_in(self, delay: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if delay is None else self._loop.call_later(delay, self.guard, self._watch)

    def _move(self, state: LinkState) -> None:
        if state not in LINK_TRANSITIONS[self.state]:
            raise AssertionError(f"{self.state} to {state}")
        logger.debug("link %s -> %s", self.state.value, state.value)
        self.state = state

    def _lose(self, reason: str, cause: BaseException | None = None) -> None:
        if self.state is LinkState.LOST:
            return
        self._move(LinkState.LOST)
        self._watch_in(None)
        if self._resuming is not None:
            self._resuming.cancel()
        if self._task is not None:
            self._task.cancel()
        if self._transport is not None:
            self._transport.abort()
        error = ConnectionLost(reason)
        error.__cause__ = cause
        if not self.lost.done():  # who awaited it may have been cancelled
            self.lost.set_result(error)
