"""Handlers of requests to a topic."""

from __future__ import annotations

__all__ = ["RemoteService", "TopicHandler", "TopicService", "call_here", "failed_here"]

import asyncio
import inspect
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

from .._core.raised import first_line, is_a, name_of
from .._core.topic_tree import Words
from ..errors import PromiseTimeout, RequestFailed
from ..request import Request
from .keywords import Keywords
from .wire import to_content, topic_of

TopicHandler: TypeAlias = Callable[..., Any]
"""Called as `handler(topic, **message)`; its result is the reply."""


class RemoteService(Protocol):
    """Answers the requests of other processes on one channel or pattern."""

    def close(self) -> None:
        """Answer no more."""

    def wait_for_activation(self, *, timeout: float | None = None) -> Any:
        """Wait until it gets the requests."""


class TopicService:
    """Answers the requests to a topic and to everything below it. `Topics.serve()` makes it.

    As a context manager, it is closed at the end of the `with` block.
    """

    __slots__ = ("_close", "_handler", "_keywords", "closed", "services", "topic")

    def __init__(self, topic: Words, handler: TopicHandler, close: Callable[[TopicService], None]) -> None:
        self.topic: Words = topic
        """The words of the topic. None stand for everything."""
        self.closed: bool = False
        """Whether the service was closed."""
        self.services: list[RemoteService] = []
        self._handler = handler
        self._keywords = Keywords(handler)
        self._close = close

    def call(self, topic: Words, message: dict[str, Any]) -> Any:
        """Call the handler with the keywords that it takes; return what it returns."""
        if message and not self._keywords.fit(message):
            message, _ = self._keywords.select(message)
        return self._handler(topic, **message)

    def answer(self, prefix: bytes, request: Request[Any]) -> Any:
        """Call the handler with a request from another process."""
        return self.call(topic_of(request.channel[len(prefix) + 1 :]), to_content(request.body))

    def close(self) -> None:
        """Answer no further requests. A second call changes nothing."""
        self._close(self)

    def close_services(self) -> None:
        """Answer the requests of other processes no more."""
        while self.services:
            self.services.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<TopicService on {'.'.join(self.topic)!r} {'closed' if self.closed else 'open'}>"


def failed_here(channel: bytes, error: Exception) -> RequestFailed:
    """Return the error for the requester, as if the handler had been in another process."""
    text = first_line(error)
    kind = name_of(error)
    return RequestFailed(channel, f"{kind}: {text}" if text else kind)


async def call_here(
    service: TopicService, words: Words, message: dict[str, Any], channel: bytes, timeout: float
) -> object:
    """Call a handler of this process."""
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            result = service.call(words, message)
            return await result if inspect.isawaitable(result) else result
    except Exception as error:
        if limit.expired() and is_a(error, TimeoutError):
            raise PromiseTimeout(channel, timeout, "reply to a request") from None
        raise failed_here(channel, error) from error
