"""Key events: what happens to the keys that match a pattern, as Redis publishes it."""

from __future__ import annotations

__all__ = ["KeyEvent", "KeySubscription", "OnKeyEvent"]

from collections.abc import AsyncIterator, Callable
from functools import partial
from types import TracebackType
from typing import NamedTuple, Self, TypeAlias

from ._core.keyspace import KeyName, parse_key_event
from ._core.wire import Kind
from ._io.delivery.consumer import Consumer
from ._io.delivery.inbox import Inbox
from ._io.deployment.keyspace import KeySubscriber
from ._io.hub import Hub
from ._io.runtime.tasks import Tasks
from .errors import quote
from .message import Activation, Disconnect, Event, Message
from .reading import MessageSubscription


class KeyEvent(NamedTuple):
    """An event of a key."""

    key: bytes
    """The key."""
    event: bytes
    """What happened to it: `b"set"`, `b"del"`, `b"expired"`, and so on. Redis documents the events of each command:
    https://redis.io/docs/latest/develop/pubsub/keyspace-notifications/."""
    db: int
    """The number of its database."""
    subkeys: tuple[bytes, ...] = ()
    """The fields of a hash that the event is about, with `subkeys=True`; otherwise empty."""

    def __repr__(self) -> str:
        subkeys = f", <{len(self.subkeys)} subkeys>" if self.subkeys else ""
        return f"KeyEvent(key={quote(self.key)}, event={quote(self.event)}, db={self.db}{subkeys})"


OnKeyEvent: TypeAlias = Callable[[KeyEvent], object]
"""Called with each event of a key subscription."""


class KeySubscription:
    """The events of all keys that match a pattern. Made by `Multiplexer.new_key_subscription()`.

    In a cluster, each primary publishes the events of its own keys. So the subscription listens to every primary; for a
    single key, to the primary that owns it. It is active when all of them have confirmed it. When the connection to one
    of them is lost, or another node has taken over its keys, `on_disconnect` names that primary. The events of the
    other primaries go on meanwhile. The order of events is kept for each primary.
    """

    __slots__ = ("_messages",)

    def __init__(
        self,
        hub: Hub,
        consumer: Consumer,
        on_event: OnKeyEvent | None,
        name: KeyName,
        events: frozenset[bytes] | None,
    ) -> None:
        on_activation = consumer.on_activation
        consumer = consumer._replace(
            on_message=None if on_event is None else lambda channel, data: on_event(_event_of(channel, data)),
            on_activation=None if on_activation is None else lambda _: on_activation(name.pattern),
        )
        self._messages = _KeyMessages(hub, consumer, name, events)

    @property
    def pattern(self) -> bytes:
        """The glob pattern of the keys."""
        return self._messages.name.pattern

    @property
    def active(self) -> bool:
        """Whether every known primary has confirmed the subscription on the present connection."""
        return bool(self._messages.active)

    @property
    def closed(self) -> bool:
        """Whether the subscription, or its multiplexer, was closed."""
        return self._messages.closed

    @property
    def pending(self) -> int:
        """The number of buffered events: received, and not yet delivered."""
        return self._messages.pending

    @property
    def dropped(self) -> int:
        """The number of events dropped so far, because the buffer was full or the subscription was closed."""
        return self._messages.dropped

    def close(self) -> None:
        """Unsubscribe, at once and for good.

        No callback is called after this. Buffered events are dropped. An async callback that is being awaited is
        cancelled, unless it calls `close()`. Works offline. Without effect when the subscription is closed already.
        """
        self._messages.close()

    async def wait_for_activation(self, *, timeout: float | None = None) -> None:
        """Wait until the subscription is active: at every known primary.

        Offline, it waits for the connection. Cancelling it changes nothing else.

        Args:
            timeout: seconds to wait. None: no limit.

        Raises:
            TimeoutError: it is not active within `timeout`. If there is no connection, the `ConnectionLost` is its
                `__cause__`.
            SubscriptionRefused: a server rejects the subscription.
            SubscriptionIsClosed: the subscription or its multiplexer is closed, or was closed during the wait.
            TypeError, ValueError: the timeout is invalid.
        """
        await self._messages.wait_for_activation(timeout=timeout)

    async def get(self, timeout: float | None = None) -> KeyEvent:
        """Wait for the next event, and return it.

        Offline, it returns buffered events, then waits. A cancelled `get()` loses no event.

        Args:
            timeout: seconds to wait. None: no limit. 0: return a buffered event, or raise `TimeoutError`.

        Returns:
            The event.

        Raises:
            TimeoutError: no event arrived within `timeout`. If there is no connection, the `ConnectionLost` is its
                `__cause__`.
            SubscriptionIsClosed: the subscription or its multiplexer is closed, or was closed during the wait.
            RuntimeError: the subscription has `on_event`, or another task is reading it.
            TypeError, ValueError: the timeout is invalid.
        """
        message = await self._messages.get(timeout)
        return _event_of(message.channel, message.data)

    def get_nowait(self) -> KeyEvent:
        """Return the next buffered event, without waiting. Works offline.

        Returns:
            The event.

        Raises:
            asyncio.QueueEmpty: no event is buffered.
            SubscriptionIsClosed: the subscription or its multiplexer is closed.
            RuntimeError: the subscription has `on_event`, or another task is reading it.
        """
        message = self._messages.get_nowait()
        return _event_of(message.channel, message.data)

    def __aiter__(self) -> Self:
        """Read the events one by one. The iteration ends when the subscription closes."""
        self._messages.__aiter__()
        return self

    async def __anext__(self) -> KeyEvent:
        message = await self._messages.__anext__()
        return _event_of(message.channel, message.data)

    def events(self) -> AsyncIterator[KeyEvent | Activation | Disconnect]:
        """Read everything in order: each `Activation`, each `KeyEvent`, and each `Disconnect`, where the gap lies.

        It begins here: with an `Activation`, if the subscription is active already, and the buffered events. The
        iteration ends when the subscription closes. Offline, it waits. A cancelled step of the iteration loses no
        event. From now on, the subscription cannot be read in another way.

        Returns:
            The iterator. The name of an `Activation` is the pattern of the keys.

        Raises:
            RuntimeError: the subscription has `on_event`, `on_disconnect` or `on_activation`. While iterating: another
                task is reading the subscription.

        Example:
            ::

                await redis.set("session:7", "Ann")
                async for event in sessions.events():
                    match event:
                        case Activation(pattern):
                            print("active:", pattern)  # active: b'session:*'
                        case KeyEvent(key):
                            print(key, event.event)  # b'session:7' b'set'
                            sessions.close()  # ends the iteration
                        case Disconnect(error):
                            print("events may be missed until the next activation:", error.reason)
        """
        return _KeyEvents(self._messages.events(), self.pattern)

    async def __aenter__(self) -> Self:
        await self._messages.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return repr(self._messages)


class _KeyMessages(MessageSubscription[bytes]):
    """The messages that carry the events of one key subscription."""

    __slots__ = ("name",)

    _kind = Kind.KEYS

    def __init__(self, hub: Hub, consumer: Consumer, name: KeyName, events: frozenset[bytes] | None) -> None:
        hub.admit(name.kind, (name.name,))
        self.name = name
        super().__init__(hub, consumer, f"key subscription {quote(name.pattern)}")
        report = partial(_report, self._inbox, hub.tasks)  # the deployment must not keep the subscription alive
        hub.deployment.keyspace.add(KeySubscriber(name, events, self._inbox, report))

    @property
    def _names(self) -> tuple[bytes]:
        return (self.name.name,)

    def _check_read(self) -> None:
        if not self._inbox.is_read:
            raise RuntimeError("this subscription has on_event, so it cannot be read; make one without on_event")
        super()._check_read()

    def __repr__(self) -> str:
        return self._describe(quote(self.name.pattern)).replace(type(self).__name__, KeySubscription.__name__, 1)


class _KeyEvents:
    """Iterates over the events of a key subscription."""

    __slots__ = ("_events", "_pattern")

    def __init__(self, events: AsyncIterator[Event[bytes]], pattern: bytes) -> None:
        self._events = events
        self._pattern = pattern

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> KeyEvent | Activation | Disconnect:
        event = await self._events.__anext__()
        if isinstance(event, Message):
            return _event_of(event.channel, event.data)
        return Activation(self._pattern) if isinstance(event, Activation) else event


def _event_of(channel: bytes, data: bytes) -> KeyEvent:
    return KeyEvent(*parse_key_event(channel, data))


def _report(inbox: Inbox, tasks: Tasks, error: Exception) -> None:
    """Report an error that is no event of the subscription."""
    if not inbox.closed:
        inbox.reporter.report_aside(error, tasks)
