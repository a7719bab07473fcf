"""The log records of a run."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager

PASSWORD = "a password that no log record may contain"


class Records(logging.Handler):
    """Keeps the last log records, counts the warnings, and reports records that must not exist."""

    def __init__(self) -> None:
        super().__init__()
        self.last: deque[str] = deque(maxlen=60)
        self.warnings: Counter[str] = Counter()
        self.faults: list[str] = []
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self.last.append(f"{time.monotonic():.3f} {record.name} {record.levelname} {text}")
        if record.threadName == "proxy":
            return
        if record.levelno >= logging.WARNING and record.name == "redismpx":
            self.warnings[str(record.msg)] += 1
        if (
            PASSWORD in text
            or record.levelno >= logging.CRITICAL
            or (record.name == "asyncio" and not text.startswith("Executing"))
        ):
            trace = self._formatter.formatException(record.exc_info) if record.exc_info else ""
            self.faults.append(f"{record.levelname} {text} {trace}")

    def print_last(self) -> None:
        print("the last log records:", *self.last, sep="\n  ")


@contextmanager
def recorded(records: logging.Handler) -> Iterator[None]:
    """Give this handler all records of the library and of asyncio, and show none of them."""
    loggers = [logging.getLogger(name) for name in ("redismpx", "asyncio")]
    for logger in loggers:
        logger.addHandler(records)
        logger.propagate = False
    loggers[0].setLevel(logging.DEBUG)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(records)
            logger.propagate = True
        loggers[0].setLevel(logging.NOTSET)
