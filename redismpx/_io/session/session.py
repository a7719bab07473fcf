"""The sequence of links to one endpoint: dial, reconcile, lose, back off, close. Knows no other endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Collection
from contextvars import Context
from time import monotonic

from ..._core.entry import Entry
from ..._core.registry import Registry
from ..._core.wire import Command, Kind, Verb
from ...errors import ConnectionLost, MultiplexerIsClosed
from ..redispy.client import AbstractBackoff
from ..redispy.connection import Address
from ..redispy.credentials import Login
from ..redispy.endpoint import Endpoint
from ..redispy.errors import RedisTimeoutError
from ..runtime.log import logger
from ..runtime.notification import Notifier
from ..runtime.tasks import LOOK_AFTER, TIME_SLICE, is_cancelled, is_cancelling, running_task
from .dispatcher import Dispatcher, Evict
from .link import Link
from .observed import new_registry
from .options import SessionOptions
from .outage import Gap, Outages
from .reconnect import ReconnectPolicy
from .state import SESSION_TRANSITIONS, SessionState
from .subscriber import Subscriber

UNCONFIRMED = "the server has not confirmed the subscription yet"
IDLE_DELAY = 1.0  # seconds until a connection that was lost while nothing was subscribed is dialled again


class Session:
    """Keeps one link alive, and the names subscribed on it equal to the names in its registry."""

    def __init__(
        self,
        endpoint: Endpoint,
        backoff: AbstractBackoff,
        options: SessionOptions,
        on_connected: Callable[[], None],
        on_lost: Callable[[Address], None],
        *,
        evict: Evict | None = None,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._policy = ReconnectPolicy(backoff)
        self._outages = Outages(options)
        self._options = options
        self._on_connected = on_connected
        self._on_lost = on_lost
        self._on_end = on_end
        self.registry: Registry[Subscriber] = new_registry(options)
        self._dispatcher = Dispatcher(self.registry, options, self._retry_in, self._hide_secrets_in, evict)
        self.state: SessionState = SessionState.IDLE
        self.last_error: ConnectionLost | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context: Context | None = None  # of all callbacks: an empty one, not that of the first caller
        self._task: asyncio.Task[object] | None = None
        self._link: Link | None = None
        self._flushing: asyncio.Handle | None = None
        self._retrying: asyncio.TimerHandle | None = None
        self._changed = Notifier()  # the state, or how much is unconfirmed
        self._needed = Notifier()  # a name is to be subscribed, or a caller waits for a connection
        self._is_awaited = False  # whether a caller has waited for a connection
        self._login: Login | None = None  # the newest one since the last dial began

    def start(self) -> None:
        """Start in the running loop: dial as soon as there is a name to subscribe to, or a caller waits."""
        self._loop = asyncio.get_running_loop()
        self._context = Context()
        self._task = self._options.tasks.start(self._run(), "redismpx session", self._context)

    # --- subscriptions

    def add(self, kind: Kind, names: Collection[bytes], subscriber: Subscriber) -> None:
        """Subscribe to names for a subscriber."""
        with self._options.critical:
            self.registry.add(kind, names, subscriber)
            self.nudge()

    def remove(self, kind: Kind, names: Collection[bytes], subscriber: Subscriber) -> int:
        """Unsubscribe a subscriber from names; return how many were active."""
        with self._options.critical:
            were_active = sum([self.registry.remove(kind, name, subscriber) for name in names])
            self._flush_soon()
        return were_active

    def nudge(self) -> None:
        """Send what the registry has to send, after a change of the registry itself."""
        self._needed.notify()
        self._flush_soon()

    @property
    def closed(self) -> bool:
        """Whether the session is closed."""
        return self.state is SessionState.CLOSED

    @property
    def outage(self) -> ConnectionLost | None:
        """Why there is no connection now; None while there is one."""
        return None if self.state is SessionState.CONNECTED else self.last_error

    @property
    def progress(self) -> str:
        """What is known about why some names are not active yet."""
        if self.state is SessionState.CONNECTED:
            return UNCONFIRMED
        return self._endpoint.silence if self.last_error is None else self.last_error.reason

    @property
    def address(self) -> Address | None:
        """Where the connection leads; None while there is none."""
        return None if self._link is None else self._link.address

    @property
    def is_behind(self) -> bool:
        """Whether the server may have sent something that is not delivered yet."""
        return self._link is not None and self._link.is_behind

    async def connected(self) -> None:
        """Wait until there is a connection; raise MultiplexerIsClosed if the session is closed."""
        self._is_awaited = True
        self._needed.notify()
        while self.state is not SessionState.CONNECTED:
            if self.closed:
                raise MultiplexerIsClosed
            await self._changed.wait()

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Call `callback` in the next iteration of the loop, in the context of all callbacks."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon(callback, context=self._context)

    # --- the sequence of links

    async def _run(self) -> None:
        try:
            while self.registry.is_empty and not (self._is_awaited or self.closed):
                await self._needed.wait()
            while not self.closed:
                try:
                    lost = await self._live()
                    gap = await self._dispatcher.lose(lost)
                except Exception as error:  # noqa: BLE001, a fault of this library; never a silent end
                    logger.critical("internal error; reconnecting", exc_info=True)
                    lost = ConnectionLost(f"internal error: {error!r}")
                    lost.__cause__ = error
                    gap = await self._dispatcher.lose(lost)
                if self.closed or is_cancelling():  # by a callback, or by asyncio.run
                    return
                self.last_error = lost
                self._endpoint.failed()
                await self._back_off(lost, gap)
        finally:
            self.close()
            if self._on_end is not None:
                self._on_end()

    async def _live(self) -> ConnectionLost:
        """Live through one link, from the dial to its end; return why it ended."""
        assert self._loop is not None
        self._move(SessionState.DIALLING)
        if self.closed:
            return ConnectionLost("closed")
        self._login = None
        timed_out = self.last_error is not None and isinstance(self.last_error.__cause__, RedisTimeoutError)
        try:
            connection = await self._endpoint.dial(side_by_side=timed_out)
        except (Exception, asyncio.CancelledError) as error:
            if is_cancelled(error):
                raise
            lost = ConnectionLost(self._endpoint.explain(error))
            lost.__cause__ = error
            return lost
        if self.closed or is_cancelling():
            await connection.release()
            return ConnectionLost("closed")
        link = self._link = Link(
            connection, self._receive, lambda: self.registry.oldest_command, self._send_ping, self._options
        )
        since = self._loop.time()
        try:
            link.open()
            self._move(SessionState.CONNECTED)
            self._on_connected()
            self._outages.ended(str(self._endpoint))
            self.log_in(self._login)
            self._flush()
            lost = await link.lost
            self._on_lost(link.address)
        finally:
            self._link = None
            if not isinstance(sys.exception(), GeneratorExit):  # collected with its loop, which runs nothing any more
                link.abort("closed")
                await link.release()
        self._policy.lasted(self._loop.time() - since)
        return lost

    async def _back_off(self, lost: ConnectionLost, gap: Gap) -> None:
        """Wait until it is time for the next dial."""
        was_connected = self.state is SessionState.CONNECTED
        self._move(SessionState.BACKING_OFF)
        self._outages.begin(str(self._endpoint), lost, gap if was_connected else None)
        if self.closed:  # by an observer
            return
        if was_connected and self.registry.is_empty:
            # Nothing was missed: most often the server's `timeout` for idle clients, and no outage.
            logger.debug("a connection without subscriptions was lost (%s)", lost.reason)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_DELAY):
                    await self._needed.wait()
        else:
            is_first = self._policy.failures == 0
            self._outages.failed(
                str(self._endpoint), lost, is_first=is_first, is_flapping=was_connected and not is_first
            )
            if self.closed:  # by a log handler
                return
            delay = self._policy.failed()
            if not is_first:
                logger.debug("attempt %d failed (%s); the next in %.3f s", self._policy.failures, lost.reason, delay)
            if not self.closed:  # by the backoff, or by a log handler
                await asyncio.sleep(delay)

    def _move(self, state: SessionState) -> None:
        if state not in SESSION_TRANSITIONS[self.state]:
            raise AssertionError(f"{self.state} to {state}")
        before, self.state = self.state, state
        self._changed.notify()
        logger.debug("session %s -> %s", before.value, state.value)  # a log handler may close the session

    # --- out: from the registry to the wire

    def _flush_soon(self) -> None:
        """Send the changes of this iteration of the loop together, at its end."""
        if self._flushing is None and self._link is not None and self._loop is not None:
            self._flushing = self._loop.call_soon(self._link.guard, self._flush, context=self._context)

    def _flush(self) -> None:
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        if self._link is None:
            return
        slice_end = monotonic() + TIME_SLICE
        while (commands := self._next_commands()) and self._link is not None:
            self._link.write(b"".join(map(bytes, commands)))
            if monotonic() > slice_end:
                break
        if not self._dispatcher.is_interrupted:  # a late subscriber gets no message from before
            for number, (subscriber, name) in enumerate(self._options.critical.each(self.registry.activate_late()), 1):
                subscriber.activate(name)
                if number % LOOK_AFTER == 0 and monotonic() > slice_end:
                    break
        if self.registry.has_work:
            self._flush_soon()
        self._changed.notify()

    def _next_commands(self) -> list[Command]:
        with self._options.critical:
            return self.registry.next_commands()

    def _send_ping(self) -> None:
        if self._link is not None:
            self._link.write(bytes(self.registry.nameless(Verb.PING)))

    def log_in(self, login: Login | None) -> None:
        """Log in again: on the link, or on the one that is being dialled, which may have got earlier credentials."""
        self._login = login
        if login is not None and self._link is not None and self._link.accepts(login):
            self.registry.nameless(Verb.AUTH)
            self._link.write(login.command)

    def abandon(self, reason: str) -> None:
        """End the link, if there is one, after what was received is delivered; the session dials again."""
        if self._link is not None:
            self._link.abandon(reason)

    def check(self, address: Address) -> None:
        """Ping now, if the link leads to an address; without pings, do nothing."""
        if self._link is not None and self._link.address == address:
            self._link.check()

    # --- in: from the wire to the subscribers

    def _receive(self, gets: Callable[[], object], deadline: float) -> tuple[int, bool]:
        """Take complete replies until `deadline`; return how many, and whether all were taken."""
        taken = self._dispatcher.receive(gets, deadline)
        if self.registry.has_work:
            self._flush_soon()
        self._changed.notify()
        return taken

    def _hide_secrets_in(self, error: Exception) -> None:
        if self._link is not None:
            self._link.hide_secrets_in(error)

    def _retry_in(self, delay: float) -> None:
        assert self._loop is not None
        assert self._link is not None  # which has just received the rejection
        when = self._loop.time() + delay
        if self._retrying is None or when < self._retrying.when():
            if self._retrying is not None:
                self._retrying.cancel()
            self._retrying = self._loop.call_at(when, self._link.guard, self._retry)

    def _retry(self) -> None:
        self._retrying = None
        with self._options.critical:
            if self.registry.retry_refused():
                self._flush_soon()

    # --- the end

    async def unsubscribe_all(self) -> None:
        """Unsubscribe from every name, and wait until the server has confirmed it."""
        for _ in self._options.critical.each(self.registry.drain()):
            await asyncio.sleep(0)
        self._flush_soon()
        while self.state is SessionState.CONNECTED and (self.registry.oldest_command or self.registry.has_work):
            await self._changed.wait()

    def retire(self) -> list[Entry[Subscriber]]:
        """End a session whose names have no subscribers any more; return them as close() does."""
        self._outages.given_up(str(self._endpoint))
        return self.close()

    def close(self) -> list[Entry[Subscriber]]:
        """End the session at once and for good; return the names that it had, to be freed little by little."""
        if self.closed:
            return []
        self._move(SessionState.CLOSED)
        with self._options.critical:
            entries = self.registry.clear()
        if self._loop is None or self._loop.is_closed():
            return entries
        for handle in (self._flushing, self._retrying):
            if handle is not None:
                handle.cancel()
        if self._link is not None:
            self._link.abort("closed")
        if self._task is not None and self._task is not running_task():
            self._task.cancel()
        return entries
