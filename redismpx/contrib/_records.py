"""The log records of the adapters: they never raise, and neither an outage nor a stranger can fill the log."""

from __future__ import annotations

__all__ = ["Records", "log"]

import logging
import math
import traceback
from contextlib import suppress
from time import monotonic

_RECORD_INTERVAL = 10.0  # seconds
_records_logger = logging.getLogger("redismpx")


def log(level: int, text: str, *arguments: object, exc_info: bool = False) -> None:
    """Write a record. An exception in a user's filter or handler must not end the work of an adapter."""
    try:
        _records_logger.log(level, text, *arguments, exc_info=exc_info, stacklevel=2)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException:  # noqa: BLE001, users' code
        if logging.raiseExceptions:  # as logging itself does with a handler that cannot write
            with suppress(Exception):  # sys.stderr may be closed
                traceback.print_exc()


class Records:
    """Writes at most one log record with each text in 10 seconds. The next one tells how many records were left out."""

    def __init__(self) -> None:
        self._texts: dict[str, tuple[float, int]] = {}  # when the last record was written, and how many were left out

    def log(self, level: int, text: str, *arguments: object, exc_info: bool = False) -> None:
        """Write a record, or leave it out. The text is a constant; what varies is in the arguments."""
        now = monotonic()
        written, left_out = self._texts.get(text, (-math.inf, 0))
        if now < written + _RECORD_INTERVAL:
            self._texts[text] = written, left_out + 1
            return
        self._texts[text] = now, 0
        more = f" ({left_out} more like this since the last record)" if left_out else ""
        log(level, text + "%s", *arguments, more, exc_info=exc_info)
