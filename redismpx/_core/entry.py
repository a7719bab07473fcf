"""One name: who wants it, what each of them was told, and the table of what may become of it on the server."""

from __future__ import annotations

from collections.abc import Collection
from typing import Generic, TypeVar

from .wire import IdentityEnum, Kind

S = TypeVar("S")  # a subscriber: hashable, and otherwise the caller's affair


class NameState(IdentityEnum):
    """What is known of a name on the server."""

    ABSENT = "absent"
    JOINING = "joining"  # (P)SUBSCRIBE in flight
    JOINED = "joined"
    LEAVING = "leaving"  # (P)UNSUBSCRIBE in flight
    REFUSED = "refused"


class NameEvent(IdentityEnum):
    """What moves a name from one state to another."""

    ASKED = "asked"  # a (P)SUBSCRIBE with it was sent
    GIVEN_UP = "given up"  # a (P)UNSUBSCRIBE with it was sent
    CONFIRMED = "confirmed"  # the command in flight was confirmed
    REFUSED = "refused"  # a (P)SUBSCRIBE in flight was refused, and it carried this name alone
    HELD = "held"  # the command in flight was refused, and this name is as it was before
    DROPPED = "dropped"  # the server unsubscribed it without being asked
    RETRIED = "retried"  # a refused name is to be asked for again
    LOST = "lost"  # the connection is gone, and every subscription with it


NAME_TRANSITIONS: dict[tuple[NameState, NameEvent], NameState] = {
    (NameState.ABSENT, NameEvent.ASKED): NameState.JOINING,
    (NameState.JOINING, NameEvent.CONFIRMED): NameState.JOINED,
    (NameState.JOINING, NameEvent.REFUSED): NameState.REFUSED,
    (NameState.JOINING, NameEvent.HELD): NameState.ABSENT,
    (NameState.JOINED, NameEvent.GIVEN_UP): NameState.LEAVING,
    (NameState.JOINED, NameEvent.DROPPED): NameState.ABSENT,
    (NameState.LEAVING, NameEvent.CONFIRMED): NameState.ABSENT,
    (NameState.LEAVING, NameEvent.HELD): NameState.JOINED,
    (NameState.REFUSED, NameEvent.RETRIED): NameState.ABSENT,
    **{(state, NameEvent.LOST): NameState.ABSENT for state in NameState},
}
NEXT = {event: {a: b for (a, moved_by), b in NAME_TRANSITIONS.items() if moved_by is event} for event in NameEvent}
"""The same, with all moves of an event together."""
NOTHING = frozenset({NameState.ABSENT, NameState.REFUSED})
"""In these there is nothing on the server, nor anything in flight."""


class SubscriberState(IdentityEnum):
    """What a subscriber was last told of one name."""

    WAITING = "waiting"
    ACTIVE = "active"
    REFUSED = "refused"


class Entry(Generic[S]):
    """One name: who wants it, and what is known of it on the server."""

    __slots__ = ("_many", "fanout", "kind", "name", "only", "sole", "standing", "state")

    def __init__(self, kind: Kind, name: bytes, subscriber: S) -> None:
        self.kind = kind
        self.name = name
        self.state = NameState.ABSENT
        # Most names have one subscriber, for whom a dictionary would take more memory than all the rest.
        self.only: S | None = subscriber
        """The one subscriber, as long as there was never more than one."""
        self.standing = SubscriberState.WAITING
        """What that one was last told."""
        self._many: dict[S, SubscriberState] | None = None
        self.fanout: tuple[S, ...] | None = ()
        """The active subscribers, never changed in place; None when it is to be built anew."""
        self.sole: S | None = None
        """The one active subscriber, if there is just one; may be missing while `fanout` is."""

    @property
    def subscribers(self) -> Collection[S]:
        """All that want it."""
        if self._many is not None:
            return self._many.keys()
        return () if self.only is None else (self.only,)

    @property
    def active(self) -> Collection[S]:
        """Those of them that are active."""
        active = SubscriberState.ACTIVE
        if self._many is not None:
            return [subscriber for subscriber, standing in self._many.items() if standing is active]
        return () if self.only is None or self.standing is not active else (self.only,)

    def get(self, subscriber: S) -> SubscriberState | None:
        """Return what a subscriber was last told; None if it is not one."""
        if self._many is not None:
            return self._many.get(subscriber)
        return self.standing if self.only == subscriber else None

    @property
    def has_subscribers(self) -> bool:
        """Whether there are subscribers."""
        return self.only is not None or bool(self._many)

    def add(self, subscriber: S) -> None:
        """Take in one more, who waits."""
        if self._many is not None:
            self._many[subscriber] = SubscriberState.WAITING
        elif self.only is None:
            self.only, self.standing = subscriber, SubscriberState.WAITING
        else:
            self._many = {self.only: self.standing, subscriber: SubscriberState.WAITING}
            self.only = None

    def put(self, subscriber: S, standing: SubscriberState) -> None:
        """Note what a subscriber was told."""
        self.fanout = self.sole = None
        if self._many is not None:
            self._many[subscriber] = standing
        else:
            self.standing = standing
            if standing is SubscriberState.ACTIVE:
                self.sole = subscriber

    def pop(self, subscriber: S) -> SubscriberState:
        """Take a subscriber away; return what it was last told."""
        if self._many is not None:
            standing = self._many.pop(subscriber)
        elif self.only == subscriber:
            standing, self.only = self.standing, None
        else:
            raise KeyError(subscriber)
        if standing is SubscriberState.ACTIVE:
            self.fanout = self.sole = None
        return standing

    def clear(self) -> None:
        """Take all subscribers away."""
        self.only = self._many = self.sole = None
        self.fanout = ()

    def build_fanout(self) -> tuple[S, ...]:
        """Take a fresh snapshot of the active subscribers."""
        self.fanout = fanout = tuple(self.active)
        self.sole = fanout[0] if len(fanout) == 1 else None
        return fanout

    def __repr__(self) -> str:
        return f"<{self.kind.value} {self.name[:64]!r} {self.state.value} subscribers={len(self.subscribers)}>"
