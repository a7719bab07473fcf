"""What all sessions of a multiplexer have in common. No logic."""

from __future__ import annotations

from typing import NamedTuple

from ..._core.critical import CriticalSection
from ...stats import Counters
from ..runtime.log import RecordLimit
from ..runtime.tasks import Tasks


class SessionOptions(NamedTuple):
    """What all sessions of a multiplexer have in common."""

    ping_interval: float | None  # seconds of silence before a PING; None: never
    ping_timeout: float  # seconds
    tasks: Tasks
    counters: Counters
    critical: CriticalSection
    record_limit: RecordLimit
