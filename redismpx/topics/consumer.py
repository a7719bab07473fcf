"""What consumes the messages of a topic: a callback, or a reader."""

from __future__ import annotations

__all__ = ["Owner", "TopicConsumer"]

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Self

from .._core.topic_tree import Words


class Owner(NamedTuple):
    """What a consumer needs of its `Topics`."""

    report: Callable[[Exception], None]
    forget: Callable[[TopicConsumer], None]
    bury: Callable[[TopicConsumer], None]
    """Called by a finalizer: it may only take a note."""
    max_pending: int


class TopicConsumer:
    """Consumes the messages of a topic, until it is closed: for a context manager, at the end of the block."""

    __slots__ = ("__weakref__", "_is_closed", "_owner", "is_followed", "key", "topic")

    def __init__(self, owner: Owner, topic: Words, key: object) -> None:
        self.topic: Words = topic
        """The words of the topic. In them, `=` is one word, and `+` is one word or more; none stand for everything."""
        self.key: object = key
        self.is_followed: bool = False
        """Whether Redis was asked for the messages of other processes."""
        self._owner = owner
        self._is_closed = False

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._is_closed

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The task that calls a coroutine function with the messages that wait."""
        return None

    def close(self) -> None:
        """End it. A second call changes nothing."""
        self._owner.forget(self)

    def end(self) -> None:
        """Take note of the end, and release what it refers to."""
        self._is_closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
