"""The log records of the adapters."""

from __future__ import annotations

import logging

import pytest

from redismpx.contrib import _records
from redismpx.contrib._records import Records, log

from ..helpers.logs import broken_log


def test_one_record_of_each_text_is_written_in_a_while(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault that repeats itself is one record in 10 seconds; the next one has the number of those left out."""
    now = 100.0
    monkeypatch.setattr(_records, "monotonic", lambda: now)
    records = Records()
    for number in range(100):
        records.log(logging.WARNING, "lost: %s", number)
        records.log(logging.ERROR, "failed")
    now += 10
    records.log(logging.WARNING, "lost: %s", 100)
    now += 9
    records.log(logging.WARNING, "lost: %s", 101)
    assert caplog.messages == ["lost: 0", "failed", "lost: 100 (99 more like this since the last record)"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.ERROR, logging.WARNING]


def test_a_filter_that_raises_reaches_no_caller(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exception of an application's filter goes where logging writes those of handlers, and nowhere else."""
    for is_shown in (True, False):
        monkeypatch.setattr(logging, "raiseExceptions", is_shown)
        with broken_log():
            log(logging.WARNING, "lost: %s", 1)
            Records().log(logging.WARNING, "lost: %s", 1)
        assert capsys.readouterr().err.count("LookupError: of the application's filter") == 2 * is_shown
