"""The logger of the library, and the bound of its rate.

The logger never raises: an exception in a user's filter or handler must not cost a connection.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Hashable
from contextlib import suppress
from time import monotonic
from typing import Any

LOG_INTERVAL = 10.0  # seconds for which RECORDS and the records of one subscription are counted
RECORDS = 10  # of one kind, that a multiplexer writes in LOG_INTERVAL
KINDS = 100  # that are told apart; any number of types of exceptions may be raised


class _Logger(logging.LoggerAdapter[logging.Logger]):
    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        try:
            super().log(level, msg, *args, stacklevel=2, **kwargs)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:  # noqa: BLE001, users' code
            if logging.raiseExceptions:  # as logging itself does with a handler that cannot write
                with suppress(Exception):  # sys.stderr may be closed
                    traceback.print_exc()


logger = _Logger(logging.getLogger("redismpx"))


def call_late(function: Callable[[], object]) -> None:
    """Call a function for a finalizer, which could not call it itself. An error is logged: there is no caller."""
    try:
        function()
    except Exception:  # most often the subscription was closed meanwhile
        logger.debug(
            "a finalizer could not release something, most often because its subscription is closed", exc_info=True
        )


class _Window:
    """The records of one kind since a point in time."""

    __slots__ = ("begin", "left_out", "written")

    def __init__(self) -> None:
        self.begin = monotonic()
        self.written = 0
        self.left_out = 0  # since the last record


class RecordLimit:
    """Bounds the number of records of each kind that one multiplexer writes."""

    def __init__(self) -> None:
        self._windows: dict[Hashable, _Window] = {}

    def admit(self, kind: Hashable) -> int | None:
        """Return how many records of a kind were left out since the last one; None to leave this one out too."""
        window = self._window(kind)
        now = monotonic()
        if now >= window.begin + LOG_INTERVAL:
            window.begin, window.written = now, 0
        if window.written >= RECORDS:
            window.left_out += 1
            return None
        window.written += 1
        left_out, window.left_out = window.left_out, 0
        return left_out

    def leave_out(self, kind: Hashable) -> None:
        """Count a record that is left out for another reason."""
        self._window(kind).left_out += 1

    def _window(self, kind: Hashable) -> _Window:
        window = self._windows.get(kind)
        if window is None:
            if len(self._windows) >= KINDS:
                kind = None
            window = self._windows.setdefault(kind, _Window())
        return window
