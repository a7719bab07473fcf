"""Sends messages in the order of the calls, one batch at a time, each once. Decides nothing about subscriptions.

Batches go over a connection of the client's pool, and are written and read here rather than by redis-py's pipeline:
that sends everything again when its connection breaks, and forgets the replies that had come.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections import deque
from collections.abc import Iterable
from contextvars import Context
from functools import partial

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.backoff import FullJitterBackoff
from redis.exceptions import ResponseError

from ._io.diagnosis import describe, explain
from ._io.dial import DIAL_TIMEOUT, hide_arguments
from ._io.log import logger
from ._io.pulse import Pulse
from ._io.tasks import Tasks, is_cancelled, is_cancelling
from .errors import ConnectionLost, MultiplexerIsClosed, plain
from .stats import Counters

BATCH = 512  # messages; the replies to so many are handed out in about a turn of the loop (tasks.TURN)
BATCH_BYTES = 1 << 20  # bytes, unless it is one message alone: so much is copied and written at a time


class _Call:
    """One call of `publish()`, from when it is made to its outcome."""

    __slots__ = ("channel", "command", "deadline", "outcome")

    def __init__(self, channel: bytes, data: bytes, deadline: float, outcome: asyncio.Future[int]) -> None:
        self.channel = channel
        # Length-prefixed arguments only, so both are data whatever bytes they have.
        self.command = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(channel), channel, len(data), data)
        self.deadline = deadline
        self.outcome = outcome


class Publisher:
    """Publishes through the pool of a redis-py client. Each call has one outcome, and is sent once or not at all."""

    def __init__(self, pool: ConnectionPool, is_owned: bool, timeout: float, tasks: Tasks, counters: Counters) -> None:
        self._pool = pool
        self._is_owned = is_owned  # whether its connections are to be closed at the end
        self._timeout = timeout
        self._tasks = tasks
        self._counters = counters
        self._backoff = FullJitterBackoff(cap=1.0, base=0.05)  # many processes may want to publish at once
        # Not bounded: each call in it is a caller that waits, for `timeout` at most.
        self._waiting: deque[_Call] = deque()
        self._sent: deque[_Call] = deque()  # the batch on its way, without those that were answered
        self._called = Pulse()
        self._task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None  # for the oldest call
        self._failure: BaseException | None = None  # of the last attempt to connect

    @property
    def pending(self) -> int:
        """Calls without an outcome."""
        return sum(not call.outcome.done() for call in (*self._sent, *self._waiting))

    async def publish(self, channel: bytes, data: bytes) -> int:
        """Publish after all that was called for before; return how many connections Redis says received it."""
        loop = asyncio.get_running_loop()
        call = _Call(channel, data, loop.time() + self._timeout, loop.create_future())
        self._waiting.append(call)
        if self._timer is None:
            self._timer = loop.call_at(call.deadline, self._expire)
        if self._task is None or self._task.done():
            self._task = self._tasks.start(self._run(), "redismpx publisher", Context())
        self._called.fire()
        try:
            return await call.outcome
        except BaseException:  # the outcome, or cancelled: for the caller in both cases
            call.command = b""  # of a caller that was cancelled: it need not be kept until its turn
            del call  # or what is raised would lead to itself, by its traceback
            raise

    async def flushed(self) -> None:
        """Wait until each call made so far has its outcome."""
        outcomes = [call.outcome for call in (*self._sent, *self._waiting) if not call.outcome.done()]
        if outcomes:
            await asyncio.wait(outcomes)

    def close(self) -> None:
        """Fail what has no outcome yet."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        sent, waiting = self._sent, self._waiting
        self._sent, self._waiting = deque(), deque()
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
                    connection = await self._connect()
                    self._failure, failures = None, 0
                    try:
                        await self._exchange(connection)
                    finally:
                        await self._pool.release(connection)
                except (Exception, asyncio.CancelledError) as error:
                    if is_cancelled(error):
                        raise
                    hide_arguments(error)
                    self._failure = error
                    failures += 1
                    logger.debug("nothing can be published now (%s)", plain(explain(self._pool, error)))
                    await asyncio.sleep(self._backoff.compute(min(failures, 64)))
        finally:
            self.close()
            collected = isinstance(sys.exception(), GeneratorExit)  # with its loop: there is nothing it can do
            if self._is_owned and connection is not None and not collected:
                await _end(connection, _transport(connection))

    async def _connect(self) -> AbstractConnection:
        """Get a connection that is good, as far as can be told; nothing is sent before it is."""
        async with asyncio.timeout(DIAL_TIMEOUT):
            connection: AbstractConnection = await self._pool.get_connection()
            try:
                # The pool does not look when maintenance notifications are on, which is the default with RESP3; and it
                # does not see a reset.
                if await connection.can_read() or _is_reset(connection):
                    await _end(connection, _transport(connection))
                    await connection.connect()
                await connection.check_health()
            except BaseException:  # also when cancelled: the pool gets it back ended; _run logs why
                await _end(connection, _transport(connection))
                await self._pool.release(connection)
                raise
        return connection

    async def _exchange(self, connection: AbstractConnection) -> None:
        """Send a batch, and hand out its replies."""
        sent = self._sent = self._next_batch()
        if not sent:
            return  # all of them were cancelled
        is_good = False
        transport = _transport(connection)  # redis-py forgets it when it disconnects, and what was not sent yet is left
        try:
            # The timeout is not the client's socket_timeout, which would cost a timer for each reply.
            read = partial(connection.read_response, disable_decoding=True, timeout=math.inf, disconnect_on_error=False)
            async with asyncio.timeout_at(sent[-1].deadline):
                await connection.send_packed_command(b"".join([call.command for call in sent]), check_health=False)
                if is_cancelling():
                    return
                while sent:
                    try:
                        reply = await read()
                    except ResponseError as error:
                        outcome = sent.popleft().outcome
                        if not outcome.done():
                            outcome.set_exception(error.with_traceback(None))
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
                await _end(connection, transport)

    def _next_batch(self) -> deque[_Call]:
        batch: deque[_Call] = deque()
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
            why = explain(self._pool, self._failure)
        else:
            why = (
                "what was sent before is not answered" if self._sent else f"no connection to {describe(self._pool)} yet"
            )
        while waiting and (waiting[0].deadline <= now or waiting[0].outcome.done()):
            self._fail(waiting.popleft(), f"not sent within {self._timeout:g} s: {why}", self._failure, sent=False)
        oldest = next((call for call in (*self._sent, *waiting) if call.deadline > now), None)
        if oldest is not None:
            self._timer = loop.call_at(oldest.deadline, self._expire)

    def _lose(self, calls: Iterable[_Call], why: str, cause: BaseException | None) -> None:
        for call in calls:
            self._fail(call, f"sent, and may or may not have been published: {why}", cause, sent=True)

    @staticmethod
    def _fail(call: _Call, reason: str, cause: BaseException | None, *, sent: bool) -> None:
        if not call.outcome.done():
            error = ConnectionLost(reason, frozenset({call.channel}), sent=sent)
            error.__cause__ = cause
            call.outcome.set_exception(error)


def _transport(connection: AbstractConnection) -> asyncio.Transport | None:
    return getattr(getattr(connection, "_writer", None), "transport", None)  # as in _io.link


def _is_reset(connection: AbstractConnection) -> bool:
    transport = _transport(connection)
    return transport is not None and transport.is_closing()


async def _end(connection: AbstractConnection, transport: asyncio.Transport | None) -> None:
    """End a connection at once, whatever its other end does. The pool may go on with it: it dials anew."""
    if transport is not None:
        transport.abort()
    await connection.disconnect(nowait=True)
