"""A single server."""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import Any

from ..publishing.publisher import Publisher
from ..redispy.endpoint import Endpoint
from ..runtime.tasks import is_cancelled
from ..session.session import SessionOptions
from .base import Deployment, DeploymentOptions


class Standalone(Deployment):
    """A single server, which may be a node of a cluster that its client does not know of."""

    def __init__(self, endpoint: Endpoint, options: DeploymentOptions) -> None:
        session: SessionOptions = options.session
        publisher = Publisher(endpoint, options.publish_timeout, session.tasks, session.counters)
        super().__init__(lambda: endpoint, publisher, options)
        self._counts_all: bool | None = None  # None: not known yet
        self._asking = asyncio.Lock()

    async def counts_all(self, channel: bytes, *, sharded: bool) -> bool:
        """Tell whether a count of 0 means that nobody is subscribed: not if the server is a node of a cluster."""
        if sharded:
            return True
        async with self._asking:
            if self._counts_all is None:
                # In a task: redis-py leaves reference cycles when it dials, which would keep the frames of the caller.
                task = self._tasks.start(self._is_cluster_node(), "redismpx hello", Context())
                try:
                    is_node = await task
                except asyncio.CancelledError as error:
                    if is_cancelled(error):
                        raise
                    return False  # the multiplexer was closed, and its tasks cancelled
                if is_node is None:
                    return True
                self._counts_all = not is_node
            return self._counts_all

    async def _is_cluster_node(self) -> bool | None:
        """Ask the server whether it is a node of a cluster; None: it does not tell, and most likely is not."""
        try:
            reply: Any = await self._endpoint.call("HELLO")  # without arguments it changes nothing, and needs no right
        except Exception:  # noqa: BLE001, old servers and proxies do not know HELLO
            return None
        words = [word for pair in reply.items() for word in pair] if isinstance(reply, dict) else list(reply)
        return any(word in (b"cluster", "cluster") for word in words)
