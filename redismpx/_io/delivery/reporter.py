"""The errors of one subscription: to on_error, and to the log at a bounded rate. Never raises."""

from __future__ import annotations

import asyncio
import inspect
import math
import sys
from collections.abc import Awaitable, Coroutine
from time import monotonic
from types import CoroutineType
from typing import Any, NamedTuple, NoReturn

from ..._core.raised import is_a, name_of
from ...errors import DecodeError
from ...typing import OnError
from ..runtime.awaitable import is_awaitable
from ..runtime.log import KINDS, LOG_INTERVAL, RecordLimit, logger
from ..runtime.tasks import Tasks, adopt, is_cancelled, mark_callback, running_task


class Report(NamedTuple):
    """An awaitable that on_error returned. What it raises is logged; to report that again could go on for ever."""

    awaitable: Awaitable[object]


class Reporter:
    """Calls on_error, and logs."""

    __slots__ = ("_label", "_limit", "_logged", "_on_error", "aside")

    def __init__(self, on_error: OnError | None, label: str, limit: RecordLimit) -> None:
        self._on_error = on_error
        self._label = label
        self._limit = limit
        self._logged: dict[str, float] = {}  # when an error of each type was logged
        self.aside: asyncio.Task[object] | None = None
        """The task that awaits the last report that did not go through the buffer."""

    def failed(self, error: BaseException, callback: str, closed: bool) -> Report | None:
        """Report the exception of a callback; return an awaitable of on_error, if there is one."""
        report = None if closed else self._report(error)  # before a log handler may close the subscription
        # Without its cause, which a traceback would show: it may repeat the payload.
        self.log(error, None if is_a(error, DecodeError) else callback)
        raise_in_loop(error)
        return report

    def report(self, error: Exception) -> Report | None:
        """Report an event of the subscription, in the log if there is no on_error."""
        if self._on_error is None:
            self.log(error)
        return self._report(error)

    def report_aside(self, error: Exception, tasks: Tasks) -> None:
        """Report at once, without a wait for the events in the buffer: a stuck consumer would delay that for ever.

        While on_error is busy with an earlier report of this kind, the error is only logged.
        """
        if self.aside is not None and not self.aside.done():
            self.log(error)
            return
        report = self.report(error)
        if report is not None:
            self.aside = start(self.settle_report(report), report, tasks, self._label)

    async def settle(self, report: Report) -> None:
        """Await what on_error returned, in a task that does other work too."""
        adopt(report.awaitable)
        try:
            await report.awaitable
        except BaseException as failure:
            if is_cancelled(failure) or is_a(failure, GeneratorExit):
                raise
            self.log(failure, "on_error")

    async def settle_report(self, report: Report) -> None:
        """Await what on_error returned."""
        task = asyncio.current_task()
        assert task is not None
        mark_callback(task)
        before = task.cancelling()
        adopt(report.awaitable)
        try:
            await report.awaitable
        except BaseException as error:
            if is_cancelled(error, before) or running_task() is not task:
                raise
            self.log(error, "on_error")

    def _report(self, error: Any) -> Report | None:
        """Call on_error; return its awaitable, if there is one. An exception of on_error itself is only logged."""
        if self._on_error is None:
            return None
        try:
            result = self._on_error(error)
        except BaseException as failure:  # noqa: BLE001, users' code
            self.log(failure, "on_error")
            return None
        return Report(result) if is_awaitable(result) else None

    def log(self, error: BaseException, callback: str | None = None) -> None:
        """Log an error, with its traceback if a callback raised it.

        At most one record of a subscription in LOG_INTERVAL for each type of error, and RECORDS of all subscriptions.
        """
        now = monotonic()
        name = name_of(error)
        kind = name, callback
        if now < self._logged.get(name, -math.inf) + LOG_INTERVAL:
            self._limit.leave_out(kind)
            return
        left_out = self._limit.admit(kind)
        if left_out is None:
            return
        if len(self._logged) >= KINDS:
            self._logged.clear()
        self._logged[name] = now
        more = f" ({left_out} more like this since the last record)" if left_out else ""
        if callback is None:
            logger.warning("%s: %s%s", self._label, error, more)
        else:
            logger.error("%s of %s raised %s%s", callback, self._label, name, more, exc_info=error)


def start(
    coroutine: Coroutine[object, object, object], result: object, tasks: Tasks, label: str
) -> asyncio.Task[object]:
    """Run a coroutine that awaits `result` in a task named after the subscription."""
    task = tasks.start(coroutine, f"redismpx {label}")
    if sys.version_info < (3, 12):  # the task has not begun yet, and may be cancelled before it does
        task.add_done_callback(lambda _: _close_unstarted(result))
    return task


def raise_in_loop(error: BaseException) -> None:
    """Let `SystemExit` and `KeyboardInterrupt` leave the loop, as they are meant to, but not in a fan-out."""
    if is_a(error, SystemExit, KeyboardInterrupt):
        asyncio.get_running_loop().call_soon(_raise, error)


def _raise(error: BaseException) -> NoReturn:
    raise error


def _close_unstarted(result: object) -> None:
    """Close a coroutine that never ran, which would warn that it was never awaited."""
    coroutine = result.awaitable if type(result) is Report else result
    if type(coroutine) is CoroutineType and inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
        coroutine.close()
