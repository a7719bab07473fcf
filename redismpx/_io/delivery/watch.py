"""The observers of one multiplexer, and the operations of messages that they follow. Never raises what they raise."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from time import perf_counter
from typing import Any, NamedTuple

from ...arguments import check_plain, to_payload
from ...envelope import Envelope, Headers
from ...observing import Fact, Handled, Handling, MessageObserver, Observer, Operation, Published, Publishing
from ...typing import Payload
from ..runtime.awaitable import is_awaitable
from ..runtime.log import RecordLimit
from ..runtime.tasks import adopt
from .reporter import Reporter, raise_in_loop


class Followed(NamedTuple):
    """One message that observers follow."""

    watch: Watch
    fact: Publishing | Handling
    operations: tuple[Operation, ...]
    begin: float  # on the performance counter

    def enter(self) -> None:
        """Tell the observers that the callback runs from now on."""
        for operation in self.operations:
            self.watch.guard(operation, "enter")

    def leave(self) -> None:
        """Tell the observers that the callback does not run any more: those that entered last come first."""
        for operation in reversed(self.operations):
            self.watch.guard(operation, "leave")

    def end(self, error: BaseException | None) -> None:
        """Tell the observers the outcome."""
        seconds, begun = perf_counter() - self.begin, self.fact
        fact = Published(begun, seconds, error) if isinstance(begun, Publishing) else Handled(begun, seconds, error)
        for operation in self.operations:
            self.watch.guard(operation, "end", fact)
        self.watch.tell_message(fact)

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers that the observers add."""
        found: dict[str, str] = {}
        for operation in self.operations:
            found.update(self.watch.guard(_HeadersOf(operation), "headers") or {})
        return found


class _HeadersOf(NamedTuple):
    """Reads the headers that an observer adds: both may be anything."""

    operation: Operation

    def headers(self) -> Headers:
        return Headers(self.operation.headers)


class Outgoing(bytes):
    """A payload on its way to Redis, with the message that is followed."""

    followed: Followed


def new_watch(observers: Iterable[Observer]) -> Watch | None:
    """Return what calls these observers; None if there are none.

    Raises:
        TypeError: one of them is no observer, or has a coroutine function where a plain function must be.
    """
    all_of_them = tuple(observers)
    for observer in all_of_them:
        if not isinstance(observer, Observer):
            kind = type(observer).__name__
            raise TypeError(f"an observer must be a redismpx.observing.Observer, not {kind}: derive a class from that")
    return Watch(all_of_them) if all_of_them else None


class Watch:
    """Calls the observers. This is the only place that does."""

    def __init__(self, observers: tuple[Observer, ...]) -> None:
        self._observers = observers
        self._followers = tuple([each for each in observers if isinstance(each, MessageObserver)])
        for observer in observers:
            check_plain(observer.observe, "observe", "fact")
        for follower in self._followers:
            check_plain(follower.begin, "begin", "fact")
        self._reporter = Reporter(None, "an observer", RecordLimit())

    @property
    def follows(self) -> bool:
        """Whether an observer follows each message."""
        return bool(self._followers)

    def guard(self, target: object, name: str, *arguments: object) -> Any:
        """Call a method of an observer's object, and return its result. What it raises is logged."""
        try:
            return getattr(target, name)(*arguments)
        except BaseException as error:  # noqa: BLE001, users' code
            self._reporter.log(error, name)
            try:
                raise_in_loop(error)
            except RuntimeError:  # no loop runs in this thread, which is that of a caller
                raise error from None
            return None

    def tell(self, fact: Fact) -> None:
        """Tell all observers a fact."""
        for observer in self._observers:
            self.guard(observer, "observe", fact)

    def tell_message(self, fact: Published | Handled) -> None:
        """Tell the outcome of a message to the observers of messages."""
        for observer in self._followers:
            self.guard(observer, "observe", fact)

    # --- messages

    def begin(self, fact: Publishing | Handling) -> Followed:
        """Follow a message."""
        operations = [self.guard(observer, "begin", fact) for observer in self._followers]
        return Followed(self, fact, tuple([each for each in operations if each is not None]), perf_counter())

    def call(self, fact: Handling, function: Callable[..., object], *arguments: Any, **keywords: Any) -> object:
        """Call a function that handles a message; return its result, or an awaitable for that."""
        followed = self.begin(fact)
        followed.enter()
        try:
            result = function(*arguments, **keywords)
        except BaseException as error:
            followed.leave()
            followed.end(error)
            raise
        followed.leave()
        if is_awaitable(result):
            return _settle(followed, result)
        followed.end(None)
        return result

    def serving(self, handler: Callable[[Any], object], label: str) -> Callable[[Any], object]:
        """Return a handler of requests that the observers follow."""
        return lambda request: self.call(
            Handling(request.channel, label, request.headers, request.id), handler, request
        )

    def convert(self, name: str, channel: bytes, data: Payload, max_bytes: int | None) -> bytes:
        """Return the bytes of a payload to publish, with what the observers add to its headers."""
        if type(data) is Outgoing:
            return data
        envelope = data if isinstance(data, Envelope) else None
        headers, message_id = (None, None) if envelope is None else (envelope.headers, envelope.id)
        followed = self.begin(Publishing(name, channel, headers, message_id))
        try:
            outgoing = Outgoing(to_payload(data, max_bytes))
            if envelope is not None and (added := followed.headers):
                with suppress(ValueError):  # too long with them
                    more = replace(envelope, headers={**envelope.headers, **added})
                    outgoing = Outgoing(to_payload(more, max_bytes))
        except BaseException as error:
            followed.end(error)
            raise
        outgoing.followed = followed
        return outgoing

    def sending(self, send: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Coroutine[Any, Any, Any]]:
        """Return a function that publishes as `send` does, and tells the outcome."""

        async def sent(channel: bytes, data: bytes, *arguments: Any, **options: Any) -> Any:
            failure: BaseException | None = None
            try:
                return await send(channel, data, *arguments, **options)
            except BaseException as error:
                failure = error
                raise
            finally:
                finish(data, failure)
                del failure  # otherwise the exception refers to itself: traceback, frame, exception

        return sent

    def beginning(self, begin: Callable[..., Callable[[], None]]) -> Callable[..., Callable[[], None]]:
        """Return a function that begins to publish as `begin` does, and tells the outcome."""

        def begun(channel: bytes, data: bytes, outcome: asyncio.Future[int], **options: bool) -> Callable[[], None]:
            outcome.add_done_callback(
                lambda outcome: finish(data, asyncio.CancelledError() if outcome.cancelled() else outcome.exception())
            )
            return begin(channel, data, outcome, **options)

        return begun


def finish(data: bytes, error: BaseException | None) -> None:
    """Tell the outcome of a payload, if it is followed."""
    if type(data) is Outgoing:
        data.followed.end(error)


def describe(channel: bytes, subscription: str, data: bytes) -> Handling:
    """Return the fact of a message that is about to be handled."""
    if data.startswith(b"MPX/1 "):
        try:
            envelope = Envelope.from_bytes(data)
        except ValueError:
            pass
        else:
            return Handling(channel, subscription, envelope.headers, envelope.id)
    return Handling(channel, subscription, None, None)


async def _settle(followed: Followed, result: Awaitable[object]) -> object:
    """Await the result of a callback."""
    adopt(result)
    followed.enter()
    try:
        value = await result
    except GeneratorExit:  # the interpreter closes this in another context: its loop has ended
        raise
    except BaseException as error:
        followed.leave()
        followed.end(error)
        raise
    followed.leave()
    followed.end(None)
    return value
