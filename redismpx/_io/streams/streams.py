"""The streams of a multiplexer: what their cursors share, the pages that are read, the checks of their ends.

A bounded number of pages is read at a time, each bounded in entries and bytes, over the connection that publishes. So
very many streams neither flood the server after a loss nor stop the loop.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context
from functools import partial
from itertools import chain
from time import monotonic
from typing import Any

from ..._core.recovery import Page, PageRequest, Stream
from ..._core.scripts import APPEND, HISTORY, PAGE, evaluate, once_key
from ...errors import ConnectionLost, MultiplexerIsClosed, SubscriptionRefused, plain
from ...message import StreamMessage, messages_of
from ..publishing.publisher import Publisher
from ..redispy.client import key_slot
from ..redispy.errors import ResponseError, is_transient
from ..runtime.log import RecordLimit, logger
from ..runtime.slices import Slices
from ..runtime.tasks import TIME_SLICE, Tasks
from .advice import advise
from .cursor import StreamCursor
from .positions import Positions

PAGES_AT_ONCE = 32  # in flight
PAGE_ENTRIES = 1_000
PAGE_BYTES = 1 << 18  # payloads of one page; the last may exceed it
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 1.0  # seconds between pages of one stream that had nothing new
RETRY_PAGE = 5.0  # seconds until a page that the server rejected is read again
RETRY_BUSY = 0.5  # the same for a server that is busy, or a cluster that is down


class Streams:
    """The streams that subscriptions of one multiplexer follow."""

    def __init__(
        self,
        publisher: Publisher,
        tasks: Tasks,
        slices: Slices,
        record_limit: RecordLimit,
        tail_interval: float | None,
    ) -> None:
        self._publisher = publisher
        self._tasks = tasks
        self.positions: Positions = Positions(publisher, tasks, record_limit)
        """The positions that are kept in Redis."""
        self.slices: Slices = slices
        self._tail_interval = tail_interval
        self.streams: dict[bytes, Stream] = {}
        # None: read pages. An ordered dictionary gives very many in order, as no other dictionary can fast.
        self._jobs: OrderedDict[Stream, Callable[[], Coroutine[Any, Any, None]] | None] = OrderedDict()
        self._running = 0
        self._turn = asyncio.Lock()  # of the page that is delivered: together, pages would stop the loop for too long
        self._pumping = False
        self._pauses: dict[Stream, float] = {}  # of streams whose last page had nothing new
        self._quiet: dict[Stream, int] = {}  # live messages of each stream at the last look at its end
        self._timers: dict[object, asyncio.TimerHandle] = {}

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
        cursor.is_active = False
        cursor.remove()
        if not stream.cursors:
            self.streams.pop(stream.name, None)
            self._pauses.pop(stream, None)
            self._quiet.pop(stream, None)

    def hasten(self, stream: Stream) -> None:
        """Read the next page of a stream without a pause: a connection is new."""
        self._pauses.pop(stream, None)
        self._look_later()

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
        self.positions.end()

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
            stream, job = self._jobs.popitem(last=False)
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

    def _look_later(self) -> None:
        if self.streams:
            self._later("tails", self._tail_interval and self._tail_interval / 2, self._look_at_tails)

    def _look_at_tails(self) -> None:
        """Compare the last ids of all streams that had no live message since the last look: of very many in slices."""
        streams = [*self.streams.values()]  # a finalizer may close any of them
        looks = (partial(self._look_if_quiet, stream) for stream in streams)
        self.slices.begin(chain(looks, [self._look_later]))

    def _look_if_quiet(self, stream: Stream) -> None:
        if self._tasks.is_ending or self.streams.get(stream.name) is not stream:
            return
        if self._quiet.get(stream) == stream.frames and stream not in self._jobs and not stream.readers:
            self._add(stream, partial(self._look, stream))
        self._quiet[stream] = stream.frames

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


def _deliver(stream: Stream, request: PageRequest, page: Page) -> Iterator[None]:
    """Deliver a page to the cursors that wait for it, and yield now and then."""
    for cursor, items in stream.answer(request, page):
        assert isinstance(cursor, StreamCursor)
        yield from cursor.receive(items, request, page)
        yield
