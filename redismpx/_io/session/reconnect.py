"""How long to wait after a failure. Never waits, and never dials."""

from __future__ import annotations

import asyncio

from ..redispy.client import AbstractBackoff
from ..runtime.log import logger

STABLE_AFTER = 10.0  # seconds after which a connection counts as stable, and the backoff starts again
FALLBACK_DELAY = 5.0  # seconds between attempts when the backoff raises


class ReconnectPolicy:
    """Counts the failures of dials and connections since the last stable connection."""

    def __init__(self, backoff: AbstractBackoff) -> None:
        self.failures = 0
        """Failures since the last stable connection."""
        self._backoff = backoff

    def lasted(self, seconds: float) -> None:
        """Note how long a connection has lasted."""
        if seconds >= STABLE_AFTER:
            self.failures = 0
            try:
                self._backoff.reset()
            except (Exception, asyncio.CancelledError):  # noqa: BLE001, users' code
                logger.exception("reset() of the backoff raised an exception")

    def failed(self) -> float:
        """Count a failure; return the seconds to wait: 0 after the first, then what the backoff says."""
        self.failures += 1
        if self.failures == 1:
            return 0.0
        try:
            # Capped: redis-py computes 2 to this power as a float.
            return max(0.0, float(self._backoff.compute(min(self.failures - 2, 64))))
        except (Exception, asyncio.CancelledError):  # noqa: BLE001, users' code
            if self.failures == 2:  # its first call
                logger.exception("the backoff raised an exception; waiting %g s between attempts", FALLBACK_DELAY)
            return FALLBACK_DELAY
