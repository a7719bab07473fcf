"""Which node of a cluster owns a slot. Asked over connections of its own, none of which stays open."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, NamedTuple

from redis.asyncio import RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import AbstractConnection

from ..._core.wire import Redirection
from .connection import Connection
from .dial import DIAL_TIMEOUT, dial
from .endpoint import Endpoint

__all__ = ["AnyNodeEndpoint", "ClusterNode", "NodeEndpoint", "NodePool", "SlotMap"]

_NOT_FOR_READING = ("maint_notifications_config", "oss_cluster_maint_notifications_handler")


class NodePool:
    """A node of a cluster in the place of a connection pool."""

    def __init__(self, node: ClusterNode, *, is_master: bool) -> None:
        self.connection_class: Any = node.connection_class
        self.connection_kwargs: dict[str, Any] = node.connection_kwargs
        self.is_master = is_master
        """Whether it is of use only as long as it is a master."""

    def make_connection(self) -> AbstractConnection:
        """Make a connection that has not dialled yet."""
        connection: AbstractConnection = self.connection_class(**self.connection_kwargs)
        return connection


class _SlotRange(NamedTuple):
    """Consecutive slots and the addresses of their nodes, the primary first."""

    first: int
    last: int
    addresses: list[tuple[str, int]]


class SlotMap:
    """The slot map of a cluster. Callers that ask at the same time share one question."""

    def __init__(self, client: RedisCluster) -> None:
        theirs = client.nodes_manager
        self._options = {
            name: value for name, value in theirs.connection_kwargs.items() if name not in _NOT_FOR_READING
        }
        self._remap: Callable[[str, int], tuple[str, int]] = theirs.remap_host_port
        self._seeds = [self._node(node.host, int(node.port)) for node in client.startup_nodes]
        self._nodes: dict[str, ClusterNode] = {}
        self._owners: dict[int, ClusterNode] = {}
        self._primaries: dict[str, ClusterNode] = {}
        self._asking = asyncio.Lock()
        self._answers = 0
        self.seen: float = -math.inf
        """When the map was last read, by the monotonic clock."""

    @property
    def nodes(self) -> list[ClusterNode]:
        """All known nodes, primaries and replicas."""
        return list(self._nodes.values()) or self._seeds

    @property
    def primaries(self) -> list[ClusterNode]:
        """All known primaries that own slots; none before the map is read."""
        return list(self._primaries.values())

    def owner(self, slot: int) -> ClusterNode | None:
        """Return the primary that owns a slot; None if it is not known."""
        return self._owners.get(slot)

    async def refresh(self, suspect: str | None = None) -> None:
        """Read the map from one of the known nodes; `suspect` names the node that is asked last.

        Raises whatever redis-py raised at the last node, if no node answers.
        """
        answers = self._answers
        async with self._asking:
            if self._answers != answers:
                return  # another caller has asked in the meantime
            candidates = list({node.name: node for node in (*self._nodes.values(), *self._seeds)}.values())
            random.shuffle(candidates)  # many processes spread their questions over the nodes
            candidates.sort(key=lambda node: node.name == suspect)
            async with asyncio.timeout(DIAL_TIMEOUT):
                self._take(await self._ask(candidates))
            self._answers += 1
            self.seen = monotonic()

    async def _ask(self, candidates: list[ClusterNode]) -> list[_SlotRange]:
        """Return the slot ranges that the first node tells which answers."""
        failure: Exception | None = None
        for node in candidates:
            try:
                reply = await NodeEndpoint(node, is_master=False).call("CLUSTER", "SLOTS")
                return list(_parse_slots(reply, node.host))
            except Exception as error:  # noqa: BLE001, redis-py raises anything; the next node may answer
                failure = error
        assert failure is not None
        raise failure

    def _take(self, ranges: list[_SlotRange]) -> None:
        nodes: dict[str, ClusterNode] = {}
        owners: dict[int, ClusterNode] = {}
        found: dict[tuple[str, int], ClusterNode] = {}
        for first, last, addresses in ranges:
            for address in addresses:
                if address not in found:
                    node = self._node(*self._remap(*address))
                    found[address] = nodes.setdefault(node.name, node)
            owners.update(dict.fromkeys(range(first, last + 1), found[addresses[0]]))
        self._nodes, self._owners = nodes, owners
        self._primaries = {owner.name: owner for owner in (found[addresses[0]] for _, _, addresses in ranges)}

    def note(self, redirection: Redirection, told_by: str) -> None:
        """Believe a node that says where a slot is now."""
        node = self._node(*self._remap(redirection.host or told_by, redirection.port))
        owner = self._nodes.setdefault(node.name, node)
        self._owners[redirection.slot] = self._primaries.setdefault(node.name, owner)

    def _node(self, host: str, port: int) -> ClusterNode:
        return ClusterNode(host, port, **self._options)


def _parse_slots(reply: list[Any], told_by: str) -> Iterator[_SlotRange]:
    """Read the reply to CLUSTER SLOTS (https://redis.io/docs/latest/commands/cluster-slots/).

    A node that does not know its own address, or prefers not to tell one, leaves it empty: it is where it was asked.
    """
    for first, last, *nodes in reply:
        addresses = []
        for host, port, *_ in nodes:
            text = host.decode() if isinstance(host, bytes) else host
            addresses.append((text or told_by, int(port)))
        if addresses:
            yield _SlotRange(int(first), int(last), addresses)


class NodeEndpoint(Endpoint):
    """One node of a cluster."""

    def __init__(self, node: ClusterNode, *, is_master: bool, on_failure: Callable[[], None] | None = None) -> None:
        super().__init__(NodePool(node, is_master=is_master))
        self._on_failure = on_failure

    def failed(self) -> None:
        """Tell the owner: another node may have taken over its slots."""
        if self._on_failure is not None:
            self._on_failure()


class AnyNodeEndpoint(Endpoint):
    """Some node of a cluster: many processes spread over them. After a failure it is another node."""

    def __init__(self, slot_map: SlotMap) -> None:
        super().__init__(NodePool(slot_map.nodes[0], is_master=False))
        self._slot_map = slot_map
        self._node: ClusterNode | None = None
        self._has_failed = True

    async def dial(self, *, side_by_side: bool = False) -> Connection:
        """Connect to the node that was chosen before; after a failure, choose another one first."""
        if self._has_failed:
            await self._slot_map.refresh(None if self._node is None else self._node.name)
            others = [node for node in self._slot_map.nodes if node != self._node]
            if others:
                self._node = random.choice(others)  # noqa: S311  # nosec B311, nothing secret
                self.pool = NodePool(self._node, is_master=False)
            self._has_failed = False
        return await dial(self.pool, side_by_side=side_by_side)

    def failed(self) -> None:
        """Choose another node for the next dial."""
        self._has_failed = True
