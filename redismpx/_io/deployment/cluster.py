"""A cluster: channels and patterns at any node, a shard channel at the owner of its slot, key events at all."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator
from contextvars import Context
from copy import deepcopy
from itertools import chain

from ..._core.keyspace import NOTIFICATIONS
from ..._core.wire import Kind
from ...errors import ConnectionLost, quote
from ..publishing.cluster import ClusterPublisher
from ..redispy.client import AbstractBackoff
from ..redispy.endpoint import Endpoint
from ..redispy.slot_map import AnyNodeEndpoint, SlotMap
from ..runtime.log import logger
from ..runtime.slices import Step, freeing
from ..session.dispatcher import Evict
from ..session.session import Session
from ..session.subscriber import Subscriber
from .base import Deployment, DeploymentOptions
from .keyspace import Keyspace
from .primaries import ClusterKeyspace
from .shards import Shards


class Cluster(Deployment):
    """The nodes of a cluster."""

    stream_kind = Kind.SHARD_CHANNEL  # a stream and its channel have the same slot

    def __init__(self, slot_map: SlotMap, options: DeploymentOptions) -> None:
        session = options.session
        publisher = ClusterPublisher(slot_map, options.publish_timeout, session.tasks, session.counters, self.doubt)
        super().__init__(lambda: AnyNodeEndpoint(slot_map), publisher, options)
        self.shards: Shards = Shards(slot_map, self._new_session, session.critical, self._tasks, options.slices)
        self._primaries = ClusterKeyspace(slot_map, self._new_session, self._tasks)
        self.keyspace: Keyspace = self._primaries
        self._has_warned = False

    def _new_session(self, endpoint: Endpoint, evict: Evict | None = None) -> Session:
        options, reached = self._options.session, self.publisher.reached
        return Session(endpoint, self._new_backoff(), options, reached, self.doubt, evict=evict)

    def _new_backoff(self) -> AbstractBackoff:
        """Return a backoff for one session, because it may count its calls. One that cannot be copied is shared."""
        try:
            return deepcopy(self._options.backoff)
        except (Exception, asyncio.CancelledError):  # noqa: BLE001, users' code
            return self._options.backoff

    @property
    def sessions(self) -> Iterable[Session]:
        """The sessions of classic names, of shard channels and of key events."""
        return (self.main, *self.shards.sessions, *self._primaries.sessions)

    def start(self) -> None:
        """Start to dial, in the running loop."""
        super().start()
        self.shards.start()
        self._tasks.start(self.shards.run(), "redismpx slot map", Context())
        self._tasks.start(self._primaries.run(), "redismpx key events", Context())

    # --- subscriptions

    def add(self, kind: Kind, names: Collection[bytes], subscriber: Subscriber) -> None:
        """Subscribe to names for a subscriber."""
        if kind is Kind.SHARD_CHANNEL:
            self.shards.add(names, subscriber)
            return
        super().add(kind, names, subscriber)
        if not self._has_warned:
            self._warn_about_keys(names)

    def _warn_about_keys(self, names: Collection[bytes]) -> None:
        for name in names:
            if name.startswith(NOTIFICATIONS):
                self._has_warned = True
                logger.warning(
                    "%s is subscribed at one node of the cluster, and gets the events of the keys of this node only; "
                    "new_key_subscription() gets those of all nodes",
                    quote(name),
                )
                return

    def remove(self, kind: Kind, names: Collection[bytes], subscriber: Subscriber) -> int:
        """Unsubscribe a subscriber from names; return how many were active."""
        if kind is Kind.SHARD_CHANNEL:
            return self.shards.remove(names, subscriber)
        return super().remove(kind, names, subscriber)

    def name_count(self, kind: Kind) -> int:
        """Return how many names of a kind have subscribers."""
        if kind is Kind.SHARD_CHANNEL:
            return self.shards.name_count
        return super().name_count(kind) + self._primaries.name_count(kind)

    def count_new(self, kind: Kind, names: Collection[bytes]) -> int:
        """Return how many of `names` have no subscriber yet."""
        return self.shards.count_new(names) if kind is Kind.SHARD_CHANNEL else super().count_new(kind, names)

    def is_active(self, kind: Kind, name: bytes, subscriber: Subscriber) -> bool:
        """Tell whether a subscriber gets the messages of a name now."""
        if kind is Kind.SHARD_CHANNEL:
            return self.shards.is_active(name, subscriber)
        return super().is_active(kind, name, subscriber)

    def outage(self, kind: Kind) -> ConnectionLost | None:
        """Return why there is no connection for names of a kind now; None while there is one."""
        return self.shards.outage if kind is Kind.SHARD_CHANNEL else super().outage(kind)

    def progress(self, kind: Kind) -> str:
        """Return the reason why some names of a kind are not active yet, for an error."""
        return self.shards.progress if kind is Kind.SHARD_CHANNEL else super().progress(kind)

    @property
    def shard_count(self) -> int:
        """How many primaries there are connections to, for shard channels."""
        return len(self.shards)

    # --- the end

    async def unsubscribe_all(self) -> None:
        """Unsubscribe from every name, and wait until the servers have confirmed it."""
        await self.shards.unsubscribe_all()
        await self._primaries.unsubscribe_all()
        await super().unsubscribe_all()

    def close(self) -> Iterator[Step]:
        """End every connection, at once and for good; return the steps that are left."""
        names = self.shards.close()
        self._primaries.close()
        return chain(super().close(), freeing(names))
