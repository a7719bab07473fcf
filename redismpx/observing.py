"""What a multiplexer tells its observers: facts, which are frozen. No logic and no I/O."""

from __future__ import annotations

__all__ = [
    "ConnectFailed",
    "Connected",
    "Dropped",
    "Fact",
    "Handled",
    "Handling",
    "Lost",
    "MessageObserver",
    "Missed",
    "Observer",
    "Operation",
    "Published",
    "Publishing",
    "Refused",
    "Subscribed",
]

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from .errors import ConnectionLost


@dataclass(frozen=True, slots=True)
class Connected:
    """A connection for subscriptions was made. In a cluster, there is one to each primary with sharded channels."""

    server: str
    """Where it leads, without a password."""
    outage: float | None
    """The seconds since the loss of the connection before it. None: it is the first one."""


@dataclass(frozen=True, slots=True)
class ConnectFailed:
    """An attempt to connect failed. Another one follows."""

    server: str
    """The server, without a password."""
    error: ConnectionLost
    """The reason; its `__cause__` is the exception."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A connection for subscriptions was lost. What is published until the next `Subscribed` of a name is missed."""

    server: str
    """Where it led, without a password."""
    error: ConnectionLost
    """The reason; its `__cause__` is the exception."""
    subscriptions: int
    """The number of subscriptions that had an active name."""
    names: int
    """The number of names that were active."""


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The server has confirmed a name. It does that again on each new connection."""

    kind: str
    """`"channel"`, `"pattern"` or `"shard channel"`."""
    name: bytes
    """The channel or the pattern."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The server rejects a name."""

    kind: str
    """As for `Subscribed`."""
    name: bytes
    """The channel or the pattern."""
    reason: str
    """The text of the server."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """Messages of a subscription were dropped: it was too slow, or closed, or they could not be decoded."""

    subscription: str
    """The kind of the subscription; for a pattern, with the pattern."""
    count: int
    """The number of messages."""


@dataclass(frozen=True, slots=True)
class Missed:
    """A stream subscription got a `MessageGap`: Redis does not have some messages any more."""

    channel: bytes
    """The stream."""
    after: bytes
    """The id of the last message before the gap."""
    before: bytes | None
    """The id of the first message behind the gap. None: there is none yet."""
    reason: str
    """`"trimmed"`, `"restarted"` or `"expired"`."""


@dataclass(frozen=True, slots=True)
class Publishing:
    """A message is about to be published."""

    name: str
    """`"publish"`, `"append"` or `"request"`."""
    channel: bytes
    """The channel, or the stream."""
    headers: Mapping[str, str] | None
    """The headers of its `Envelope`. None: the message is no envelope, and cannot carry headers."""
    id: str | None
    """The id of the envelope."""


@dataclass(frozen=True, slots=True)
class Published:
    """A message that was to be published has its outcome."""

    publishing: Publishing
    seconds: float
    """The time from the call to the outcome."""
    error: BaseException | None
    """Why the call failed. None: Redis has accepted the message."""


@dataclass(frozen=True, slots=True)
class Handling:
    """A callback, or the handler of a service, is about to be called with a message."""

    channel: bytes
    """The channel, or the stream."""
    subscription: str
    """As for `Dropped`; for a service, with its channel or pattern."""
    headers: Mapping[str, str] | None
    """The headers of its `Envelope`. None: the payload is no envelope."""
    id: str | None
    """The id of the envelope."""


@dataclass(frozen=True, slots=True)
class Handled:
    """A callback or a handler has returned; a coroutine function: it has ended."""

    handling: Handling
    seconds: float
    """The time that it took."""
    error: BaseException | None
    """What it raised."""


Fact: TypeAlias = Connected | ConnectFailed | Lost | Subscribed | Refused | Dropped | Missed | Published | Handled
"""What an observer may be told. There may be more kinds in later versions."""


class Operation:
    """One message that is published or handled, as a `MessageObserver` follows it. This one does nothing."""

    headers: Mapping[str, str] = {}
    """Headers to add to the envelope of a message that is published, for example those of a trace."""

    def enter(self) -> None:
        """Take note that the callback is called, or awaited. Called in the context that it runs in."""

    def leave(self) -> None:
        """Take note that the callback has returned, or is not awaited any more. Called in the context of `enter()`."""

    def end(self, fact: Published | Handled) -> None:
        """Take the outcome. This is the last call."""


class Observer:
    """Get what happens to connections, names and messages. Derive a class from it, and override `observe()`.

    Pass observers to the `Multiplexer`. They get the facts in order, in the thread of its loop, and must return at
    once, as plain callbacks must. What they raise is logged, and changes nothing. They may call everything. After
    `close()`, they still get what it has dropped and failed.

    Example:
        ::

            class Alarm(Observer):
                def observe(self, fact: Fact) -> None:
                    if isinstance(fact, Refused):
                        print(fact.name, fact.reason)

            mpx = Multiplexer("redis://localhost:6379", observers=[Alarm()])
    """

    def observe(self, fact: Fact, /) -> None:
        """Take a fact. Ignore those that you do not know: later versions may have more.

        Args:
            fact: what has happened.
        """


class MessageObserver(Observer):
    """An observer of each message that is published, or handled by a callback or a service. This takes time.

    It gets `Published` and `Handled` in `observe()`, too. With `redismpx.blocking`, it is called in the threads that
    publish, and in the thread of the loop.
    """

    def begin(self, fact: Publishing | Handling, /) -> Operation | None:
        """Begin to follow a message.

        Args:
            fact: what is about to happen.

        Returns:
            The object that follows the message, or None.
        """
