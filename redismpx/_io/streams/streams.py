"""The streams of a multiplexer: what their cursors share, the pages that are read, the checks of their ends.

A bounded number of pages is read at a time, each bounded in entries and bytes, over the connection that publishes. So
very many streams neither flood the server after a loss nor stop the loop.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextvars import Context
from functools import partial
from time import monotonic
from typing import Any
from weakref import WeakSet

from ..._core.recovery import Page, PageRequest, Stream
from ..._core.scripts import APPEND, DELETE, HISTORY, LOAD, PAGE, SAVE, evaluate, once_key, positions_key
from ...errors import ConnectionLost, MultiplexerIsClosed, SubscriptionRefused, plain, quote
from ...message import StreamMessage, messages_of
from ..publishing.publisher import Publisher
from ..redispy.client import key_slot
from ..redispy.errors import ResponseError, is_transient
from ..runtime.log import RecordLimit, logger
from ..runtime.tasks import TIME_SLICE, Tasks
from .advice import advise
from .subscriber import Saved, StreamCursor, StreamSubscriber

PAGES_AT_ONCE = 32  # in flight
PAGE_ENTRIES = 1_000
PAGE_BYTES = 1 << 18  # payloads of one page; the last may exceed it
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 1.0  # seconds between pages of one stream that had nothing new
RETRY_PAGE = 5.0  # seconds until a page that the server rejected is read again
RETRY_BUSY = 0.5  # the same for a server that is busy, or a cluster that is down
SAVE_INTERVAL = 1.0  # seconds from a change of a position until it is saved
SAVE_TIMEOUT = 1.0  # seconds that aclose() waits until positions are saved


class Streams:
    """The streams that subscriptions of one multiplexer follow."""

    def __init__(
        self, publisher: Publisher, tasks: Tasks, record_limit: RecordLimit, tail_interval: float | None
    ) -> None:
        self._publisher = publisher
        self._tasks = tasks
        self._record_limit = record_limit
        self._tail_interval = tail_interval
        self.streams: dict[bytes, Stream] = {}
        self._jobs: dict[Stream, Callable[[], Coroutine[Any, Any, None]] | None] = {}  # None: read pages
        self._running = 0
        self._turn = asyncio.Lock()  # of the page that is delivered: together, pages would stop the loop for too long
        self._pumping = False
        self._pauses: dict[Stream, float] = {}  # of streams whose last page had nothing new
        self._quiet: dict[Stream, int] = {}  # live messages of each stream at the last look at its end
        self._timers: dict[object, asyncio.TimerHandle] = {}
        self._unsaved: dict[StreamSubscriber, None] = {}
        self._saving: set[asyncio.Task[object]] = set()
        self._rejected: WeakSet[StreamSubscriber] = WeakSet()  # whose positions the server does not save

    # --- cursors

    def open(self, name: bytes) -> Stream:
        """Return the stream of a name, which another cursor joins now."""
        stream = self.streams.get(name)
        if stream is None:
            stream = self.streams[name] = Stream(name, self._on_wanted)
        return stream

    def close(self, cursor: StreamCursor) -> None:
        """Remove a cursor; forget its stream if it was the last one."""
        stream = cursor.stream
        cursor.remove()
        if not stream.cursors:
            self.streams.pop(stream.name, None)
            self._pauses.pop(stream, None)
            self._quiet.pop(stream, None)

    def hasten(self, stream: Stream) -> None:
        """Read the next page of a stream without a pause: a connection is new."""
        self._pauses.pop(stream, None)
        self._later("tails", self._tail_interval and self._tail_interval / 2, self._look_at_tails)

    def _later(self, key: object, seconds: float | None, callback: Callable[[], None]) -> None:
        """Call a function later, unless a call with this key is waiting already. None: never."""

        def call() -> None:
            del self._timers[key]
            callback()

        if seconds is not None and key not in self._timers and not self._tasks.is_ending:
            self._timers[key] = asyncio.get_running_loop().call_later(seconds, call, context=Context())

    def end(self) -> None:
        """Call nothing any more."""
        for timer in [*self._timers.values()]:
            timer.cancel()
        self._timers.clear()
        self._jobs.clear()

    # --- calls

    async def append(
        self, name: bytes, payload: bytes, max_length: int | None, max_age: float | None, key: bytes | None
    ) -> bytes:
        """Append a message; return its id."""
        keys = (name,) if key is None else (name, once_key(name, key, key_slot))
        length = b"" if max_length is None else b"%d" % max_length
        age = b"" if max_age is None else b"%d" % (1_000 * max_age)
        command = self._publisher.publish_command
        try:
            reply = await self._publisher.evaluate(name, evaluate(APPEND, keys, command, payload, length, age))
        except ResponseError as error:
            advise(error)
            raise
        assert isinstance(reply, bytes)
        return reply

    async def history(self, name: bytes, position: bytes, limit: int) -> list[StreamMessage[bytes]]:
        """Return at most `limit` messages behind a position."""
        messages: list[StreamMessage[bytes]] = []
        while limit > 0:
            count = b"%d" % min(limit, PAGE_ENTRIES)
            evaluation = evaluate(HISTORY, (name,), position, count, b"%d" % PAGE_BYTES)
            is_end, ids, payloads = await self._publisher.evaluate(name, evaluation)
            messages.extend(messages_of(name, ids.split(), payloads))
            if is_end:
                break
            position = messages[-1].id
            limit -= len(payloads)
        return messages

    async def delete_position(self, name: bytes, durable: bytes) -> bool:
        """Delete a saved position; return whether there was one."""
        reply = await self._publisher.evaluate(name, evaluate(DELETE, (positions_key(name, key_slot),), durable))
        return bool(int(reply))

    # --- pages

    async def read(self, name: bytes, position: bytes | None, count: int) -> Page:
        """Read the entries of a stream behind a position; for None, only its last id."""
        if position is None:
            position, count = b"", 0
        evaluation = evaluate(PAGE, (name,), position, b"%d" % count, b"%d" % PAGE_BYTES)
        last, is_anchored, is_end, ids, links, payloads = await self._publisher.evaluate(name, evaluation)
        return Page(last, bool(is_anchored), bool(is_end), ids.split(), links, payloads)

    def _on_wanted(self, stream: Stream) -> None:
        pause = self._pauses.get(stream)
        if stream in self._jobs:
            return
        if not pause:
            self._add(stream, None)
        else:
            self._later(stream, pause, partial(self._add, stream, None))

    def _add(self, stream: Stream, job: Callable[[], Coroutine[Any, Any, None]] | None) -> None:
        self._jobs[stream] = job
        if not self._pumping:
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._pump, context=Context())

    def _pump(self) -> None:
        """Start to read pages, as many as may be in flight."""
        self._pumping = False
        while self._running < PAGES_AT_ONCE and self._jobs and not self._tasks.is_ending:
            stream = next(iter(self._jobs))
            job = self._jobs.pop(stream)
            if job is None:
                request = stream.next_request()
                if stream.wanted:
                    self._jobs[stream] = None
                if request is None:
                    continue
                job = partial(self._answer, stream, request)
            self._running += 1
            self._tasks.start(self._run(job), "redismpx stream", Context())

    async def _run(self, job: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await job()
        except MultiplexerIsClosed:
            pass
        finally:
            self._running -= 1
            if self._jobs and not self._tasks.is_ending:
                self._pump()

    async def _answer(self, stream: Stream, request: PageRequest) -> None:
        """Read a page, and deliver it to the cursors that wait for it."""
        try:
            page = await self.read(stream.name, request.position, PAGE_ENTRIES)
        except ConnectionLost as error:
            logger.debug("a page of a stream cannot be read now (%s)", error)
            await asyncio.sleep(random.uniform(0, FIRST_PAUSE))  # noqa: S311  # nosec B311, nothing secret
            stream.fail(request)
            return
        except ResponseError as error:
            self._refuse(stream, request, error)
            return
        if page.ids or request.position is None:
            self._pauses.pop(stream, None)
        else:
            self._pauses[stream] = min(max(2 * self._pauses.get(stream, 0.0), FIRST_PAUSE), LONGEST_PAUSE)
        steps, is_done = _deliver(stream, request, page), False
        while not is_done:
            async with self._turn:
                began = monotonic()
                is_done = all(monotonic() < began + TIME_SLICE for _ in steps)
                if monotonic() > began + TIME_SLICE / PAGES_AT_ONCE:  # short turns share an iteration of the loop
                    await asyncio.sleep(0)

    def _refuse(self, stream: Stream, request: PageRequest, error: ResponseError) -> None:
        """Read a rejected page again later; notify its cursors, unless the server is only busy."""
        if is_transient(error):
            logger.debug("a page of a stream cannot be read now (%s)", plain(str(error)))
            self._later(request, RETRY_BUSY, partial(stream.fail, request))
            return
        refusal = SubscriptionRefused("stream", stream.name, str(error))
        for cursor in request.cursors:
            if cursor.request is request and isinstance(cursor, StreamCursor):
                cursor.fail(refusal)
        self._later(request, RETRY_PAGE, partial(stream.fail, request))

    # --- the ends of streams without live messages

    def _look_at_tails(self) -> None:
        """Compare the last ids of all streams that had no live message since the last look."""
        quiet, self._quiet = self._quiet, {}
        for stream in [*self.streams.values()]:  # a finalizer may close any of them
            if quiet.get(stream) == stream.frames and stream not in self._jobs and not stream.readers:
                self._add(stream, partial(self._look, stream))
            self._quiet[stream] = stream.frames
        if self.streams:
            self._later("tails", self._tail_interval and self._tail_interval / 2, self._look_at_tails)

    async def _look(self, stream: Stream) -> None:
        frames = stream.frames
        try:
            page = await self.read(stream.name, None, 0)
        except (ConnectionLost, ResponseError) as error:
            logger.debug("the end of a stream cannot be read now (%s)", plain(str(error)))
        else:
            stream.look(frames, page)
        if stream.wanted:
            self._add(stream, None)

    # --- positions that are kept in Redis

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
                await asyncio.sleep(FIRST_PAUSE)
            except ResponseError as error:
                is_busy = is_transient(error)
                if not is_busy:
                    cursor.fail(SubscriptionRefused("stream", name, str(error)))
                await asyncio.sleep(RETRY_BUSY if is_busy else RETRY_PAGE)
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
        self._later("positions", SAVE_INTERVAL, self._save_all)

    def _save_all(self) -> None:
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


def _deliver(stream: Stream, request: PageRequest, page: Page) -> Iterator[None]:
    """Deliver a page to the cursors that wait for it, and yield now and then."""
    for cursor, items in stream.answer(request, page):
        assert isinstance(cursor, StreamCursor)
        yield from cursor.receive(items, request, page)
        yield
