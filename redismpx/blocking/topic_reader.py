"""Reading the messages of a topic, in threads."""

from __future__ import annotations

__all__ = ["TopicReader"]

from collections.abc import Callable
from time import monotonic
from typing import Self

from .. import topics
from ..arguments import check_seconds
from ..errors import SubscriptionIsClosed
from ..topics.message import TopicMessage
from ..topics.reader import BaseTopicReader
from .described import described_by
from .locks import LONG, Event
from .portal import check_may_block


@described_by(topics.TopicReader)
class TopicReader(BaseTopicReader):
    """Reads the messages of a topic, in any thread. `Topics.open()` makes it. Each message goes to one thread.

    `for` ends when the reader is closed, and has no message any more. `with` closes it at the end of the block.
    """

    __slots__ = ()

    def get(self, timeout: float | None = None) -> TopicMessage:
        check_seconds(timeout, "timeout")
        message = self._queue.fetch()
        if message is not None:
            return message
        check_may_block()
        give_up = None if timeout is None else monotonic() + timeout
        arrived = Event()
        self._queue.wake_by(arrived.set)
        try:
            while True:
                left = LONG if give_up is None else min(LONG, give_up - monotonic())
                if left <= 0:
                    raise TimeoutError(f"no message within {timeout} s")
                if not arrived.wait(left):
                    continue
                arrived.clear()
                message = self._queue.fetch()
                if message is not None:  # another thread may have been faster
                    return message
        finally:
            self._queue.forget_waker(arrived.set)

    def run(self, callback: Callable[[TopicMessage], object], timeout: float | None = None) -> int:
        """Call a function with each message, until the reader closes, or no message comes for `timeout` seconds.

        Args:
            callback: called in this thread. An exception ends the call, and is raised.
            timeout: seconds of silence after which the call ends. None: no limit.

        Returns:
            The number of messages that were handled.

        Raises:
            RuntimeError: an event loop runs in this thread.
            TypeError, ValueError: the timeout is invalid.

        Example:
            ::

                topics.publish("orders.eu.paid", id=7)
                count = orders.run(lambda message: print(message.content), timeout=0.1)  # prints {'id': 7}
                print(count)  # 1
        """
        count = 0
        while True:
            try:
                message = self.get(timeout)
            except (TimeoutError, SubscriptionIsClosed):
                return count
            callback(message)
            count += 1

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TopicMessage:
        try:
            return self.get()
        except SubscriptionIsClosed:
            raise StopIteration from None
