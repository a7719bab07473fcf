"""The life of one connection after its handshake: read, written and pinged. Never dials, and is never reused."""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import Callable
from time import monotonic

from ..._core.wire import NOT_ENOUGH, ProtocolViolation, new_parser
from ...errors import ConnectionLost
from ..redispy.connection import Address, Connection
from ..redispy.errors import ResponseError
from ..runtime.log import logger
from ..runtime.tasks import TIME_SLICE, Tasks

READ_SIZE = 64 * 1024  # bytes
SLICE_SIZE = 16 * 1024  # bytes fed to hiredis at once: it moves the rest of its buffer after every reply
GRACE = 0.1  # seconds between the timeout of a PING and the end of the link; see Link._watch

Receive = Callable[[Callable[[], object], float], tuple[int, bool]]
"""Takes replies out of a parser's `gets`, until none is left or the monotonic clock shows the time given; returns how
many it took, and whether none is left."""


class LinkState(enum.Enum):
    """Where a link is in its life."""

    LIVE = "live"
    PINGED = "pinged"  # no reply for ping_interval, and a PING was sent
    DOUBTED = "doubted"  # no reply for ping_timeout more
    LOST = "lost"


LINK_TRANSITIONS: dict[LinkState, frozenset[LinkState]] = {
    LinkState.LIVE: frozenset({LinkState.PINGED, LinkState.LOST}),
    LinkState.PINGED: frozenset({LinkState.LIVE, LinkState.DOUBTED, LinkState.LOST}),
    LinkState.DOUBTED: frozenset({LinkState.LIVE, LinkState.LOST}),
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
        ping_interval: float | None,
        ping_timeout: float,
        tasks: Tasks,
    ) -> None:
        self._connection = connection
        self._receive = receive
        self._oldest_in_flight = oldest_in_flight
        self._unanswered: tuple[object, float] = (None, 0.0)  # the oldest command without a reply, and since when
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
        self._start = self._end = 0  # the part of the buffer that is not parsed yet
        self._resuming: asyncio.Handle | None = None  # while reading is paused, after a full time slice
        self._last_reply = self._loop.time()  # when the last complete reply came
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[object] | None = None

    @property
    def address(self) -> Address:
        """The other end, as it was dialled."""
        return self._connection.address

    def open(self) -> None:
        """Take the connection over from redis-py, and start to read."""
        taken = self._connection.take_over(self)
        if taken is None:  # fakeredis: replies are polled
            self._task = self._tasks.start(self._poll(), "redismpx reader")
        else:
            self._transport, (data, closed, error) = taken
            if data:
                self._parser.feed(data)
                self._take()
            if closed:
                self.connection_lost(error)
        if self.state is LinkState.LIVE:
            self._watch_in(self._ping_interval)

    def write(self, data: bytes) -> None:
        """Send bytes. Does nothing on a lost link."""
        if self.state is LinkState.LOST:
            return
        if self._transport is not None:
            if not self._transport.is_closing():
                self._transport.write(data)
        else:
            try:
                self._connection.write(data)
            except Exception as error:  # noqa: BLE001, the connection may be any object
                self._lose(str(error) or repr(error), error)

    def guard(self, callback: Callable[[], None]) -> None:
        """Run a callback of the loop. A fault of this library ends the link, and is logged."""
        try:
            callback()
        except Exception as error:  # noqa: BLE001, a fault of this library; never a silent end
            self._lose(f"internal error: {error!r}", error)
            logger.critical("internal error; reconnecting", exc_info=error)

    def abort(self, reason: str) -> None:
        """End the link at once, whatever the server does."""
        self._lose(reason)

    def check(self) -> None:
        """Ping now. Without an interval for pings, and while a ping has no reply yet, do nothing."""
        if self._ping_interval is not None and self.state is LinkState.LIVE:
            self._ping()

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
        self.guard(self._take)

    def eof_received(self) -> None:
        self._lose("the server closed the connection")

    def connection_lost(self, exc: BaseException | None) -> None:
        self._lose("the server closed the connection" if exc is None else str(exc) or repr(exc), exc)

    def _take(self) -> None:
        """Parse and deliver what was read, for one time slice; then pause reading and go on in the next iteration."""
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

    # --- the end

    def _note_reply(self) -> None:
        """Note that a complete reply came. An error counts too: it shows that the server is alive."""
        self._last_reply = self._loop.time()
        if self.state is LinkState.PINGED or self.state is LinkState.DOUBTED:
            self._move(LinkState.LIVE)
            self._watch_in(self._ping_interval)

    def _watch(self) -> None:
        """Ping after ping_interval without a reply, or when a command has no reply yet; end the link without a PONG.

        A command that gets no reply although other replies come ends the link after ping_interval and ping_timeout. The
        end waits for GRACE after ping_timeout: when this process itself was suspended, timers may run before the
        socket is read, and the replies in it are read in between.
        """
        assert self._ping_interval is not None
        if self.state is LinkState.LIVE:
            now = self._loop.time()
            silence = now - self._last_reply
            oldest = self._oldest_in_flight()
            known, since = self._unanswered
            if oldest is not known:
                self._unanswered = (oldest, now)
            if oldest is not None and oldest is known and now - since >= self._ping_interval + self._ping_timeout:
                self._lose("no reply to a command")
            elif silence < self._ping_interval and (oldest is None or oldest is known):
                self._watch_in(self._ping_interval - silence)
            else:
                self._ping()
        elif self.state is LinkState.PINGED:
            self._move(LinkState.DOUBTED)
            self._watch_in(GRACE)
        else:
            self._lose(f"no reply to PING within {self._ping_timeout:g} s")

    def _ping(self) -> None:
        self._move(LinkState.PINGED)
        self._watch_in(self._ping_timeout)
        self._send_ping()

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
        if not self.lost.done():  # the task that awaited it may have been cancelled
            self.lost.set_result(error)
