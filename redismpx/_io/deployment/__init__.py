"""Where the servers are, and which of them owns a name. Decided once, by the kind of client."""

from __future__ import annotations

from ..redispy.client import Redis, RedisCluster, servers_of
from ..redispy.sentinels import SentinelEndpoint
from ..redispy.slot_map import SlotMap
from .base import Deployment, DeploymentOptions
from .cluster import Cluster
from .sentinel import SentinelManaged
from .standalone import Standalone

__all__ = ["Deployment", "DeploymentOptions", "deployment_of"]


def deployment_of(client: Redis | RedisCluster, options: DeploymentOptions) -> Deployment:
    """Return the deployment that a client leads to."""
    servers = servers_of(client)
    if isinstance(servers, SlotMap):
        return Cluster(servers, options)
    if isinstance(servers, SentinelEndpoint):
        return SentinelManaged(servers, options)
    return Standalone(servers, options)
