"""The messages of a reader: kept until they are read, bounded, and counted. Any thread may use it."""

from __future__ import annotations

__all__ = ["TopicQueue"]

import threading
from collections import deque
from collections.abc import Callable

from .._core.topic_tree import Words
from ..errors import SlowConsumer, SubscriptionIsClosed
from .consumer import Owner, TopicConsumer
from .message import TopicMessage


class TopicQueue(TopicConsumer):
    """The messages of one reader. Beyond `max_pending`, the oldest one is dropped."""

    __slots__ = ("_is_slow", "_lock", "_max_pending", "_messages", "_wakers", "dropped")

    def __init__(self, owner: Owner, topic: Words, max_pending: int) -> None:
        super().__init__(owner, topic, self)
        self._max_pending = max_pending
        self._lock = threading.RLock()  # a finalizer may interrupt; for all that follows
        self._messages: deque[TopicMessage] = deque()
        self._wakers: set[Callable[[], object]] = set()
        self._is_slow = False
        self.dropped: int = 0
        """The number of messages that were dropped, because nobody read them in time."""

    @property
    def pending(self) -> int:
        """The number of messages that are not read yet."""
        return len(self._messages)

    def put(self, message: TopicMessage) -> None:
        """Add a message, and wake the threads that wait for one."""
        with self._lock:
            if self.closed:
                return
            self._messages.append(message)
            is_full = len(self._messages) > self._max_pending
            if is_full:
                self._messages.popleft()
                self.dropped += 1
            is_new_episode, self._is_slow = is_full and not self._is_slow, self._is_slow or is_full
            wakers = tuple(self._wakers)
        for wake in wakers:
            wake()
        if is_new_episode:
            error = SlowConsumer(self.dropped, self._max_pending)
            error.add_note(f"of the reader of topic {'.'.join(self.topic)!r}")
            self._owner.report(error)

    def fetch(self) -> TopicMessage | None:
        """Return the next message, or None.

        Raises:
            SubscriptionIsClosed: it is closed.
        """
        with self._lock:
            if self._messages:
                if 2 * len(self._messages) <= self._max_pending:
                    self._is_slow = False
                return self._messages.popleft()
            if self.closed:
                raise SubscriptionIsClosed
        return None

    def wake_by(self, wake: Callable[[], object]) -> None:
        """Call a function at each message and at the end, and now if there is one already; until `forget_waker()`."""
        with self._lock:
            self._wakers.add(wake)
            is_due = bool(self._messages) or self.closed
        if is_due:
            wake()

    def forget_waker(self, wake: Callable[[], object]) -> None:
        """Call a function no more."""
        with self._lock:
            self._wakers.discard(wake)

    def end(self) -> None:
        """Take no further messages. Those that are there can still be read."""
        with self._lock:
            super().end()
            wakers = tuple(self._wakers)
        for wake in wakers:
            wake()
