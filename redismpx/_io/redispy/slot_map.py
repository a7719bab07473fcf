"""Which node of a cluster owns a slot, as redis-py finds out."""

from __future__ import annotations

import asyncio
import math
import random
from time import monotonic
from typing import Any

from redis.asyncio import RedisCluster
from redis.asyncio.cluster import ClusterNode, NodesManager
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoPermissionError, RedisClusterException

from ..._core.wire import Redirection
from ...errors import plain
from ..runtime.log import logger
from .dial import DIAL_TIMEOUT

_NOT_FOR_READING = ("maint_notifications_config", "oss_cluster_maint_notifications_handler")


class NodePool:
    """A node of a cluster in the place of a connection pool: it lends one connection, to one at a time."""

    def __init__(self, node: ClusterNode, *, is_master: bool) -> None:
        self.connection_class: Any = node.connection_class
        self.connection_kwargs: dict[str, Any] = node.connection_kwargs
        self.is_master = is_master
        """Whether it is of use only as long as it is a master."""
        self._connection: AbstractConnection | None = None

    def make_connection(self) -> AbstractConnection:
        """Make a connection that has not dialled yet."""
        connection: AbstractConnection = self.connection_class(**self.connection_kwargs)
        return connection

    async def get_connection(self) -> AbstractConnection:
        """Lend the connection, and dial if it is not connected."""
        if self._connection is None:
            self._connection = self.make_connection()
        await self._connection.connect()
        return self._connection

    async def release(self, connection: AbstractConnection) -> None:
        """Take the connection back: it stays as it is."""


class SlotMap:
    """The slot map of a cluster. It is asked for anew once for all who want that at a time.

    It has connections of its own, with the options of a client, and none between two questions.
    """

    def __init__(self, client: RedisCluster) -> None:
        theirs = client.nodes_manager
        options = {name: value for name, value in theirs.connection_kwargs.items() if name not in _NOT_FOR_READING}
        self._seeds = [ClusterNode(node.host, node.port, **options) for node in client.startup_nodes]
        # Slots that nobody has must not keep anybody from the others.
        self._manager = NodesManager(
            self._seeds, False, options, dynamic_startup_nodes=False, address_remap=theirs.address_remap
        )
        self._asking = asyncio.Lock()
        self._answers = 0
        self.seen: float = -math.inf
        """When it was last seen, by the monotonic clock."""

    @property
    def nodes(self) -> list[ClusterNode]:
        """All nodes that are known, primaries and replicas."""
        return list(self._manager.nodes_cache.values()) or self._seeds

    def owner(self, slot: int) -> ClusterNode | None:
        """Return the primary that has a slot; None if none is known."""
        nodes = self._manager.slots_cache.get(slot)
        return nodes[0] if nodes else None

    async def refresh(self, suspect: str | None = None) -> None:
        """Ask one of the nodes that are known, or were given, who owns what; a suspect comes last.

        Raises what redis-py raises.
        """
        answers = self._answers
        async with self._asking:
            if self._answers != answers:
                return  # somebody else has asked in the meantime
            manager = self._manager
            try:
                async with asyncio.timeout(DIAL_TIMEOUT):
                    await manager.initialize(last_failed_node_name=suspect)
                self._answers += 1
                self.seen = monotonic()
            except RedisClusterException as error:
                root = _root_of(error)
                if isinstance(root, NoPermissionError) and self._manager.connection_kwargs.get("client_name"):
                    self._forget_client_name(root)
                raise root from None
            finally:
                asked = list(manager.startup_nodes.values())
                manager.startup_nodes = {node.name: node for node in (*manager.nodes_cache.values(), *self._seeds)}
                for connection in [connection for node in asked for connection in node._connections]:
                    await connection.disconnect(nowait=True)  # waits for nothing: cancelled, it would leave some open

    def _forget_client_name(self, error: NoPermissionError) -> None:
        """Do without a name for connections from now on: a user may lack the right to it (`CLIENT SETNAME`)."""
        manager = self._manager
        nodes = *manager.startup_nodes.values(), *manager.nodes_cache.values(), *self._seeds
        for connection in [connection for node in nodes for connection in node._connections]:
            connection.client_name = None
        for options in (manager.connection_kwargs, *(node.connection_kwargs for node in nodes)):
            options.pop("client_name", None)
        logger.info("the cluster refused a command (%s); trying without a client name", plain(str(error)))

    def note(self, redirection: Redirection, told_by: str) -> None:
        """Take a node's word for where a slot is now."""
        host, port = self._manager.remap_host_port(redirection.host or told_by, redirection.port)
        node = ClusterNode(host, port, **self._manager.connection_kwargs)
        self._manager.slots_cache[redirection.slot] = [self._manager.nodes_cache.setdefault(node.name, node)]


class AnyNodeEndpoint:
    """The endpoint to a node of a cluster, whichever: many processes spread over them. To another when one is lost."""

    def __init__(self, slot_map: SlotMap) -> None:
        self._slot_map = slot_map
        self._node: ClusterNode | None = None
        self._has_failed = True
        self.pool = NodePool(slot_map.nodes[0], is_master=False)

    async def find(self) -> NodePool:
        """Return the node that was found before; after a failure, another one."""
        if self._has_failed:
            await self._slot_map.refresh(None if self._node is None else self._node.name)
            others = [node for node in self._slot_map.nodes if node != self._node]
            if others:
                self._node = random.choice(others)  # noqa: S311  # nosec B311, nothing secret
                self.pool = NodePool(self._node, is_master=False)
            self._has_failed = False
        return self.pool

    def failed(self) -> None:
        """Take note that it is to be another node the next time."""
        self._has_failed = True


def _root_of(error: BaseException) -> BaseException:
    """Return what a node said, or why none could be reached, rather than what redis-py makes of it."""
    while isinstance(error, RedisClusterException) and (error.__cause__ or error.__context__) is not None:
        error = error.__cause__ or error.__context__ or error
    return error
