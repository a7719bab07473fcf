"""What all subscriptions of a multiplexer share: one loop, the limits, the end. Leads each name to its link."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Collection
from contextvars import Context
from copy import deepcopy
from typing import Protocol

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import AbstractBackoff

from .._core.buffer import Budget
from .._core.wire import Kind
from ..arguments import Limits
from ..errors import ConnectionLost, LimitReached, TooManyChannels, TooManyPatterns
from ..stats import Counters
from .deployment.cluster import Shards
from .deployment.sentinel import MasterWatch
from .redispy.diagnosis import describe, trusts_anybody
from .redispy.endpoint import Endpoint, FixedEndpoint
from .redispy.slot_map import AnyNodeEndpoint, SlotMap
from .runtime.log import logger
from .runtime.tasks import Tasks
from .session.delivery_probe import DeliveryProbe
from .session.dispatcher import Evict, Subscriber
from .session.listener import Listener
from .session.session import Session


class Closable(Protocol):
    """What a hub knows of a subscription."""

    def close(self) -> None: ...
    async def _consumed(self) -> None: ...


class Hub:
    """Binds a multiplexer to its loop, and leads names to `main`, or, in a cluster, to the shard where they belong."""

    def __init__(
        self,
        client: Redis | RedisCluster,
        backoff: AbstractBackoff,
        ping_interval: float | None,
        ping_timeout: float,
        delivery_probe: float | None,
        limits: Limits,
        budget: Budget,
    ) -> None:
        self._client: Redis | RedisCluster = client  # kept alive: connections of a Sentinel client refer to it weakly
        self._backoff: AbstractBackoff = backoff
        self._pings: tuple[float | None, float] = (ping_interval, ping_timeout)
        self.limits: Limits = limits
        self.budget: Budget = budget
        self.tasks: Tasks = Tasks()
        self.counters: Counters = Counters()
        self.subscriptions: set[Closable] = set()  # all that are open
        self.draining: bool = False
        self.closed: bool = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._owner: tuple[int, int] = (0, 0)  # process and thread of the loop
        self.slot_map: SlotMap | None = SlotMap(client) if isinstance(client, RedisCluster) else None
        self.endpoint: Endpoint = self.new_endpoint()
        self.main: Session = self._new_session(self.endpoint, None)
        self.shards: Shards | None = None if self.slot_map is None else Shards(self.slot_map, self._new_session)
        self._listeners: list[Listener] = []
        pool: object = self.endpoint.pool
        if isinstance(pool, SentinelConnectionPool) and pool.is_master:
            self._listeners.append(MasterWatch(pool, self.main))
        if delivery_probe is not None:
            self._listeners.append(DeliveryProbe(self.new_endpoint(), delivery_probe, self.main.condemn))
        for listener in self._listeners:
            self.main.registry.add(Kind.CHANNEL, (listener.channel,), listener)

    def new_endpoint(self) -> Endpoint:
        """Return a way to the server, or to a node of the cluster."""
        if self.slot_map is not None:
            return AnyNodeEndpoint(self.slot_map)
        assert isinstance(self._client, Redis)
        return FixedEndpoint(self._client.connection_pool)

    def _new_session(self, endpoint: Endpoint, evict: Evict | None) -> Session:
        return Session(
            endpoint,
            self._backoff if evict is None else deepcopy(self._backoff),  # it may count
            *self._pings,
            self.tasks,
            self.counters,
            evict=evict,
            ended=self.close if evict is None else None,
        )

    # --- what subscriptions call

    def join(self, subscription: Closable) -> None:
        """Take in a subscription, to be closed at the end."""
        self.subscriptions.add(subscription)

    def leave(self, subscription: Closable) -> None:
        """Let go of a subscription that is closed."""
        self.subscriptions.discard(subscription)

    def wanted(self, kind: Kind) -> int:
        """Tell how many names of a kind somebody wants."""
        if kind is Kind.SHARD_CHANNEL and self.shards is not None:
            return self.shards.wanted
        return self.main.registry.wanted[kind]

    @property
    def channels(self) -> int:
        """How many channels somebody wants, shard channels among them."""
        return self.wanted(Kind.CHANNEL) + self.wanted(Kind.SHARD_CHANNEL)

    def admit(self, kind: Kind, names: Collection[bytes]) -> None:
        """Refuse more names than the limits allow, before any is wanted."""
        error: type[LimitReached]
        if kind is Kind.PATTERN:
            error, option, limit, wanted = TooManyPatterns, "max_patterns", self.limits.max_patterns, self.wanted(kind)
        else:
            error, option, limit, wanted = TooManyChannels, "max_channels", self.limits.max_channels, self.channels
        if limit is None or wanted + len(names) <= limit:
            return
        if kind is Kind.SHARD_CHANNEL and self.shards is not None:
            new = self.shards.count_new(names)
        else:
            new = self.main.registry.count_new(kind, names)
        if wanted + new > limit:
            raise error(option, limit)

    def add(self, kind: Kind, names: Collection[bytes], subscriber: Subscriber) -> None:
        """Want names for a subscriber."""
        if kind is Kind.SHARD_CHANNEL and self.shards is not None:
            self.shards.add(names, subscriber)
        else:
            self.main.add(kind, names, subscriber)

    def remove(self, kind: Kind, names: Collection[bytes], subscriber: Subscriber) -> int:
        """Stop wanting names for a subscriber; tell how many were active."""
        if kind is Kind.SHARD_CHANNEL and self.shards is not None:
            return self.shards.remove(names, subscriber)
        return self.main.remove(kind, names, subscriber)

    def outage(self, kind: Kind) -> ConnectionLost | None:
        """Tell why there is no connection for names of a kind now; None while there is one."""
        if kind is Kind.SHARD_CHANNEL and self.shards is not None:
            return self.shards.outage
        return self.main.outage

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Have the loop call something in its next turn."""
        self.main.call_soon(callback)

    # --- one loop

    def enter(self) -> None:
        """Begin a public call: bind to the first loop that runs, and start; refuse any other."""
        loop = self.check()
        if loop is None or self._loop is not None or self.closed:
            return
        self._loop = loop
        self._owner = (os.getpid(), threading.get_ident())
        if trusts_anybody(self.endpoint.pool):
            where = describe(self.endpoint.pool)
            logger.warning("TLS to Redis at %s is not verified: whoever answers is trusted", where)
        self.main.start()
        if self.shards is not None:
            self.shards.start()
            self.tasks.start(self.shards.run(), "redismpx slot map", Context())
        for listener in self._listeners:
            self.tasks.start(listener.run(), listener.title, Context())

    def check(self) -> asyncio.AbstractEventLoop | None:
        """Refuse any loop, thread and process but its own; return the loop that runs."""
        try:
            loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if loop is self._loop or self._loop is None or self.closed:
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

    # --- the end

    async def unsubscribed(self) -> None:
        """Give up every name, and wait until nothing comes any more."""
        self.draining = True
        if self.shards is not None:
            await self.shards.unsubscribed()
        await self.main.unsubscribed()

    async def consumed(self) -> None:
        """Wait until all that was received has been consumed."""
        for subscription in tuple(self.subscriptions):
            await subscription._consumed()

    def close(self) -> None:
        """End everything at once, and for good. Without effect when closed."""
        if self.closed:
            return
        self.closed = True
        for subscription in tuple(self.subscriptions):
            try:
                subscription.close()
            except RuntimeError:  # its loop is closed, and so nobody waits who could be woken
                logger.debug("closed after its loop", exc_info=True)
        self.main.close()
        if self.shards is not None:
            self.shards.close()
        if self._loop is not None and not self._loop.is_closed():
            self.tasks.cancel()
