"""Read the log records and the error output of a test."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


def loud(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return the records at WARNING and above, without those of the ends of outages."""
    return [r for r in caplog.records if r.levelno >= logging.WARNING and "after an outage" not in r.getMessage()]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the texts of the records at WARNING and above, without those of the ends of outages."""
    return [r.getMessage() for r in loud(caplog)]


def without_slowness(lines: list[str]) -> list[str]:
    """Remove the warnings of asyncio's debug mode about slow steps: on a busy machine any step may be slow."""
    return [line for line in lines if not line.startswith("Executing <")]


@contextmanager
def broken_log() -> Iterator[None]:
    """Have a filter of the application raise for each record of the library."""

    def fail(record: logging.LogRecord) -> bool:
        raise LookupError("of the application's filter")

    logger = logging.getLogger("redismpx")
    logger.addFilter(fail)
    try:
        yield
    finally:
        logger.removeFilter(fail)
