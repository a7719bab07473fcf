"""Threads that call users' callbacks, so that no callback runs in the thread of the loop."""

from __future__ import annotations

__all__ = ["Workers"]

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from functools import partial
from time import monotonic
from typing import Any

from .._core.raised import is_a, name_of
from .locks import new_condition
from .portal import Portal
from .threads import NativeThread

_MOST = 32  # threads for callbacks; a service adds its own
_IDLE = 10.0  # seconds without a callback after which a thread ends


class Workers:
    """Daemon threads, as many as callbacks run at a time, up to a limit. Beyond, callbacks wait for their turn.

    Each subscription has at most one callback waiting or running, and a service as many as it has threads.
    """

    def __init__(self, portal: Portal) -> None:
        self.limit: int = _MOST
        self._portal = portal
        self._jobs: deque[Callable[[], None]] = deque()
        self._threads: set[NativeThread] = set()
        self._count = 0  # of threads, those that are about to start included
        self._idle = 0  # threads that wait for a job
        self._has_ended = False
        self._changed = new_condition()  # a finalizer may interrupt; for all of these

    def calling(self, function: Callable[..., object] | None) -> Callable[..., Coroutine[Any, Any, Any]] | None:
        """Return a coroutine function that calls a function in a worker, and returns or raises what that does."""
        return None if function is None else partial(self._call, function)

    async def _call(self, function: Callable[..., object], *arguments: object) -> object:
        future: asyncio.Future[tuple[object, BaseException | None]] = asyncio.get_running_loop().create_future()
        context = copy_context()  # tells whose callback it is, when it closes its own subscription

        def settle(result: object, error: BaseException | None) -> None:
            if not future.done():
                future.set_result((result, error))

        def job() -> None:
            if future.cancelled():  # the subscription was closed
                return
            try:
                result = context.run(function, *arguments)
            except BaseException as error:  # noqa: BLE001, users' code; reported by the loop
                self._portal.post(partial(settle, None, error))
            else:
                self._portal.post(partial(settle, result, None))

        self.start(job)
        result, error = await future
        if error is None:
            return result
        try:
            if is_a(error, Exception):
                raise error
            raise RuntimeError(f"a callback raised {name_of(error)}") from error  # which would end the loop
        finally:
            del error  # otherwise the exception refers to itself: traceback, frame, exception

    def start(self, job: Callable[[], None]) -> None:
        """Call a function, which does not raise, in a worker."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()
            if len(self._jobs) <= self._idle or self._count >= self.limit:
                return
            self._count += 1
        try:
            NativeThread(self._work, "redismpx callbacks")
        except RuntimeError:  # no more threads, or the interpreter exits: the others do it
            with self._changed:
                self._count -= 1

    def _work(self, thread: NativeThread) -> None:
        with self._changed:
            self._threads.add(thread)
        while (job := self._next_job()) is not None:
            job()
            del job
        with self._changed:
            self._count -= 1
            self._threads.discard(thread)

    def _next_job(self) -> Callable[[], None] | None:
        """Wait for a job; return None when there is none for so long that the thread is to end."""
        with self._changed:
            self._idle += 1
            try:
                if not (self._jobs or self._has_ended):
                    self._changed.wait(_IDLE)
                return self._jobs.popleft() if self._jobs else None
            finally:
                self._idle -= 1

    @property
    def are_here(self) -> bool:
        """Whether the running code is in one of these threads."""
        return any(thread.is_here for thread in tuple(self._threads))

    def end(self, timeout: float) -> None:
        """Wait until all callbacks have ended, but for the one that calls this, and end the threads."""
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()
            threads = tuple(self._threads)
        give_up = monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, give_up - monotonic()))
