"""Events on their way from the loop to functions that a worker thread calls, one after the other, in order."""

from __future__ import annotations

__all__ = ["Inlet"]

import threading
from collections import deque
from collections.abc import Callable
from functools import partial

from ..errors import SlowConsumer
from .locks import new_condition


class Inlet:
    """A queue of calls. Of the messages among them, at most `max_pending` wait: beyond that, the oldest is dropped."""

    def __init__(
        self,
        start: Callable[[Callable[[], None]], object],
        on_message: Callable[[bytes | None, bytes], object],
        report: Callable[[Exception], object],
        max_pending: int,
    ) -> None:
        self._start = start  # has a worker call a function
        self._on_message = on_message
        self._report = report
        self._max_pending = max_pending
        self._changed = new_condition()  # a finalizer may interrupt; for all that follows
        self._calls: deque[Callable[[], object]] = deque()
        self._messages: deque[_Message] = deque()  # of these calls
        self._thread: int | None = None  # which calls them
        self._is_slow = False
        self._dropped = 0

    def put_message(self, topic: bytes | None, payload: bytes) -> None:
        """Add a message."""
        message = _Message(topic, payload)
        with self._changed:
            self._messages.append(message)
            is_full = len(self._messages) > self._max_pending
            if is_full:
                self._messages.popleft().is_dropped = True
                self._dropped += 1
            is_new_episode, self._is_slow = is_full and not self._is_slow, self._is_slow or is_full
        self.put(partial(self._deliver, message))
        if is_new_episode:
            self.put(partial(self._report, SlowConsumer(self._dropped, self._max_pending)))

    def put(self, call: Callable[[], object]) -> None:
        """Add a call of a function that does not raise."""
        with self._changed:
            self._calls.append(call)
            is_first, self._thread = self._thread is None, self._thread or -1
        if is_first:
            self._start(self._work)

    def _deliver(self, message: _Message) -> None:
        with self._changed:
            if message.is_dropped:
                return
            self._messages.popleft()
            if 2 * len(self._messages) <= self._max_pending:
                self._is_slow = False
        self._on_message(message.topic, message.payload)

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._calls:
                    self._thread = None
                    self._changed.notify_all()
                    return
                self._thread = threading.get_ident()
                call = self._calls.popleft()
            call()

    def wait_until_idle(self, timeout: float) -> None:
        """Wait until all calls have returned. Called from inside one of them, it does not wait."""
        with self._changed:
            if self._thread != threading.get_ident():
                self._changed.wait_for(lambda: self._thread is None, timeout)


class _Message:
    __slots__ = ("is_dropped", "payload", "topic")

    def __init__(self, topic: bytes | None, payload: bytes) -> None:
        self.topic, self.payload, self.is_dropped = topic, payload, False
