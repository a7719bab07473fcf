"""The positions of subscriptions with `durable`, which are kept in Redis: loaded, saved in batches, deleted."""

from __future__ import annotations

import asyncio
from contextvars import Context
from weakref import WeakSet

from ..._core.scripts import DELETE, LOAD, SAVE, evaluate, positions_key
from ...errors import ConnectionLost, MultiplexerIsClosed, SubscriptionRefused, plain, quote
from ..publishing.publisher import Publisher
from ..redispy.client import key_slot
from ..redispy.errors import ResponseError, is_transient
from ..runtime.log import RecordLimit, logger
from ..runtime.slices import SLICE_STEPS
from ..runtime.tasks import Tasks
from .cursor import StreamCursor
from .subscriber import StreamSubscriber

LOAD_PAUSE = 0.01  # seconds until a position is loaded again after its connection was lost
RETRY_LOAD = 5.0  # seconds until a position that the server rejected to load is loaded again
RETRY_LOAD_BUSY = 0.5  # the same for a server that is busy, or a cluster that is down
SAVE_INTERVAL = 1.0  # seconds from a change of a position until it is saved
SAVED_AT_ONCE = 64  # positions: in about a millisecond
SAVE_TIMEOUT = 1.0  # seconds that aclose() waits until positions are saved


class Positions:
    """The positions of the subscriptions of one multiplexer."""

    def __init__(self, publisher: Publisher, tasks: Tasks, record_limit: RecordLimit) -> None:
        self._publisher = publisher
        self._tasks = tasks
        self._record_limit = record_limit
        self._unsaved: dict[StreamSubscriber, None] = {}
        self._timer: asyncio.TimerHandle | None = None  # of the next save
        self._saving: set[asyncio.Task[object]] = set()
        self._leaving: set[asyncio.Task[object]] = set()  # those among them for streams that were left
        self._rejected: WeakSet[StreamSubscriber] = WeakSet()  # whose positions the server does not save

    # --- load

    def load(self, cursor: StreamCursor) -> None:
        """Load the position of a cursor; then it begins."""
        self._tasks.start(self._load(cursor), "redismpx stream position", Context())

    async def _load(self, cursor: StreamCursor) -> None:
        subscriber, name = cursor.subscriber, cursor.stream.name
        assert subscriber.durable is not None
        if self._leaving:  # a position that is about to be saved may be this one
            await asyncio.wait([*self._leaving])
        while cursor.is_active and not cursor.is_loaded:
            evaluation = evaluate(LOAD, (positions_key(name, key_slot),), subscriber.durable)
            try:
                position = await self._publisher.evaluate(name, evaluation)
            except MultiplexerIsClosed:
                return
            except ConnectionLost:
                await asyncio.sleep(LOAD_PAUSE)
            except ResponseError as error:
                is_busy = is_transient(error)
                if cursor.is_active and not is_busy:
                    cursor.fail(SubscriptionRefused("stream", name, str(error)))
                await asyncio.sleep(RETRY_LOAD_BUSY if is_busy else RETRY_LOAD)
            else:
                if not cursor.is_loaded:
                    cursor.is_loaded = True
                    if position is not None:
                        cursor.position = cursor.handed = position
        if cursor.is_active:
            subscriber.begin(cursor)

    # --- save

    def save_soon(self, subscriber: StreamSubscriber) -> None:
        """Save the positions of a subscriber soon."""
        self._unsaved[subscriber] = None
        if self._timer is None and not self._tasks.is_ending:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(SAVE_INTERVAL, self._save_all, context=Context())

    def _save_all(self) -> None:
        self._timer = None
        unsaved, self._unsaved = self._unsaved, {}
        for subscriber in unsaved:
            self._save_in_background(subscriber, [*subscriber.cursors.values()])

    def save_left(self, subscriber: StreamSubscriber, cursors: list[StreamCursor]) -> None:
        """Save the positions of cursors that a subscriber leaves, without a wait."""
        # The task looks whether any of very many is to be saved: here it would take long.
        if len(cursors) > SAVED_AT_ONCE or any(cursor.done is not None for cursor in cursors):
            task = self._save_in_background(subscriber, cursors)
            if task is not None:
                self._leaving.add(task)
                task.add_done_callback(self._leaving.discard)

    def _save_in_background(
        self, subscriber: StreamSubscriber, cursors: list[StreamCursor]
    ) -> asyncio.Task[object] | None:
        if self._tasks.is_ending:
            return None
        task = self._tasks.start(self._save_or_log(subscriber, cursors), "redismpx stream positions", Context())
        self._saving.add(task)
        task.add_done_callback(self._saving.discard)
        return task

    async def saved(self) -> None:
        """Wait until the positions that are being saved are saved, for SAVE_TIMEOUT at most."""
        if self._saving and (await asyncio.wait(self._saving, timeout=SAVE_TIMEOUT))[1]:
            logger.warning(
                "positions of streams were not saved within %g s: the last messages are delivered again",
                SAVE_TIMEOUT,
            )

    async def _save_or_log(self, subscriber: StreamSubscriber, cursors: list[StreamCursor]) -> None:
        failure = await self._save_each(subscriber.durable, cursors)
        if failure is None:
            self._rejected.discard(subscriber)
            return
        name, error = failure
        if isinstance(error, ResponseError) and not is_transient(error):
            self._warn_of_rejected(subscriber, name, error)
        else:
            logger.debug("positions of streams cannot be saved now (%s)", plain(str(error)))
        if not isinstance(error, MultiplexerIsClosed):
            self.save_soon(subscriber)

    def _warn_of_rejected(self, subscriber: StreamSubscriber, name: bytes, error: ResponseError) -> None:
        """Log that positions are rejected, once until none is rejected any more."""
        is_first = not self._rejected
        self._rejected.add(subscriber)
        if is_first and (left_out := self._record_limit.admit("positions")) is not None:
            logger.warning(
                "Redis rejects positions of durable streams, for example in the key %s (%s); after a restart, messages "
                "are delivered again. Check the rights of the user (~KEY* +eval +evalsha +hget +hset), maxmemory, and "
                "the type of the key%s",
                quote(positions_key(name, key_slot)),
                plain(str(error)),
                f"; {left_out} such records were left out" if left_out else "",
            )

    async def save(self, subscriber: StreamSubscriber) -> None:
        """Save the positions of a subscriber now; raise what the first failure raised."""
        try:
            if (failure := await self._save_each(subscriber.durable, [*subscriber.cursors.values()])) is not None:
                raise failure[1]
        except BaseException:  # a cancellation too
            self.save_soon(subscriber)
            raise

    async def _save_each(self, durable: bytes | None, cursors: list[StreamCursor]) -> tuple[bytes, Exception] | None:
        """Save the positions that are not saved, some at a time; return the name and the error of the first failure.

        Take over the list. A rejected position does not keep the others from being saved; a lost connection does.
        """
        failure = None
        unsaved: list[StreamCursor] = []
        while cursors:  # to free all of them together would take long
            cursor = cursors.pop()
            if cursor.done is not None:
                unsaved.append(cursor)
            if len(unsaved) == SAVED_AT_ONCE or not cursors:
                for failed in await asyncio.gather(*[self._save(durable, each) for each in unsaved]):
                    failure = failure or failed
                if failure is not None and not isinstance(failure[1], ResponseError):
                    break
                unsaved.clear()
            elif len(cursors) % SLICE_STEPS == 0:
                await asyncio.sleep(0)
        return failure

    async def _save(self, durable: bytes | None, cursor: StreamCursor) -> tuple[bytes, Exception] | None:
        """Save the position of a cursor; return its name and the error if that fails."""
        name, position, may_go_back = cursor.stream.name, cursor.done, cursor.may_go_back
        if position is None or durable is None:
            return None
        cursor.done, cursor.may_go_back = None, False
        is_saved = False
        key = positions_key(name, key_slot)
        try:
            arguments = durable, position, b"back" if may_go_back else b""
            await self._publisher.evaluate(name, evaluate(SAVE, (key,), *arguments))
            is_saved = True
        except (ConnectionLost, ResponseError, MultiplexerIsClosed) as error:
            return name, error
        finally:
            if not is_saved and cursor.done is None:
                cursor.done, cursor.may_go_back = position, may_go_back
        return None

    async def delete(self, name: bytes, durable: bytes) -> bool:
        """Delete a saved position; return whether there was one."""
        reply = await self._publisher.evaluate(name, evaluate(DELETE, (positions_key(name, key_slot),), durable))
        return bool(int(reply))

    def end(self) -> None:
        """Begin no more saves. Those that run go on."""
        if self._timer is not None:
            self._timer.cancel()
