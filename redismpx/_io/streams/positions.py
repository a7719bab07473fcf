"""The positions of subscriptions with `durable`, which are kept in Redis: loaded, saved in batches, deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import Context
from weakref import WeakSet

from ..._core.scripts import DELETE, LOAD, SAVE, evaluate, positions_key
from ...errors import ConnectionLost, MultiplexerIsClosed, SubscriptionRefused, plain, quote
from ..publishing.publisher import Publisher
from ..redispy.client import key_slot
from ..redispy.errors import ResponseError, is_transient
from ..runtime.log import RecordLimit, logger
from ..runtime.tasks import Tasks
from .cursor import StreamCursor
from .subscriber import Saved, StreamSubscriber

LOAD_PAUSE = 0.01  # seconds until a position is loaded again after its connection was lost
RETRY_LOAD = 5.0  # seconds until a position that the server rejected to load is loaded again
RETRY_LOAD_BUSY = 0.5  # the same for a server that is busy, or a cluster that is down
SAVE_INTERVAL = 1.0  # seconds from a change of a position until it is saved
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
        self._rejected: WeakSet[StreamSubscriber] = WeakSet()  # whose positions the server does not save

    def load(self, cursor: StreamCursor) -> None:
        """Load the position of a cursor; then it begins."""
        self._tasks.start(self._load(cursor), "redismpx stream position", Context())

    async def _load(self, cursor: StreamCursor) -> None:
        subscriber, name = cursor.subscriber, cursor.stream.name
        assert subscriber.durable is not None
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
                if not is_busy:
                    cursor.fail(SubscriptionRefused("stream", name, str(error)))
                await asyncio.sleep(RETRY_LOAD_BUSY if is_busy else RETRY_LOAD)
            else:
                if not cursor.is_loaded:
                    cursor.is_loaded = True
                    if position is not None:
                        cursor.position = cursor.handed = position
        if cursor.is_active:
            subscriber.begin(cursor)

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
            self.save_in_background(subscriber)

    def save_in_background(self, subscriber: StreamSubscriber) -> None:
        """Save the positions of a subscriber, without a wait."""
        if (found := subscriber.take_unsaved()) and not self._tasks.is_ending:
            task = self._tasks.start(self._save_or_log(subscriber, found), "redismpx stream positions", Context())
            self._saving.add(task)
            task.add_done_callback(self._saving.discard)

    async def saved(self) -> None:
        """Wait until the positions that are being saved are saved, for SAVE_TIMEOUT at most."""
        if self._saving and (await asyncio.wait(self._saving, timeout=SAVE_TIMEOUT))[1]:
            logger.warning(
                "positions of streams were not saved within %g s: the last messages are delivered again",
                SAVE_TIMEOUT,
            )

    async def _save_or_log(self, subscriber: StreamSubscriber, positions: Sequence[Saved]) -> None:
        try:
            await self.save(subscriber, positions)
        except (ConnectionLost, ResponseError, MultiplexerIsClosed) as error:
            if isinstance(error, ResponseError) and not is_transient(error):
                self._warn_of_rejected(subscriber, positions[0].name, error)
            else:
                logger.debug("positions of streams cannot be saved now (%s)", plain(str(error)))
            if not isinstance(error, MultiplexerIsClosed):
                subscriber.put_back(positions)
                self.save_soon(subscriber)
        else:
            self._rejected.discard(subscriber)

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

    async def save(self, subscriber: StreamSubscriber, positions: Sequence[Saved]) -> None:
        """Save positions; raise what the first failure raised."""
        assert subscriber.durable is not None
        calls = []
        for name, position, may_go_back in positions:
            key = positions_key(name, key_slot)
            evaluation = evaluate(SAVE, (key,), subscriber.durable, position, b"back" if may_go_back else b"")
            calls.append(self._publisher.evaluate(name, evaluation))
        for result in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def delete(self, name: bytes, durable: bytes) -> bool:
        """Delete a saved position; return whether there was one."""
        reply = await self._publisher.evaluate(name, evaluate(DELETE, (positions_key(name, key_slot),), durable))
        return bool(int(reply))

    def end(self) -> None:
        """Save nothing any more, but for what is being saved."""
        if self._timer is not None:
            self._timer.cancel()
