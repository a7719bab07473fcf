"""Reading the messages of a topic, in an event loop."""

from __future__ import annotations

__all__ = ["BaseTopicReader", "TopicReader"]

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from .._core.topic_tree import Words
from ..arguments import check_seconds
from ..errors import SubscriptionIsClosed
from .message import TopicMessage
from .message_queue import TopicQueue

_IN_A_ROW = 64  # messages that are read without a wait before other tasks get a turn


class BaseTopicReader:
    """What the readers for asyncio and for threads have in common."""

    __slots__ = ("_queue",)

    def __init__(self, queue: TopicQueue) -> None:
        self._queue = queue

    @property
    def topic(self) -> Words:
        """The words of the topic, perhaps with wildcards. None stand for everything."""
        return self._queue.topic

    @property
    def pending(self) -> int:
        """The number of messages that are not read yet."""
        return self._queue.pending

    @property
    def dropped(self) -> int:
        """The number of messages that were dropped, because more than `max_pending` were not read."""
        return self._queue.dropped

    @property
    def closed(self) -> bool:
        """Whether the reader was closed. The messages that it has can still be read."""
        return self._queue.closed

    def fetch(self) -> TopicMessage | None:
        """Return the next message without a wait, or None if there is none.

        Raises:
            SubscriptionIsClosed: the reader is closed, and has no message any more.
        """
        return self._queue.fetch()

    def close(self) -> None:
        """Get no further messages. Those that are there can still be read. A second call changes nothing."""
        self._queue.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<TopicReader of {'.'.join(self.topic)!r} {state} pending={self.pending} dropped={self.dropped}>"


class TopicReader(BaseTopicReader):
    """Reads the messages of a topic. `Topics.open()` makes it. Several tasks may read: each message goes to one.

    `async for` ends when the reader is closed, and has no message any more. `with` and `async with` close it at their
    end.

    Example:
        ::

            async with topics.open("orders.eu") as orders:
                print(orders.fetch())  # None
                topics.publish("orders.eu.paid", id=7)
                message = await orders.get(timeout=5)
                print(message.topic, message.content)  # ('orders', 'eu', 'paid') {'id': 7}
    """

    __slots__ = ("_in_a_row",)

    def __init__(self, queue: TopicQueue) -> None:
        super().__init__(queue)
        self._in_a_row = 0

    async def get(self, timeout: float | None = None) -> TopicMessage:
        """Wait for the next message. If it is cancelled, no message is lost.

        Args:
            timeout: seconds. None: no limit.

        Raises:
            TimeoutError: no message came within `timeout`.
            SubscriptionIsClosed: the reader is closed, and has no message any more.
            TypeError, ValueError: the timeout is invalid.
        """
        check_seconds(timeout, "timeout")
        self._in_a_row += 1
        if self._in_a_row >= _IN_A_ROW:
            self._in_a_row = 0
            await asyncio.sleep(0)
        message = self._queue.fetch()
        if message is not None:
            return message
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(arrived.set)
            except RuntimeError:  # the loop is closed: nobody waits
                self._queue.forget_waker(wake)

        self._queue.wake_by(wake)
        try:
            async with asyncio.timeout(timeout):
                while True:
                    await arrived.wait()
                    arrived.clear()
                    message = self._queue.fetch()
                    if message is not None:  # another task may have been faster
                        return message
        finally:
            self._queue.forget_waker(wake)

    async def run(self, callback: Callable[[TopicMessage], object], timeout: float | None = None) -> int:
        """Call a function with each message, until the reader closes, or no message comes for `timeout` seconds.

        Args:
            callback: a plain function or a coroutine function. An exception ends the call, and is raised.
            timeout: seconds of silence after which the call ends. None: no limit.

        Returns:
            The number of messages that were handled.

        Raises:
            TypeError, ValueError: the timeout is invalid.

        Example:
            ::

                topics.publish("orders.eu.paid", id=7)
                count = await orders.run(lambda message: print(message.content), timeout=0.1)  # prints {'id': 7}
                print(count)  # 1
        """
        count = 0
        while True:
            try:
                message = await self.get(timeout)
            except (TimeoutError, SubscriptionIsClosed):
                return count
            result = callback(message)
            if asyncio.iscoroutine(result):
                await result
            count += 1

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TopicMessage:
        try:
            return await self.get()
        except SubscriptionIsClosed:
            raise StopAsyncIteration from None
