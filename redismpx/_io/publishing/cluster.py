"""Publishing in a cluster: a sharded message goes to the primary that owns its slot, and follows the slot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator
from contextvars import Context
from functools import partial
from itertools import chain
from time import monotonic
from typing import Any

from ...errors import plain
from ...stats import Counters
from ..redispy.client import key_slot
from ..redispy.connection import Address
from ..redispy.endpoint import Endpoint
from ..redispy.slot_map import AnyNodeEndpoint, NodeEndpoint, SlotMap
from ..runtime.log import logger
from ..runtime.slices import Step
from ..runtime.tasks import Tasks, is_cancelled
from .call import Moved, PublishCall
from .pipeline import Pipeline
from .publisher import Publisher
from .slot_queue import SlotQueue

REFRESH_INTERVAL = 10.0  # seconds between two looks at the slot map because a sharded message reached nobody


class ClusterPublisher(Publisher):
    """Publishes over one pipeline for each primary that owns a slot of a sharded message, and over one for the rest.

    The calls for one slot have a queue, which keeps their order. Calls for a slot whose owner is not known wait for a
    connection to any node, with which the slot map is read; if the owner is still unknown then, that node redirects
    them.
    """

    def __init__(
        self, slot_map: SlotMap, timeout: float, tasks: Tasks, counters: Counters, on_lost: Callable[[Address], None]
    ) -> None:
        super().__init__(AnyNodeEndpoint(slot_map), timeout, tasks, counters, on_lost)
        self._slot_map = slot_map
        self._pipelines: dict[str, Pipeline] = {}  # by the names of their nodes
        self._slot_queues: dict[int, SlotQueue] = {}  # by their slots
        self._has_strays = False  # whether calls for a slot wait in the pipeline to any node
        self._closed = False

    def _new_pipeline(self, endpoint: Endpoint) -> Pipeline:
        return Pipeline(endpoint, self._timeout, self._tasks, self._counters, self._on_lost, self)

    def _all_pipelines(self) -> Iterable[Pipeline]:
        return (self._pipeline, *self._pipelines.values())

    publish_command = b"SPUBLISH"

    def _stream_slot(self, name: bytes) -> int | None:
        return key_slot(name)

    def _put(self, call: PublishCall) -> None:
        slot = call.slot
        if slot is None:
            super()._put(call)
            return
        queue = self._slot_queues.get(slot)
        if queue is None:
            queue = self._slot_queues[slot] = SlotQueue(partial(self._owner, slot))
        queue.calls += 1
        call.outcome.add_done_callback(partial(self._settled, slot, call))
        queue.put(call)

    def _settled(self, slot: int, call: PublishCall, outcome: asyncio.Future[Any]) -> None:
        """Take note of the outcome of a call that has a slot."""
        queue = self._slot_queues[slot]
        was_accepted = not outcome.cancelled() and outcome.exception() is None
        if was_accepted:
            queue.accepted(call)
        queue.calls -= 1
        if queue.calls:
            queue.ended(call)
        else:
            del self._slot_queues[slot]
        if was_accepted and outcome.result() == 0 and not self._closed and self._map_is_older_than(REFRESH_INTERVAL):
            self._tasks.start(self._refresh(), "redismpx slot map", Context())

    @property
    def _outcomes(self) -> list[asyncio.Future[Any]]:
        return [*super()._outcomes, *(call.outcome for queue in [*self._slot_queues.values()] for call in queue.held)]

    def close(self) -> Iterator[Step]:
        """Take out all calls; return, for each, a step that fails it if it has no outcome yet."""
        self._closed = True
        return chain(super().close(), *[queue.close() for queue in [*self._slot_queues.values()]])

    # --- the owners of slots

    def _owner(self, slot: int) -> Pipeline:
        """Return the pipeline to the primary that owns a slot; to any node if the owner is not known."""
        node = self._slot_map.owner(slot)
        if node is None:
            self._has_strays = True
            return self._pipeline
        pipeline = self._pipelines.get(node.name)
        if pipeline is None:
            self._stop_unknown()
            endpoint = NodeEndpoint(node, is_master=False)
            pipeline = self._pipelines[node.name] = self._new_pipeline(endpoint)
        return pipeline

    def _stop_unknown(self) -> None:
        """Stop the pipelines to nodes that have left the cluster."""
        names = {node.name for node in self._slot_map.nodes}
        for name, pipeline in tuple(self._pipelines.items()):
            if name not in names and not pipeline.outcomes:
                del self._pipelines[name]
                pipeline.stop()

    def _map_is_older_than(self, seconds: float) -> bool:
        return monotonic() > self._slot_map.seen + seconds

    async def _refresh(self, suspect: str | None = None) -> bool:
        """Read the slot map again; return whether a node answered."""
        try:
            await self._slot_map.refresh(suspect)
        except (Exception, asyncio.CancelledError) as error:
            if is_cancelled(error):
                raise
            logger.debug("the slot map cannot be read now (%s)", plain(str(error)))
            return False
        return True

    # --- moving calls, for the pipelines

    def redirect(self, pipeline: Pipeline, moved: Collection[Moved]) -> None:
        """Move rejected calls, and all other calls in the pipeline that have their slots."""
        for call, redirection in moved:
            call.redirections += 1
            if redirection is not None:
                self._slot_map.note(redirection, pipeline.endpoint.host)
        slots = {call.slot for call, _ in moved if call.slot is not None}
        self._divert([call for call, _ in moved] + pipeline.take(slots))

    def place(self, pipeline: Pipeline) -> None:
        """Move the calls of a pipeline whose owners have become known, because the slot map was read meanwhile."""
        if self._has_strays and pipeline is self._pipeline:
            self._has_strays = False
            self._take_foreign(pipeline)

    async def divert(self, pipeline: Pipeline) -> None:
        """Move the calls of a pipeline that cannot connect, if their slots have other owners by now."""
        if not pipeline.slots:
            return
        if await self._refresh(str(pipeline.endpoint)):
            self._take_foreign(pipeline)

    def _take_foreign(self, pipeline: Pipeline) -> None:
        """Move the calls whose slots another pipeline serves."""
        self._divert(pipeline.take({slot for slot in pipeline.slots if self._owner(slot) is not pipeline}))

    def _divert(self, calls: Collection[PublishCall]) -> None:
        """Put calls back into the queues of their slots."""
        by_slot: dict[int, list[PublishCall]] = {}
        for call in calls:
            if call.slot is not None and not call.outcome.done():
                by_slot.setdefault(call.slot, []).append(call)
        for slot, diverted in by_slot.items():
            if slot in self._slot_queues:
                self._slot_queues[slot].divert(diverted)
