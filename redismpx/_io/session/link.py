"""The life of one connection after its handshake: read, written and pinged. Never dials, and is never reused."""

from __future__ import annotations

import asyncio
import enum
import math
from collections import deque
from collections.abc import Callable
from time import monotonic

from ..._core.liveness import GRACE, Liveness, Look
from ..._core.wire import NOT_ENOUGH, ProtocolViolation, new_parser
from ...errors import ConnectionLost
from ..redispy.connection import Address, Connection
from ..redispy.credentials import Login
from ..redispy.errors import ResponseError
from ..runtime.log import logger
from ..runtime.tasks import TIME_SLICE
from .options import SessionOptions

READ_SIZE = 64 * 1024  # bytes
SLICE_SIZE = 16 * 1024  # bytes fed to hiredis at once: it moves the rest of its buffer after every reply
# An abandoned link reads until nothing arrives for GRACE. While the server goes on sending, these are the limits.
LONGEST_END = 1.0  # seconds
LAST_READS = 256  # reads of READ_SIZE: no socket holds more

Receive = Callable[[Callable[[], object], float], tuple[int, bool]]
"""Takes replies out of a parser's `gets`, until none is left or the monotonic clock shows the time given; returns how
many it took, and whether none is left."""


class LinkState(enum.Enum):
    """Where a link is in its life."""

    LIVE = "live"
    ENDING = "ending"  # nothing is sent any more; what was received is still delivered
    LOST = "lost"


LINK_TRANSITIONS: dict[LinkState, frozenset[LinkState]] = {
    LinkState.LIVE: frozenset({LinkState.ENDING, LinkState.LOST}),
    LinkState.ENDING: frozenset({LinkState.LOST}),
    LinkState.LOST: frozenset(),
}


class Link(asyncio.BufferedProtocol):
    """A connection after its handshake. `lost` resolves once, with the reason of its end."""

    def __init__(
        self,
        connection: Connection,
        receive: Receive,
        oldest_in_flight: Callable[[], object],
        send_ping: Callable[[], None],
        options: SessionOptions,
    ) -> None:
        self._connection = connection
        self._receive = receive
        self._oldest_in_flight = oldest_in_flight
        self._send_ping = send_ping
        self._ping_interval = options.ping_interval
        self._tasks = options.tasks
        self._counters = options.counters
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[ConnectionLost] = self._loop.create_future()
        self.state = LinkState.LIVE
        self._reason: tuple[str, BaseException | None] = ("", None)  # why the link is ending, and the cause
        self._reads_left = LAST_READS  # how often a link that is ending may read
        self._end_by = 0.0  # until when, by the clock of the connection
        self._parser = new_parser()
        self._buffer = bytearray(READ_SIZE)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0  # the part of the buffer that is not parsed yet
        self._takes = 0  # how often something was taken
        self._resuming: asyncio.Handle | None = None  # while reading is paused, after a full time slice
        interval = math.inf if options.ping_interval is None else options.ping_interval
        self.liveness: Liveness = Liveness(interval, options.ping_timeout, self._loop.time())
        self._watched_takes = 0  # `_takes` at the last look
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[object] | None = None

    @property
    def address(self) -> Address:
        """The other end, as it was dialled."""
        return self._connection.address

    @property
    def is_behind(self) -> bool:
        """Whether received data is not handled yet, or not even read."""
        return self._resuming is not None or self._connection.is_readable

    def open(self) -> None:
        """Take the connection over from redis-py, and start to read."""
        taken = self._connection.take_over(self)
        if taken is None:  # fakeredis: replies are polled
            self._task = self._tasks.start(self._poll(), "redismpx reader")
        else:
            self._transport, (data, closed, error) = taken
            self._add(data)
            if closed:
                self.connection_lost(error)
            elif data:
                self._take()
        if self.state is LinkState.LIVE:
            self._watch_in(self._ping_interval)

    def write(self, data: bytes) -> None:
        """Send bytes. Does nothing on a link that is ending or lost."""
        if self.state is LinkState.ENDING or self.state is LinkState.LOST:
            return
        if self._transport is not None:
            if not self._transport.is_closing():
                self._transport.write(data)
        else:
            try:
                self._connection.write(data)
            except Exception as error:  # noqa: BLE001, the connection may be any object
                self._lose(str(error) or repr(error), error)

    def accepts(self, login: Login) -> bool:
        """Tell whether the connection can log in again, and hide the new credentials in its error replies."""
        return self._connection.accepts(login)

    def guard(self, callback: Callable[[], None]) -> None:
        """Run a callback of the loop. A fault of this library ends the link, and is logged."""
        try:
            callback()
        except Exception as error:  # noqa: BLE001, a fault of this library; never a silent end
            self._lose(f"internal error: {error!r}", error)
            logger.critical("internal error; reconnecting", exc_info=error)

    def abandon(self, reason: str) -> None:
        """Send nothing more, deliver what the server has sent so far, and end the link then."""
        if self._transport is None:
            self._lose(reason)
        else:
            self._end_link(reason)

    def abort(self, reason: str) -> None:
        """End the link at once, whatever was received."""
        self._lose(reason)

    def check(self) -> None:
        """Ping now. Without an interval for pings, and while a ping has no reply yet, do nothing."""
        if self._ping_interval is not None and self.state is LinkState.LIVE:
            look = self.liveness.check(self._loop.time())
            if look is not None:
                self._follow(look)

    def hide_secrets_in(self, error: Exception) -> None:
        """Replace the password of the connection in an error reply."""
        self._connection.hide_secrets_in(error)

    async def release(self) -> None:
        """Close what is left of the connection of a lost link."""
        await self._connection.release()

    # --- reading

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view  # not the bytearray: asyncio's TLS fills slices of it, and a slice of that would be a copy

    def buffer_updated(self, nbytes: int) -> None:
        self._start, self._end = 0, nbytes
        if self.state is LinkState.ENDING:
            self._reads_left -= 1
        self.guard(self._take)

    def eof_received(self) -> None:
        self._end_link("the server closed the connection")
        self._reads_left = 0

    def connection_lost(self, exc: BaseException | None) -> None:
        self._end_link("the server closed the connection" if exc is None else str(exc) or repr(exc), exc)
        if exc is not None and self.state is LinkState.ENDING:
            self._add(self._connection.read_rest(READ_SIZE * LAST_READS))
        self._reads_left = 0

    def _add(self, data: bytes) -> None:
        """Add received bytes to those that are not parsed yet."""
        rest = self._buffer[self._start : self._end] + data
        self._start, self._end = 0, len(rest)
        self._buffer = rest.ljust(READ_SIZE)
        self._view = memoryview(self._buffer)

    def _take(self) -> None:
        """Parse and deliver what was read, for one time slice; then pause reading and go on in the next iteration."""
        self._takes += 1
        parser = self._parser
        slice_end = monotonic() + TIME_SLICE
        try:
            while True:
                count, is_empty = self._receive(parser.gets, slice_end)
                if count:
                    self._note_reply()
                if not is_empty:
                    break
                if self._start == self._end:
                    self._caught_up()
                    return
                size = min(SLICE_SIZE, self._end - self._start)
                parser.feed(self._buffer, self._start, size)  # type: ignore[arg-type]
                self._start += size
        except ProtocolViolation as error:
            self._lose(f"protocol error: {error}", error.__cause__ or error)
        if self.state is not LinkState.LOST and self._transport is not None:
            self._take_later(self._transport)

    def _take_later(self, transport: asyncio.Transport) -> None:
        """Pause reading, and go on in the next iteration of the loop."""
        if self._resuming is None:
            self.liveness.fell_behind(self._loop.time())
            if not transport.is_closing():
                transport.pause_reading()
        self._resuming = self._loop.call_soon(self.guard, self._take)

    def _caught_up(self) -> None:
        """Go on reading after everything that was read is delivered; end a link that is ending."""
        self.liveness.caught_up(self._loop.time())
        was_paused, self._resuming = self._resuming is not None, None
        if self.state is LinkState.ENDING and self._reads_left <= 0:
            self._lose(*self._reason)
        elif was_paused and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    async def _poll(self) -> None:
        """Read replies one by one through redis-py."""
        replies: deque[object] = deque()
        read = self._connection.reader(pushes=True)
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
                        lambda: replies.popleft() if replies else NOT_ENOUGH, monotonic() + TIME_SLICE
                    )
                self._note_reply()
        except Exception as error:  # noqa: BLE001, as in write
            self._lose(str(error) or repr(error), error)
        finally:
            self._lose("reading was cancelled")

    # --- whether it is alive

    def _note_reply(self) -> None:
        if self.liveness.replied(self._loop.time()) and self.state is LinkState.LIVE:
            self._counters.round_trip = self.liveness.round_trip
            self._watch_in(self._ping_interval)

    def _watch(self) -> None:
        """Send a PING if it is time, and end the link if it is dead."""
        unread = self._connection.is_readable
        self._follow(self.liveness.look(self._loop.time(), self._oldest_in_flight(), unread=unread))

    def _follow(self, look: Look) -> None:
        if look.loss is not None:
            self._lose(look.loss)
            return
        self._watch_in(look.delay)
        if look.ping:
            self._send_ping()

    def _watch_in(self, delay: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        look = self._settle if self.state is LinkState.ENDING else self._watch
        self._timer = None if delay is None else self._loop.call_later(delay, self.guard, look)

    def _move(self, state: LinkState) -> None:
        if state not in LINK_TRANSITIONS[self.state]:
            raise AssertionError(f"{self.state} to {state}")
        before, self.state = self.state, state
        logger.debug("link %s -> %s", before.value, state.value)  # a log handler may end the link

    # --- the end

    def _end_link(self, reason: str, cause: BaseException | None = None) -> None:
        """Send nothing more, and deliver what was received. The link is lost after that."""
        if self.state is LinkState.ENDING or self.state is LinkState.LOST:
            return
        self._reason = reason, cause
        self._move(LinkState.ENDING)
        if self.lost.done():
            return
        self._end_by = self.liveness.clock(self._loop.time()) + LONGEST_END
        self._watched_takes = self._takes
        self._watch_in(GRACE)
        if self._resuming is None and self._transport is not None:
            self._take_later(self._transport)

    def _settle(self) -> None:
        """End an abandoned link when there was nothing to read for GRACE."""
        is_quiet = self._takes == self._watched_takes and not self._connection.is_readable
        is_late = self.liveness.clock(self._loop.time()) > self._end_by
        if self._resuming is None and (is_quiet or is_late):
            self._lose(*self._reason)
        else:
            self._watched_takes = self._takes
            self._watch_in(GRACE)

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
        if not self.lost.done():  # the task that awaited it may have been cancelled
            self.lost.set_result(error)
