"""A queue of messages to publish at one server, and the one connection over which they go, batch by batch.

Written and read here rather than by redis-py's pipeline: that sends everything again when its connection breaks, and
forgets the replies that had come.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections import deque
from collections.abc import Collection, Iterable
from contextvars import Context
from functools import partial
from typing import NamedTuple, Protocol

from redis.asyncio.connection import AbstractConnection
from redis.backoff import FullJitterBackoff
from redis.exceptions import MovedError, ResponseError

from ..._core.wire import Redirection
from ...errors import ConnectionLost, MultiplexerIsClosed, plain
from ...stats import Counters
from ..redispy.diagnosis import describe, explain
from ..redispy.dial import DIAL_TIMEOUT, hide_arguments, transport_of
from ..redispy.endpoint import Endpoint, Pool
from ..runtime.log import logger
from ..runtime.notification import Notifier
from ..runtime.tasks import Tasks, is_cancelled, is_cancelling

BATCH = 512  # messages; the replies to so many are handed out in about a turn of the loop (tasks.TURN)
BATCH_BYTES = 1 << 20  # bytes, unless it is one message alone: so much is copied and written at a time
# Length-prefixed arguments only, so both are data whatever bytes they have.
PUBLISH = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
SPUBLISH = b"*3\r\n$8\r\nSPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
REDIRECTION_PAUSE = 0.02  # seconds after a batch with calls that one node sends to another, and that one back


class PublishCall:
    """One call of `publish()`, from when it is made to its outcome."""

    __slots__ = ("channel", "command", "deadline", "outcome", "redirections", "slot")

    def __init__(self, channel: bytes, data: bytes, slot: int | None, timeout: float) -> None:
        loop = asyncio.get_running_loop()
        self.channel: bytes = channel
        self.slot: int | None = slot
        """The slot of the channel, if it is a shard channel."""
        self.command: bytes = (PUBLISH if slot is None else SPUBLISH) % (len(channel), channel, len(data), data)
        self.deadline: float = loop.time() + timeout
        self.redirections: int = 0
        """How often a node sent it to another one."""
        self.outcome: asyncio.Future[int] = loop.create_future()


class Moved(NamedTuple):
    """What a node of a cluster did not publish, because another one has the slot."""

    call: PublishCall
    redirection: Redirection


class Traffic(Protocol):
    """What a pipeline to a node of a cluster asks, when it is not the way for some calls, or for none."""

    def redirect(self, pipeline: Pipeline, moved: Collection[Moved]) -> None:
        """Lead calls elsewhere, and all others that wait in the pipeline and have their slots."""

    async def divert(self, pipeline: Pipeline) -> None:
        """Lead elsewhere what waits in a pipeline that is blocked, if its slots have other owners by now."""


class Pipeline:
    """Publishes at one server at a time. Each call has one outcome, and is sent once or not at all."""

    def __init__(
        self,
        endpoint: Endpoint,
        is_owned: bool,
        timeout: float,
        tasks: Tasks,
        counters: Counters,
        traffic: Traffic | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._is_owned = is_owned  # whether its connections are to be closed at the end
        self._traffic = traffic
        self._timeout = timeout
        self._tasks = tasks
        self._counters = counters
        self._backoff = FullJitterBackoff(cap=1.0, base=0.05)  # many processes may want to publish at once
        # Not bounded: each call in it is a caller that waits, for `timeout` at most.
        self._waiting: deque[PublishCall] = deque()
        self._sent: deque[PublishCall] = deque()  # the batch on its way, without those that were answered
        self._moved: list[Moved] = []  # out of that batch; no others may overtake them, so they stay until it is over
        self._astray = False  # whether some of these had been redirected before
        self._called = Notifier()
        self._task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None  # for the oldest call
        self._failure: BaseException | None = None  # of the last attempt to connect

    @property
    def outcomes(self) -> list[asyncio.Future[int]]:
        """What is to come of the calls that are here."""
        calls = (*self._sent, *(call for call, _ in self._moved), *self._waiting)
        return [call.outcome for call in calls if not call.outcome.done()]

    @property
    def where(self) -> str:
        """The host and port to which the messages go."""
        return describe(self._endpoint.pool)

    @property
    def host(self) -> str:
        """The host of that."""
        return str(self._endpoint.pool.connection_kwargs.get("host"))

    def put(self, call: PublishCall) -> None:
        """Let a call that was made just now wait for its turn."""
        self._waiting.append(call)
        self._look_after(call)

    def merge(self, calls: Collection[PublishCall]) -> None:
        """Take calls from another pipeline. Calls keep their order; they are sorted by deadline."""
        if calls:
            self._waiting = deque(sorted((*self._waiting, *calls), key=lambda call: call.deadline))
            if self._timer is not None:  # it may be too late for these
                self._timer.cancel()
                self._timer = None
            self._look_after(self._waiting[0])

    def _look_after(self, call: PublishCall) -> None:
        """Have a call sent, or failed in time."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(call.deadline, self._expire)
        if self._task is None or self._task.done():
            self._task = self._tasks.start(self._run(), "redismpx publisher", Context())
        self._called.notify()

    def take(self, slots: Collection[int]) -> list[PublishCall]:
        """Take away the calls that wait and have one of these slots."""
        taken = [call for call in self._waiting if call.slot in slots]
        if taken:
            self._waiting = deque([call for call in self._waiting if call.slot not in slots])
        return taken

    @property
    def slots(self) -> set[int]:
        """The slots of the calls that wait."""
        return {call.slot for call in self._waiting if call.slot is not None}

    def stop(self) -> None:
        """End the connection of a pipeline that nobody needs any more."""
        if self._task is not None:
            self._task.cancel()

    def close(self) -> None:
        """Fail what has no outcome yet."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        sent, waiting = self._sent, [*(call for call, _ in self._moved), *self._waiting]
        self._sent, self._moved, self._waiting = deque(), [], deque()
        if not (sent or waiting) or (sent or waiting)[0].outcome.get_loop().is_closed():
            return  # nobody waits who could be woken
        self._lose(sent, "closed before Redis answered", None)
        for call in waiting:
            if not call.outcome.done():
                call.outcome.set_exception(MultiplexerIsClosed())

    # --- one batch after the other

    async def _run(self) -> None:
        connection: AbstractConnection | None = None
        failures = 0
        try:
            while not is_cancelling():
                if not self._waiting:
                    await self._called.wait()
                    continue
                try:
                    pool = await self._endpoint.find()
                    connection = await self._connect(pool)
                    self._failure, failures = None, 0
                    try:
                        is_good = await self._exchange(connection)
                    finally:
                        await pool.release(connection)
                    if not is_good:
                        await self._blocked()
                    if self._astray:  # the nodes do not agree yet
                        self._astray = False
                        await asyncio.sleep(REDIRECTION_PAUSE)
                except (Exception, asyncio.CancelledError) as error:
                    if is_cancelled(error):
                        raise
                    hide_arguments(error)
                    self._failure = error
                    failures += 1
                    logger.debug("nothing can be published now (%s)", plain(explain(self._endpoint.pool, error)))
                    await self._blocked()
                    await asyncio.sleep(self._backoff.compute(min(failures, 64)))
        finally:
            self.close()
            collected = isinstance(sys.exception(), GeneratorExit)  # with its loop: there is nothing it can do
            if self._is_owned and connection is not None and not collected:
                await _end(connection, transport_of(connection))

    async def _blocked(self) -> None:
        """Look for another way, for the pipeline or for what waits in it."""
        self._endpoint.failed()
        if self._traffic is not None:
            await self._traffic.divert(self)

    async def _connect(self, pool: Pool) -> AbstractConnection:
        """Get a connection that is good, as far as can be told; nothing is sent before it is."""
        async with asyncio.timeout(DIAL_TIMEOUT):
            connection = await pool.get_connection()
            try:
                # The pool does not look when maintenance notifications are on, which is the default with RESP3; and it
                # does not see a reset.
                if await connection.can_read() or _is_reset(connection):
                    await _end(connection, transport_of(connection))
                    await connection.connect()
                await connection.check_health()
            except BaseException:  # also when cancelled: the pool gets it back ended; _run logs why
                await _end(connection, transport_of(connection))
                await pool.release(connection)
                raise
        return connection

    async def _exchange(self, connection: AbstractConnection) -> bool:
        """Send a batch, and hand out its replies; return whether the connection is good for another."""
        sent = self._sent = self._next_batch()
        if not sent:
            return True  # all of them were cancelled
        is_good = False
        transport = transport_of(connection)  # redis-py forgets it when it disconnects, and unsent bytes with it
        try:
            # The timeout is not the client's socket_timeout, which would cost a timer for each reply.
            read = partial(connection.read_response, disable_decoding=True, timeout=math.inf, disconnect_on_error=False)
            async with asyncio.timeout_at(sent[-1].deadline):
                await connection.send_packed_command(b"".join([call.command for call in sent]), check_health=False)
                if is_cancelling():
                    return False
                while sent:
                    try:
                        reply = await read()
                    except ResponseError as error:
                        call = sent.popleft()
                        if self._traffic is not None and isinstance(error, MovedError):
                            where = Redirection(error.slot_id, error.host, error.port)
                            self._moved.append(Moved(call, where))
                        elif not call.outcome.done():
                            call.outcome.set_exception(error.with_traceback(None))
                        if str(error).startswith("Protocol error"):  # the server closes when it has said so
                            raise
                        continue
                    if type(reply) is not int:
                        raise TypeError(f"PUBLISH was answered with {type(reply).__name__}")
                    self._counters.published += 1
                    outcome = sent.popleft().outcome
                    if not outcome.done():
                        outcome.set_result(reply)
            is_good = True
        except Exception as error:  # noqa: BLE001, whatever it is, no reply can be told from another any more
            logger.debug("a connection was lost while publishing (%s)", plain(str(error)))
            self._lose(sent, str(error) or repr(error), error)
        finally:
            if not is_good:  # replies may be on their way that are nobody else's
                self._lose(sent, "closed before Redis answered", None)
                sent.clear()
            if self._moved and self._traffic is not None and not is_cancelling():
                moved, self._moved = self._moved, []
                self._astray = any(call.redirections for call, _ in moved)
                self._traffic.redirect(self, moved)
            if not is_good:
                await _end(connection, transport)
        return is_good

    def _next_batch(self) -> deque[PublishCall]:
        batch: deque[PublishCall] = deque()
        size = 0
        waiting = self._waiting
        while waiting and len(batch) < BATCH:
            call = waiting[0]
            if not call.outcome.done():
                size += len(call.command)
                if batch and size > BATCH_BYTES:
                    break
                batch.append(call)
            waiting.popleft()
        return batch

    # --- no outcome

    def _expire(self) -> None:
        """Fail the calls whose time is over, and come again for the oldest that is left."""
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        overdue = [call for call in self._sent if call.deadline <= now]  # their replies may still come
        self._lose(overdue, f"no answer within {self._timeout:g} s", TimeoutError())
        waiting = self._waiting
        if self._failure is not None:
            why = explain(self._endpoint.pool, self._failure)
        else:
            why = (
                "what was sent before is not answered"
                if self._sent
                else f"no connection to {describe(self._endpoint.pool)} yet"
            )
        while waiting and (waiting[0].deadline <= now or waiting[0].outcome.done()):
            self._fail(waiting.popleft(), f"not sent within {self._timeout:g} s: {why}", self._failure, sent=False)
        for call, _ in self._moved:
            if call.deadline <= now:
                self._fail(call, f"not sent within {self._timeout:g} s: its slot has moved", None, sent=False)
        oldest = next((call for call in (*self._sent, *waiting) if call.deadline > now), None)
        if oldest is not None:
            self._timer = loop.call_at(oldest.deadline, self._expire)

    def _lose(self, calls: Iterable[PublishCall], why: str, cause: BaseException | None) -> None:
        for call in calls:
            self._fail(call, f"sent, and may or may not have been published: {why}", cause, sent=True)

    @staticmethod
    def _fail(call: PublishCall, reason: str, cause: BaseException | None, *, sent: bool) -> None:
        if not call.outcome.done():
            error = ConnectionLost(reason, frozenset({call.channel}), sent=sent)
            error.__cause__ = cause
            call.outcome.set_exception(error)


def _is_reset(connection: AbstractConnection) -> bool:
    transport = transport_of(connection)
    return transport is not None and transport.is_closing()


async def _end(connection: AbstractConnection, transport: asyncio.Transport | None) -> None:
    """End a connection at once, whatever its other end does. The pool may go on with it: it dials anew."""
    if transport is not None:
        transport.abort()
    await connection.disconnect(nowait=True)
