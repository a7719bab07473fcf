"""A subscription whose messages are passed to a callback, or read by threads."""

from __future__ import annotations

__all__ = ["MessageSubscription", "Readable", "Reading"]

import os
import queue
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Generic, Protocol, Self, TypeVar

from ..arguments import check_seconds
from ..errors import SubscriptionIsClosed
from ..message import Event, Message
from ..reading import MessageSubscription as AsyncMessageSubscription
from ..typing import T
from .described import described_by
from .hand_over import HandOver
from .portal import check_may_block
from .subscription import Subscription

_MESSAGES, _EVENTS = "messages", "events"

_M = TypeVar("_M")  # what reading returns
_E = TypeVar("_E")  # what events() yields


class Readable(Protocol):
    """What a reader needs of an asyncio subscription."""

    @property
    def pending(self) -> int: ...
    @property
    def dropped(self) -> int: ...
    def get_nowait(self) -> Any: ...
    def __aiter__(self) -> AsyncIterator[Any]: ...
    def events(self) -> AsyncIterator[Any]: ...


@described_by(AsyncMessageSubscription)
class Reading(Generic[_M, _E]):
    """Reads a subscription in any number of threads: each message goes to one of them."""

    __slots__ = ()

    _hand_over: HandOver

    @property
    @abstractmethod
    def _readable(self) -> Readable: ...

    @abstractmethod
    async def _ask_for_activation(self) -> None:
        """Raise a `TimeoutError` if the subscription is not active."""

    def _outage(self) -> BaseException | None:
        """Return why there is no connection."""
        try:
            self._hand_over.portal.wait(self._ask_for_activation)
        except Exception as error:  # noqa: BLE001, of interest is only its cause
            return error.__cause__
        return None

    @property
    def pending(self) -> int:
        """The number of buffered messages: received, and not yet delivered.

        A thread that reads takes up to 256 messages at a time, and at most a tenth of `max_pending`. They count as
        pending until they are read, in addition to the `max_pending` messages of the buffer.
        """
        return self._hand_over.portal.call(lambda: self._readable.pending + self._hand_over.pending)

    @property
    def dropped(self) -> int:
        return self._hand_over.portal.call(lambda: self._readable.dropped + self._hand_over.dropped)

    def get(self, timeout: float | None = None) -> _M:
        """Wait for the next message, and return it.

        Offline, it returns buffered messages, then waits. Ctrl-C in the main thread ends the wait, without the loss of
        a message.

        Args:
            timeout: seconds to wait. None: no limit. 0: return a buffered message, or raise `TimeoutError`.

        Returns:
            The message, with its payload decoded.

        Raises:
            TimeoutError: no message arrived within `timeout`. If there is no connection, the `ConnectionLost` is its
                `__cause__`.
            SubscriptionIsClosed: the subscription or its multiplexer is closed, or was closed during the wait.
            RuntimeError: the subscription has a callback for its messages, or is read by `events()`; or an event loop
                runs in this thread.
            TypeError, ValueError: the timeout is invalid.
        """
        check_seconds(timeout, "timeout")
        self._begin(_MESSAGES)
        try:
            message: _M | None = self._get_nowait() if timeout == 0 else self._hand_over.take(timeout)
        except EOFError:
            raise SubscriptionIsClosed from None
        if message is None:
            raise TimeoutError(f"no message within {timeout} s: {self!r}") from self._outage()
        return message

    def get_nowait(self) -> _M:
        """Return the next buffered message, without waiting. Works offline.

        Returns:
            The message, with its payload decoded.

        Raises:
            queue.Empty: no message is buffered.
            SubscriptionIsClosed: the subscription or its multiplexer is closed.
            RuntimeError: the subscription has a callback for its messages, or is read by `events()`.

        Example:
            ::

                try:
                    message = sub.get_nowait()
                except queue.Empty:
                    print("no message yet")  # no message yet
        """
        try:
            message = self._get_nowait()
        except EOFError:
            raise SubscriptionIsClosed from None
        if message is None:
            raise queue.Empty
        return message

    def _get_nowait(self) -> _M | None:
        self._hand_over.portal.call(self._fill_now)
        message: _M | None = self._hand_over.take_nowait()
        return message

    def listen(self, timeout: float | None = None) -> Iterator[_M]:
        """Read the messages one by one. The iteration ends when the subscription closes, also during the wait.

        Ctrl-C in the main thread ends the wait, without the loss of a message.

        Args:
            timeout: seconds without a message after which the iteration ends. None: no limit.

        Returns:
            The iterator. Several threads may iterate, each over one of its own.

        Raises:
            RuntimeError: the subscription has a callback for its messages, or is read by `events()`; or an event loop
                runs in this thread.
            TypeError, ValueError: the timeout is invalid.

        Example:
            ::

                mpx.publish("news", "hello")
                for message in sub.listen(timeout=60):  # ends after a minute without a message
                    print(message.channel, message.data)  # b'news' b'hello'
                    sub.close()  # ends the iteration, too; any thread may do it
        """
        check_seconds(timeout, "timeout")
        self._begin(_MESSAGES)
        return self._iterate(timeout)

    def run(self, handler: Callable[[_M], object], timeout: float | None = None) -> int:
        """Call a function with each message, in this thread, until the subscription closes.

        Args:
            handler: called with each message. An exception ends the call, and is raised. To stop, close the
                subscription, in the handler or in another thread.
            timeout: as for `listen()`.

        Returns:
            The number of messages handled.

        Raises:
            RuntimeError, TypeError, ValueError: as for `listen()`.

        Example:
            ::

                def handle(message: Message[bytes]) -> None:
                    print(message.data)
                    if message.data == b"stop":
                        sub.close()

                mpx.publish("news", "stop")
                count = sub.run(handle)  # prints b'stop'
                print(count)  # 1
        """
        count = 0
        for message in self.listen(timeout):
            handler(message)
            count += 1
        return count

    def __iter__(self) -> Self:
        """Read the messages one by one. The iteration ends when the subscription closes."""
        self._begin(_MESSAGES)
        return self

    def __next__(self) -> _M:
        try:
            message: _M = self._hand_over.take()
        except EOFError:
            raise StopIteration from None
        return message

    def events(self, timeout: float | None = None) -> Iterator[_E]:
        """Read everything in order: each `Activation`, each message, and each `Disconnect`, where the gap lies.

        The events begin here: each name that is active already gets its `Activation` first, and buffered messages
        follow. The iteration ends when the subscription closes. Offline, it waits. From now on, the subscription cannot
        be read in another way. Several threads may iterate: each event goes to one.

        Args:
            timeout: seconds without an event after which the iteration ends. The next call of `events()` goes on from
                there. None: no limit.

        Returns:
            The iterator.

        Raises:
            RuntimeError: the subscription has callbacks for its events; or an event loop runs in this thread.
            TypeError, ValueError: the timeout is invalid.

        Example:
            ::

                mpx.publish("news", "hello")
                for event in sub.events(timeout=60):
                    match event:
                        case Activation(name):
                            print("active:", name)  # active: b'news'
                        case Message(channel, data):
                            print(channel, data)  # b'news' b'hello'
                            sub.close()  # ends the iteration
                        case Disconnect(error):
                            print("messages may be missed until the next activation:", error.reason)
        """
        check_seconds(timeout, "timeout")
        self._begin(_EVENTS)
        return self._iterate(timeout)

    # --- the hand-over

    def _begin(self, reads: str) -> None:
        """Begin to read, if that has not begun. Raises if the subscription cannot be read in this way."""
        hand_over = self._hand_over
        hand_over.portal.check()
        check_may_block()
        if hand_over.reads != reads and not hand_over.ended:
            hand_over.portal.call(lambda: self._connect(reads))

    def _connect(self, reads: str) -> None:
        readable = self._readable
        source = readable.events() if reads == _EVENTS else readable.__aiter__()
        read_many = getattr(source, "_read_many", None)  # of streams and keys: None, as there is more to do for each
        self._hand_over.read(reads, source, lambda: readable.pending, read_many)

    def _iterate(self, timeout: float | None) -> Iterator[Any]:
        yield from self._hand_over.iterate(timeout)  # meanwhile, this keeps the subscription alive

    def _fill_now(self) -> None:
        self._connect(_MESSAGES)
        self._hand_over.fill_now(self._readable.get_nowait)

    def __del__(self) -> None:  # at any moment, in any thread
        hand_over = getattr(self, "_hand_over", None)  # None: __init__ raised
        if hand_over is not None and not hand_over.ended and hand_over.portal.pid == os.getpid():
            hand_over.portal.post(hand_over.release)


@described_by(AsyncMessageSubscription)
class MessageSubscription(Reading[Message[T], Event[T]], Subscription[AsyncMessageSubscription[T]], Generic[T]):
    """A subscription whose messages go to `on_message`; without `on_message`, it is read."""

    __slots__ = ("_hand_over",)

    def __init__(self, subscription: AsyncMessageSubscription[T], hand_over: HandOver) -> None:
        super().__init__(subscription, hand_over.border)
        self._hand_over = hand_over

    @property
    def _readable(self) -> Readable:
        return self._subscription

    def _close(self) -> None:
        super()._close()
        self._hand_over.end()

    async def _ask_for_activation(self) -> None:
        await self._subscription.wait_for_activation(timeout=0)
