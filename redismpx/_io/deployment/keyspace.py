"""Key events: each subscription has its name at every primary, because each one publishes the events of its own keys.

For one subscription and one primary the order is: activation, messages, disconnect. Towards the subscriber, the name is
active when every known primary has confirmed it; the loss of any primary is a disconnect, which names the primary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable
from contextvars import Context

from ..._core.keyspace import KeyName, missing_flags
from ...errors import ConnectionLost, KeyEventsDisabled, SubscriptionRefused, plain
from ..redispy.endpoint import Endpoint
from ..runtime.log import logger
from ..runtime.tasks import Tasks
from ..session.session import Session
from ..session.subscriber import Subscriber

SETTING = "notify-keyspace-events"


class Primary:
    """A server that publishes events of its keys."""

    def __init__(self, node: str | None, endpoint: Endpoint, session: Session, tasks: Tasks) -> None:
        self.node = node
        """The address of a node of a cluster; None for any other server."""
        self.session = session
        self._endpoint = endpoint
        self._tasks = tasks
        self._unchecked: list[KeySubscriber] = []

    def check_setting(self, subscriber: KeySubscriber) -> None:
        """Look whether the server publishes the events that a subscriber needs. One question serves many of them."""
        self._unchecked.append(subscriber)
        if len(self._unchecked) == 1:
            self._tasks.start(self._ask(), "redismpx key event setting", Context())

    async def _ask(self) -> None:
        flags = None
        try:
            reply = await self._endpoint.call("CONFIG", "GET", SETTING)
            value = next(iter(reply.values())) if isinstance(reply, dict) else reply[1]  # RESP3, RESP2
            flags = value.decode() if isinstance(value, bytes) else str(value)
        except Exception as error:  # noqa: BLE001, most often CONFIG is forbidden; and redis-py raises anything
            logger.debug("the server does not tell its %s (%s)", SETTING, plain(str(error)))
        finally:
            subscribers, self._unchecked = self._unchecked, []
        if flags is not None:
            for subscriber in subscribers:
                subscriber.compare(flags, self.node)


class KeySubscriber:
    """A subscriber to key events, and its name at each primary."""

    def __init__(
        self,
        name: KeyName,
        events: frozenset[bytes] | None,
        subscriber: Subscriber,
        report: Callable[[Exception], None],
    ) -> None:
        self.name = name
        self.events = events
        """The events to deliver; None: all."""
        self.subscriber = subscriber
        self._report = report
        self.feeds: dict[str | None, Feed] = {}
        """By the nodes of their primaries."""
        self.is_active: bool = False
        """Whether the subscriber was notified that its name is active."""
        self._is_refused = False
        self._reported: set[str] = set()  # flags that were missing

    def enter(self, primary: Primary) -> None:
        """Subscribe to the name at a primary."""
        feed = self.feeds[primary.node] = Feed(self, primary)
        primary.session.add(self.name.kind, (self.name.name,), feed)

    def leave(self, feed: Feed) -> None:
        """Unsubscribe from the name at a primary."""
        del self.feeds[feed.primary.node]
        feed.primary.session.remove(self.name.kind, (self.name.name,), feed)

    def settle(self) -> None:
        """Notify the subscriber if every known primary has confirmed the name."""
        if not self.is_active and self.feeds and all(feed.is_active for feed in [*self.feeds.values()]):
            self.is_active, self._is_refused = True, False
            self.subscriber.activate(self.name.name)

    def lose(self, error: ConnectionLost) -> None:
        """Notify the subscriber of a gap."""
        self.is_active = False
        self.subscriber.disconnect(error, (self.name.name,))

    def refuse(self, error: SubscriptionRefused) -> None:
        """Notify the subscriber that a primary rejects the name: once, although each of them may."""
        if not self._is_refused:
            self._is_refused = True
            self.subscriber.refuse(error)

    def compare(self, flags: str, node: str | None) -> None:
        """Report if a server with this setting does not publish the events."""
        missing = missing_flags(flags, self.name, self.events)
        if missing and missing not in self._reported:
            self._reported.add(missing)
            self._report(KeyEventsDisabled(self.name.pattern, flags, missing, node))


class Feed:
    """The events for one subscriber from one primary. Implements `Subscriber`."""

    def __init__(self, owner: KeySubscriber, primary: Primary) -> None:
        self._owner = owner
        self.primary = primary
        self.is_active: bool = False
        """Whether the primary has confirmed the name."""
        self.is_doubted: bool = False
        """Whether the last slot map lacked the primary."""

    def deliver(self, channel: bytes, data: bytes) -> object:
        """Deliver a message, unless its event is not wanted."""
        owner = self._owner
        if owner.events is None or owner.name.event_of(data) in owner.events:
            return owner.subscriber.deliver(channel, data)
        return None

    def accept(self, result: object) -> None:
        """Take the result of `deliver`."""
        self._owner.subscriber.accept(result)

    def flush(self) -> None:
        """Do the work that `deliver` deferred."""
        self._owner.subscriber.flush()

    def failed(self, error: BaseException) -> None:
        """Take the exception that `deliver` raised."""
        self._owner.subscriber.failed(error)

    def activate(self, name: bytes) -> None:
        """Take note that the primary has confirmed the name."""
        self.is_active = True
        self.primary.check_setting(self._owner)
        self._owner.settle()

    def disconnect(self, error: ConnectionLost, lost: Iterable[bytes] | None = None) -> None:
        """Take note that the connection to the primary is lost."""
        self.is_active = False
        self._owner.lose(_at(error, self.primary.node))

    def refuse(self, error: SubscriptionRefused) -> None:
        """Take note that the primary rejects the name."""
        self._owner.refuse(error)


def _at(error: ConnectionLost, node: str | None) -> ConnectionLost:
    """Return the same error about one primary of a cluster."""
    if node is None:
        return error
    located = ConnectionLost(f"primary {node}: {error.reason}", node=node)
    located.__cause__ = error.__cause__
    return located


class Keyspace(ABC):
    """The subscribers to key events."""

    def __init__(self) -> None:
        self._subscribers: dict[Subscriber, KeySubscriber] = {}

    def add(self, subscriber: KeySubscriber) -> None:
        """Subscribe to the events of some keys."""
        self._subscribers[subscriber.subscriber] = subscriber
        self._place_new(subscriber)

    @abstractmethod
    def _place_new(self, subscriber: KeySubscriber) -> None:
        """Subscribe to the name of a subscriber at the primaries, as far as they are known."""

    def remove(self, subscriber: Subscriber) -> int:
        """Unsubscribe a subscriber; return how many of its names were active, 0 or 1."""
        known = self._subscribers.pop(subscriber, None)
        if known is None:
            return 0
        for feed in [*known.feeds.values()]:
            known.leave(feed)
        return int(known.is_active)

    def is_active(self, subscriber: Subscriber) -> bool:
        """Tell whether every known primary has confirmed the name of a subscriber."""
        known = self._subscribers.get(subscriber)
        return known is not None and known.is_active

    @property
    @abstractmethod
    def sessions(self) -> Collection[Session]:
        """The sessions with the primaries."""

    @property
    def outage(self) -> ConnectionLost | None:
        """Why there is no connection to a primary now; None while there is one to each."""
        return next(filter(None, [session.outage for session in self.sessions]), None)


class ServerKeyspace(Keyspace):
    """The subscribers to key events of a single server: their names are on its main session."""

    def __init__(self, main: Session, endpoint: Endpoint, tasks: Tasks) -> None:
        super().__init__()
        self._primary = Primary(None, endpoint, main, tasks)

    @property
    def sessions(self) -> Collection[Session]:
        """The main session."""
        return (self._primary.session,)

    def _place_new(self, subscriber: KeySubscriber) -> None:
        subscriber.enter(self._primary)
