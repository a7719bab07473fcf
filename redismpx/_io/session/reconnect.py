"""How long to wait after a failure, and what to log: one warning for each outage, not for each attempt.

Never waits, and never dials.
"""

from __future__ import annotations

import asyncio
import math
from time import monotonic

from ...errors import ConnectionLost
from ..redispy.client import AbstractBackoff
from ..redispy.errors import needs_operator
from ..runtime.log import logger

STABLE_AFTER = 10.0  # seconds after which a connection counts as stable, and the backoff starts again
FALLBACK_DELAY = 5.0  # seconds between attempts when the backoff raises
WARN_INTERVAL = 60.0  # seconds between two warnings about connections that break before they are stable
ERROR_INTERVAL = 300.0  # seconds between two errors about a password or a certificate that is wrong
FLAPPING_HINT = (
    "; connections keep breaking: are messages larger than the server's client-output-buffer-limit for pubsub?"
)


class ReconnectPolicy:
    """Counts the failures of dials and connections since the last stable connection."""

    def __init__(self, backoff: AbstractBackoff) -> None:
        self.failures = 0
        """Failures since the last stable connection."""
        self._backoff = backoff
        self._warned = -math.inf  # when the last warning was logged
        self._error_logged = -math.inf  # when the last error was logged

    def lasted(self, seconds: float) -> None:
        """Note how long a connection has lasted."""
        if seconds >= STABLE_AFTER:
            self.failures = 0
            try:
                self._backoff.reset()
            except (Exception, asyncio.CancelledError):  # noqa: BLE001, users' code
                logger.exception("reset() of the backoff raised an exception")

    def failed(self, where: str, lost: ConnectionLost, was_connected: bool) -> float:
        """Log a failure at a server; return the seconds to wait: 0 after the first, then what the backoff says."""
        self.failures += 1
        now = monotonic()
        flapping = was_connected and self.failures > 1
        if needs_operator(lost.__cause__) and now >= self._error_logged + ERROR_INTERVAL:
            self._error_logged = now
            logger.error("no connection to Redis at %s until this is fixed (%s)", where, lost.reason)
        elif self.failures == 1 or (flapping and now >= self._warned + WARN_INTERVAL):
            self._warned = now
            why = lost.reason + FLAPPING_HINT if flapping else lost.reason
            logger.warning("no connection to Redis at %s; reconnecting (%s)", where, why)
        if self.failures == 1:
            return 0.0
        try:
            # Capped: redis-py computes 2 to this power as a float.
            delay = max(0.0, float(self._backoff.compute(min(self.failures - 2, 64))))
        except (Exception, asyncio.CancelledError):  # noqa: BLE001, users' code
            if self.failures == 2:  # its first call
                logger.exception("the backoff raised an exception; waiting %g s between attempts", FALLBACK_DELAY)
            delay = FALLBACK_DELAY
        logger.debug("attempt %d failed (%s); the next in %.3f s", self.failures, lost.reason, delay)
        return delay
