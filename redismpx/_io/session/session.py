"""The sequence of links: dial, reconcile, lose, back off, close. The one place where wishes meet the wire."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import sys
from collections.abc import Callable, Collection
from contextvars import Context

from redis.backoff import AbstractBackoff
from redis.crc import key_slot
from redis.exceptions import TimeoutError as RedisTimeout

from ..._core.registry import Registry
from ..._core.wire import Kind
from ...errors import ConnectionLost, MultiplexerIsClosed
from ...stats import Counters
from ..redispy.diagnosis import describe, explain
from ..redispy.dial import dial
from ..redispy.endpoint import Endpoint
from ..runtime.log import logger
from ..runtime.notification import Notifier
from ..runtime.tasks import Tasks, is_cancelled, is_cancelling, running_task
from .dispatcher import Dispatcher, Evict, Subscriber
from .link import Link
from .reconnect import ReconnectPolicy

IDLE_DELAY = 1.0  # seconds until a connection that was lost while nothing was wanted is made again


class SessionState(enum.Enum):
    """What a session is doing."""

    IDLE = "idle"  # not started: no loop has run yet, or nothing was wanted
    DIALLING = "dialling"
    CONNECTED = "connected"
    BACKING_OFF = "backing off"
    CLOSED = "closed"


SESSION_TRANSITIONS: dict[SessionState, frozenset[SessionState]] = {
    SessionState.IDLE: frozenset({SessionState.DIALLING, SessionState.CLOSED}),
    SessionState.DIALLING: frozenset({SessionState.CONNECTED, SessionState.BACKING_OFF, SessionState.CLOSED}),
    SessionState.CONNECTED: frozenset({SessionState.BACKING_OFF, SessionState.CLOSED}),
    SessionState.BACKING_OFF: frozenset({SessionState.DIALLING, SessionState.CLOSED}),
    SessionState.CLOSED: frozenset(),
}


class Session:
    """Keeps one link alive, and what is subscribed on it equal to what is wanted."""

    def __init__(
        self,
        endpoint: Endpoint,
        backoff: AbstractBackoff,
        ping_interval: float | None,
        ping_timeout: float,
        tasks: Tasks,
        counters: Counters,
        *,
        evict: Evict | None = None,
        ended: Callable[[], None] | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._retries = ReconnectPolicy(backoff)
        self._ping_interval = ping_interval
        self._ping_timeout = ping_timeout
        self._tasks = tasks
        self._counters = counters
        self._ended = ended
        self.registry: Registry[Subscriber] = Registry(key_slot)
        self._dispatcher = Dispatcher(self.registry, counters, self._retry_in, evict)
        self.state: SessionState = SessionState.IDLE
        self.last_error: ConnectionLost | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context: Context | None = None  # of all callbacks: an empty one, not that of whoever came first
        self._task: asyncio.Task[object] | None = None
        self._link: Link | None = None
        self._draining = False
        self._flushing: asyncio.Handle | None = None
        self._retrying: asyncio.TimerHandle | None = None
        self._moved = Notifier()
        self._needed = Notifier()  # somebody wants a name, or waits for a connection

    def start(self) -> None:
        """Begin to dial, in the loop that runs."""
        self._loop = asyncio.get_running_loop()
        self._context = Context()
        self._task = self._tasks.start(self._run(), "redismpx session", self._context)

    # --- wishes

    def add(self, kind: Kind, names: Collection[bytes], subscriber: Subscriber) -> None:
        """Want names for a subscriber."""
        self.registry.add(kind, names, subscriber)
        self.nudge()

    def remove(self, kind: Kind, names: Collection[bytes], subscriber: Subscriber) -> int:
        """Stop wanting names for a subscriber; tell how many were active."""
        were_active = sum([self.registry.remove(kind, name, subscriber) for name in names])
        self._flush_soon()
        return were_active

    def nudge(self) -> None:
        """See to what was wanted of the registry itself."""
        self._needed.notify()
        self._flush_soon()

    @property
    def outage(self) -> ConnectionLost | None:
        """Why there is no connection now; None while there is one."""
        return None if self.state is SessionState.CONNECTED else self.last_error

    @property
    def address(self) -> tuple[str, int] | None:
        """The host and port that there is a connection to; None while there is none."""
        return None if self._link is None else self._link.address

    async def connected(self) -> None:
        """Wait until there is a connection; raise MultiplexerIsClosed if there never will be."""
        self._needed.notify()
        while self.state is not SessionState.CONNECTED:
            if self.state is SessionState.CLOSED:
                raise MultiplexerIsClosed
            await self._moved.wait()

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Have the loop call something in its next turn, in the context of all callbacks."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon(callback, context=self._context)

    # --- the sequence of links

    async def _run(self) -> None:
        try:
            while True:
                try:
                    lost = await self._live()
                    await self._dispatcher.lose(lost)
                except Exception as error:  # noqa: BLE001, a fault of this library; never a silent end
                    logger.critical("internal error; reconnecting", exc_info=True)
                    lost = ConnectionLost(f"internal error: {error!r}")
                    lost.__cause__ = error
                    await self._dispatcher.lose(lost)
                if (
                    self.state is SessionState.CLOSED or is_cancelling()
                ):  # by one of those who heard of it, or by asyncio.run
                    return
                self.last_error = lost
                self._endpoint.failed()
                await self._back_off(lost)
        finally:
            self.close()
            if self._ended is not None:
                self._ended()

    async def _live(self) -> ConnectionLost:
        """Live through one link, from the dial to its end; return why it ended."""
        assert self._loop is not None
        self._move(SessionState.DIALLING)
        timed_out = self.last_error is not None and isinstance(self.last_error.__cause__, RedisTimeout)
        try:
            connection = await dial(await self._endpoint.find(), side_by_side=timed_out)
        except (Exception, asyncio.CancelledError) as error:
            if is_cancelled(error):
                raise
            lost = ConnectionLost(explain(self._endpoint.pool, error))
            lost.__cause__ = error
            return lost
        if self.state is SessionState.CLOSED or is_cancelling():
            await connection.disconnect(nowait=True)
            return ConnectionLost("closed")
        link = self._link = Link(
            connection,
            self._receive,
            lambda: self.registry.oldest_command,
            self._send_ping,
            self._ping_interval,
            self._ping_timeout,
            self._tasks,
        )
        since = self._loop.time()
        try:
            link.open()
            self._counters.connections += 1
            logger.info("connected to %s", describe(self._endpoint.pool))
            self._move(SessionState.CONNECTED)
            self._flush()
            lost = await link.lost
        finally:
            self._link = None
            if not isinstance(sys.exception(), GeneratorExit):  # collected with its loop, there is nothing it can do
                link.abort("closed")
                await link.release()
        self._retries.lasted(self._loop.time() - since)
        return lost

    async def _back_off(self, lost: ConnectionLost) -> None:
        """Wait until it is time for the next dial."""
        if self.state is SessionState.CONNECTED and self.registry.is_empty:
            # Nobody missed anything: most often the server's `timeout` for idle clients, and no outage.
            logger.debug("a connection that nobody needed was lost (%s)", lost.reason)
            self._move(SessionState.BACKING_OFF)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_DELAY):
                    await self._needed.wait()
        else:
            where = describe(self._endpoint.pool)
            delay = self._retries.failed(where, lost, self.state is SessionState.CONNECTED)
            self._move(SessionState.BACKING_OFF)
            await asyncio.sleep(delay)

    def _move(self, state: SessionState) -> None:
        if state not in SESSION_TRANSITIONS[self.state]:
            raise AssertionError(f"{self.state} to {state}")
        logger.debug("session %s -> %s", self.state.value, state.value)
        self.state = state
        self._moved.notify()

    # --- out: wishes to commands

    def _flush_soon(self) -> None:
        """Answer the wishes of this tick together, at its end."""
        if self._flushing is None and self._link is not None and self._loop is not None:
            self._flushing = self._loop.call_soon(self._link.guard, self._flush, context=self._context)

    def _flush(self) -> None:
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        if self._link is None:
            return
        commands = self.registry.next_commands()
        if commands:
            self._link.write(b"".join(map(bytes, commands)))
        for subscriber, name in self.registry.activate_late():
            subscriber.activate(name)
        if self._draining:
            self._moved.notify()

    def _send_ping(self) -> None:
        if self._link is not None:
            self._link.write(bytes(self.registry.ping()))

    def condemn(self, reason: str) -> None:
        """Give up the link, if there is one, and make another."""
        if self._link is not None:
            self._link.abort(reason)

    # --- in: replies to events

    def _receive(self, gets: Callable[[], object], turn_ends: float) -> tuple[int, bool]:
        """Take complete replies, for one turn; return how many those were, and whether no more are there."""
        taken = self._dispatcher.receive(gets, turn_ends)
        if self.registry.has_work:
            self._flush_soon()
        if self._draining:
            self._moved.notify()
        return taken

    def _retry_in(self, delay: float) -> None:
        assert self._loop is not None
        assert self._link is not None  # which has just brought a refusal
        when = self._loop.time() + delay
        if self._retrying is None or when < self._retrying.when():
            if self._retrying is not None:
                self._retrying.cancel()
            self._retrying = self._loop.call_at(when, self._link.guard, self._retry)

    def _retry(self) -> None:
        self._retrying = None
        if self.registry.retry_refused():
            self._flush_soon()

    # --- the end

    async def unsubscribed(self) -> None:
        """Give up every name, and wait until nothing comes any more."""
        self._draining = True
        self.registry.drain()
        self._flush_soon()
        while self.state is SessionState.CONNECTED and (self.registry.oldest_command or self.registry.has_work):
            await self._moved.wait()

    def close(self) -> None:
        """End it at once, and for good. Without effect when closed."""
        if self.state is SessionState.CLOSED:
            return
        self._move(SessionState.CLOSED)
        self.registry.clear()
        if self._loop is None or self._loop.is_closed():
            return
        for handle in (self._flushing, self._retrying):
            if handle is not None:
                handle.cancel()
        if self._link is not None:
            self._link.abort("closed")
        if self._task is not None and self._task is not running_task():
            self._task.cancel()
