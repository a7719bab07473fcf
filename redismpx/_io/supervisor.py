"""The sequence of links: dial, reconcile, lose, back off, close. The one place where wishes meet the wire."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import sys
import threading
from collections.abc import Callable, Collection
from contextvars import Context
from typing import Protocol

from redis.asyncio.connection import ConnectionPool
from redis.backoff import AbstractBackoff
from redis.exceptions import TimeoutError as RedisTimeout

from .._core.backlog import Budget
from .._core.registry import Registry
from .._core.wire import Kind
from ..arguments import Limits
from ..errors import ConnectionLost, LimitReached, MultiplexerIsClosed, TooManyChannels, TooManyPatterns
from ..stats import Counters
from .diagnosis import describe, explain, trusts_anybody
from .dial import dial
from .dispatch import Dispatcher, Subscriber
from .link import Link
from .log import logger
from .probe import Probe
from .pulse import Pulse
from .retries import Retries
from .tasks import Tasks, is_cancelled, is_cancelling

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


class Closable(Protocol):
    """What a supervisor knows of a subscription."""

    def close(self) -> None: ...
    async def _consumed(self) -> None: ...


class Supervisor:
    """Keeps one link alive, and what is subscribed on it equal to what is wanted."""

    def __init__(
        self,
        pool: ConnectionPool,
        backoff: AbstractBackoff,
        ping_interval: float | None,
        ping_timeout: float,
        delivery_probe: float | None,
        limits: Limits,
        budget: Budget,
    ) -> None:
        self._pool = pool
        self._retries = Retries(pool, backoff)
        self._ping_interval = ping_interval
        self._ping_timeout = ping_timeout
        self.limits = limits
        self.budget = budget
        self.registry: Registry[Subscriber] = Registry()
        self.tasks = Tasks()
        self.counters = Counters()
        self._dispatcher = Dispatcher(self.registry, self.counters, self._retry_in)
        self.subscriptions: set[Closable] = set()  # all that are open
        self.phase = Phase.IDLE
        self.draining = False
        self.last_error: ConnectionLost | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context: Context | None = None  # of all callbacks: an empty one, not that of whoever came first
        self._owner = (0, 0)  # process and thread of the loop
        self._link: Link | None = None
        self._flushing: asyncio.Handle | None = None
        self._retrying: asyncio.TimerHandle | None = None
        self._moved = Pulse()
        self._needed = Pulse()  # somebody wants a name, or waits for a connection
        self._probe: Probe | None = None
        if delivery_probe is not None:
            self._probe = Probe(pool, delivery_probe, self._condemn)
            self.registry.attach(Kind.CHANNEL, self._probe.channel, self._probe)

    # --- wishes; what subscriptions call

    def join(self, subscription: Closable) -> None:
        """Take in a subscription, to be closed at the end."""
        self.subscriptions.add(subscription)

    def leave(self, subscription: Closable) -> None:
        """Let go of a subscription that is closed."""
        self.subscriptions.discard(subscription)

    def admit(self, kind: Kind, names: Collection[bytes]) -> None:
        """Refuse more names than the limits allow, before any is wanted."""
        error: type[LimitReached]
        if kind is Kind.CHANNEL:
            error, option, limit = TooManyChannels, "max_channels", self.limits.max_channels
        else:
            error, option, limit = TooManyPatterns, "max_patterns", self.limits.max_patterns
        wanted = self.registry.wanted[kind]
        if limit is None or wanted + len(names) <= limit:
            return
        if wanted + self.registry.count_new(kind, names) > limit:
            raise error(option, limit)

    def attach(self, kind: Kind, names: Collection[bytes], subscriber: Subscriber) -> None:
        """Want names for a subscriber."""
        for name in names:
            self.registry.attach(kind, name, subscriber)
        self._needed.fire()
        self._flush_soon()

    def detach(self, kind: Kind, names: Collection[bytes], subscriber: Subscriber) -> int:
        """Stop wanting names for a subscriber; tell how many were active."""
        were_active = sum([self.registry.detach(kind, name, subscriber) for name in names])
        self._flush_soon()
        return were_active

    def enter(self) -> None:
        """Begin a public call: bind to the first loop that runs, and start; refuse any other."""
        loop = self.check()
        if loop is not None and self._loop is None and self.phase is Phase.IDLE:
            self._loop = loop
            self._owner = (os.getpid(), threading.get_ident())
            self._context = Context()
            self.tasks.start(self._run(), "redismpx supervisor", self._context)
            if self._probe is not None:
                self.tasks.start(self._probe.run(), "redismpx delivery probe", self._context)

    def check(self) -> asyncio.AbstractEventLoop | None:
        """Refuse any loop, thread and process but its own; return the loop that runs."""
        try:
            loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if loop is self._loop or self._loop is None or self.phase is Phase.CLOSED:
            return loop
        pid, thread = self._owner
        if pid != os.getpid():
            raise RuntimeError("this multiplexer was started before the process forked; make a new one in the child")
        if loop is None and thread == threading.get_ident():
            return None  # between two runs of its own loop
        raise RuntimeError(
            "this multiplexer belongs to another event loop or thread; make one for each loop, or come over with "
            "loop.call_soon_threadsafe() or asyncio.run_coroutine_threadsafe()"
        )

    @property
    def outage(self) -> ConnectionLost | None:
        """Why there is no connection now; None while there is one."""
        return None if self.phase is Phase.CONNECTED else self.last_error

    async def connected(self) -> None:
        """Wait until there is a connection; raise MultiplexerIsClosed if there never will be."""
        self._needed.fire()
        while self.phase is not Phase.CONNECTED:
            if self.phase is Phase.CLOSED:
                raise MultiplexerIsClosed
            await self._moved.wait()

    # --- the sequence of links

    async def _run(self) -> None:
        if trusts_anybody(self._pool):
            logger.warning("TLS to Redis at %s is not verified: whoever answers is trusted", describe(self._pool))
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
                await self._back_off(lost)
        finally:
            self.close()

    async def _live(self) -> ConnectionLost:
        """Live through one link, from the dial to its end; return why it ended."""
        assert self._loop is not None
        self._move(Phase.DIALLING)
        timed_out = self.last_error is not None and isinstance(self.last_error.__cause__, RedisTimeout)
        try:
            connection = await dial(self._pool, side_by_side=timed_out)
        except (Exception, asyncio.CancelledError) as error:
            if is_cancelled(error):
                raise
            lost = ConnectionLost(explain(self._pool, error))
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
            self.tasks,
        )
        since = self._loop.time()
        try:
            link.open()
            self.counters.connections += 1
            logger.info("connected to %s", describe(self._pool))
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
        self.last_error = lost
        if self.phase is Phase.CONNECTED and not (self.registry.channels or self.registry.patterns):
            # Nobody missed anything: most often the server's `timeout` for idle clients, and no outage.
            logger.debug("a connection that nobody needed was lost (%s)", lost.reason)
            self._move(Phase.BACKING_OFF)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_DELAY):
                    await self._needed.wait()
        else:
            delay = self._retries.failed(lost, self.phase is Phase.CONNECTED)
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
        if self.draining:
            self._moved.fire()

    def _send_ping(self) -> None:
        if self._link is not None:
            self._link.write(bytes(self.registry.ping()))

    def _condemn(self, reason: str) -> None:
        if self._link is not None:
            self._link.abort(reason)

    # --- in: replies to events

    def _receive(self, gets: Callable[[], object], turn_ends: float) -> tuple[int, bool]:
        """Take complete replies, for one turn; return how many those were, and whether no more are there."""
        taken = self._dispatcher.receive(gets, turn_ends)
        if self.registry.has_work:
            self._flush_soon()
        if self.draining:
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
        self.draining = True
        self.registry.drain()
        self._flush_soon()
        while self.phase is Phase.CONNECTED and (self.registry.in_flight or self.registry.has_work):
            await self._moved.wait()

    async def consumed(self) -> None:
        """Wait until all that was received has been consumed."""
        for subscription in tuple(self.subscriptions):
            await subscription._consumed()

    def close(self) -> None:
        """End everything at once, and for good. Without effect when closed."""
        if self.phase is Phase.CLOSED:
            return
        self._move(Phase.CLOSED)
        for subscription in tuple(self.subscriptions):
            try:
                subscription.close()
            except RuntimeError:  # its loop is closed, and so nobody waits who could be woken
                logger.debug("closed after its loop", exc_info=True)
        self.registry.clear()
        if self._loop is None or self._loop.is_closed():
            return
        for handle in (self._flushing, self._retrying):
            if handle is not None:
                handle.cancel()
        if self._link is not None:
            self._link.abort("closed")
        self.tasks.cancel()
