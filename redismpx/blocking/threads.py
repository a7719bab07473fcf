"""Daemon threads of the operating system, also where gevent has replaced threads by greenlets."""

from __future__ import annotations

__all__ = ["NativeThread", "WakingExecutor"]

import asyncio
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from .locks import Event, are_threads_greenlets


class NativeThread:
    """A daemon thread that calls a function with itself. It starts at once.

    Under gevent, an event loop in a greenlet would be taken for the running loop of all greenlets of the thread, and a
    callback that computes would block them all.
    """

    def __init__(self, function: Callable[[NativeThread], object], name: str) -> None:
        _check_eventlet()
        self._function = function
        self._ident: int | None = None
        self._thread: threading.Thread | None = None
        self._ended = Event()
        if are_threads_greenlets():
            sys.modules["gevent"].get_hub()  # with its first hub, gevent loads its settings: not in two threads at once
            sys.modules["gevent.monkey"].get_original("_thread", "start_new_thread")(self._run, ())
        else:
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        self._ident = threading.get_ident()
        try:
            self._function(self)
        finally:
            self._ended.set()

    @property
    def is_here(self) -> bool:
        """Whether the running code is in this thread."""
        return threading.get_ident() == self._ident

    def join(self, timeout: float) -> None:
        """Wait until the thread has ended."""
        if self.is_here:
            return
        if self._thread is None:
            self._ended.wait(timeout)
        else:
            self._thread.join(timeout)


class WakingExecutor(ThreadPoolExecutor):
    """The executor of an event loop whose own thread runs its work, in greenlets.

    From Python 3.14 on, asyncio then takes the end of the work for a step of the loop, and does not wake the loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Begin some work, which wakes the loop at its end."""
        future = super().submit(fn, *args, **kwargs)
        future.add_done_callback(self._wake)
        return future

    def _wake(self, _: Future[Any]) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(lambda: None)


def _check_eventlet() -> None:
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        raise RuntimeError(
            "redismpx.blocking needs threads, and eventlet has replaced them: call monkey_patch(thread=False), and "
            "what waits by eventlet.tpool.execute(); or use gevent, or worker processes with threads "
            "(gunicorn --worker-class gthread)"
        )
