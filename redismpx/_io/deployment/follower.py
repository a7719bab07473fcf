"""When the slot map of a cluster is read: as long as a name may be at the wrong node. Moves no name itself."""

from __future__ import annotations

import asyncio
import contextlib
import random
from abc import ABC, abstractmethod

from ...errors import ConnectionLost, plain
from ..redispy.slot_map import SlotMap
from ..runtime.log import logger
from ..runtime.notification import Notifier
from ..runtime.tasks import is_cancelled, is_cancelling

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 0.5  # seconds between two looks at the slot map, while a name is misplaced


class SlotMapFollower(ABC):
    """Reads the slot map until each name is where it says. A subclass moves the names."""

    def __init__(self, slot_map: SlotMap) -> None:
        self._slot_map = slot_map
        self._is_settled = True  # whether each name is where the slot map says
        self._doubted = Notifier()
        self._is_draining = False
        self._error: ConnectionLost | None = None  # why the slot map cannot be read

    @property
    @abstractmethod
    def _suspect(self) -> str | None:
        """The name of a node that may have been replaced; it is asked last."""

    @property
    def _interval(self) -> float | None:
        """The seconds after which the slot map is read although nothing is in doubt; None: never."""
        return None

    @abstractmethod
    async def _place_all(self) -> None:
        """Move the names to where the slot map says; call `_look_again()` if some may not be there then."""

    def _look_again(self) -> None:
        self._is_settled = False
        self._doubted.notify()

    def _drain(self) -> None:
        """Move no name any more."""
        self._is_draining = True
        self._doubted.notify()

    async def run(self) -> None:
        """Read the slot map whenever a name may be misplaced, until each is placed and the slot map agrees."""
        pause = 0.0
        while True:
            if self._is_settled:
                pause = FIRST_PAUSE
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._interval):
                        await self._doubted.wait()
            else:
                await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311  # nosec B311, nothing secret
                pause = min(max(2 * pause, FIRST_PAUSE), LONGEST_PAUSE)
            if self._is_draining or is_cancelling():
                return
            self._is_settled = True  # unless something happens from here on
            if not await self._read():
                self._is_settled = False
                continue
            try:
                await self._place_all()
            except Exception:  # noqa: BLE001, a fault of this library; never a silent end
                logger.critical("internal error; reading the slot map again", exc_info=True)
                self._is_settled = False

    async def _read(self) -> bool:
        """Read the slot map; return whether that was possible."""
        try:
            await self._slot_map.refresh(self._suspect)
        except (Exception, asyncio.CancelledError) as error:
            if is_cancelled(error):
                raise
            logger.debug("the slot map cannot be read now (%s)", plain(str(error)))
            self._error = ConnectionLost(f"the slot map of the cluster cannot be read: {error}")
            self._error.__cause__ = error
            return False
        self._error = None
        return True
