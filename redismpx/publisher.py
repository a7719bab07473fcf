"""Publishing: each message finds its lane, and in a cluster another one when its slot has moved."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection
from contextvars import Context
from time import monotonic

from redis.asyncio.cluster import ClusterNode
from redis.crc import key_slot

from ._io.hub import Hub
from ._io.publishing.lane import Call, Lane, Moved
from ._io.redispy.route import Route, Straight
from ._io.redispy.topology import NodePool
from ._io.runtime.log import logger
from ._io.runtime.tasks import is_cancelled
from .errors import plain

LOOK_INTERVAL = 10.0  # seconds between two looks at the slot map because nobody heard a sharded message


class Publisher:
    """Publishes over one lane. In a cluster, sharded messages have one for each primary that owns a slot of theirs.

    All calls for one slot are in the same lane, and go to another together: so they stay in their order. Those for a
    slot whose owner is not known go to any node, which says who that is.
    """

    def __init__(self, hub: Hub, is_owned: bool, timeout: float) -> None:
        self._hub = hub
        self._topology = hub.topology
        self._is_owned = is_owned or self._topology is not None
        self._timeout = timeout
        self._lane = self._new_lane(hub.new_route())
        self._lanes: dict[str, Lane] = {}  # by the names of their nodes
        self._places: dict[int, Lane] = {}  # where the calls for a slot are, while there are any
        self._calls: Counter[int] = Counter()  # and how many those are

    def _new_lane(self, route: Route) -> Lane:
        traffic = None if self._topology is None else self
        return Lane(route, self._is_owned, self._timeout, self._hub.tasks, self._hub.counters, traffic)

    @property
    def pending(self) -> int:
        """Calls without an outcome."""
        return len(self._outcomes)

    @property
    def _outcomes(self) -> list[asyncio.Future[int]]:
        return [outcome for lane in (self._lane, *self._lanes.values()) for outcome in lane.outcomes]

    async def publish(self, channel: bytes, data: bytes, *, sharded: bool) -> int:
        """Publish after all that was called for before; return how many connections Redis says received it."""
        slot = key_slot(channel) if sharded else None
        call = Call(channel, data, slot, self._timeout)
        try:
            if slot is not None and self._topology is not None:
                return await self._publish_sharded(call, slot)
            self._lane.put(call)
            return await call.outcome
        except BaseException:  # the outcome, or cancelled: for the caller in both cases
            call.command = b""  # of a caller that was cancelled: it need not be kept until its turn
            del call  # or what is raised would lead to itself, by its traceback
            raise

    async def _publish_sharded(self, call: Call, slot: int) -> int:
        lane = self._places.get(slot)
        if lane is None:
            lane = self._places[slot] = self._owner(slot)
        self._calls[slot] += 1
        try:
            lane.put(call)
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
        if self._topology is None:
            return True
        slot = key_slot(channel)
        owner = self._topology.owner(slot)
        if self._has_not_looked_for(1.0):
            await self._look()
        return owner is not None and owner == self._topology.owner(slot)

    async def flushed(self) -> None:
        """Wait until each call made so far has its outcome."""
        if outcomes := self._outcomes:
            await asyncio.wait(outcomes)

    def close(self) -> None:
        """Fail what has no outcome yet."""
        for lane in (self._lane, *self._lanes.values()):
            lane.close()

    # --- in a cluster

    def _owner(self, slot: int) -> Lane:
        """Return the lane to the primary that owns a slot, as far as is known."""
        assert self._topology is not None
        node = self._topology.owner(slot)
        if node is None:
            return self._lane
        lane = self._lanes.get(node.name)
        if lane is None:
            self._forget(self._topology.nodes)
            lane = self._lanes[node.name] = self._new_lane(Straight(NodePool(node, is_master=False)))
        return lane

    def _forget(self, nodes: Collection[ClusterNode]) -> None:
        """End the lanes to nodes that the cluster has no more."""
        names = {node.name for node in nodes}
        for name, lane in tuple(self._lanes.items()):
            if name not in names and not lane.outcomes:
                del self._lanes[name]
                lane.stop()

    def _has_not_looked_for(self, seconds: float) -> bool:
        return self._topology is not None and monotonic() > self._topology.seen + seconds

    async def _look(self, suspect: str | None = None) -> bool:
        """Look at the slot map; tell whether it could be seen."""
        assert self._topology is not None
        try:
            await self._topology.refresh(suspect)
        except (Exception, asyncio.CancelledError) as error:
            if is_cancelled(error):
                raise
            logger.debug("the slot map cannot be seen now (%s)", plain(str(error)))
            return False
        return True

    def redirect(self, lane: Lane, moved: Collection[Moved]) -> None:
        """Lead calls elsewhere, and all others that wait in the lane and have their slots."""
        assert self._topology is not None
        for call, redirection in moved:
            call.redirections += 1
            self._topology.note(redirection, lane.host)
        slots = {redirection.slot for _, redirection in moved}
        self._lead([call for call, _ in moved] + lane.take(slots))

    async def divert(self, lane: Lane) -> None:
        """Lead elsewhere what waits in a lane that is blocked, if its slots have other owners by now."""
        if not lane.slots:
            return
        if await self._look(lane.where):
            self._lead(lane.take({slot for slot in lane.slots if self._owner(slot) is not lane}))

    def _lead(self, calls: Collection[Call]) -> None:
        """Put calls where their slots are now."""
        lanes: dict[Lane, list[Call]] = {}
        for call in calls:
            if call.slot is not None and not call.outcome.done():
                lane = self._places[call.slot] = self._owner(call.slot)
                lanes.setdefault(lane, []).append(call)
        for lane, theirs in lanes.items():
            lane.merge(theirs)
