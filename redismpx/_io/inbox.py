"""What the wire tells one subscription: counted, and handed to its callbacks one by one and in order.

Never blocks its caller, never raises.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, NoReturn, Protocol

from .._core.backlog import Backlog, Signal
from ..errors import ConnectionLost, SlowConsumer, SubscriptionRefused
from ..stats import Counters
from ..typing import OnActivation, OnDisconnect, OnError, OnMessage
from .pulse import Pulse
from .tasks import Tasks, running_task

logger = logging.getLogger("redismpx")

LOG_INTERVAL = 10.0  # seconds between two records of the same kind of failure of one subscription


class Callbacks(NamedTuple):
    """What a subscription was given to call."""

    on_message: OnMessage
    on_disconnect: OnDisconnect | None = None
    on_activation: OnActivation | None = None
    on_error: OnError | None = None


class _Report(NamedTuple):
    """What on_error returned, and is to be awaited: a failure of it is logged, and not reported for ever."""

    awaitable: Awaitable[object]


class Host(Protocol):
    """What an inbox needs of its multiplexer."""

    tasks: Tasks
    counters: Counters


class Inbox:
    """The callbacks of one subscription, and what waits for them.

    A callback that returns nothing is done when it returns: events go straight to it. What a callback returns and can
    be awaited is awaited by a task, the worker; until the worker is through, events wait in the backlog. So an idle
    subscription has neither.
    """

    __slots__ = ("_backlog", "_callbacks", "_host", "_label", "_logged", "_max_pending", "_on_message", "_worker",
                 "active", "closed", "dropped", "moved", "refusals")  # fmt: skip

    def __init__(self, callbacks: Callbacks, label: str, max_pending: int, host: Host) -> None:
        self._callbacks = callbacks
        self._on_message = callbacks.on_message
        self._label = label
        self._max_pending = max_pending
        self._host = host
        self._backlog: Backlog | None = None
        self._worker: asyncio.Task[object] | None = None
        self._logged: dict[type[BaseException], tuple[float, int]] | None = None
        self.closed: bool = False
        self.dropped: int = 0
        self.active: int = 0
        """How many names are active."""
        self.refusals: dict[bytes, SubscriptionRefused] = {}
        """The names that the server refuses, and how it said so."""
        self.moved: Pulse = Pulse()
        """Fires when any of this changed."""

    @property
    def pending(self) -> int:
        """Messages waiting."""
        return 0 if self._backlog is None else len(self._backlog)

    # --- events; what the registry's subscribers are asked for

    def deliver(self, channel: bytes, data: bytes) -> None:
        """Hand over a message."""
        backlog = self._backlog
        if backlog is not None:
            dropped = backlog.message(channel, data)
            if dropped:
                self._overflow(backlog, dropped)
            return
        try:
            result = self._on_message(channel, data)
        except BaseException as error:  # noqa: BLE001, users' code
            result = self._failed(error, "on_message")
        if result is not None:
            self._await(result)

    def activate(self, name: bytes) -> None:
        """Tell that a name is active."""
        self.active += 1
        self.refusals.pop(name, None)
        self.moved.fire()
        self._signal(Signal.ACTIVATION, name, frozenset((name,)))

    def disconnect(self, error: ConnectionLost) -> None:
        """Tell that a connection was lost, or one name on it."""
        self.active = 0 if error.names is None else self.active - len(error.names)
        if self._backlog is None:
            self._signal(Signal.DISCONNECT, error, error.names)
        else:
            self._drop(self._backlog.disconnect(error, error.names))

    def refuse(self, error: SubscriptionRefused) -> None:
        """Tell that the server refused a name."""
        self.refusals[error.name] = error
        self.moved.fire()
        self._signal(Signal.ERROR, error, frozenset((error.name,)))

    def forget(self, name: bytes, was_active: bool, last: bool) -> None:
        """Take back all that waits for callbacks about a name that is wanted no more, and was the `last` or not."""
        self.active -= was_active
        self.refusals.pop(name, None)
        self.moved.fire()
        self._discard(None if last else frozenset((name,)))

    def close(self) -> None:
        """Forget what waits, call nothing more, and cancel the callback that is being awaited, unless it calls this."""
        self.closed = True
        self.moved.fire()
        self._discard(None)
        if self._worker is not None and self._worker is not running_task():
            self._worker.cancel()

    def _discard(self, names: frozenset[bytes] | None) -> None:
        if self._backlog is not None:
            self._backlog.discard(names)

    # --- calling

    def _signal(self, signal: Signal, argument: object, names: frozenset[bytes] | None) -> None:
        if self._backlog is not None:
            self._backlog.signal(signal, argument, names)
            return
        result = self._call(signal, argument)
        if result is not None:
            self._await(result)

    def _call(self, first: bytes | Signal, second: Any) -> object:
        """Call the callback of one event; return what is to be awaited, if anything."""
        callbacks = self._callbacks
        callback: Callable[[Any], object] | None
        name = "on_message"
        try:
            if isinstance(first, bytes):
                return callbacks.on_message(first, second)
            if first is Signal.ERROR:
                return self._tell(second)
            if first is Signal.ACTIVATION:
                name, callback = "on_activation", callbacks.on_activation
            else:
                name, callback = "on_disconnect", callbacks.on_disconnect
            return None if callback is None else callback(second)
        except BaseException as error:  # noqa: BLE001, users' code
            return self._failed(error, name)

    def _next(self) -> object:
        """Hand over what waits, up to the first that is to be awaited; return that."""
        while self._backlog is not None and (event := self._backlog.pop()) is not None:
            result = self._call(*event)
            if _is_pending(result):
                return result
        return None

    def _await(self, result: object) -> None:
        """Let the worker await what a callback returned."""
        if not _is_pending(result):
            return
        worker = self._host.tasks.start(self._work(result), f"redismpx {self._label}")
        if sys.version_info < (3, 12):  # where it has not begun yet, and may be cancelled before it does
            worker.add_done_callback(lambda _: _close_unbegun(result))
        if not worker.done() and not self.closed:
            self._worker = worker
            self._backlog = Backlog(self._max_pending)

    async def _work(self, result: object) -> None:
        try:
            while result is not None:
                result = await self._settle(result) or self._next()
        finally:
            self._drop(self.pending)  # none, unless the worker was cancelled
            self._backlog = None
            self._worker = None

    async def _settle(self, result: Any) -> object:
        """Await what a callback returned; return what on_error returned for its failure, if that is to be awaited."""
        is_report = isinstance(result, _Report)
        try:
            await (result.awaitable if is_report else result)
        except BaseException as error:
            if _is_cancelled(error):
                raise
            if not is_report:
                return self._failed(error, "a callback")
            self._log(error, "on_error")
        return None

    # --- what went wrong

    def _drop(self, count: int) -> None:
        self.dropped += count
        self._host.counters.dropped += count

    def _overflow(self, backlog: Backlog, dropped: int) -> None:
        self._drop(dropped)
        if not backlog.overflowing:
            backlog.overflowing = True
            # At once, past the queue: a consumer that is stuck would never come to hear of it.
            reporting = self._tell(SlowConsumer(self.dropped, len(backlog)))
            if reporting is not None:
                self._host.tasks.start(self._settle(reporting), f"redismpx on_error of {self._label}")

    def _failed(self, error: BaseException, callback: str) -> _Report | None:
        """Report what a callback raised; return what is to be awaited, if anything."""
        self._log(error, callback)
        if isinstance(error, (SystemExit, KeyboardInterrupt)):
            # Out of the loop, as it was meant, but not through the middle of a fan-out.
            asyncio.get_running_loop().call_soon(_raise, error)
        return self._report(error)

    def _tell(self, error: Exception) -> _Report | None:
        """Report what happened to the subscription; to the log, if there is nobody else to tell."""
        if self._callbacks.on_error is None:
            self._log(error)
        return self._report(error)

    def _report(self, error: Any) -> _Report | None:
        """Call on_error; return what is to be awaited, if anything. A failure of on_error itself is only logged."""
        on_error = self._callbacks.on_error
        if on_error is None or self.closed:
            return None
        try:
            result = on_error(error)
        except BaseException as failure:  # noqa: BLE001, users' code
            self._log(failure, "on_error")
            return None
        return _Report(result) if inspect.isawaitable(result) else None

    def _log(self, error: BaseException, callback: str | None = None) -> None:
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


def _is_pending(result: object) -> bool:
    return result is not None and (isinstance(result, _Report) or inspect.isawaitable(result))


def _close_unbegun(result: object) -> None:
    """Spare a coroutine that will never run the warning that it was never awaited."""
    coroutine = result.awaitable if isinstance(result, _Report) else result
    if inspect.iscoroutine(coroutine) and inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
        coroutine.close()


def _is_cancelled(error: BaseException) -> bool:
    """Whether `error` ends the running task, rather than being something that a callback raised by itself."""
    task = running_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


def _raise(error: BaseException) -> NoReturn:
    raise error
