"""Publishing: each message finds its pipeline, and in a cluster another one when its slot has moved."""

from __future__ import annotations

__all__ = ["LOOK_INTERVAL", "Publisher"]

import asyncio
from collections import Counter
from collections.abc import Collection
from contextvars import Context
from time import monotonic

from redis.asyncio.cluster import ClusterNode
from redis.crc import key_slot

from ._io.hub import Hub
from ._io.publishing.pipeline import Moved, Pipeline, PublishCall
from ._io.redispy.endpoint import Endpoint, FixedEndpoint
from ._io.redispy.slot_map import NodePool
from ._io.runtime.log import logger
from ._io.runtime.tasks import is_cancelled
from .errors import plain

LOOK_INTERVAL = 10.0  # seconds between two looks at the slot map because nobody heard a sharded message


class Publisher:
    """Publishes over one pipeline. In a cluster, each primary that owns a slot has its own, for sharded messages.

    All calls for one slot are in the same pipeline, and go to another together: so they stay in their order. Calls for
    a slot whose owner is not known go to any node, which says who that is.
    """

    def __init__(self, hub: Hub, is_owned: bool, timeout: float) -> None:
        self._hub = hub
        self._slot_map = hub.slot_map
        self._is_owned = is_owned or self._slot_map is not None
        self._timeout = timeout
        self._pipeline = self._new_pipeline(hub.new_endpoint())
        self._pipelines: dict[str, Pipeline] = {}  # by the names of their nodes
        self._places: dict[int, Pipeline] = {}  # where the calls for a slot are, while there are any
        self._calls: Counter[int] = Counter()  # and how many those are

    def _new_pipeline(self, endpoint: Endpoint) -> Pipeline:
        traffic = None if self._slot_map is None else self
        return Pipeline(endpoint, self._is_owned, self._timeout, self._hub.tasks, self._hub.counters, traffic)

    @property
    def pending(self) -> int:
        """Calls without an outcome."""
        return len(self._outcomes)

    @property
    def _outcomes(self) -> list[asyncio.Future[int]]:
        return [outcome for pipeline in (self._pipeline, *self._pipelines.values()) for outcome in pipeline.outcomes]

    async def publish(self, channel: bytes, data: bytes, *, sharded: bool) -> int:
        """Publish after all that was called for before; return how many connections Redis says received it."""
        slot = key_slot(channel) if sharded else None
        call = PublishCall(channel, data, slot, self._timeout)
        try:
            if slot is not None and self._slot_map is not None:
                return await self._publish_sharded(call, slot)
            self._pipeline.put(call)
            return await call.outcome
        except BaseException:  # the outcome, or cancelled: for the caller in both cases
            call.command = b""  # of a caller that was cancelled: it need not be kept until its turn
            del call  # or what is raised would lead to itself, by its traceback
            raise

    async def _publish_sharded(self, call: PublishCall, slot: int) -> int:
        pipeline = self._places.get(slot)
        if pipeline is None:
            pipeline = self._places[slot] = self._owner(slot)
        self._calls[slot] += 1
        try:
            pipeline.put(call)
            count = await call.outcome
        finally:
            del call  # as above
            self._calls[slot] -= 1
            if not self._calls[slot]:
                del self._calls[slot], self._places[slot]
        if count == 0 and not self._hub.closed and self._has_not_looked_for(LOOK_INTERVAL):
            self._hub.tasks.start(self._look(), "redismpx slot map", Context())
        return count

    async def counts(self, channel: bytes) -> bool:
        """Tell whether nobody means nobody, of a shard channel: a primary that was demoted counts its own clients only.

        It takes messages all the same, as a replica, for all that listen to its shard.
        """
        if self._slot_map is None:
            return True
        slot = key_slot(channel)
        owner = self._slot_map.owner(slot)
        if self._has_not_looked_for(1.0):
            await self._look()
        return owner is not None and owner == self._slot_map.owner(slot)

    async def flushed(self) -> None:
        """Wait until each call made so far has its outcome."""
        if outcomes := self._outcomes:
            await asyncio.wait(outcomes)

    def close(self) -> None:
        """Fail what has no outcome yet."""
        for pipeline in (self._pipeline, *self._pipelines.values()):
            pipeline.close()

    # --- in a cluster

    def _owner(self, slot: int) -> Pipeline:
        """Return the pipeline to the primary that owns a slot, as far as is known."""
        assert self._slot_map is not None
        node = self._slot_map.owner(slot)
        if node is None:
            return self._pipeline
        pipeline = self._pipelines.get(node.name)
        if pipeline is None:
            self._forget(self._slot_map.nodes)
            pipeline = self._pipelines[node.name] = self._new_pipeline(FixedEndpoint(NodePool(node, is_master=False)))
        return pipeline

    def _forget(self, nodes: Collection[ClusterNode]) -> None:
        """End the pipelines to nodes that the cluster has no more."""
        names = {node.name for node in nodes}
        for name, pipeline in tuple(self._pipelines.items()):
            if name not in names and not pipeline.outcomes:
                del self._pipelines[name]
                pipeline.stop()

    def _has_not_looked_for(self, seconds: float) -> bool:
        return self._slot_map is not None and monotonic() > self._slot_map.seen + seconds

    async def _look(self, suspect: str | None = None) -> bool:
        """Look at the slot map; tell whether it could be seen."""
        assert self._slot_map is not None
        try:
            await self._slot_map.refresh(suspect)
        except (Exception, asyncio.CancelledError) as error:
            if is_cancelled(error):
                raise
            logger.debug("the slot map cannot be seen now (%s)", plain(str(error)))
            return False
        return True

    def redirect(self, pipeline: Pipeline, moved: Collection[Moved]) -> None:
        """Lead calls elsewhere, and all others that wait in the pipeline and have their slots."""
        assert self._slot_map is not None
        for call, redirection in moved:
            call.redirections += 1
            self._slot_map.note(redirection, pipeline.host)
        slots = {redirection.slot for _, redirection in moved}
        self._lead([call for call, _ in moved] + pipeline.take(slots))

    async def divert(self, pipeline: Pipeline) -> None:
        """Lead elsewhere what waits in a pipeline that is blocked, if its slots have other owners by now."""
        if not pipeline.slots:
            return
        if await self._look(pipeline.where):
            self._lead(pipeline.take({slot for slot in pipeline.slots if self._owner(slot) is not pipeline}))

    def _lead(self, calls: Collection[PublishCall]) -> None:
        """Put calls where their slots are now."""
        pipelines: dict[Pipeline, list[PublishCall]] = {}
        for call in calls:
            if call.slot is not None and not call.outcome.done():
                pipeline = self._places[call.slot] = self._owner(call.slot)
                pipelines.setdefault(pipeline, []).append(call)
        for pipeline, theirs in pipelines.items():
            pipeline.merge(theirs)
