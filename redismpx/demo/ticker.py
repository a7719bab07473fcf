"""The numbers of the demo: 1, 2, 3, and so on, published as another program would, over a connection of its own."""

from __future__ import annotations

__all__ = ["INTERVAL", "KEPT", "KEPT_FOR", "Ticker"]

import asyncio
import contextlib
import secrets
from collections.abc import Callable

from redis.exceptions import RedisError

from .. import Multiplexer, RedisMPXError

INTERVAL = 0.25  # seconds between two numbers
KEPT = 1_000  # numbers that Redis keeps in the stream
KEPT_FOR = 600.0  # seconds after the last number


class Ticker:
    """Publishes each number twice: on a channel, which keeps nothing, and in a stream.

    The number says which messages a subscription has missed. So a number is repeated until Redis has accepted it.

    Args:
        on_number: called with each number that Redis has accepted.
    """

    def __init__(self, on_number: Callable[[int], object]) -> None:
        token = secrets.token_hex(3)  # several demos may use one server
        self.channel: str = f"demo:numbers:{token}"
        self.stream: str = f"demo:orders:{token}"
        self.number: int = 0
        """The last number that Redis has accepted."""
        self._on_number = on_number
        self._task: asyncio.Task[None] | None = None

    def start(self, url: str) -> None:
        """Publish at the server with this URL until `stop()`."""
        self._task = asyncio.create_task(self._run(url))

    async def stop(self) -> None:
        """Publish no more. The next number after a new start is the next one."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _run(self, url: str) -> None:
        async with Multiplexer(url, publish_timeout=1.0) as mpx:
            while True:
                number = str(self.number + 1)
                with contextlib.suppress(RedisMPXError, RedisError):
                    await mpx.append(self.stream, number, key=number, max_length=KEPT, max_age=KEPT_FOR)
                    await mpx.publish(self.channel, number)
                    self.number += 1
                    self._on_number(self.number)
                await asyncio.sleep(INTERVAL)
