"""Calls the callbacks of topics that are about no message; errors go to the log without `on_error`. Never raises."""

from __future__ import annotations

__all__ = ["TopicReporter"]

from collections.abc import Callable
from typing import Any

from .. import ConnectionLost, MessageGap
from .._core.raised import is_a, name_of
from .._core.topic_tree import Words
from .._io.runtime.log import RecordLimit, logger
from ..arguments import check_plain
from ..errors import DecodeError
from ..message import OnGap
from ..typing import OnDisconnect


class TopicReporter:
    """The callbacks of one `Topics`."""

    def __init__(
        self,
        on_disconnect: OnDisconnect | None,
        on_activation: Callable[[Words], object] | None,
        on_gap: OnGap | None,
        on_error: Callable[[Exception], object] | None,
    ) -> None:
        self._on_disconnect = check_plain(on_disconnect, "on_disconnect", "error")
        self._on_activation = check_plain(on_activation, "on_activation", "topic")
        self._on_gap = check_plain(on_gap, "on_gap", "gap")
        self.on_error: Callable[[Exception], object] | None = check_plain(on_error, "on_error", "error")
        self._records = RecordLimit()

    def disconnected(self, error: ConnectionLost) -> None:
        """Report that messages of other processes are missed from here on."""
        self._call(self._on_disconnect, error)

    def activated(self, words: Words) -> None:
        """Report that the messages that a subscription covers are received from here on."""
        self._call(self._on_activation, words)

    def missed(self, gap: MessageGap) -> None:
        """Report messages of a stream that are lost for good."""
        if self._on_gap is None:
            self.report(gap)
        else:
            self._call(self._on_gap, gap)

    def _call(self, callback: Callable[[Any], object] | None, argument: object) -> None:
        try:
            if callback is not None:
                callback(argument)
        except Exception as error:  # noqa: BLE001, users' code
            self.report(error)

    def report(self, error: Exception) -> None:
        """Pass an error to `on_error`; without that, or if it fails, log it at a bounded rate."""
        try:
            if self.on_error is not None:
                self.on_error(error)
                return
        except Exception as failure:  # noqa: BLE001, users' code
            self._log("on_error raised an exception", failure)
        # Without the cause of a DecodeError, which a traceback would show: it may repeat the payload.
        self._log("topics: %s", error, error, has_traceback=not is_a(error, DecodeError))

    def _log(self, text: str, error: Exception, *arguments: object, has_traceback: bool = True) -> None:
        left_out = self._records.admit(name_of(error))
        if left_out is not None:
            more = f" ({left_out} records of this kind were left out)" if left_out else ""
            logger.error(f"{text}%s", *arguments, more, exc_info=error if has_traceback else None)
