"""The axes: each module has a scene about one thing."""

from __future__ import annotations

from ..scenes import Scene
from .failover import Failover
from .finalizers import Finalizers
from .keys import Keys
from .link_end import LinkEnd
from .loops import Loops
from .removals import Removals
from .sizes import Sizes
from .stream_cluster import StreamCluster
from .streams import Streams
from .user_objects import UserObjects

AXES: dict[str, type[Scene]] = {
    "link-end": LinkEnd,
    "removals": Removals,
    "bytes": Sizes,
    "user-objects": UserObjects,
    "finalizers": Finalizers,
    "loops": Loops,
    "failover": Failover,
    "keys": Keys,
    "streams": Streams,
    "stream-cluster": StreamCluster,
}
"""By the name that `--axis` takes."""
