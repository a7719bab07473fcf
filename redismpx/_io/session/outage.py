"""What to report of the outages of one session: each failure to the observers; to the log, the begin and the end."""

from __future__ import annotations

import logging
import math
from time import monotonic
from typing import NamedTuple

from ...errors import ConnectionLost
from ...observing import Connected, ConnectFailed, Lost
from ..redispy.errors import needs_operator
from ..runtime.log import logger
from .options import SessionOptions

WARN_INTERVAL = 60.0  # seconds between two warnings about connections that break before they are stable
ERROR_INTERVAL = 300.0  # seconds between two errors about a password or a certificate that is wrong
FLAPPING_HINT = (
    "; connections keep breaking: are messages larger than the server's client-output-buffer-limit for pubsub?"
)


class Gap(NamedTuple):
    """What a lost connection interrupted."""

    subscriptions: int = 0
    """The number of subscriptions that had an active name."""
    names: int = 0
    """The number of names that were active."""

    def __str__(self) -> str:
        if not self.subscriptions:
            return "no subscription was interrupted"
        return f"interrupted: {self.subscriptions} subscriptions, {self.names} names; what was published is missed"


class Outages:
    """Counts, logs and tells the outages of one session. The end of an outage is a warning if its begin was logged."""

    def __init__(self, options: SessionOptions) -> None:
        self._limit = options.record_limit
        self._counters = options.counters
        self._tell = options.tell
        self._was_connected = False
        self._since: float | None = None  # when the outage began; None while there is a connection
        self._gap = Gap()
        self._is_logged = False  # whether this outage was logged
        self._warned = -math.inf  # when the last warning was logged
        self._error_logged = -math.inf  # when the last error was logged

    def begin(self, where: str, lost: ConnectionLost, gap: Gap | None) -> None:
        """Tell a failure. Without a gap, it is an attempt to connect that failed."""
        if self._since is None:
            self._since, self._gap = monotonic(), gap or Gap()
        if self._tell is not None:
            self._tell(ConnectFailed(where, lost) if gap is None else Lost(where, lost, gap.subscriptions, gap.names))

    def failed(self, where: str, lost: ConnectionLost, *, is_first: bool, is_flapping: bool) -> None:
        """Log a failure, unless it belongs to an outage that was logged already."""
        now = monotonic()
        if needs_operator(lost.__cause__) and now >= self._error_logged + ERROR_INTERVAL:
            self._error_logged = now
            self._log(logging.ERROR, "no connection to Redis at %s until this is fixed (%s)", where, lost.reason)
        elif is_first or (is_flapping and now >= self._warned + WARN_INTERVAL):
            self._warned = now
            why = lost.reason + FLAPPING_HINT if is_flapping else lost.reason
            self._log(logging.WARNING, "no connection to Redis at %s; reconnecting (%s)", where, why)

    def _log(self, level: int, text: str, where: str, why: str) -> None:
        left_out = self._limit.admit("outages")  # a cluster may have hundreds of servers
        if left_out is not None:
            self._is_logged = True
            more = f"; {left_out} such records were left out" if left_out else ""
            logger.log(level, text + "%s", where, why, more)

    def ended(self, where: str) -> None:
        """Count, tell and log a new connection."""
        since = self._since
        outage = None if since is None or not self._was_connected else monotonic() - since
        self._counters.connections += 1
        self._counters.reconnects += self._was_connected
        self._was_connected = True
        seconds = self._end()
        if self._tell is not None:
            self._tell(Connected(where, outage))
        if seconds is None:
            logger.info("connected to %s", where)
        else:
            logger.warning("connected to Redis at %s after an outage of %.1f s; %s", where, seconds, self._gap)

    def given_up(self, where: str) -> None:
        """Log that no connection is needed any more, if there is none."""
        seconds = self._end()
        if seconds is not None:
            logger.warning(
                "the connection to Redis at %s is not needed any more, after an outage of %.1f s; "
                "its channels were removed, or moved to another node",
                where,
                seconds,
            )

    def _end(self) -> float | None:
        """End the outage; return how long it was if it was logged."""
        since, is_logged = self._since, self._is_logged
        self._since, self._is_logged = None, False
        return monotonic() - since if since is not None and is_logged else None
