"""The sequence of links: dial, reconcile, lose, back off, close. The one place where wishes meet the wire."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import sys
from collections.abc import Callable, Collection
from contextvars import Context

from redis.backoff import AbstractBackoff
from redis.exceptions import TimeoutError as RedisTimeout

from ..._core.registry import Registry
from ..._core.wire import Kind
from ...errors import ConnectionLost, MultiplexerIsClosed
from ...stats import Counters
from ..redispy.diagnosis import describe, explain
from ..redispy.dial import dial
from ..redispy.route import Route
from ..runtime.log import logger
from ..runtime.pulse import Pulse
from ..runtime.tasks import Tasks, is_cancelled, is_cancelling, running_task
from .dispatch import Dispatcher, Evict, Subscriber
from .link import Link
from .retries import Retries

IDLE_DELAY = 1.0  # seconds until a connection that was lost while nothing was wanted is made again


class Phase(enum.Enum):
    """What a supervisor is doing."""

    IDLE = "idle"  # not started: no loop has run yet, or nothing was wanted
    DIALLING = "dialling"
    CONNECTED = "connected"
    BACKING_OFF = "backing off"
    CLOSED = "closed"


MOVES: dict[Phase, frozenset[Phase]] = {
    Phase.IDLE: frozenset({Phase.DIALLING, Phase.CLOSED}),
    Phase.DIALLING: frozenset({Phase.CONNECTED, Phase.BACKING_OFF, Phase.CLOSED}),
    Phase.CONNECTED: frozenset({Phase.BACKING_OFF, Phase.CLOSED}),
    Phase.BACKING_OFF: frozenset({Phase.DIALLING, Phase.CLOSED}),
    Phase.CLOSED: frozenset(),
}


class Supervisor:
    """Keeps one link alive, and what is subscribed on it equal to what is wanted."""

    def __init__(
        self,
        route: Route,
        backoff: AbstractBackoff,
        ping_interval: float | None,
        ping_timeout: float,
        tasks: Tasks,
        counters: Counters,
        *,
        evict: Evict | None = None,
        ended: Callable[[], None] | None = None,
    ) -> None:
        self._route = route
        self._retries = Retries(backoff)
        self._ping_interval = ping_interval
        self._ping_timeout = ping_timeout
        self._tasks = tasks
        self._counters = counters
        self._ended = ended
        self.registry: Registry[Subscriber] = Registry()
        self._dispatcher = Dispatcher(self.registry, counters, self._retry_in, evict)
        self.phase: Phase = Phase.IDLE
        self.last_error: ConnectionLost | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context: Context | None = None  # of all callbacks: an empty one, not that of whoever came first
        self._task: asyncio.Task[object] | None = None
        self._link: Link | None = None
        self._draining = False
        self._flushing: asyncio.Handle | None = None
        self._retrying: asyncio.TimerHandle | None = None
        self._moved = Pulse()
        self._needed = Pulse()  # somebody wants a name, or waits for a connection

    def start(self) -> None:
        """Begin to dial, in the loop that runs."""
        self._loop = asyncio.get_running_loop()
        self._context = Context()
        self._task = self._tasks.start(self._run(), "redismpx supervisor", self._context)

    # --- wishes

    def attach(self, kind: Kind, names: Collection[bytes], subscriber: Subscriber) -> None:
        """Want names for a subscriber."""
        self.registry.attach_all(kind, names, subscriber)
        self.nudge()

    def detach(self, kind: Kind, names: Collection[bytes], subscriber: Subscriber) -> int:
        """Stop wanting names for a subscriber; tell how many were active."""
        were_active = sum([self.registry.detach(kind, name, subscriber) for name in names])
        self._flush_soon()
        return were_active

    def nudge(self) -> None:
        """See to what was wanted of the registry itself."""
        self._needed.fire()
        self._flush_soon()

    @property
    def outage(self) -> ConnectionLost | None:
        """Why there is no connection now; None while there is one."""
        return None if self.phase is Phase.CONNECTED else self.last_error

    @property
    def address(self) -> tuple[str, int] | None:
        """The host and port that there is a connection to; None while there is none."""
        return None if self._link is None else self._link.address

    async def connected(self) -> None:
        """Wait until there is a connection; raise MultiplexerIsClosed if there never will be."""
        self._needed.fire()
        while self.phase is not Phase.CONNECTED:
            if self.phase is Phase.CLOSED:
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
                if self.phase is Phase.CLOSED or is_cancelling():  # by one of those who heard of it, or by asyncio.run
                    return
                self.last_error = lost
                self._route.failed()
                await self._back_off(lost)
        finally:
            self.close()
            if self._ended is not None:
                self._ended()

    async def _live(self) -> ConnectionLost:
        """Live through one link, from the dial to its end; return why it ended."""
        assert self._loop is not None
        self._move(Phase.DIALLING)
        timed_out = self.last_error is not None and isinstance(self.last_error.__cause__, RedisTimeout)
        try:
            connection = await dial(await self._route.find(), side_by_side=timed_out)
        except (Exception, asyncio.CancelledError) as error:
            if is_cancelled(error):
                raise
            lost = ConnectionLost(explain(self._route.pool, error))
            lost.__cause__ = error
            return lost
        if self.phase is Phase.CLOSED or is_cancelling():
            await connection.disconnect(nowait=True)
            return ConnectionLost("closed")
        link = self._link = Link(
            connection,
            self._receive,
            lambda: self.registry.in_flight,
            self._send_ping,
            self._ping_interval,
            self._ping_timeout,
            self._tasks,
        )
        since = self._loop.time()
        try:
            link.open()
            self._counters.connections += 1
            logger.info("connected to %s", describe(self._route.pool))
            self._move(Phase.CONNECTED)
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
        if self.phase is Phase.CONNECTED and self.registry.is_empty:
            # Nobody missed anything: most often the server's `timeout` for idle clients, and no outage.
            logger.debug("a connection that nobody needed was lost (%s)", lost.reason)
            self._move(Phase.BACKING_OFF)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_DELAY):
                    await self._needed.wait()
        else:
            where = describe(self._route.pool)
            delay = self._retries.failed(where, lost, self.phase is Phase.CONNECTED)
            self._move(Phase.BACKING_OFF)
            await asyncio.sleep(delay)

    def _move(self, phase: Phase) -> None:
        if phase not in MOVES[self.phase]:
            raise AssertionError(f"{self.phase} to {phase}")
        logger.debug("supervisor %s -> %s", self.phase.value, phase.value)
        self.phase = phase
        self._moved.fire()

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
        commands = self.registry.flush()
        if commands:
            self._link.write(b"".join(map(bytes, commands)))
        for subscriber, name in self.registry.welcome():
            subscriber.activate(name)
        if self._draining:
            self._moved.fire()

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
            self._moved.fire()
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
        if self.registry.retry():
            self._flush_soon()

    # --- the end

    async def unsubscribed(self) -> None:
        """Give up every name, and wait until nothing comes any more."""
        self._draining = True
        self.registry.drain()
        self._flush_soon()
        while self.phase is Phase.CONNECTED and (self.registry.in_flight or self.registry.has_work):
            await self._moved.wait()

    def close(self) -> None:
        """End it at once, and for good. Without effect when closed."""
        if self.phase is Phase.CLOSED:
            return
        self._move(Phase.CLOSED)
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
