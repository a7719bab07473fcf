"""What all subscriptions of a multiplexer share: one loop, the limits, the end. Knows no server and no connection."""

from __future__ import annotations

import asyncio
import enum
import os
import threading
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, Protocol
from weakref import WeakSet

from .._core.budget import Budget
from .._core.wire import Kind
from ..arguments import Limits
from ..errors import ConnectionLost, LimitReached, MultiplexerIsClosed, TooManyChannels, TooManyPatterns
from ..stats import Counters
from .delivery.consumer import DeliveryContext
from .delivery.watch import Watch
from .deployment import Deployment
from .runtime.log import RecordLimit, call_late, logger
from .runtime.slices import SLICE_STEPS, Slices
from .runtime.tasks import Tasks
from .session.subscriber import Subscriber
from .streams.streams import Streams


class Closable(Protocol):
    """What a hub knows of a subscription."""

    def close(self) -> None: ...
    def _close(self, reason: str | None) -> None: ...
    def _end(self, reason: str | None) -> None: ...
    async def _consumed(self) -> None: ...


class HubState(enum.Enum):
    """Where a multiplexer is in its life."""

    OPEN = "open"
    DRAINING = "draining"  # no new subscriptions; callbacks may still publish
    CLOSED = "closed"


HUB_TRANSITIONS: dict[HubState, frozenset[HubState]] = {
    HubState.OPEN: frozenset({HubState.DRAINING, HubState.CLOSED}),
    HubState.DRAINING: frozenset({HubState.CLOSED}),
    HubState.CLOSED: frozenset(),
}


class Hub:
    """Binds a multiplexer to its loop, keeps its limits, and closes its subscriptions."""

    def __init__(
        self,
        new_deployment: Callable[[Callable[[], None], Slices], Deployment],
        tasks: Tasks,
        counters: Counters,
        limits: Limits,
        budget: Budget,
        record_limit: RecordLimit,
        tail_interval: float | None,
        watch: Watch | None,
    ) -> None:
        self.tasks: Tasks = tasks
        self.counters: Counters = counters
        self.limits: Limits = limits
        self.budget: Budget = budget
        self.slices: Slices = Slices()
        """Does what takes long for very many names, promises or subscriptions."""
        self.joining: int = 0
        """How many channels the subscriptions are going to subscribe to, in steps."""
        self.state: HubState = HubState.OPEN
        self._kept: set[Closable] = set()  # the open subscriptions that live on although nobody refers to them
        self._read: WeakSet[Closable] = WeakSet()  # the other open subscriptions
        self.durable: WeakSet[Closable] = WeakSet()
        """The open subscriptions whose positions are kept in Redis."""
        self._abandoned: deque[Closable] = deque()  # the garbage collector has found these; the loop closes them
        self.deployment: Deployment = new_deployment(self.close, self.slices)
        self._streams: Streams = Streams(self.deployment.publisher, tasks, self.slices, record_limit, tail_interval)
        self.delivery: DeliveryContext = DeliveryContext(
            tasks, counters, budget, self.deployment.main.call_soon, record_limit, watch
        )
        # Chosen here, so that nothing is to be asked for each message.
        publisher = self.deployment.publisher
        self.publish: Callable[..., Coroutine[Any, Any, int]] = publisher.publish
        self.begin_publish: Callable[..., Callable[[], None]] = publisher.begin
        self.append: Callable[..., Coroutine[Any, Any, bytes]] = self._streams.append
        if watch is not None and watch.follows:
            self.publish, self.append = watch.sending(self.publish), watch.sending(self.append)
            self.begin_publish = watch.beginning(self.begin_publish)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._owner: tuple[int, int] = (0, 0)  # process and thread of the loop

    @property
    def draining(self) -> bool:
        """Whether new subscriptions are rejected, because the multiplexer drains."""
        return self.state is HubState.DRAINING

    @property
    def closed(self) -> bool:
        """Whether the multiplexer is closed."""
        return self.state is HubState.CLOSED

    def _move(self, state: HubState) -> bool:
        """Move to a state; return False if a finalizer has closed the multiplexer just now."""
        with self.budget.critical:
            before = self.state
            if before is HubState.CLOSED:
                return False
            if state not in HUB_TRANSITIONS[before]:
                raise AssertionError(f"{before} to {state}")
            self.state = state
        logger.debug("multiplexer %s -> %s", before.value, state.value)
        return True

    @contextmanager
    def unobserved(self) -> Iterator[None]:
        """Let no observer follow the subscriptions made in the block: another object tells of their messages."""
        delivery, self.delivery = self.delivery, replace(self.delivery, watch=None)
        try:
            yield
        finally:
            self.delivery = delivery

    # --- what subscriptions call

    @property
    def subscriptions(self) -> tuple[Closable, ...]:
        """All open subscriptions."""
        with self.budget.critical:  # a finalizer may close any of them
            return (*self._kept, *self._read)

    @property
    def subscription_count(self) -> int:
        """How many open subscriptions there are."""
        return len(self._kept) + len(self._read)

    def join(self, subscription: Closable, *, keep: bool) -> None:
        """Register a subscription, to be closed at the end; `keep` has it live on although nobody refers to it.

        Raises `MultiplexerIsClosed` after the end has begun.
        """
        if self.state is not HubState.OPEN:
            raise MultiplexerIsClosed
        if keep:
            self._kept.add(subscription)
        else:
            self._read.add(subscription)

    def leave(self, subscription: Closable) -> None:
        """Forget a closed subscription."""
        self._kept.discard(subscription)
        self._read.discard(subscription)
        self.durable.discard(subscription)

    def abandon(self, subscription: Closable) -> bool:
        """Have the loop close a subscription that was not kept; return whether a loop is there.

        The garbage collector calls this at any moment, in any thread, and after a fork: nothing else may be touched.
        """
        self._abandoned.append(subscription)
        if self._loop is None or self._loop.is_closed() or self._owner[0] != os.getpid():
            return False
        self._loop.call_soon_threadsafe(self._close_abandoned, context=Context())
        return True

    def _close_abandoned(self) -> None:
        while self._abandoned:
            self._abandoned.popleft().close()

    @property
    def channels(self) -> int:
        """How many channels have subscribers, shard channels among them."""
        return self.deployment.name_count(Kind.CHANNEL) + self.deployment.name_count(Kind.SHARD_CHANNEL)

    @property
    def patterns(self) -> int:
        """How many patterns have subscribers."""
        return self.deployment.name_count(Kind.PATTERN)

    def admit(self, kind: Kind, names: Collection[bytes]) -> None:
        """Raise if there would be more names than the limits allow. Nothing is changed."""
        error: type[LimitReached]
        if kind is Kind.PATTERN:
            error, option, limit, count = TooManyPatterns, "max_patterns", self.limits.max_patterns, self.patterns
        else:
            error, option, limit, count = TooManyChannels, "max_channels", self.limits.max_channels, self.channels
            count += self.joining
        if limit is None or count + len(names) <= limit:
            return
        if count + self.deployment.count_new(kind, names) > limit:
            if self.slices.are_pending:  # which may subscribe to the same names, and release others
                self.slices.finish()
                self.admit(kind, names)
                return
            raise error(option, limit)

    def postpone(self, call: Callable[[], object]) -> bool:
        """Have a call made after the change that a finalizer has interrupted; return False if there is none."""
        return self.budget.critical.postpone(partial(call_late, call))

    def add(self, kind: Kind, names: Collection[bytes], subscriber: Subscriber) -> None:
        """Subscribe to the names of a new subscriber, which a finalizer may have made."""
        if not self.postpone(partial(self.add, kind, names, subscriber)):
            self.deployment.add(kind, names, subscriber)

    def remove(self, kind: Kind, names: Collection[bytes], subscriber: Subscriber) -> int:
        """Unsubscribe a subscriber from names; return how many were active."""
        return self.deployment.remove(kind, names, subscriber)

    def release(self, kind: Kind, names: Collection[bytes], subscriber: Subscriber) -> None:
        """Unsubscribe a subscriber that ignores all events from now on: from very many names in time slices."""
        remove = self.deployment.remove
        if len(names) <= SLICE_STEPS:
            remove(kind, names, subscriber)
        else:
            self.slices.begin(partial(remove, kind, (name,), subscriber) for name in tuple(names))

    def is_active(self, kind: Kind, name: bytes, subscriber: Subscriber) -> bool:
        """Tell whether a subscriber gets the messages of a name now."""
        return self.deployment.is_active(kind, name, subscriber)

    def outage(self, kind: Kind) -> ConnectionLost | None:
        """Return why there is no connection for names of a kind now; None while there is one."""
        return self.deployment.outage(kind)

    def progress(self, kind: Kind) -> str:
        """Return the reason why some names of a kind are not active yet, for an error."""
        return self.deployment.progress(kind)

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Call `callback` in the next iteration of the loop."""
        self.deployment.main.call_soon(callback)

    # --- one loop

    @property
    def has_loop(self) -> bool:
        """Whether it is bound to a loop. Before that, subscriptions are kept, and wait for it."""
        return self._loop is not None

    def enter(self) -> None:
        """Begin a public call: bind to the first loop that runs, and start; reject any other loop.

        Without a loop, only the main thread may call: it is the one that runs a loop later.
        """
        loop = self.check()
        if self._loop is not None or self.closed:
            return
        if loop is None:
            if threading.current_thread() is not threading.main_thread():
                raise RuntimeError(
                    "no asyncio event loop runs in this thread, so nothing would ever arrive: use redismpx.blocking, "
                    "which is for threads, or make this call in the thread of the loop, in a coroutine or callback"
                )
            return  # at import time, for example: a loop runs later
        self._loop = loop
        self._owner = (os.getpid(), threading.get_ident())
        self._close_abandoned()
        self.deployment.start()

    def check(self) -> asyncio.AbstractEventLoop | None:
        """Reject any loop, thread and process but its own; return the running loop.

        After the end, when nothing of it runs any more, it belongs to none.
        """
        try:
            loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if loop is self._loop or self._loop is None:
            return loop
        if self.closed and (self._loop.is_closed() or not self.tasks.count):
            return loop
        pid, thread = self._owner
        if pid != os.getpid():
            raise RuntimeError("this multiplexer was started before the process forked; make a new one in the child")
        if loop is None and thread == threading.get_ident():
            return None  # between two runs of its own loop
        raise RuntimeError(
            "this multiplexer belongs to another event loop or thread; make one for each loop, or call it there with "
            "loop.call_soon_threadsafe() or asyncio.run_coroutine_threadsafe()"
        )

    # --- the end

    def drain(self) -> None:
        """Reject new subscriptions from now on."""
        if self.state is HubState.OPEN:
            self._move(HubState.DRAINING)

    async def consumed(self) -> None:
        """Wait until every received message is consumed."""
        for number, subscription in enumerate(self.subscriptions, 1):
            await subscription._consumed()
            if number % SLICE_STEPS == 0:
                await asyncio.sleep(0)

    async def save_positions(self) -> None:
        """Close the subscriptions whose positions are kept in Redis, and wait until these are saved: for a second."""
        if self.durable:
            self.drain()
        with self.budget.critical:  # as above
            durable = tuple(self.durable)
        for number, subscription in enumerate(durable, 1):
            subscription._close("multiplexer closed")
            if number % SLICE_STEPS == 0:
                await asyncio.sleep(0)
        await self._streams.positions.saved()

    def close(self) -> None:
        """Close every subscription and connection, at once and for good. Without effect when closed.

        No callback is called any more. With very many subscriptions, most of them end in the next iterations of the
        loop: until then their messages count as pending, and their awaited callbacks and promises go on.
        """
        if self.closed or self.postpone(self.close) or not self._move(HubState.CLOSED):
            return
        self.tasks.is_ending = True
        self._streams.end()
        self.budget.recall()  # a consumer takes messages from its batch without a look at anything else
        rest = self.deployment.close()
        subscriptions = chain(self._kept, self._read)
        self._kept, self._read = set(), WeakSet()
        self.slices.begin(partial(subscription._end, "multiplexer closed") for subscription in subscriptions)
        self.slices.begin(rest)
        if self._loop is not None and not self._loop.is_closed():
            self.cancel()

    def cancel(self) -> None:
        """Cancel all tasks that the running code does not belong to."""
        self.slices.begin(self.tasks.cancel())

    async def ended(self) -> None:
        """Wait until the end has come to every subscription and task."""
        if self._loop is not None and self._loop.is_closed():
            self.slices.finish()
        else:
            await self.slices.done()
            await self.tasks.ended()
