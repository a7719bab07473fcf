"""What goes wrong in one subscription: to on_error, and to the log at a bounded rate."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable
from typing import Any, NamedTuple, NoReturn

from ...typing import OnError
from ..runtime.log import logger
from ..runtime.tasks import is_cancelled

LOG_INTERVAL = 10.0  # seconds between two records of the same kind of failure of one subscription


class Report(NamedTuple):
    """What on_error returned, and is to be awaited: a failure of it is logged, and not reported for ever."""

    awaitable: Awaitable[object]


class Reporter:
    """Tells the user, or failing that the log. Never raises."""

    __slots__ = ("_label", "_logged", "_on_error")

    def __init__(self, on_error: OnError | None, label: str) -> None:
        self._on_error = on_error
        self._label = label
        self._logged: dict[type[BaseException], tuple[float, int]] | None = None

    def failed(self, error: BaseException, callback: str, closed: bool) -> Report | None:
        """Report what a callback raised; return what is to be awaited, if anything."""
        self.log(error, callback)
        if isinstance(error, (SystemExit, KeyboardInterrupt)):
            # Out of the loop, as it was meant, but not through the middle of a fan-out.
            asyncio.get_running_loop().call_soon(_raise, error)
        return None if closed else self._report(error)

    async def settle(self, error: BaseException, callback: str, closed: bool) -> None:
        """Report what a callback raised, and await what on_error returns."""
        report = self.failed(error, callback, closed)
        if report is None:
            return
        try:
            await report.awaitable
        except BaseException as failure:
            if is_cancelled(failure) or isinstance(failure, GeneratorExit):
                raise
            self.log(failure, "on_error")

    def tell(self, error: Exception) -> Report | None:
        """Report what happened to the subscription; to the log, if there is nobody else to tell."""
        if self._on_error is None:
            self.log(error)
        return self._report(error)

    def _report(self, error: Any) -> Report | None:
        """Call on_error; return what is to be awaited, if anything. A failure of on_error itself is only logged."""
        if self._on_error is None:
            return None
        try:
            result = self._on_error(error)
        except BaseException as failure:  # noqa: BLE001, users' code
            self.log(failure, "on_error")
            return None
        return Report(result) if inspect.isawaitable(result) else None

    def log(self, error: BaseException, callback: str | None = None) -> None:
        """Log an error, with its traceback if a callback raised it.

        At most once in LOG_INTERVAL for each type, with a count of the others.
        """
        now = asyncio.get_running_loop().time()
        if self._logged is None:
            self._logged = {}
        next_time, suppressed = self._logged.get(type(error), (now, 0))
        if now < next_time:
            self._logged[type(error)] = (next_time, suppressed + 1)
            return
        self._logged[type(error)] = (now + LOG_INTERVAL, 0)
        more = f" ({suppressed} more since the last record)" if suppressed else ""
        if callback is None:
            logger.warning("%s: %s%s", self._label, error, more)
        else:
            logger.error("%s of %s raised %s%s", callback, self._label, type(error).__name__, more, exc_info=error)


def _raise(error: BaseException) -> NoReturn:
    raise error
