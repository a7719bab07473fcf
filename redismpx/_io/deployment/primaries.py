"""The primaries of a cluster, for key events: a session with each, as long as the slot map names it.

Nothing tells a client of a new primary, nor of a planned failover that leaves its connection open. So the slot map is
read now and then, as long as there are subscribers. Never moves a name away from a connected primary before the slot
map has lacked that primary twice.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection
from time import monotonic
from typing import TypeAlias

from ..._core.wire import Kind
from ...errors import ConnectionLost
from ..redispy.client import key_slot
from ..redispy.endpoint import Endpoint
from ..redispy.slot_map import ClusterNode, NodeEndpoint, SlotMap
from ..runtime.tasks import TIME_SLICE, Tasks
from ..session.session import Session
from ..session.state import SessionState
from ..session.subscriber import Subscriber
from .follower import SlotMapFollower
from .keyspace import Feed, Keyspace, KeySubscriber, Primary

READ_INTERVAL = 5.0  # seconds between two looks at the slot map, while all is well

NewPrimarySession: TypeAlias = Callable[[Endpoint], Session]


class ClusterKeyspace(Keyspace, SlotMapFollower):
    """The subscribers to key events of a cluster."""

    def __init__(self, slot_map: SlotMap, new_session: NewPrimarySession, tasks: Tasks) -> None:
        Keyspace.__init__(self)
        SlotMapFollower.__init__(self, slot_map)
        self._new_session = new_session
        self._tasks = tasks
        self._primaries: dict[str, Primary] = {}
        self._names: dict[Kind, Counter[bytes]] = {Kind.CHANNEL: Counter(), Kind.PATTERN: Counter()}

    @property
    def sessions(self) -> Collection[Session]:
        """The sessions with the primaries."""
        return [primary.session for primary in [*self._primaries.values()]]

    def name_count(self, kind: Kind) -> int:
        """Return how many names of a kind have subscribers."""
        return len(self._names[kind])

    @property
    def outage(self) -> ConnectionLost | None:
        """Why there is no connection to a primary now; None while there is one to each."""
        return super().outage or self._error

    # --- subscriptions

    def _place_new(self, subscriber: KeySubscriber) -> None:
        self._names[subscriber.name.kind][subscriber.name.name] += 1
        if len(self._subscribers) == 1 or not _is_in_loop():
            self._look_again()  # the slot map may be old; and a session is started in the loop
        else:
            self._place(subscriber)

    def remove(self, subscriber: Subscriber) -> int:
        """Unsubscribe a subscriber; return how many of its names were active, 0 or 1."""
        known = self._subscribers.get(subscriber)
        if known is not None:
            counts, name = self._names[known.name.kind], known.name.name
            counts[name] -= 1
            if not counts[name]:
                del counts[name]
        return super().remove(subscriber)

    def _place(self, subscriber: KeySubscriber) -> None:
        """Have a name at the primaries that the slot map names: at one only, if it stands for one key."""
        key = subscriber.name.key
        nodes = self._slot_map.primaries if key is None else [self._slot_map.owner(key_slot(key))]
        targets = {node.name: node for node in nodes if node is not None}
        strays = [feed for feed in [*subscriber.feeds.values()] if feed.primary.node not in targets]
        doubted = [feed for feed in strays if feed.is_active and not feed.is_doubted]
        if not targets or doubted:
            for feed in doubted:
                feed.is_doubted = True
            self._look_again()
            return
        for feed in strays:
            subscriber.leave(feed)
        new = [node for node in targets if node not in subscriber.feeds]
        for name in new:
            subscriber.enter(self._primary_of(targets[name]))
        for feed in [*subscriber.feeds.values()]:
            feed.is_doubted = False
        self._tell(subscriber, strays, new)

    def _tell(self, subscriber: KeySubscriber, strays: list[Feed], new: list[str]) -> None:
        """Tell a subscriber of the gaps that a new slot map has shown. Its callback may remove any subscriber."""
        gaps = [(feed.primary.node, "it does not own the slots any more") for feed in strays if feed.is_active]
        if subscriber.is_active and not gaps:
            gaps = [(node, "it owns slots since the last look at the slot map") for node in new]
        for node, reason in gaps:
            if self._subscribers.get(subscriber.subscriber) is subscriber:
                subscriber.lose(ConnectionLost(f"primary {node}: {reason}", node=node))
        if self._subscribers.get(subscriber.subscriber) is subscriber:
            subscriber.settle()

    def _primary_of(self, node: ClusterNode) -> Primary:
        primary = self._primaries.get(node.name)
        if primary is None:
            endpoint = NodeEndpoint(node, is_master=True, on_failure=self._look_again)
            primary = Primary(node.name, endpoint, self._new_session(endpoint), self._tasks)
            self._primaries[node.name] = primary
            primary.session.start()
        return primary

    # --- the slot map

    @property
    def _suspect(self) -> str | None:
        primaries = [*self._primaries.values()]
        return next((primary.node for primary in primaries if not _is_connected(primary)), None)

    @property
    def _interval(self) -> float | None:
        return READ_INTERVAL if self._subscribers or self._primaries else None

    async def _place_all(self) -> None:
        slice_end = monotonic() + TIME_SLICE
        for subscriber in [*self._subscribers.values()]:
            if self._subscribers.get(subscriber.subscriber) is subscriber:
                self._place(subscriber)
            if monotonic() > slice_end:
                await asyncio.sleep(0)
                slice_end = monotonic() + TIME_SLICE
        for node in [*self._primaries]:  # a finalizer may add one
            primary = self._primaries[node]
            if primary.session.registry.is_empty:
                del self._primaries[node]
                primary.session.retire()
            elif not _is_connected(primary):
                self._is_settled = False

    # --- the end

    async def unsubscribe_all(self) -> None:
        """Unsubscribe from every name, and wait until the servers have confirmed it."""
        self._drain()
        for session in self.sessions:
            await session.unsubscribe_all()

    def close(self) -> None:
        """End every session, at once and for good."""
        for session in self.sessions:
            session.close()
        self._primaries.clear()
        self._subscribers.clear()
        for counts in self._names.values():
            counts.clear()


def _is_connected(primary: Primary) -> bool:
    return primary.session.state is SessionState.CONNECTED


def _is_in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
