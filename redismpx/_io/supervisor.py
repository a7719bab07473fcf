"""The sequence of links: dial, reconcile, lose, back off, close. The one place where wishes meet the wire."""

from __future__ import annotations

import asyncio
import enum
import logging
import math
import os
import sys
import threading
from collections.abc import Callable
from contextvars import Context
from typing import NamedTuple, Protocol

from redis.asyncio.connection import ConnectionPool
from redis.backoff import AbstractBackoff

from .._core.registry import Entry, Registry, Standing
from .._core.wire import CONFIRMATIONS, MESSAGE, NOT_ENOUGH, PMESSAGE, PONG, Kind, Refusal, read_refusal
from ..errors import ConnectionLost, MultiplexerIsClosed, SubscriptionRefused
from ..stats import Counters
from .inbox import Inbox
from .link import Link, dial
from .pulse import Pulse
from .tasks import Tasks, is_cancelled

logger = logging.getLogger("redismpx")

FALLBACK_DELAY = 5.0  # seconds between attempts when the backoff raises
STABLE_AFTER = 10.0  # seconds after which a connection has proved itself, and the backoff begins anew
PORTION = 256  # subscribers that get a message before a look at the clock
LOOK_AFTER = 16  # messages and deliveries before a look at the clock
WARN_INTERVAL = 60.0  # seconds between two warnings of a connection that comes and goes without ever proving itself
RETRY_REFUSED = 60.0  # seconds after which refused names are asked for again, so that a later grant heals
RETRY_PASSING = 1.0  # seconds after which names are asked for again when the server was only busy


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


class FanOut(NamedTuple):
    """One message on its way to more subscribers than there is time for in one turn."""

    entry: Entry[Inbox]
    subscribers: tuple[Inbox, ...]
    channel: bytes
    data: bytes
    start: int = 0  # those before it have the message


class Closable(Protocol):
    """What a supervisor knows of a subscription."""

    def close(self) -> None: ...
    async def _consumed(self) -> None: ...


class Supervisor:
    """Keeps one link alive, and what is subscribed on it equal to what is wanted."""

    def __init__(
        self, pool: ConnectionPool, backoff: AbstractBackoff, ping_interval: float | None, ping_timeout: float
    ) -> None:
        self._pool = pool
        self._backoff = backoff
        self._ping_interval = ping_interval
        self._ping_timeout = ping_timeout
        self.registry: Registry[Inbox] = Registry()
        self.tasks = Tasks()
        self.counters = Counters()
        self.subscriptions: set[Closable] = set()  # all that are open
        self.phase = Phase.IDLE
        self.draining = False
        self.last_error: ConnectionLost | None = None
        self._failures = 0  # dials and connections that failed since the last one that proved stable
        self._kept_names = False  # whether Redis refused to unsubscribe, which is warned of once
        self._warned = 0.0  # when the last warning was logged, by the loop's clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context: Context | None = None  # of all callbacks: an empty one, not that of whoever came first
        self._owner = (0, 0)  # process and thread of the loop
        self._link: Link | None = None
        self._fan_out: FanOut | None = None
        self._flushing: asyncio.Handle | None = None
        self._retrying: asyncio.TimerHandle | None = None
        self._moved = Pulse()

    # --- wishes; what subscriptions call

    def join(self, subscription: Closable) -> None:
        """Take in a subscription, to be closed at the end."""
        self.subscriptions.add(subscription)

    def leave(self, subscription: Closable) -> None:
        """Let go of a subscription that is closed."""
        self.subscriptions.discard(subscription)

    def attach(self, kind: Kind, name: bytes, subscriber: Inbox) -> None:
        """Want a name for a subscriber."""
        self.registry.attach(kind, name, subscriber)
        self._flush_soon()

    def detach(self, kind: Kind, name: bytes, subscriber: Inbox) -> bool:
        """Stop wanting a name for a subscriber; tell whether it was active."""
        was_active = self.registry.detach(kind, name, subscriber)
        self._flush_soon()
        return was_active

    def enter(self) -> None:
        """Begin a public call: bind to the first loop that runs, and start; refuse any other."""
        loop = self.check()
        if loop is not None and self._loop is None and self.phase is Phase.IDLE:
            self._loop = loop
            self._owner = (os.getpid(), threading.get_ident())
            self._context = Context()
            self.tasks.start(self._run(), "redismpx supervisor", self._context)

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
        while self.phase is not Phase.CONNECTED:
            if self.phase is Phase.CLOSED:
                raise MultiplexerIsClosed
            await self._moved.wait()

    # --- the sequence of links

    async def _run(self) -> None:
        try:
            while True:
                try:
                    lost = await self._live()
                    self._announce(lost)
                except Exception as error:  # a fault of this library; never a silent end
                    logger.critical("internal error; reconnecting", exc_info=True)
                    lost = ConnectionLost(f"internal error: {error!r}")
                    lost.__cause__ = error
                    self._announce(lost)
                if self.phase is Phase.CLOSED:  # by one of those who heard of it
                    return
                delay = self._failed(lost)
                self._move(Phase.BACKING_OFF)
                await asyncio.sleep(delay)
        finally:
            self.close()

    def _announce(self, lost: ConnectionLost) -> None:
        """Tell everybody who had something to lose."""
        if self._fan_out is not None:  # some have its last message; so must all, before they hear of its end
            self._go_on(math.inf)
        for subscriber in self.registry.lost():
            subscriber.disconnect(lost)

    async def _live(self) -> ConnectionLost:
        """Live through one link, from the dial to its end; return why it ended."""
        assert self._loop is not None
        self._move(Phase.DIALLING)
        try:
            connection = await dial(self._pool)
        except (Exception, asyncio.CancelledError) as error:
            if is_cancelled(error):
                raise
            lost = ConnectionLost(f"cannot connect to {describe(self._pool)}: {str(error) or repr(error)}")
            lost.__cause__ = error
            return lost
        if self.phase is Phase.CLOSED:  # Python 3.11's wait_for may swallow a cancellation
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
            link.abort("closed")
            if not isinstance(sys.exception(), GeneratorExit):  # collected with its loop, it can await nothing
                await link.release()
        if self._loop.time() - since >= STABLE_AFTER:
            self._failures = 0
            self._backoff.reset()
        return lost

    def _failed(self, lost: ConnectionLost) -> float:
        """Note a failure; return the seconds to wait: none after the first, then as the backoff says."""
        assert self._loop is not None
        self.last_error = lost
        self._failures += 1
        now = self._loop.time()
        flapping = self.phase is Phase.CONNECTED and now >= self._warned + WARN_INTERVAL
        if self._failures == 1 or flapping:
            self._warned = now
            logger.warning("no connection to Redis at %s; reconnecting (%s)", describe(self._pool), lost.reason)
        if self._failures == 1:
            return 0.0
        try:
            # Capped, for redis-py computes 2 to its power as a float.
            delay = max(0.0, float(self._backoff.compute(min(self._failures - 2, 64))))
        except Exception:
            logger.exception("the backoff failed; waiting %g s", FALLBACK_DELAY)
            delay = FALLBACK_DELAY
        logger.debug("attempt %d failed (%s); the next in %.3f s", self._failures, lost.reason, delay)
        return delay

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
            self._flushing = self._loop.call_soon(self._flush, context=self._context)

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

    # --- in: replies to events

    def _receive(self, gets: Callable[[], object], turn_ends: float) -> tuple[int, bool]:
        """Take complete replies, for one turn, and hand each to whom it concerns."""
        assert self._loop is not None
        time = self._loop.time
        registry = self.registry
        channels, patterns = registry.channels, registry.patterns
        messages = others = work = 0
        is_empty = False
        try:
            while self._fan_out is None or self._go_on(turn_ends):
                reply = gets()
                if reply is NOT_ENOUGH:
                    is_empty = True
                    break
                if not isinstance(reply, list):
                    others += 1
                    self._answer(reply)
                    continue
                if len(reply) == 3 and reply[0] == MESSAGE:
                    _, channel, data = reply
                    entry = channels.get(channel)
                elif len(reply) == 4 and reply[0] == PMESSAGE:
                    _, pattern, channel, data = reply
                    entry = patterns.get(pattern)
                else:
                    others += 1
                    self._confirm(reply)
                    continue
                messages += 1
                if entry is None:
                    continue
                if type(data) is not bytes:
                    self.counters.ignored += 1
                    continue
                fanout = entry.fanout
                if fanout is None:
                    fanout = entry.build_fanout()
                if len(fanout) > PORTION:
                    self._fan_out = FanOut(entry, fanout, channel, data)
                    continue
                for subscriber in fanout:
                    # A callback may take anybody away: the tuple stays, the entry tells.
                    if entry.fanout is fanout or entry.subscribers.get(subscriber) is Standing.ACTIVE:
                        subscriber.deliver(channel, data)
                work += 1 + len(fanout)
                if work >= LOOK_AFTER:
                    work = 0
                    if time() > turn_ends:
                        break
        finally:
            self.counters.messages += messages
        if registry.has_work:
            self._flush_soon()
        if self.draining:
            self._moved.fire()
        return messages + others, is_empty

    def _go_on(self, turn_ends: float) -> bool:
        """Hand one message to many, portion by portion, until all have it or the turn ends; return whether all have."""
        assert self._loop is not None
        assert self._fan_out is not None
        entry, fanout, channel, data, start = self._fan_out
        while start < len(fanout):
            for subscriber in fanout[start : start + PORTION]:
                if entry.fanout is fanout or entry.subscribers.get(subscriber) is Standing.ACTIVE:
                    subscriber.deliver(channel, data)
            start += PORTION
            if self._loop.time() > turn_ends:
                self._fan_out = FanOut(entry, fanout, channel, data, start)
                return False
        self._fan_out = None
        return True

    def _confirm(self, reply: list[object]) -> None:
        """Take a confirmation, or the answer to PING on a RESP2 connection with subscriptions."""
        first = reply[0] if reply else None
        verb = CONFIRMATIONS.get(first) if isinstance(first, bytes) else None
        if first == PONG:
            self.registry.pong()
        elif verb is None or len(reply) != 3 or not isinstance(reply[1], bytes):
            self.counters.ignored += 1  # a push of some other kind
        else:
            name = reply[1]
            if verb.joins:
                for subscriber in self.registry.confirm(verb, name):
                    subscriber.activate(name)
            else:
                names = frozenset({name}) if verb.kind is Kind.CHANNEL else None
                error = ConnectionLost("the server unsubscribed it", names)
                for subscriber in self.registry.confirm(verb, name):
                    subscriber.disconnect(error)

    def _answer(self, reply: object) -> None:
        """Take a reply that is not a list: the answer to PING, or the refusal of a command."""
        if not isinstance(reply, Exception):
            self.registry.pong()
            return
        meaning, text = read_refusal(reply)
        if meaning is Refusal.FATAL or not self.registry.in_flight:
            raise reply
        passing = meaning is Refusal.PASSING
        command, told = self.registry.refuse(passing=passing)
        if command.names:
            self._retry_in(RETRY_PASSING if passing else RETRY_REFUSED)
            if not (command.verb.joins or passing or self._kept_names):
                self._kept_names = True
                logger.warning("Redis refuses to unsubscribe (%s); what comes for such names is ignored", text)
        for subscriber in told:
            subscriber.refuse(SubscriptionRefused(command.verb.kind.value, command.names[0], text))

    def _retry_in(self, delay: float) -> None:
        assert self._loop is not None
        when = self._loop.time() + delay
        if self._retrying is None or when < self._retrying.when():
            if self._retrying is not None:
                self._retrying.cancel()
            self._retrying = self._loop.call_at(when, self._retry)

    def _retry(self) -> None:
        self._retrying = None
        if self.registry.retry():
            self._flush_soon()

    # --- the end

    async def drain(self) -> None:
        """Give up every name, and wait until all that was received has been consumed."""
        self.draining = True
        self.registry.drain()
        self._flush_soon()
        while self.phase is Phase.CONNECTED and (self.registry.in_flight or self.registry.has_work):
            await self._moved.wait()
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


def describe(pool: ConnectionPool) -> str:
    """Where connections go: a host and port, a path, or a Sentinel service. Never a user or password."""
    service = getattr(pool, "service_name", None)
    options = pool.connection_kwargs
    return str(service or options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}")
