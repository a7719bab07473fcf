"""The registry against a model of a server and of its users."""

from __future__ import annotations

import math
import sys
from collections import Counter, deque
from collections.abc import Callable
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from redis.crc import key_slot

from redismpx._core import loss as loss_module
from redismpx._core import registry as registry_module
from redismpx._core.entry import Entry, NameState, SubscriberState
from redismpx._core.registry import Registry
from redismpx._core.sync_queue import SUBSCRIBE_BATCH, SUBSCRIBE_BATCH_BYTES
from redismpx._core.wire import NAMELESS, SUBSCRIBE_VERBS, UNSUBSCRIBE_VERBS, Command, Kind, Verb

NAMES = [b"a", b"{a}b", b"\r\n"]
KINDS = list(SUBSCRIBE_VERBS)


@pytest.fixture(autouse=True)
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost connection is dealt with name by name."""
    monkeypatch.setattr(registry_module, "CHUNK", 1)
    monkeypatch.setattr(loss_module, "CHUNK", 1)


class Recorder:
    """A subscriber that checks the grammar (Activation Message* Disconnect)* of each of its names."""

    def __init__(self) -> None:
        self.active: set[tuple[Kind, bytes]] = set()
        self.refused: Counter[bytes] = Counter()
        self.messages: list[tuple[bytes, bytes]] = []
        self.wanted: set[tuple[Kind, bytes]] = set()
        self.on_event: Callable[[], None] = lambda: None

    def deliver(self, channel: bytes, data: bytes) -> None:
        self.messages.append((channel, data))
        self.on_event()

    def activate(self, name: bytes, kind: Kind = Kind.CHANNEL) -> None:
        assert (kind, name) in self.wanted, "activated after it was removed"
        assert (kind, name) not in self.active, "activated twice"
        self.active.add((kind, name))
        self.on_event()

    def disconnect(self, error: Exception) -> None: ...

    def refuse(self, error: Exception) -> None: ...


class Server:
    """What a Redis server does with the commands of one connection, as far as a registry can tell."""

    def __init__(self) -> None:
        self.commands: deque[Command] = deque()
        self.replies: deque[tuple[str, Verb, bytes]] = deque()
        self.subscribed: set[tuple[Kind, bytes]] = set()
        self.forbidden: set[bytes] = set()
        self.moved: set[int] = set()  # slots that other nodes have
        self.sticky = False  # refuses every (P)UNSUBSCRIBE, unless it has sent one that nobody asked for
        self.has_dropped = False
        self.rejects_logins = False

    @property
    def refuses_to_leave(self) -> bool:
        # With both, nobody can tell which command an error answers; the link is given up then, and begun anew.
        return self.sticky and not self.has_dropped

    def work(self) -> None:
        command = self.commands.popleft()
        if command.verb is Verb.AUTH and self.rejects_logins:
            self.replies.append(("error", command.verb, b""))
        elif command.verb in NAMELESS:
            self.replies.append(("pong", command.verb, b""))
        elif command.verb.kind is Kind.SHARD_CHANNEL and len(set(map(key_slot, command.names))) > 1:
            raise AssertionError("names of two slots in one command")
        elif command.verb.kind is Kind.SHARD_CHANNEL and key_slot(command.names[0]) in self.moved:
            self.replies.append(("moved", command.verb, command.names[0]))
        elif self.forbidden.intersection(command.names) if command.verb.subscribes else self.refuses_to_leave:
            self.replies.append(("error", command.verb, b""))
        else:
            for name in command.names:
                change = self.subscribed.add if command.verb.subscribes else self.subscribed.discard
                change((command.verb.kind, name))
                self.replies.append(("confirmation", command.verb, name))


class RegistryMachine(RuleBasedStateMachine):
    """Random wishes, replies, refusals, unasked unsubscribes and lost links, in every order."""

    def __init__(self) -> None:
        super().__init__()
        self.registry: Registry[Recorder] = Registry(key_slot)
        self.server = Server()
        self.by_kind = {kind: [Recorder() for _ in range(4)] for kind in KINDS}  # a subscriber has names of one kind
        self.users = [*chain(*self.by_kind.values())]
        self.in_flight: Counter[tuple[Verb, bytes]] = Counter()
        self.linked = True
        self.ever_forbidden: set[bytes] = set()

    # --- wishes

    @rule(user=st.integers(0, 3), kind=st.sampled_from(KINDS), name=st.sampled_from(NAMES))
    def attach(self, user: int, kind: Kind, name: bytes) -> None:
        recorder = self.by_kind[kind][user]
        if (kind, name) not in recorder.wanted:
            recorder.wanted.add((kind, name))
            self.registry.add(kind, (name,), recorder)

    @rule(user=st.integers(0, 3), kind=st.sampled_from(KINDS), name=st.sampled_from(NAMES))
    def detach(self, user: int, kind: Kind, name: bytes) -> None:
        self.leave(self.by_kind[kind][user], kind, name)

    def leave(self, recorder: Recorder, kind: Kind, name: bytes) -> None:
        if (kind, name) in recorder.wanted:
            recorder.wanted.discard((kind, name))
            was_active = self.registry.remove(kind, name, recorder)
            assert was_active == ((kind, name) in recorder.active)
            recorder.active.discard((kind, name))

    @rule(actor=st.integers(0, 11), victim=st.integers(0, 3), kind=st.sampled_from(KINDS), name=st.sampled_from(NAMES))
    def meddle(self, actor: int, victim: int, kind: Kind, name: bytes) -> None:
        """The next callback of one user takes a name away from another, or gives it back."""

        def act() -> None:
            self.users[actor].on_event = lambda: None
            self.leave(self.by_kind[kind][victim], kind, name)
            self.attach(victim, kind, name)

        self.users[actor].on_event = act

    # --- the wire

    @property
    def subscribed(self) -> st.SearchStrategy[tuple[Kind, bytes]]:
        return st.sampled_from(sorted(self.server.subscribed, key=str))

    @precondition(lambda self: self.linked)
    @rule()
    def flush(self) -> None:
        for command in self.registry.next_commands():
            assert command.names, "a command without names"
            assert len(command.names) <= SUBSCRIBE_BATCH
            for name in command.names:
                self.in_flight[command.verb, name] += 1
            self.server.commands.append(command)
        for user, name in self.registry.activate_late():
            kind = next(
                k
                for k in KINDS
                if (k, name) in user.wanted
                and (k, name) not in user.active
                and self.registry.subscriber_state(k, name, user) is SubscriberState.ACTIVE
            )
            user.activate(name, kind)

    @precondition(lambda self: self.linked)
    @rule(verb=st.sampled_from([Verb.PING, Verb.AUTH]), rejects_logins=st.booleans())
    def send_nameless(self, verb: Verb, rejects_logins: bool) -> None:
        self.server.rejects_logins = rejects_logins
        self.server.commands.append(self.registry.nameless(verb))

    @precondition(lambda self: self.linked)
    @rule(steps=st.integers(1, 6))
    def go_on(self, steps: int) -> None:
        """Let things take their course for a while."""
        for _ in range(steps):
            if self.server.replies:
                self.hear()
            elif self.server.commands:
                self.serve()
            else:
                self.flush()

    @precondition(lambda self: self.server.commands)
    @rule()
    def serve(self) -> None:
        self.server.work()

    @precondition(lambda self: self.server.replies)
    @rule()
    def hear(self) -> None:
        what, verb, name = self.server.replies.popleft()
        if what == "pong":
            assert self.registry.pong() is verb
        elif what == "error":
            command, told = self.registry.refuse()
            for each in command.names:
                self.in_flight[command.verb, each] -= 1
            for user in told:
                assert command.verb.subscribes
                assert len(command.names) == 1
                assert command.names[0] in self.ever_forbidden
                user.refused[command.names[0]] += 1
                user.on_event()
        elif what == "message":
            self.deliver(verb.kind, name)
        elif what == "moved":
            for each in self.registry.redirect(key_slot(name)):
                for own in (Verb.SSUBSCRIBE, Verb.SUNSUBSCRIBE):
                    del self.in_flight[own, each]
                self.evict(each)
        else:
            # An unasked unsubscribe that crosses our own is taken for its confirmation; that one says nothing new then.
            if self.in_flight[verb, name]:
                self.in_flight[verb, name] -= 1
            for user in self.registry.confirm(verb, name):
                if verb.subscribes:
                    user.activate(name, verb.kind)
                else:
                    user.active.remove((verb.kind, name))
                    user.on_event()
            if what == "dropped" and verb.kind is Kind.SHARD_CHANNEL and key_slot(name) in self.server.moved:
                self.evict(name)

    def evict(self, name: bytes) -> None:
        """Its slot is elsewhere, and so are from now on all who want it."""
        for user in self.users:
            self.leave(user, Kind.SHARD_CHANNEL, name)

    def table(self, kind: Kind) -> dict[bytes, Entry[Recorder]]:
        registry = self.registry
        tables = {Kind.CHANNEL: registry.channels, Kind.PATTERN: registry.patterns}
        return tables.get(kind, registry.shard_channels)

    def deliver(self, kind: Kind, name: bytes) -> None:
        entry = self.table(kind).get(name)
        expected = [u for u in self.users if (kind, name) in u.active]
        if entry is None:
            fanout: tuple[Recorder, ...] = ()
        elif entry.only_active is not None:  # as it is delivered
            fanout = (entry.only_active,)
        else:
            fanout = entry.active_snapshot if entry.active_snapshot is not None else entry.take_snapshot()
        assert sorted(map(id, fanout)) == sorted(map(id, expected)), "a message missed or reached the wrong users"

    @precondition(lambda self: self.server.subscribed)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        kind, name = data.draw(self.subscribed)
        self.server.replies.append(("message", SUBSCRIBE_VERBS[kind], name))

    @precondition(lambda self: self.server.subscribed)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        """The server unsubscribes a name without being asked."""
        kind, name = data.draw(self.subscribed)
        self.server.subscribed.discard((kind, name))
        self.server.has_dropped = True
        self.server.replies.append(("dropped", UNSUBSCRIBE_VERBS[kind], name))

    @rule(name=st.sampled_from(NAMES))
    def move_slot(self, name: bytes) -> None:
        """A slot moves to another node: whatever is subscribed there is unsubscribed, and cannot be subscribed."""
        slot = key_slot(name)
        self.server.moved.add(slot)
        for kind, each in sorted(self.server.subscribed, key=str):
            if kind is Kind.SHARD_CHANNEL and key_slot(each) == slot:
                self.server.subscribed.discard((kind, each))
                self.server.replies.append(("dropped", Verb.SUNSUBSCRIBE, each))

    @precondition(lambda self: not (self.server.replies or self.server.commands))
    @rule()
    def bring_slots_back(self) -> None:
        self.server.moved.clear()

    @rule(name=st.sampled_from(NAMES))
    def forbid(self, name: bytes) -> None:
        self.server.forbidden.add(name)
        self.ever_forbidden.add(name)

    @rule(name=st.sampled_from(NAMES))
    def permit(self, name: bytes) -> None:
        self.server.forbidden.discard(name)

    @rule(sticky=st.booleans())
    def stick(self, sticky: bool) -> None:
        self.server.sticky = sticky

    @rule()
    def retry(self) -> None:
        self.registry.retry_refused()

    @rule()
    def lose(self) -> None:
        forbidden, moved = self.server.forbidden, self.server.moved
        self.server = Server()
        self.server.forbidden, self.server.moved = forbidden, moved
        self.in_flight.clear()
        told: Counter[int] = Counter()
        had_active = {id(u) for u in self.users if u.active}
        for loser in self.registry.connection_lost():
            if loser is None:  # other things are done in between
                for other in self.users:
                    other.on_event()
                continue
            user, lost = loser
            assert sorted(lost) == sorted(name for _, name in user.active)
            told[id(user)] += 1
            assert user.active, "disconnected with nothing active"
            user.active.clear()
            user.on_event()
        assert set(told.values()) <= {1}
        assert told.keys() <= had_active
        assert not any(u.active for u in self.users), "somebody was not told of the loss"
        self.linked = not self.linked

    # --- what always holds

    @invariant()
    def one_command_per_name(self) -> None:
        commands = Counter((verb.kind, name) for verb, name in self.in_flight.elements())
        assert all(count == 1 for count in commands.values()), self.in_flight

    @invariant()
    def the_wanted_are_counted(self) -> None:
        wanted = {name for user in self.users for name in user.wanted}
        for kind in KINDS:
            assert self.registry.name_count(kind) == sum(k is kind for k, _ in wanted)
            assert self.registry.count_new(kind, NAMES) == len(NAMES) - self.registry.name_count(kind)

    @invariant()
    def nothing_is_kept_for_nobody(self) -> None:
        for kind in KINDS:
            for entry in self.table(kind).values():
                assert entry.subscribers or entry.state not in (NameState.ABSENT, NameState.REFUSED)

    def teardown(self) -> None:
        """Left alone, what is on the wire becomes what is wanted and allowed."""
        if not self.linked:
            self.lose()
        for user in self.users:
            user.on_event = lambda: None
        self.server.sticky = False
        self.settle()
        self.bring_slots_back()
        self.registry.retry_refused()  # whatever was refused and is allowed by now
        self.settle()
        wanted = {name for user in self.users for name in user.wanted}
        allowed = {(kind, name) for kind, name in wanted if name not in self.server.forbidden}
        assert self.server.subscribed - wanted == set(), "subscribed to what nobody wants"
        assert self.server.subscribed >= allowed, "not subscribed to what is wanted"
        for user in self.users:
            assert user.active >= user.wanted & allowed
        assert not self.registry.oldest_command

    def settle(self) -> None:
        for _ in range(1000):
            if self.registry.has_work:
                self.flush()
            elif self.server.commands:
                self.serve()
            elif self.server.replies:
                self.hear()
            else:
                return
        raise AssertionError("it never settles")


RegistryMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
TestRegistryMachine = RegistryMachine.TestCase


def joined(*names: bytes) -> Registry[str]:
    """A registry in which "user" has these channels, all of them active."""
    registry: Registry[str] = Registry()
    registry.add(Kind.CHANNEL, names, "user")
    for command in registry.next_commands():
        for name in command.names:
            assert list(registry.confirm(command.verb, name)) == ["user"]
    return registry


def test_a_name_is_active_until_its_loss_is_reported() -> None:
    """A name counts as active until its subscriber is notified of the loss; a name removed before is left out."""
    names = [b"%d" % number for number in range(9)]
    registry = joined(*names)
    before, after = [names[0], names[8]], names[1:4]
    told: set[bytes] = set()
    for step, loser in enumerate(registry.connection_lost()):
        if loser is not None:
            assert not told
            told = set(loser[1])
        state = SubscriberState.WAITING if told else SubscriberState.ACTIVE
        assert registry.subscriber_state(Kind.CHANNEL, names[5], "user") is state
        leaving = after if told else before
        if leaving and (told or step in (4, 14)):  # before and after the name is collected
            assert registry.remove(Kind.CHANNEL, leaving.pop(), "user") is not bool(told)
    assert not before
    assert not after
    assert told == set(names[1:8])
    assert list(registry.channels) == names[4:8]
    assert [command.names for command in registry.next_commands()] == [tuple(names[4:8])]


def test_no_step_of_a_loss_looks_at_all_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two steps of a loss, a chunk of the names is looked at, also before and after the notification."""
    registry = joined(*[b"%d" % number for number in range(100)])
    looks = 0
    state_of = Entry.state_of

    def counted(entry: Entry[str], subscriber: str) -> SubscriberState | None:
        nonlocal looks
        looks += 1
        return state_of(entry, subscriber)

    monkeypatch.setattr(Entry, "state_of", counted)
    most, told = 0, 0
    for loser in registry.connection_lost():
        told += 0 if loser is None else len(set(loser[1]))
        most, looks = max(most, looks), 0
    assert told == 100
    assert most <= 2


def test_a_name_subscribed_during_drain_is_left_again() -> None:
    """While draining, a pending subscription is unsubscribed once confirmed, and new names are ignored."""
    registry: Registry[str] = Registry()
    registry.add(Kind.CHANNEL, (b"asked for",), "user")
    registry.next_commands()
    list(registry.drain())
    registry.add(Kind.CHANNEL, (b"too late",), "user")
    assert list(registry.channels) == [b"asked for"]
    list(registry.confirm(Verb.SUBSCRIBE, b"asked for"))
    (command,) = registry.next_commands()
    assert (command.verb, command.names) == (Verb.UNSUBSCRIBE, (b"asked for",))


def test_a_removed_subscriber_leaves_the_fan_out_at_once() -> None:
    """Removing a subscriber invalidates the fan-out at once, and a pending one is not in it."""
    registry = joined(b"name")
    entry = registry.channels[b"name"]
    registry.add(Kind.CHANNEL, (b"name",), "another")
    assert (entry.only_active, entry.take_snapshot()) == ("user", ("user",)), "who waits gets nothing yet"
    assert list(registry.activate_late()) == [("another", b"name")]
    assert (entry.only_active, entry.active_snapshot or entry.take_snapshot()) == (None, ("user", "another"))
    for leaving in ("user", "another"):
        registry.remove(Kind.CHANNEL, b"name", leaving)
        assert (entry.only_active, entry.active_snapshot) == (None, None)
    assert entry.take_snapshot() == ()


def test_many_forbidden_names_cost_few_commands() -> None:
    """2,048 forbidden names cost fewer than three commands each."""
    registry: Registry[str] = Registry()
    total = 2048
    for number in range(total):
        registry.add(Kind.CHANNEL, (b"%d" % number,), "user")
    commands = names = told = 0
    queue = registry.next_commands()
    while queue:
        command = queue.pop(0)
        commands += 1
        names += len(command.names)
        told += len(list(registry.refuse()[1]))
        queue += registry.next_commands()
    assert told == total
    assert commands < 3 * total
    assert names < 20 * total


def test_one_forbidden_name_costs_a_binary_search() -> None:
    """One forbidden name of 512 costs log2(512) + 2 commands, and only its subscriber is notified."""
    for position in (0, 1, 255, 256, SUBSCRIBE_BATCH - 2, SUBSCRIBE_BATCH - 1):
        registry: Registry[str] = Registry()
        for number in range(SUBSCRIBE_BATCH):
            registry.add(Kind.CHANNEL, (b"%d" % number,), "user")
        guilty, sent, told = b"%d" % position, 0, []
        queue = registry.next_commands()
        while queue:
            command = queue.pop(0)
            sent += 1
            if guilty in command.names:
                told += [(name, user) for user in registry.refuse()[1] for name in command.names]
            else:
                for name in command.names:
                    assert list(registry.confirm(command.verb, name)) == ["user"]
            queue += registry.next_commands()
        assert told == [(guilty, "user")]
        assert sent - 1 <= math.log2(SUBSCRIBE_BATCH) + 2, position
        standings = [registry.subscriber_state(Kind.CHANNEL, b"%d" % n, "user") for n in range(SUBSCRIBE_BATCH)]
        assert standings.count(SubscriberState.ACTIVE) == SUBSCRIBE_BATCH - 1


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=200), st.integers(0, 3))
def test_names_in_flight_are_bounded_in_bytes(sizes: list[int], replies: int) -> None:
    """Long names go out in small commands, so that neither side buffers much more than SUBSCRIBE_BATCH_BYTES."""
    registry: Registry[str] = Registry()
    names = [b"%05d" % number + b"x" * size for number, size in enumerate(sizes)]
    registry.add(Kind.CHANNEL, names, "user")
    in_flight: deque[bytes] = deque()
    confirmed: list[bytes] = []
    while True:
        commands = registry.next_commands()
        for command in commands:
            in_flight.extend(command.names)
            assert sum(map(len, command.names[:-1])) < SUBSCRIBE_BATCH_BYTES
        assert sum(map(len, list(in_flight)[:-1])) < SUBSCRIBE_BATCH_BYTES + max(map(len, names))
        if not in_flight:
            break
        for _ in range(min(len(in_flight), 1 + replies)):
            confirmed.append(in_flight.popleft())
            assert list(registry.confirm(Verb.SUBSCRIBE, confirmed[-1])) == ["user"]
    assert confirmed == names


def confirm(registry: Registry[Recorder], commands: list[Command]) -> None:
    """Confirm all names of some commands."""
    for command in commands:
        for name in command.names:
            list(registry.confirm(command.verb, name))


def test_a_name_that_is_queued_twice_is_sent_once() -> None:
    """A channel that is removed, added and removed while it waits for its turn is unsubscribed once."""
    registry: Registry[Recorder] = Registry()
    recorder = Recorder()
    names = [b"%d" % number for number in range(SUBSCRIBE_BATCH + 2)]
    registry.add(Kind.CHANNEL, names, recorder)
    while commands := registry.next_commands():
        confirm(registry, commands)
    for name in names:
        registry.remove(Kind.CHANNEL, name, recorder)
    confirm(registry, registry.next_commands())
    registry.add(Kind.CHANNEL, names[-1:], recorder)
    registry.remove(Kind.CHANNEL, names[-1], recorder)
    commands = registry.next_commands()
    assert [command.names for command in commands] == [tuple(names[-2:])]
    confirm(registry, commands)
    assert registry.is_empty


@pytest.mark.parametrize("joined", [False, True])
def test_a_finalizer_may_remove_a_subscriber_at_any_call(joined: bool) -> None:
    """Names are counted exactly, and unsubscribed, if a finalizer removes all subscribers in the middle of any call."""
    subscribers = [Recorder() for _ in range(3)]
    names = (b"a", b"b")
    finalized = 0
    for at in range(1, 200):
        registry: Registry[Recorder] = Registry()
        for subscriber in subscribers:
            registry.add(Kind.CHANNEL, names, subscriber)
        if joined:
            confirm(registry, registry.next_commands())
        left = at

        def finalize(frame: object, event: str, argument: object) -> None:
            nonlocal left, finalized
            left -= 1
            if left == 0:
                sys.setprofile(None)
                finalized += 1
                for subscriber in subscribers:
                    for name in names:
                        registry.remove(Kind.CHANNEL, name, subscriber)  # noqa: B023

        sys.setprofile(finalize)
        try:
            registry.remove(Kind.CHANNEL, b"a", subscribers[0])
            registry.remove(Kind.CHANNEL, b"b", subscribers[0])
            commands = registry.next_commands()
        finally:
            sys.setprofile(None)
        confirm(registry, commands)
        if left > 0:
            break
        while commands := registry.next_commands():
            confirm(registry, commands)
        assert registry.name_count(Kind.CHANNEL) == 0
        assert registry.is_empty
    assert finalized > 30
