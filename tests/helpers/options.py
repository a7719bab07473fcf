"""What sessions have in common, for tests of their parts."""

from __future__ import annotations

from redismpx._core.critical import CriticalSection
from redismpx._io.runtime.log import RecordLimit
from redismpx._io.runtime.tasks import Tasks
from redismpx._io.session.options import SessionOptions
from redismpx.stats import Counters


def session_options() -> SessionOptions:
    return SessionOptions(None, 1.0, Tasks(), Counters(), CriticalSection(), RecordLimit())
