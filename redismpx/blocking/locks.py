"""Locks, conditions and events for threads that wake each other, also where gevent has replaced threads by greenlets.

A greenlet that waits for one of gevent's own may get LoopExit, once other threads have woken greenlets a few thousand
times. gevent counts what its event loop has to do, and the other threads change that number while the loop does, so
some changes are lost. The one call of libev that any thread may make is `ev_async_send()`: see "THREADS" in its manual,
http://pod.tst.eu/http://cvs.schmorp.de/libev/ev.pod.
"""

from __future__ import annotations

__all__ = ["LONG", "Event", "GreenletLock", "are_threads_greenlets", "new_condition", "new_held_lock"]

import sys
import threading
from collections import deque
from contextlib import suppress
from typing import Any

# Seconds of one wait, of many. A signal that comes just before a wait does not interrupt it. And gevent takes a wait
# without a timeout for one that nothing can end.
LONG = 1.0


class GreenletLock:
    """A lock that is held. One greenlet waits until any thread releases it."""

    def __init__(self) -> None:
        self._is_free = False
        self._watcher: Any = None

    def acquire(self, *, timeout: float = -1) -> bool:
        """Wait until the lock is released, for so many seconds at most; return whether it was."""
        if not self._is_free:
            gevent = sys.modules["gevent"]
            hub = gevent.get_hub()
            waiter = sys.modules["gevent.hub"].Waiter(hub)
            watcher = self._watcher = hub.loop.async_()
            watcher.start(waiter.switch, None)
            try:
                if not self._is_free:  # released before the start
                    with gevent.Timeout(None if timeout < 0 else timeout, False):
                        waiter.get()
            finally:
                self._watcher = None
                watcher.close()
        is_free, self._is_free = self._is_free, False
        return is_free

    def release(self) -> None:
        """Let the greenlet that waits go on; or the next one that comes."""
        self._is_free = True
        if (watcher := self._watcher) is not None:
            with suppress(ValueError):  # the event loop of that thread has ended
                watcher.send()


class _GreenletCondition(threading.Condition):
    """A condition whose greenlets wait for locks that any thread may release."""

    def __init__(self, lock: Any) -> None:
        super().__init__(lock)
        self._held: deque[GreenletLock] = deque()  # each by one that waits

    def wait(self, timeout: float | None = None) -> bool:
        held = GreenletLock()
        self._held.append(held)
        self.release()
        try:
            return held.acquire(timeout=-1 if timeout is None else timeout)
        finally:
            self.acquire()
            with suppress(ValueError):  # it was notified
                self._held.remove(held)

    def notify(self, n: int = 1) -> None:
        with suppress(IndexError):  # none waits any more: a finalizer may have interrupted, and notified them too
            for _ in range(n):
                self._held.popleft().release()

    def notify_all(self) -> None:
        self.notify(len(self._held))


class Event:
    """As `threading.Event`. Any thread may set it, also under gevent."""

    def __init__(self) -> None:
        self._is_set = False
        self._changed = new_condition()

    def set(self) -> None:
        """Set the event: wake all threads that wait for it. From now on, `wait()` returns at once."""
        with self._changed:
            self._is_set = True
            self._changed.notify_all()

    def clear(self) -> None:
        """Reset the event: from now on, `wait()` waits again."""
        self._is_set = False

    def wait(self, timeout: float) -> bool:
        """Wait until the event is set, for `timeout` seconds at most; return whether it is set."""
        with self._changed:
            return self._changed.wait_for(lambda: self._is_set, timeout)


def new_held_lock() -> threading.Lock | GreenletLock:
    """Return a lock that is held, for one that waits until any thread releases it."""
    if are_threads_greenlets():
        return GreenletLock()
    lock = threading.Lock()
    lock.acquire()
    return lock


def new_condition(lock: Any = None) -> threading.Condition:
    """Return a condition with a reentrant lock. Any thread may notify it, also under gevent."""
    if are_threads_greenlets():
        return _GreenletCondition(lock or threading.RLock())
    return threading.Condition(lock)


def are_threads_greenlets() -> bool:
    """Tell whether gevent has replaced threads by greenlets."""
    gevent = sys.modules.get("gevent.monkey")
    return gevent is not None and gevent.is_module_patched("threading")
