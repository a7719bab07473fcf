"""The links to the primaries of a cluster: a shard channel is subscribed at the one that has its slot.

A slot that moves is a detach here and an attach there. Its node says that it moves, by unsubscribing its names or by
refusing commands for them; where it went, the slot map tells. A node that is lost may have been replaced, so its names
go by the map too. Decides nothing about a name that is well where it is.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection
from contextvars import Context
from functools import partial
from time import monotonic
from typing import TypeAlias

from redis.asyncio.cluster import ClusterNode
from redis.crc import key_slot

from ..._core.registry import Registry
from ..._core.wire import Kind, Redirection
from ...errors import ConnectionLost, plain
from ..redispy.endpoint import Endpoint, FixedEndpoint
from ..redispy.slot_map import NodePool, SlotMap
from ..runtime.log import logger
from ..runtime.notification import Notifier
from ..runtime.tasks import TURN, is_cancelled, is_cancelling
from ..session.dispatcher import Evict, Subscriber
from ..session.session import Session, SessionState

KIND = Kind.SHARD_CHANNEL
LINGER = 1.0  # seconds that a link is kept after the last of its names has gone
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 0.5  # seconds between two looks at the slot map, while not all is in its place

NewSession: TypeAlias = Callable[[Endpoint, Evict], Session]


class NodeEndpoint(FixedEndpoint):
    """The endpoint to one node of a cluster. When it fails, what was there may be elsewhere."""

    def __init__(self, node: ClusterNode, failed: Callable[[], None]) -> None:
        super().__init__(NodePool(node, is_master=True))
        self._failed = failed

    def failed(self) -> None:
        """Pass it on."""
        self._failed()


class Shard:
    """A primary, and the names that are wanted there; or no primary, and the names whose owner is not known."""

    def __init__(self, node: str, registry: Registry[Subscriber], session: Session | None) -> None:
        self.node = node
        """The name of the primary; empty if there is none."""
        self.registry = registry
        self.session = session
        self.slots: dict[int, set[bytes]] = {}
        """The names, by their slots."""
        self.closing: asyncio.TimerHandle | None = None

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection to it."""
        return self.session is not None and self.session.state is SessionState.CONNECTED


class Shards:
    """Keeps each shard channel at the primary that has its slot."""

    def __init__(self, slot_map: SlotMap, new_session: NewSession) -> None:
        self._slot_map = slot_map
        self._new_session = new_session
        self._homes: dict[bytes, Shard] = {}
        self._shards: dict[str, Shard] = {}
        self._homeless = Shard("", Registry(), None)
        self._bounced: set[int] = set()  # slots that followed a redirection since the map was last seen
        self._is_settled = True
        self._unsettled = Notifier()
        self._draining = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._error: ConnectionLost | None = None  # why the map cannot be seen

    def __len__(self) -> int:
        """How many primaries there are links to."""
        return len(self._shards)

    @property
    def wanted(self) -> int:
        """How many names somebody wants."""
        return len(self._homes)

    @property
    def outage(self) -> ConnectionLost | None:
        """Why some names have no connection now; None if all have one."""
        failing = [s.session.outage for s in self._shards.values() if s.slots and s.session is not None]
        nobody = ConnectionLost("no node is known to have its slot") if self._homeless.slots else None
        return next(filter(None, failing), self._error or nobody)

    def count_new(self, names: Collection[bytes]) -> int:
        """Tell how many of `names` nobody wants yet."""
        return sum([name not in self._homes for name in names])

    # --- wishes

    def add(self, names: Collection[bytes], subscriber: Subscriber) -> None:
        """Want names for a subscriber."""
        homes = set()
        for name in names:
            home = self._homes.get(name)
            if home is None:
                home = self._owner(key_slot(name))
                self._move_in(name, home)
            home.registry.add(KIND, (name,), subscriber)
            homes.add(home)
        self._nudge(homes)

    def remove(self, names: Collection[bytes], subscriber: Subscriber) -> int:
        """Stop wanting names for a subscriber; tell how many were active."""
        homes = set()
        were_active = 0
        for name in names:
            home = self._homes.get(name)
            if home is not None:
                were_active += home.registry.remove(KIND, name, subscriber)
                if home.registry.count_new(KIND, (name,)):
                    self._move_out(name, home)
                homes.add(home)
        self._nudge(homes)
        return were_active

    def _nudge(self, homes: Collection[Shard]) -> None:
        for home in homes:
            if home.session is not None:
                home.session.nudge()
            elif home.slots:
                self._unsettle()

    # --- where names are

    def _move_in(self, name: bytes, home: Shard) -> None:
        self._homes[name] = home
        home.slots.setdefault(key_slot(name), set()).add(name)
        if home.closing is not None:
            home.closing.cancel()
            home.closing = None

    def _move_out(self, name: bytes, home: Shard) -> None:
        del self._homes[name]
        slot = key_slot(name)
        home.slots[slot].discard(name)
        if not home.slots[slot]:
            del home.slots[slot]
        if not (home.slots or home is self._homeless) and self._loop is not None and not self._loop.is_closed():
            home.closing = self._loop.call_later(LINGER, self._close_shard, home, context=Context())

    def _owner(self, slot: int) -> Shard:
        """Return the shard of the primary that has a slot, by the map; make it if there is none yet."""
        node = self._slot_map.owner(slot)
        if node is None or self._loop is None or self._draining:
            return self._homeless
        shard = self._shards.get(node.name)
        if shard is None:
            endpoint = NodeEndpoint(node, self._unsettle)
            session = self._new_session(endpoint, partial(self._evict, node))
            shard = self._shards[node.name] = Shard(node.name, session.registry, session)
            session.start()
        return shard

    def _close_shard(self, shard: Shard) -> None:
        if shard.closing is not None:
            shard.closing.cancel()
        if self._shards.get(shard.node) is shard and shard.session is not None:
            del self._shards[shard.node]
            shard.session.close()

    def _move(self, name: bytes, home: Shard, to: Shard) -> None:
        """Detach a name here, and attach it there."""
        entry = home.registry.shard_channels.get(name)
        subscribers = () if entry is None else tuple(entry.subscribers)
        self._move_out(name, home)
        self._move_in(name, to)
        were_active = []
        for subscriber in subscribers:
            if home.registry.remove(KIND, name, subscriber):
                were_active.append(subscriber)
            to.registry.add(KIND, (name,), subscriber)
        self._nudge((home, to))
        for subscriber in were_active:
            now = self._homes.get(name)  # the callback of one may take the name away from another
            if now is not None and now.registry.subscriber_state(KIND, name, subscriber) is not None:
                subscriber.disconnect(ConnectionLost("its slot has another owner", frozenset({name})))

    def _evict(self, node: ClusterNode, names: tuple[bytes, ...], redirection: Redirection | None) -> None:
        """Take names away from a node that says that it has not their slot any more.

        They go at once to where it says that they belong, if it does; but once only until the map is seen again, for
        while the nodes do not agree yet, one may lead to another, and that one back.
        """
        if redirection is not None and redirection.slot not in self._bounced:
            self._bounced.add(redirection.slot)
            self._slot_map.note(redirection, node.host)
        else:
            redirection = None
        for name in names:
            home = self._homes.get(name)
            if home is not None and home.node == node.name:
                self._move(name, home, self._homeless if redirection is None else self._owner(redirection.slot))
        shard = self._shards.get(node.name)
        if shard is not None and not shard.slots:
            # Perhaps it was demoted, and would take them again, as the replica that it is. Who is led back here, by a
            # map that does not know of that yet, has to dial, and then it is asked.
            self._close_shard(shard)
        self._unsettle()

    # --- the slot map

    def start(self) -> None:
        """Take the loop that runs. `run()` is to follow."""
        self._loop = asyncio.get_running_loop()

    def _unsettle(self) -> None:
        self._is_settled = False
        self._unsettled.notify()

    async def run(self) -> None:
        """Look at the slot map whenever something is not in its place, until it is, and the map says so too."""
        doubts: dict[int, str] = {}
        pause = FIRST_PAUSE
        while not (is_cancelling() or self._draining):
            if self._is_settled:
                pause = FIRST_PAUSE
                await self._unsettled.wait()
            self._is_settled = True  # unless something happens from here on
            try:
                failing = [shard.node for shard in self._shards.values() if shard.slots and not shard.is_connected]
                await self._slot_map.refresh(failing[0] if failing else None)
            except (Exception, asyncio.CancelledError) as error:
                if is_cancelled(error):
                    raise
                logger.debug("the slot map cannot be seen now (%s)", plain(str(error)))
                self._error = ConnectionLost(f"the slot map of the cluster cannot be seen: {error}")
                self._error.__cause__ = error
                self._is_settled = False
            else:
                self._error = None
                self._bounced.clear()
                try:
                    doubts = await self._settle(doubts)
                except Exception:  # noqa: BLE001, a fault of this library; never a silent end
                    logger.critical("internal error; looking at the slot map again", exc_info=True)
                    self._is_settled = False
            if not self._is_settled:
                await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311  # nosec B311, nothing secret
                pause = min(pause * 2, LONGEST_PAUSE)

    async def _settle(self, doubts: dict[int, str]) -> dict[int, str]:
        """Move what is not well where it is; return the slots of which the map and their node say different things.

        A node knows better than others whether it has a slot, so `doubts` must have said the same before.
        """
        still: dict[int, str] = {}
        turn_ends = monotonic() + TURN
        for shard in (self._homeless, *self._shards.values()):
            for slot in tuple(shard.slots):
                owner = self._slot_map.owner(slot)
                if owner is not None and owner.name != shard.node:
                    self._is_settled = False
                    if shard.is_connected and doubts.get(slot) != owner.name:
                        still[slot] = owner.name
                    else:
                        for name in tuple(shard.slots.get(slot, ())):
                            if self._homes.get(name) is shard:
                                self._move(name, shard, self._owner(slot))
                            if monotonic() > turn_ends:
                                await asyncio.sleep(0)
                                turn_ends = monotonic() + TURN
                elif not shard.is_connected:
                    self._is_settled = False
                if monotonic() > turn_ends:
                    await asyncio.sleep(0)
                    turn_ends = monotonic() + TURN
        return still

    # --- the end

    async def unsubscribed(self) -> None:
        """Give up every name, and wait until nothing comes any more."""
        self._draining = True
        self._homeless.registry.drain()
        for shard in tuple(self._shards.values()):
            if shard.session is not None:
                await shard.session.unsubscribed()

    def close(self) -> None:
        """End every link, at once and for good."""
        for shard in tuple(self._shards.values()):
            self._close_shard(shard)
        self._homes.clear()
        self._homeless.registry.clear()
