"""A queue of messages to publish at one endpoint, and the one connection over which they go, batch by batch.

Never sends a call twice: redis-py's own pipeline sends everything again when its connection breaks, and forgets the
replies that had come.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextvars import Context
from functools import partial
from itertools import chain
from typing import Any

from ..._core.wire import Redirection
from ...errors import plain
from ...stats import Counters
from ..redispy.connection import Address, Connection
from ..redispy.endpoint import Endpoint
from ..redispy.errors import MOVING, MovedError, NoScriptError, ReadOnlyError, ResponseError
from ..runtime.log import logger
from ..runtime.notification import Notifier
from ..runtime.slices import Step
from ..runtime.tasks import Tasks, is_cancelled, is_cancelling
from ..runtime.timers import EXPIRED_AT_ONCE
from .call import Moved, PublishCall, ScriptCall, reject_unheard
from .call_queue import PUBLISH_BATCH_BYTES, CallQueue
from .current import CurrentConnection
from .deadlines import CallDeadlines
from .router import Router
from .shortcut import LARGEST_AT_ONCE, Shortcut, is_fit

REDIRECTION_PAUSE = 0.02  # seconds after a batch in which a call was redirected for the second time


class Pipeline:
    """Publishes at one endpoint. Each call has one outcome, and is sent once or not at all."""

    def __init__(
        self,
        endpoint: Endpoint,
        timeout: float,
        tasks: Tasks,
        counters: Counters,
        on_lost: Callable[[Address], None],
        router: Router[Pipeline] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._router = router
        self._timeout = timeout
        self._tasks = tasks
        self._counters = counters
        self._waiting = CallQueue()
        self._sent: deque[PublishCall] = deque()  # the calls of the batch in flight that have no reply yet
        self._moved: list[Moved] = []  # calls of that batch that go back to the queues of their slots when it ends
        self._unheard: list[PublishCall] = []  # calls of that batch with a count of 0 that must be heard
        self._again: list[PublishCall] = []  # scripts of that batch that the server did not run, and may run later
        self._bounced = False  # whether a call of that batch was redirected for the second time
        self._called = Notifier()
        self._shortcut = Shortcut(counters, self._advance_soon, self._called.notify)
        self._fitting = 0  # batches in a row that were fit for the shortcut: after the second, it takes the next ones
        self._singles = 0  # batches of one call in a row, without another call meanwhile: the third goes out at once
        self._is_advancing = False  # whether the shortcut is about to take a batch
        self._task: asyncio.Task[object] | None = None
        self._deadlines = CallDeadlines(timeout, self._expire)
        self.current: CurrentConnection = CurrentConnection(endpoint, timeout, on_lost, self._reroute)
        self._failure: BaseException | None = None  # of the last attempt to connect

    @property
    def outcomes(self) -> list[asyncio.Future[Any]]:
        """The futures of the calls that have no outcome yet."""
        calls = (*self._sent, *self._unheard, *self._again, *(call for call, _ in self._moved), *self._waiting)
        return [call.outcome for call in calls if not call.outcome.done()]

    @property
    def slots(self) -> set[int]:
        """The slots of the queued calls."""
        return {call.slot for call in self._waiting if call.slot is not None}

    # --- the queue

    def put(self, call: PublishCall) -> None:
        """Queue a call that was made just now, or send it at once: if the pipeline is idle, and calls come singly."""
        self._deadlines.look_at(call.deadline)
        if self._sent:
            self._singles = 0
        elif self._singles > 1 and not (self._waiting or self.current.is_outdated):
            self._sent.append(call)
            if self._shortcut.send(self._sent):
                return
            self._sent.clear()
        self._waiting.append(call)
        if self._shortcut.is_open and self._singles < 2:
            self._advance_soon()
        else:
            self._attend_to(call)

    def put_first(self, calls: Sequence[PublishCall]) -> None:
        """Queue calls that have waited elsewhere, the oldest first, before all others."""
        if calls:
            self._waiting.put_first(calls)
            self._attend_to(calls[0])

    def take(self, slots: Collection[int]) -> list[PublishCall]:
        """Remove the queued calls with one of these slots, and return them."""
        return self._waiting.take(slots)

    def _attend_to(self, call: PublishCall) -> None:
        """Make sure that a call is sent, or fails in time."""
        self._deadlines.look_at(call.deadline)
        if self._task is None or self._task.done():
            self._task = self._tasks.start(self._run(), "redismpx publisher", Context())
        self._called.notify()

    def _advance_soon(self) -> None:
        """Let the shortcut take a batch in the next step of the loop: callers that have just got a reply call again."""
        if not (self._is_advancing or self._sent or self._singles > 1):
            self._is_advancing = True
            asyncio.get_running_loop().call_soon(self._advance)

    def _advance(self) -> None:
        """Let the shortcut take a batch, or wake the task."""
        self._is_advancing = False
        if self._sent or not self._waiting:
            return
        if self._shortcut.is_open and not self.current.is_outdated:
            batch = self._next_batch(LARGEST_AT_ONCE)
            if self._shortcut.send(batch):
                self._sent = batch
                return
            self._waiting.extendleft(reversed(batch))
        self._called.notify()

    # --- one batch after the other

    async def _run(self) -> None:
        failures = 0
        try:
            while not is_cancelling():
                try:
                    connection = self._shortcut.take_over()
                    if connection is None:
                        if self.current.is_outdated:
                            await self.current.leave()
                        if not self._waiting:
                            await self._rest()
                            continue
                        connection = await self.current.get()
                        self._failure, failures = None, 0
                        if self._router is not None:
                            self._router.place(self)
                    if not await self._exchange(connection):
                        await self.current.lost()
                    if self._bounced:  # the nodes do not agree yet
                        self._bounced = False
                        await asyncio.sleep(REDIRECTION_PAUSE)
                except (Exception, asyncio.CancelledError) as error:
                    if is_cancelled(error):
                        raise
                    await self.current.release()
                    self._failure = error
                    failures += 1
                    logger.debug("publishing fails for now (%s)", plain(self.endpoint.explain(error)))
                    await self._reroute()
                    await self.current.pause(failures)
        finally:
            for fail in self.close():
                fail()
            if not isinstance(sys.exception(), GeneratorExit):  # collected with its loop, which runs nothing any more
                await self.current.release()

    async def _rest(self) -> None:
        """Wait for the next call, unless there is one already. Calls that the shortcut takes do not wake this task."""
        connection = await self.current.idle() if self._fitting > 1 and self._router is None else None
        if not (self._waiting or self.current.is_outdated):
            self._shortcut.allow(connection)
            await self._called.wait()

    async def _reroute(self) -> None:
        """Look for another endpoint, for the pipeline or for the calls in it."""
        self.endpoint.failed()
        if self._router is not None:
            await self._router.divert(self)

    async def _exchange(self, connection: Connection) -> bool:
        """Send a batch and read its replies; return whether the connection can carry another batch.

        If it cannot, replies may be on their way that belong to no later call. A call that was sent already is a batch.
        """
        is_sent = bool(self._sent)
        sent = self._sent = self._sent or self._next_batch()
        self._fitting = self._fitting + 1 if is_fit(sent) and not is_sent else 0
        if not sent:
            return True  # all calls were cancelled
        is_usable = False
        if self._counters.scripts:
            for call in sent:
                if type(call) is ScriptCall:
                    call.prepare(connection.scripts)
        try:
            deadline = sent[-1].deadline if self._waiting.is_sorted else max([call.deadline for call in sent])
            async with self._deadlines.limit(deadline):
                if not is_sent:
                    await connection.send(b"".join([call.command for call in sent]))
                if not is_cancelling():
                    await self._read_replies(connection, sent)
                    await reject_unheard(self._unheard, connection)
                    is_usable = True
        except Exception as error:  # noqa: BLE001, after any failure no reply can be told from another
            connection.hide_secrets_in(error)
            logger.debug("a connection was lost while publishing (%s)", plain(str(error)))
            self._lose(sent, str(error) or repr(error), error)
        finally:
            self._deadlines.end_limit()
            if not is_usable:
                self._lose(sent, "closed before Redis answered", None)
                sent.clear()
                connection.abort()
            for call in self._unheard:
                call.resolve(0)  # which proves nothing
            self._unheard.clear()
            self._redirect_moved()
            self._repeat()
        return is_usable

    async def _read_replies(self, connection: Connection, sent: deque[PublishCall]) -> None:
        """Read the reply to each call, and resolve the call with it."""
        read = connection.reader()
        while sent:
            try:
                reply = await read()
            except ResponseError as error:
                connection.hide_secrets_in(error)
                self._reject(sent.popleft(), error)
                if isinstance(error, NoScriptError):
                    connection.scripts.clear()
                if str(error).startswith("Protocol error"):  # after which the server closes the connection
                    raise
                continue
            if type(reply) is not int:
                if type(sent[0]) is not ScriptCall:
                    raise TypeError(f"PUBLISH was answered with {type(reply).__name__}")
                sent.popleft().resolve(reply)
                continue
            self._counters.published += 1
            call = sent.popleft()
            if not reply and call.must_be_heard:
                self._unheard.append(call)
            elif not call.outcome.done():
                call.outcome.set_result(reply)

    def _reject(self, call: PublishCall, error: ResponseError) -> None:
        """Fail a call with an error reply; one that was redirected, or not run, is kept."""
        if self._router is not None and isinstance(error, MovedError):
            self._moved.append(Moved(call, Redirection(error.slot_id, error.host, error.port)))
            return
        if type(call) is ScriptCall and self._is_to_be_repeated(error):
            if self._router is None:
                self._again.append(call)
            else:
                self._moved.append(Moved(call, None))
            return
        if isinstance(error, ReadOnlyError):  # a former master, in the words of some proxies
            self.current.is_outdated = True
        if not call.outcome.done():
            call.outcome.set_exception(error.with_traceback(None))

    def _redirect_moved(self) -> None:
        """Move the calls of a batch that were redirected, or not run, to the owners of their slots."""
        if self._moved and self._router is not None and not is_cancelling():
            moved, self._moved = self._moved, []
            self._bounced = self._bounced or any(call.redirections for call, _ in moved)
            self._router.redirect(self, moved)

    def _is_to_be_repeated(self, error: ResponseError) -> bool:
        """Tell whether the server has not run a script, because it has forgotten it, or just moves its key."""
        is_moving = isinstance(error, MOVING)
        self._bounced = self._bounced or is_moving
        return is_moving or isinstance(error, NoScriptError)

    def _repeat(self) -> None:
        """Queue the calls again that the server did not run."""
        if self._again and not is_cancelling():
            unknown, self._again = self._again, []
            self.put_first(unknown)

    def _next_batch(self, most: int = PUBLISH_BATCH_BYTES) -> deque[PublishCall]:
        batch = self._waiting.next_batch(most, self._deadlines.passed, self._why, self._failure)
        self._singles = self._singles + 1 if len(batch) == 1 and not self._waiting else 0
        return batch

    # --- calls that fail

    def _expire(self) -> None:
        """Fail the calls after their deadline, and look again at the deadline of the oldest one left."""
        now = self._deadlines.passed
        overdue = [call for call in self._sent if call.deadline <= now]  # their replies may still come
        self._lose(overdue, f"no answer within {self._timeout:g} s", TimeoutError())
        if overdue:
            self._shortcut.leave()
        self._waiting.sort()
        waiting, why, left = self._waiting, self._why(), EXPIRED_AT_ONCE
        while left and waiting and (waiting[0].deadline <= now or waiting[0].outcome.done()):
            waiting.popleft().expire(why, self._failure)
            left -= 1
        for call, _ in self._moved:
            if call.deadline <= now:
                call.expire("its slot has moved", None)
        still = (call.deadline for call in chain(self._sent, waiting) if call.deadline > now)
        when = next(still, None) if left else now
        if when is not None:
            self._deadlines.look_at(when)

    def _why(self) -> str:
        """Return why a call was not sent so far."""
        if self._failure is not None:
            return self.endpoint.explain(self._failure)
        return "earlier messages have no answer yet" if self._sent else self.endpoint.silence

    @staticmethod
    def _lose(calls: Iterable[PublishCall], why: str, cause: BaseException | None) -> None:
        for call in calls:
            call.lose(why, cause)

    # --- the end

    def abandon(self, address: Address | None) -> None:
        """Leave the server at an address, or any server: dial again before the next batch.

        A batch in flight keeps its connection.
        """
        if self.current.abandon(address):
            self._called.notify()

    def stop(self) -> None:
        """End the connection of a pipeline that is not needed any more."""
        if self._task is not None:
            self._task.cancel()

    def close(self) -> Iterator[Step]:
        """Take out all calls; return, for each, a step that fails it if it has no outcome yet."""
        self._shortcut.take_over()
        self._deadlines.cancel()
        sent = [partial(call.lose, "closed before Redis answered", None) for call in self._sent]
        waiting = chain([call for call, _ in self._moved], self._again, self._waiting)
        self._sent, self._moved, self._again, self._waiting = deque(), [], [], CallQueue()
        return chain(sent, (call.close for call in waiting))
