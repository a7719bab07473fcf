"""The subscription of one callback to a topic: how the callback is held, and how it is called."""

from __future__ import annotations

__all__ = ["TopicCallback", "TopicSubscription", "ended", "is_coroutine_function", "key_of", "noted", "running_loop"]

import asyncio
import functools
import inspect
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from types import BuiltinMethodType, CoroutineType, MethodType
from typing import Any, TypeAlias

from .._core.topic_tree import Words
from .._io.runtime.log import logger
from ..errors import SlowConsumer
from .consumer import Owner, TopicConsumer
from .keywords import Keywords

TopicCallback: TypeAlias = Callable[..., Any]


class TopicSubscription(TopicConsumer):
    """The subscription of one callback to a topic. `Topics.subscribe()` makes it.

    As a context manager, it is closed at the end of the `with` block. Any thread may use it.
    """

    __slots__ = ("_callback", "_inbox", "_keywords", "_name", "_reference")

    def __init__(
        self, owner: Owner, topic: Words, callback: TopicCallback, loop: asyncio.AbstractEventLoop | None, *, weak: bool
    ) -> None:
        super().__init__(owner, topic, key_of(callback))
        self._name = _name_of(callback)
        self._keywords = Keywords(callback)
        self._callback: TopicCallback | None = None
        self._reference: Callable[[], TopicCallback | None] | None = None
        if not weak:
            self._callback = callback
        elif isinstance(callback, MethodType):
            self._reference = weakref.WeakMethod(callback, lambda _: owner.bury(self))
        else:
            self._reference = weakref.ref(callback, lambda _: owner.bury(self))
        self._inbox = None if loop is None else _Inbox(self, loop, owner)

    def close(self) -> None:
        """End the subscription. Its callback is not called any more, not even for messages that wait for it.

        A coroutine function that is running goes on. A second call changes nothing.
        """
        super().close()

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The task that calls a coroutine function with the messages that wait."""
        return None if self._inbox is None else self._inbox.task

    def deliver(self, topic: Words, message: dict[str, Any]) -> bool:
        """Call the callback, or let its message wait, and tell whether there is a callback."""
        callback = self._callback if self._reference is None else self._reference()
        if callback is None:
            return False
        if message and not self._keywords.fit(message):
            message, new = self._keywords.select(message)
            for name in new:
                text = "%r takes no keyword %.100r, and is called without it, for topic %s"
                logger.warning(text, self, name, ".".join(topic))
        if self._inbox is not None:
            self._inbox.put(topic, message)
            return True
        try:
            result = callback(topic, **message)
            if type(result) is CoroutineType:
                result.close()
                raise TypeError(
                    "the callback returned a coroutine, and nobody awaits it; subscribe a coroutine function"
                )
        except Exception as error:  # noqa: BLE001, users' code
            self._owner.report(noted(error, self, topic))
        return True

    async def call(self, topic: Words, message: dict[str, Any]) -> None:
        """Call the coroutine function."""
        callback = self._callback if self._reference is None else self._reference()
        if callback is None:
            return
        try:
            await callback(topic, **message)
        except asyncio.CancelledError as cause:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            error = RuntimeError("a CancelledError left the callback: a task or future that it awaits was cancelled")
            error.__cause__ = cause
            self._owner.report(noted(error, self, topic))
        except Exception as error:  # noqa: BLE001, users' code
            self._owner.report(noted(error, self, topic))

    def end(self) -> None:
        """Take note of the end, and release the callback."""
        super().end()
        self._callback = self._reference = None

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open"
        return f"<TopicSubscription {'.'.join(self.topic)!r} of {self._name} {state}>"


class _Inbox:
    """The messages that wait for a coroutine function, which is called for one at a time, in their order."""

    __slots__ = (
        "_is_running",
        "_is_slow",
        "_lock",
        "_loop",
        "_messages",
        "_owner",
        "_subscription",
        "dropped",
        "task",
    )

    def __init__(self, subscription: TopicSubscription, loop: asyncio.AbstractEventLoop, owner: Owner) -> None:
        self._subscription, self._loop, self._owner = subscription, loop, owner
        self._lock = threading.RLock()  # a finalizer may interrupt; for the next three
        self._messages: deque[tuple[Words, dict[str, Any]]] = deque()
        self._is_running = False
        self._is_slow = False
        self.task: asyncio.Task[None] | None = None  # the loop itself refers weakly to its tasks
        self.dropped = 0

    def put(self, topic: Words, message: dict[str, Any]) -> None:
        """Add a message, in any thread; beyond `max_pending`, drop the oldest one."""
        with self._lock:
            self._messages.append((topic, message))
            is_new, self._is_running = not self._is_running, True
            is_full = len(self._messages) > self._owner.max_pending
            if is_full:
                self._messages.popleft()
                self.dropped += 1
            is_new_episode, self._is_slow = is_full and not self._is_slow, self._is_slow or is_full
        if is_new_episode:
            self._owner.report(noted(SlowConsumer(self.dropped, len(self._messages)), self._subscription, topic))
        if is_new:
            try:
                if running_loop() is self._loop:
                    self._start()
                else:
                    self._loop.call_soon_threadsafe(self._start)
            except RuntimeError as error:  # the loop is closed
                self._subscription.close()
                self._owner.report(noted(error, self._subscription, topic))

    def _start(self) -> None:
        self.task = self._loop.create_task(self._work())

    async def _work(self) -> None:
        try:
            while (next_one := self._next()) is not None:
                await self._subscription.call(*next_one)
        except BaseException:  # the task was cancelled; the next message starts another one
            with self._lock:
                self._is_running = False
            raise

    def _next(self) -> tuple[Words, dict[str, Any]] | None:
        with self._lock:
            if not self._messages:
                self._is_running = False
                self.task = None
                return None
            if 2 * len(self._messages) <= self._owner.max_pending:
                self._is_slow = False
            return self._messages.popleft()


def key_of(callback: TopicCallback) -> object:
    """Return what tells a callback from others. Two bound methods of one object and one function are the same."""
    if isinstance(callback, MethodType):
        return id(callback.__self__), callback.__func__
    if isinstance(callback, BuiltinMethodType):
        return id(callback.__self__), callback.__name__
    return id(callback)


def _name_of(callback: TopicCallback) -> str:
    try:
        return str(callback.__qualname__)
    except Exception:  # noqa: BLE001, users' objects
        return type(callback).__qualname__


def noted(error: Exception, subscription: TopicSubscription, topic: Words) -> Exception:
    """Add to an error where it comes from."""
    error.add_note(f"{subscription!r} was called for topic {'.'.join(topic)!r}")
    return error


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def is_coroutine_function(callback: Callable[..., Any]) -> bool:
    """Tell whether the result of a callback is to be awaited."""
    while isinstance(callback, functools.partial):
        callback = callback.func
    return inspect.iscoroutinefunction(callback) or inspect.iscoroutinefunction(type(callback).__call__)


async def ended(tasks: Iterable[asyncio.Task[None] | None]) -> bool:
    """Wait until tasks have ended, but for the one that runs; return whether there were any."""
    others = [task for task in tasks if task is not None and task is not asyncio.current_task()]
    if others:
        await asyncio.wait(others)
    return bool(others)
