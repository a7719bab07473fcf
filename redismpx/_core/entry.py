"""One name: its subscribers, what each of them was notified of, and the states that the name can have on the server."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Generic, TypeVar

from .wire import SUBSCRIBE_VERBS, UNSUBSCRIBE_VERBS, IdentityEnum, Kind, Verb

S = TypeVar("S")  # a subscriber: any hashable object


class NameState(IdentityEnum):
    """The state of a name on the server, as far as it is known."""

    ABSENT = "absent"
    JOINING = "joining"  # a command to subscribe is in flight
    JOINED = "joined"
    LEAVING = "leaving"  # a command to unsubscribe is in flight
    REFUSED = "refused"


class NameEvent(IdentityEnum):
    """What changes the state of a name."""

    SUBSCRIBE_SENT = "subscribe sent"
    UNSUBSCRIBE_SENT = "unsubscribe sent"
    CONFIRMED = "confirmed"  # the server confirmed the command in flight
    REFUSED = "refused"  # the server rejected a command to subscribe that had only this name
    REVERTED = "reverted"  # the server rejected the command in flight, and the name is as it was before
    UNSUBSCRIBED_BY_SERVER = "unsubscribed by server"  # without a command from here
    RETRIED = "retried"  # a refused name is to be subscribed again
    CONNECTION_LOST = "connection lost"  # with every subscription on it


NAME_TRANSITIONS: dict[tuple[NameState, NameEvent], NameState] = {
    (NameState.ABSENT, NameEvent.SUBSCRIBE_SENT): NameState.JOINING,
    (NameState.JOINING, NameEvent.CONFIRMED): NameState.JOINED,
    (NameState.JOINING, NameEvent.REFUSED): NameState.REFUSED,
    (NameState.JOINING, NameEvent.REVERTED): NameState.ABSENT,
    (NameState.JOINED, NameEvent.UNSUBSCRIBE_SENT): NameState.LEAVING,
    (NameState.JOINED, NameEvent.UNSUBSCRIBED_BY_SERVER): NameState.ABSENT,
    (NameState.LEAVING, NameEvent.CONFIRMED): NameState.ABSENT,
    (NameState.LEAVING, NameEvent.REVERTED): NameState.JOINED,
    (NameState.REFUSED, NameEvent.RETRIED): NameState.ABSENT,
    **{(state, NameEvent.CONNECTION_LOST): NameState.ABSENT for state in NameState},
}
NEXT_STATE = {event: {a: b for (a, e), b in NAME_TRANSITIONS.items() if e is event} for event in NameEvent}
"""The same table, by event and then by state."""
NEXT_IF_SENT = {**NEXT_STATE[NameEvent.SUBSCRIBE_SENT], **NEXT_STATE[NameEvent.UNSUBSCRIBE_SENT]}
"""The state that a name gets when the command that it needs is sent."""
NOT_ON_SERVER = frozenset({NameState.ABSENT, NameState.REFUSED})
"""The states in which the server does not have the name, and no command is in flight for it."""


class SubscriberState(IdentityEnum):
    """What a subscriber was last notified of, for one name."""

    WAITING = "waiting"
    ACTIVE = "active"
    REFUSED = "refused"


class Entry(Generic[S]):
    """One name: its subscribers, and its state on the server."""

    __slots__ = ("active_snapshot", "kind", "name", "only_active", "only_state", "only_subscriber", "state", "states")

    def __init__(self, kind: Kind, name: bytes, subscriber: S) -> None:
        self.kind: Kind = kind
        self.name: bytes = name
        self.state: NameState = NameState.ABSENT
        # Most names have one subscriber. A dictionary for it would take more memory than everything else here.
        self.only_subscriber: S | None = subscriber
        """The one subscriber, as long as the name never had two; None otherwise, and when it is removed."""
        self.only_state: SubscriberState = SubscriberState.WAITING
        """The state of `only_subscriber`."""
        self.states: dict[S, SubscriberState] | None = None
        """The states of all subscribers, once there were two; None before."""
        self.active_snapshot: tuple[S, ...] | None = ()
        """The active subscribers, for the fan-out of a message. Never changed in place; None when out of date."""
        self.only_active: S | None = None
        """The active subscriber, if there is exactly one. May be None while `active_snapshot` is None."""

    @property
    def subscribers(self) -> Collection[S]:
        """All subscribers of the name."""
        if self.states is not None:
            return self.states.keys()
        return () if self.only_subscriber is None else (self.only_subscriber,)

    @property
    def active_subscribers(self) -> Collection[S]:
        """The subscribers that are active."""
        active = SubscriberState.ACTIVE
        if self.states is not None:
            states = self.states.copy()  # the garbage collector may remove a subscriber at any moment
            if list(states.values()).count(active) == len(states):  # much faster with 100,000 of them
                return states.keys()
            return [subscriber for subscriber, state in states.items() if state is active]
        return () if self.only_subscriber is None or self.only_state is not active else (self.only_subscriber,)

    @property
    def has_subscribers(self) -> bool:
        """Whether the name has a subscriber."""
        return self.only_subscriber is not None or bool(self.states)

    def needed_verb(self, draining: bool) -> Verb | None:
        """Return the command that the name needs; None if it needs none, or one is in flight."""
        if (self.only_subscriber is not None or self.states) and not draining:  # for speed, not `has_subscribers`
            return SUBSCRIBE_VERBS[self.kind] if self.state is NameState.ABSENT else None
        return UNSUBSCRIBE_VERBS[self.kind] if self.state is NameState.JOINED else None

    def state_of(self, subscriber: S) -> SubscriberState | None:
        """Return the state of a subscriber; None if it does not subscribe to the name."""
        if self.states is not None:
            return self.states.get(subscriber)
        return self.only_state if self.only_subscriber == subscriber else None

    def add(self, subscriber: S) -> None:
        """Add a subscriber. It is waiting."""
        if self.states is not None:
            self.states[subscriber] = SubscriberState.WAITING
        elif self.only_subscriber is None:
            self.only_subscriber, self.only_state = subscriber, SubscriberState.WAITING
        else:
            self.states = {self.only_subscriber: self.only_state, subscriber: SubscriberState.WAITING}
            self.only_subscriber = None

    def add_all(self, others: Iterable[S]) -> None:
        """Add subscribers to a name that has one or more. They are waiting."""
        known = self.states
        if known is None:
            assert self.only_subscriber is not None
            known = {self.only_subscriber: self.only_state}
        self.states, self.only_subscriber = dict.fromkeys(others, SubscriberState.WAITING), None
        self.states.update(known)

    def set_state(self, subscriber: S, state: SubscriberState) -> None:
        """Change the state of a subscriber of the name."""
        self.active_snapshot = self.only_active = None
        if self.states is not None:
            self.states[subscriber] = state
        else:
            self.only_state = state
            if state is SubscriberState.ACTIVE:
                self.only_active = subscriber

    def activate(self, only: S) -> None:
        """Change the state of `only_subscriber`, given again, to active."""
        self.active_snapshot, self.only_active, self.only_state = None, only, SubscriberState.ACTIVE

    def remove(self, subscriber: S) -> SubscriberState | None:
        """Remove a subscriber of the name; return the state that it had, or None if it does not subscribe to it."""
        state: SubscriberState | None = None
        if self.states is not None:
            state = self.states.pop(subscriber, None)
        elif self.only_subscriber == subscriber:
            state, self.only_subscriber = self.only_state, None
        if state is SubscriberState.ACTIVE:
            self.active_snapshot = self.only_active = None
        return state

    def remove_others(self, subscriber: S) -> dict[S, SubscriberState]:
        """Remove all subscribers of the name but one; return the others, with their states."""
        others = self.states
        if others is None:
            return {}
        self.states = {subscriber: others.pop(subscriber)}
        self.active_snapshot = self.only_active = None
        return others

    def change_all(self, state: SubscriberState) -> Iterable[S]:
        """Change the state of each subscriber that has another one, and yield it then.

        Leave out subscribers that are added or removed during the iteration.
        """
        if self.only_subscriber is None:
            return self._change_each(state)
        if self.only_state is state:
            return ()
        self.set_state(self.only_subscriber, state)
        return (self.only_subscriber,)

    def _change_each(self, state: SubscriberState) -> Iterator[S]:
        for subscriber in [*self.subscribers]:
            known = self.state_of(subscriber)
            if known is not None and known is not state:
                self.set_state(subscriber, state)
                yield subscriber

    def clear(self) -> None:
        """Remove all subscribers."""
        self.only_subscriber = self.states = self.only_active = None
        self.active_snapshot = ()

    def take_snapshot(self) -> tuple[S, ...]:
        """Bring `active_snapshot` and `only_active` up to date; return the snapshot."""
        self.active_snapshot = snapshot = tuple(self.active_subscribers)
        self.only_active = snapshot[0] if len(snapshot) == 1 else None
        return snapshot

    def __repr__(self) -> str:
        return f"<{self.kind.value} {self.name[:64]!r} {self.state.value} subscribers={len(self.subscribers)}>"
