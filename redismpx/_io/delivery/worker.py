"""Calls the callbacks of queued events, and awaits what they return, one at a time. Adds nothing to the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from types import CoroutineType
from typing import Any

from ..._core.events import QueuedSignal, Signal
from ...errors import ConnectionLost, narrow, widen
from ..runtime.awaitable import is_awaitable
from ..runtime.tasks import TIME_SLICE, adopt, is_cancelled, mark_callback, running_task
from ..session.subscriber import Deliver
from .event_queue import EventQueue
from .reporter import Report

_NO_EVENT = object()


async def work(queue: EventQueue, result: object) -> None:
    """Await the result of a callback, then call the callbacks of all events that are queued."""
    task = asyncio.current_task()
    assert task is not None
    mark_callback(task)
    on_message, is_read = queue.straight, queue.is_read
    slice_ends = monotonic() + TIME_SLICE
    try:
        while True:
            if result is not None:
                cancelled = task.cancelling()
                try:
                    await (result if type(result) is CoroutineType else _settle(queue, result))
                except BaseException as error:
                    # The task was cancelled; or the interpreter closes this coroutine, for its loop has ended.
                    if is_cancelled(error, cancelled) or running_task() is not task:
                        raise
                    result = queue.reporter.failed(error, "a callback", queue.closed)
                    continue
            if (batch := queue.batch) and not is_read:  # a call to _call_next() for each message would be slower
                channel, data = batch.pop(), batch.pop()
                try:
                    result = on_message(channel, data)
                except BaseException as error:  # noqa: BLE001, users' code
                    result = queue.reporter.failed(error, "on_message", queue.closed)
            else:
                if monotonic() > slice_ends:
                    await asyncio.sleep(0)
                    slice_ends = monotonic() + TIME_SLICE
                result = _call_next(queue, on_message, is_read)
                if result is _NO_EVENT:
                    break
    finally:
        queue.end_calling()


def _call_next(queue: EventQueue, on_message: Deliver, is_read: bool) -> object:
    """Call the callback of the next event, and return its result; _NO_EVENT if there is no event for a callback."""
    buffer = queue.buffer
    if buffer is None or queue.context.tasks.is_ending:
        return _NO_EVENT
    message = None if is_read else buffer.pop_message()
    if message is not None:
        try:
            return on_message(*message)
        except BaseException as error:  # noqa: BLE001, users' code
            return queue.reporter.failed(error, "on_message", queue.closed)
    signal = None if queue.reads_events else buffer.pop_signal()
    return _NO_EVENT if signal is None else call(queue, signal.kind, argument_of(signal))


def call(queue: EventQueue, kind: Signal, argument: Any) -> object:
    """Call the callback of a signal, and return its result."""
    if kind is Signal.ERROR:
        return queue.reporter.report(argument)
    callback: Callable[[Any], object] | None
    if kind is Signal.ACTIVATION:
        name, callback = "on_activation", queue.consumer.on_activation
    elif kind is Signal.GAP:
        name, callback = "on_gap", queue.consumer.on_gap
    else:
        name, callback = "on_disconnect", queue.consumer.on_disconnect
    if callback is None:
        return None
    try:
        return callback(argument)
    except BaseException as error:  # noqa: BLE001, users' code
        return queue.reporter.failed(error, name, queue.closed)


async def _settle(queue: EventQueue, result: object) -> None:
    if type(result) is Report:
        await queue.reporter.settle_report(result)
    elif is_awaitable(result):
        adopt(result)
        await result


def argument_of(signal: QueuedSignal) -> Any:
    """Return the argument of a callback. A disconnect has only the names that are still subscribed to."""
    error, names = signal.argument, signal.names
    if signal.is_merged and isinstance(error, ConnectionLost) and error.node is not None:
        return widen(error)  # events of all primaries were dropped
    if isinstance(error, ConnectionLost) and names is not None and error.names is not None:
        return error if len(names) == len(error.names) else narrow(error, frozenset(names))
    return error
