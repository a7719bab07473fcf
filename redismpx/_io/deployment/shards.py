"""The sessions with the primaries of a cluster: a shard channel is subscribed at the primary that owns its slot.

When a slot moves, its channels are removed from one session and added to another. A node shows that a slot has left it:
it unsubscribes the channels, or rejects commands for them. The slot map shows the new owner. When a node is lost,
another one may have replaced it, so its channels follow the slot map too. Never moves a channel that is subscribed at
the owner of its slot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator
from contextvars import Context
from functools import partial
from time import monotonic
from typing import TypeAlias

from ..._core.critical import CriticalSection
from ..._core.entry import Entry, SubscriberState
from ..._core.moving import move
from ..._core.registry import Registry
from ..._core.wire import Kind, Redirection
from ...errors import ConnectionLost
from ..redispy.client import key_slot
from ..redispy.endpoint import Endpoint
from ..redispy.slot_map import ClusterNode, NodeEndpoint, SlotMap
from ..runtime.slices import Slices, freeing
from ..runtime.tasks import TIME_SLICE, Tasks
from ..session.dispatcher import Evict
from ..session.session import UNCONFIRMED, Session
from ..session.state import SessionState
from ..session.subscriber import Subscriber
from .follower import SlotMapFollower

NOTIFIED_AT_ONCE = 256  # subscribers of a channel that has moved
SHARD_LINGER = 1.0  # seconds that a session is kept after the last of its channels was removed

NewSession: TypeAlias = Callable[[Endpoint, Evict], Session]


class Shard:
    """A primary, and the channels that are subscribed there. Without a primary: the channels without a known owner."""

    def __init__(self, node: str, registry: Registry[Subscriber], session: Session | None) -> None:
        self.node = node
        """The name of the primary; empty if there is none."""
        self.registry = registry
        self.session = session
        self.slots: dict[int, set[bytes]] = {}
        """The channels, by their slots."""
        self.closing: asyncio.TimerHandle | None = None

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection to the primary."""
        return self.session is not None and self.session.state is SessionState.CONNECTED


class Shards(SlotMapFollower):
    """Keeps each shard channel at the primary that owns its slot."""

    def __init__(
        self,
        slot_map: SlotMap,
        new_session: NewSession,
        critical: CriticalSection,
        tasks: Tasks,
        slices: Slices,
    ) -> None:
        super().__init__(slot_map)
        self._new_session = new_session
        self._critical = critical
        self._tasks = tasks
        self._slices = slices
        self._places: dict[bytes, Shard] = {}  # the shard of each channel
        self._shards: dict[str, Shard] = {}
        self._ownerless = Shard("", Registry(), None)
        self._redirected: set[int] = set()  # slots that followed a redirection since the slot map was read
        # Channels that were moved, and who is to be notified of that.
        self._untold: dict[bytes, dict[Subscriber, SubscriberState]] = {}
        self._doubts: dict[int, str] = {}  # slots whose owner is in doubt, with the owner in the slot map
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        """How many primaries there are sessions with."""
        return len(self._shards)

    @property
    def sessions(self) -> list[Session]:
        """The sessions with the primaries."""
        return [shard.session for shard in [*self._shards.values()] if shard.session is not None]

    @property
    def name_count(self) -> int:
        """How many channels have subscribers."""
        return len(self._places)

    @property
    def outage(self) -> ConnectionLost | None:
        """Why some channels have no connection now; None if all have one."""
        failing = [s.session.outage for s in [*self._shards.values()] if s.slots and s.session is not None]
        unowned = ConnectionLost("no node is known to own its slot") if self._ownerless.slots else None
        return next(filter(None, failing), self._error or unowned)

    @property
    def progress(self) -> str:
        """What is known about why some channels are not active yet."""
        if self.outage is not None:
            return self.outage.reason
        waiting = [s.session.progress for s in [*self._shards.values()] if s.session is not None and not s.is_connected]
        return waiting[0] if waiting else UNCONFIRMED

    def count_new(self, names: Collection[bytes]) -> int:
        """Return how many of `names` have no subscriber yet."""
        return sum([name not in self._places for name in names])

    def is_active(self, name: bytes, subscriber: Subscriber) -> bool:
        """Tell whether a channel is active for a subscriber, as far as the subscriber was notified."""
        shard = self._places.get(name)
        state = None if shard is None else shard.registry.subscriber_state(Kind.SHARD_CHANNEL, name, subscriber)
        return state is SubscriberState.ACTIVE or subscriber in self._untold.get(name, ())

    # --- subscriptions

    def add(self, names: Collection[bytes], subscriber: Subscriber) -> None:
        """Subscribe to channels for a subscriber."""
        changed = set()
        with self._critical:
            for name in names:
                shard = self._places.get(name)
                if shard is None:
                    shard = self._owner(key_slot(name))
                    self._enter(name, shard)
                shard.registry.add(Kind.SHARD_CHANNEL, (name,), subscriber)
                changed.add(shard)
            self._nudge(changed)

    def remove(self, names: Collection[bytes], subscriber: Subscriber) -> int:
        """Unsubscribe a subscriber from channels; return how many were active."""
        changed = set()
        were_active = 0
        with self._critical:
            for name in names:
                shard = self._places.get(name)
                if shard is not None:
                    were_active += shard.registry.remove(Kind.SHARD_CHANNEL, name, subscriber)
                    if self._untold and subscriber in self._untold.get(name, ()):
                        del self._untold[name][subscriber]
                        were_active += 1
                    if shard.registry.count_new(Kind.SHARD_CHANNEL, (name,)):
                        self._leave(name, shard)
                    changed.add(shard)
            self._nudge(changed)
        return were_active

    def _nudge(self, shards: Collection[Shard]) -> None:
        for shard in shards:
            if shard.session is not None:
                shard.session.nudge()
            elif shard.slots:
                self._look_again()

    # --- where the channels are

    def _enter(self, name: bytes, shard: Shard) -> None:
        self._places[name] = shard
        shard.slots.setdefault(key_slot(name), set()).add(name)
        if shard.closing is not None:
            shard.closing.cancel()
            shard.closing = None

    def _leave(self, name: bytes, shard: Shard) -> None:
        del self._places[name]
        slot = key_slot(name)
        shard.slots[slot].discard(name)
        if not shard.slots[slot]:
            del shard.slots[slot]
        if not (shard.slots or shard is self._ownerless) and self._loop is not None and not self._loop.is_closed():
            shard.closing = self._loop.call_later(SHARD_LINGER, self._close_shard, shard, context=Context())

    def _owner(self, slot: int) -> Shard:
        """Return the shard of the primary that owns a slot, by the slot map; make it if there is none yet."""
        node = self._slot_map.owner(slot)
        if node is None or self._loop is None or self._is_draining:
            return self._ownerless
        shard = self._shards.get(node.name)
        if shard is None:
            endpoint = NodeEndpoint(node, is_master=True, on_failure=self._look_again)
            session = self._new_session(endpoint, partial(self._evict, node))
            shard = self._shards[node.name] = Shard(node.name, session.registry, session)
            session.start()
        return shard

    def _close_shard(self, shard: Shard) -> None:
        if shard.closing is not None:
            shard.closing.cancel()
        if self._shards.get(shard.node) is shard and shard.session is not None:
            del self._shards[shard.node]
            self._slices.begin(freeing(shard.session.retire()))

    def _move(self, name: bytes, source: Shard, target: Shard) -> None:
        """Remove a channel from one shard, add it to another, and notify its subscribers.

        If these are many, they are notified in time slices, and the channel is without an owner until that is done.
        """
        entry = source.registry.shard_channels.get(name)
        are_many = source is not self._ownerless and entry is not None and len(entry.subscribers) > NOTIFIED_AT_ONCE
        if are_many:
            target = self._ownerless
        with self._critical:
            active = move(name, source.registry, target.registry)
            self._leave(name, source)
            self._enter(name, target)
            if active:
                self._untold[name] = active | self._untold[name] if self._untold.get(name) else active
            self._nudge((source, target))
        if are_many:
            self._tasks.start(self._tell_many(name, source.node), "redismpx moved channel", Context())
        elif active:
            for _ in self._tell(name):
                pass

    def _tell(self, name: bytes) -> Iterator[None]:
        """Notify the subscribers of a channel that was moved, one in each step."""
        error = ConnectionLost("its slot has another owner", frozenset({name}))
        while untold := self._untold.get(name):
            for subscriber in [*untold]:
                if untold.pop(subscriber, None) is not None:  # a callback may remove the channel from any subscription
                    subscriber.disconnect(error)
                    yield
        self._untold.pop(name, None)

    async def _tell_many(self, name: bytes, node: str) -> None:
        """Notify very many subscribers of a channel that was moved away from a node; then move it to its owner."""
        slice_end = monotonic() + TIME_SLICE
        for _ in self._tell(name):
            if monotonic() > slice_end:
                await asyncio.sleep(0)
                slice_end = monotonic() + TIME_SLICE
        owner = self._slot_map.owner(key_slot(name))
        if self._places.get(name) is not self._ownerless or self._is_draining:
            return
        if owner is None or owner.name == node:
            self._look_again()
        else:
            self._move(name, self._ownerless, self._owner(key_slot(name)))

    def _evict(self, node: ClusterNode, names: tuple[bytes, ...], redirection: Redirection | None) -> None:
        """Remove channels from a node that no longer owns their slot.

        They follow the redirection of the node at once, if there is one; but only once until the slot map is read
        again. While the nodes do not agree yet, they may redirect to each other.
        """
        if redirection is not None and redirection.slot not in self._redirected:
            self._redirected.add(redirection.slot)
            self._slot_map.note(redirection, node.host)
        else:
            redirection = None
        for name in names:
            shard = self._places.get(name)
            if shard is not None and shard.node == node.name:
                self._move(name, shard, self._ownerless if redirection is None else self._owner(redirection.slot))
        shard = self._shards.get(node.name)
        if shard is not None and not shard.slots:
            # The node may have been demoted, and would accept the channels again, as a replica. A slot map that does
            # not show that yet sends them back here: then the session dials, and the dial checks the role.
            self._close_shard(shard)
        self._look_again()

    # --- the slot map

    def start(self) -> None:
        """Bind to the running loop. `run()` is to follow."""
        self._loop = asyncio.get_running_loop()

    @property
    def _suspect(self) -> str | None:
        shards = [*self._shards.values()]
        return next((shard.node for shard in shards if shard.slots and not shard.is_connected), None)

    async def _place_all(self) -> None:
        """Move the misplaced channels.

        A slot is in doubt when the slot map names another owner than the connected node. The node knows better, so a
        channel moves only when the slot map has named the same owner twice.
        """
        self._redirected.clear()
        doubts, self._doubts = self._doubts, {}
        slice_end = monotonic() + TIME_SLICE
        for shard in (self._ownerless, *self._shards.values()):
            for slot in [*shard.slots]:
                owner = self._slot_map.owner(slot)
                if owner is not None and owner.name != shard.node:
                    self._is_settled = False
                    if shard.is_connected and doubts.get(slot) != owner.name:
                        self._doubts[slot] = owner.name
                    else:
                        for name in [*shard.slots.get(slot, ())]:
                            if self._places.get(name) is shard and name not in self._untold:
                                self._move(name, shard, self._owner(slot))
                            if monotonic() > slice_end:
                                await asyncio.sleep(0)
                                slice_end = monotonic() + TIME_SLICE
                elif not shard.is_connected:
                    self._is_settled = False
                if monotonic() > slice_end:
                    await asyncio.sleep(0)
                    slice_end = monotonic() + TIME_SLICE

    # --- the end

    async def unsubscribe_all(self) -> None:
        """Unsubscribe from every channel, and wait until the servers have confirmed it."""
        self._drain()
        for _ in self._ownerless.registry.drain():
            await asyncio.sleep(0)
        for shard in [*self._shards.values()]:
            if shard.session is not None:
                await shard.session.unsubscribe_all()

    def close(self) -> list[Entry[Subscriber]]:
        """End every session, at once and for good; return the names, which are to be freed little by little."""
        entries = self._ownerless.registry.clear()
        for shard in [*self._shards.values()]:
            if shard.closing is not None:
                shard.closing.cancel()
            if shard.session is not None:
                entries += shard.session.close()
        self._shards.clear()
        self._places.clear()
        self._untold.clear()
        return entries
