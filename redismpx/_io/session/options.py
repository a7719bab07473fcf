"""What all sessions of a multiplexer have in common. No logic."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from ..._core.critical import CriticalSection
from ...observing import Fact
from ...stats import Counters
from ..runtime.log import RecordLimit
from ..runtime.tasks import Tasks

Tell: TypeAlias = Callable[[Fact], None]
"""Tells the observers a fact. They may close anything."""


class SessionOptions(NamedTuple):
    """What all sessions of a multiplexer have in common."""

    ping_interval: float | None  # seconds of silence before a PING; None: never
    ping_timeout: float  # seconds
    tasks: Tasks
    counters: Counters
    critical: CriticalSection
    record_limit: RecordLimit
    tell: Tell | None = None
    """Tells the observers a fact. None: there are none."""
