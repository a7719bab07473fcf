"""A single server."""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import Any

from ..publishing.publisher import Publisher
from ..redispy.endpoint import Endpoint
from ..session.session import SessionOptions
from .base import Deployment, DeploymentOptions


class Standalone(Deployment):
    """A single server, which may be a node of a cluster although its client does not know that."""

    def __init__(self, endpoint: Endpoint, options: DeploymentOptions) -> None:
        session: SessionOptions = options.session
        publisher = Publisher(endpoint, options.publish_timeout, session.tasks, session.counters, self.doubt)
        super().__init__(lambda: endpoint, publisher, options)
        self._counts_all: bool | None = None  # None: not known yet
        self._asking = asyncio.Lock()

    async def counts_all(self, channel: bytes, *, sharded: bool) -> bool:
        """Tell whether a count of 0 means that nobody is subscribed: not if the server is a node of a cluster."""
        if sharded:
            return True
        async with self._asking:
            if self._counts_all is None:
                # In a task of its own: redis-py keeps exceptions in reference cycles, and their callers with them.
                task = self._tasks.start(self._ask_for_mode(), "redismpx server mode", Context())
                await asyncio.wait([task])
                if task.cancelled():  # the multiplexer was closed
                    return False
            return self._counts_all is not False

    async def _ask_for_mode(self) -> None:
        """Ask the server whether it is a node of a cluster. One that does not tell most likely is not."""
        try:
            reply: Any = await self._endpoint.call("HELLO")  # without arguments it changes nothing, and needs no right
        except Exception:  # noqa: BLE001, old servers and proxies do not know HELLO; the next count asks again
            return
        words = [word for pair in reply.items() for word in pair] if isinstance(reply, dict) else list(reply)
        is_node = any(word in (b"cluster", "cluster") for word in words)
        self._counts_all = not is_node
