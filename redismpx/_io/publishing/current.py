"""The connection of a pipeline: kept from batch to batch, as long as it leads to the right server. Sends no batch."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from ..redispy.client import publish_backoff
from ..redispy.connection import Address, Connection
from ..redispy.endpoint import Endpoint
from ..runtime.log import logger


class CurrentConnection:
    """The connection over which the next batch goes.

    It calls `on_lost` with the address of a connection that was lost, and awaits `on_left` when a connection was left
    because it may lead to the wrong server.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        timeout: float,
        on_lost: Callable[[Address], None],
        on_left: Callable[[], Awaitable[None]],
    ) -> None:
        self._endpoint = endpoint
        self._timeout = timeout
        self._on_lost = on_lost
        self._on_left = on_left
        self._connection: Connection | None = None
        self._backoff = publish_backoff()
        self._reached = asyncio.Event()  # a session has connected since the last attempt began
        self.is_outdated: bool = False
        """Whether the connection, or the one that is being dialled, may lead to the wrong server."""

    @property
    def address(self) -> Address | None:
        """Where the connection leads; None while there is none."""
        return None if self._connection is None else self._connection.address

    async def get(self) -> Connection:
        """Return the connection of the last batch if it still leads to the right server, and a new one otherwise."""
        if self._connection is not None and not await self._is_usable(self._connection):
            await self.release()
        while self._connection is None or self.is_outdated:
            await self.leave()
            self._reached.clear()
            self._connection = await self._endpoint.dial()
        return self._connection

    async def idle(self) -> Connection | None:
        """Return the connection of the last batch if a call can be sent over it as it is, and None otherwise."""
        connection = self._connection
        return connection if connection is not None and await connection.is_usable() else None

    async def _is_usable(self, connection: Connection) -> bool:
        """Tell whether an idle connection can carry a batch; note if its server was demoted."""
        if not await connection.is_usable():
            return False
        if not connection.is_check_due:  # most often; a timeout would cost a tenth of a call
            return True
        try:
            async with asyncio.timeout(self._timeout):
                if await connection.was_demoted():
                    logger.info("{}:{} is not a master any more; publishing connects again".format(*connection.address))
                    self.is_outdated = True
        except TimeoutError:
            self._on_lost(connection.address)
            return False
        return True

    def abandon(self, address: Address | None) -> bool:
        """Note that the server at an address, or any server, is the wrong one; return whether it is this one.

        A dial in progress may lead to that server too, and is done again.
        """
        concerned = None in (address, self.address) or address == self.address
        self.is_outdated = self.is_outdated or concerned
        return concerned

    async def pause(self, failures: int) -> None:
        """Wait before the next attempt to connect, after so many that failed, until a session connects at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._backoff.compute(min(failures, 64))):
                await self._reached.wait()

    def reached(self) -> None:
        """Take note that a session has connected: after an attempt that began before, the next one need not wait."""
        self._reached.set()

    async def lost(self) -> None:
        """Take note that a batch failed: leave the connection, and tell that it was lost."""
        if self._connection is not None:
            self._on_lost(self._connection.address)
        await self.leave()

    async def leave(self) -> None:
        """End a connection that may lead to the wrong server."""
        self.is_outdated = False
        if self._connection is not None:
            await self.release()
            await self._on_left()

    async def release(self) -> None:
        """End the connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.release()
