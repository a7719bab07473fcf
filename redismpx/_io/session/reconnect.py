"""How long to wait after a failure, and what to say of it: one warning an outage, not one an attempt.

Waits for nothing, and dials nothing itself.
"""

from __future__ import annotations

import math
from time import monotonic

from redis.backoff import AbstractBackoff

from ...errors import ConnectionLost
from ..redispy.diagnosis import must_be_mended
from ..runtime.log import logger

STABLE_AFTER = 10.0  # seconds after which a connection has proved itself, and the backoff begins anew
FALLBACK_DELAY = 5.0  # seconds between attempts when the backoff raises
WARN_INTERVAL = 60.0  # seconds between two warnings of a connection that comes and goes without ever proving itself
ERROR_INTERVAL = 300.0  # seconds between two errors about a password or a certificate that is wrong
FLAPPING_HINT = "; it comes and goes: are messages larger than the server's client-output-buffer-limit for pubsub?"


class ReconnectPolicy:
    """The failures of dials and connections since the last one that lasted."""

    def __init__(self, backoff: AbstractBackoff) -> None:
        self.failures = 0
        """How many there were."""
        self._backoff = backoff
        self._warned = -math.inf  # when the last warning was logged
        self._complained = -math.inf  # when the last error was logged

    def lasted(self, seconds: float) -> None:
        """Note for how long a connection has lasted."""
        if seconds >= STABLE_AFTER:
            self.failures = 0
            self._backoff.reset()

    def failed(self, where: str, lost: ConnectionLost, was_connected: bool) -> float:
        """Note a failure at a server; return the seconds to wait: none after the first, then as the backoff says."""
        self.failures += 1
        now = monotonic()
        flapping = was_connected and self.failures > 1
        if must_be_mended(lost.__cause__) and now >= self._complained + ERROR_INTERVAL:
            self._complained = now
            logger.error("no connection to Redis at %s until this is mended (%s)", where, lost.reason)
        elif self.failures == 1 or (flapping and now >= self._warned + WARN_INTERVAL):
            self._warned = now
            why = lost.reason + FLAPPING_HINT if flapping else lost.reason
            logger.warning("no connection to Redis at %s; reconnecting (%s)", where, why)
        if self.failures == 1:
            return 0.0
        try:
            # Capped, for redis-py computes 2 to its power as a float.
            delay = max(0.0, float(self._backoff.compute(min(self.failures - 2, 64))))
        except Exception:  # noqa: BLE001, users' code
            if self.failures == 2:  # the first time that it was asked
                logger.exception("the backoff failed; waiting %g s each time", FALLBACK_DELAY)
            delay = FALLBACK_DELAY
        logger.debug("attempt %d failed (%s); the next in %.3f s", self.failures, lost.reason, delay)
        return delay
