"""The buffer against a naive model: order, bounds, counts, bytes, gaps, and the order of events of each name."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redismpx._core import budget as budget_module
from redismpx._core import buffer as buffer_module
from redismpx._core import event_index as event_index_module
from redismpx._core import event_list as event_list_module
from redismpx._core.budget import Budget
from redismpx._core.buffer import DEFERRED, FULL, Buffer
from redismpx._core.events import QueuedSignal, Signal
from redismpx._core.latest import new_buffer
from redismpx._core.overflow import Overflow

from ..helpers.counted import Counted

NAMES = [b"a", b"b", b"c"]
MAX_PENDING = 8
LONG = 9  # bytes of a payload that is counted once when the budget is tight


class Event(NamedTuple):
    """An event of the model: a message of one name with a payload, or a signal about one name, some names or all."""

    kind: str
    names: frozenset[bytes] | None
    payload: bytes = b""
    is_shared: bool = False
    lost: frozenset[bytes] = frozenset()  # by a disconnect of all names

    @property
    def size(self) -> int:
        assert self.names is not None
        return sum(map(len, self.names)) + len(self.payload)

    def is_about(self, name: bytes) -> bool:
        return self.names is None or name in self.names


class Model:
    """What a buffer is to do, with a walk through all that is queued for each step."""

    def __init__(self, overflow: Overflow, budget: Budget) -> None:
        self.overflow = overflow
        self.budget = budget
        self.events: list[Event] = []
        self.uncounted: list[tuple[bytes, bytes]] = []
        self.is_sharing = False
        self.removed = 0

    @property
    def messages(self) -> list[Event]:
        return [event for event in self.events if event.kind == "message"]

    @property
    def signal_count(self) -> int:
        return len(self.events) - len(self.messages)

    @property
    def size(self) -> int:
        return sum(event.size for event in self.messages)

    def replace(self) -> list[Event]:
        """Drop the messages for which there is a newer one of their channel; return them."""
        if self.overflow is not Overflow.LATEST:
            return []
        channels = {name for name, _ in self.uncounted}
        return self._drop([event for event in self.messages if event.names and event.names <= channels])

    def commit(self, *, is_tight: bool) -> list[Event]:
        """Count the messages of a burst; return those that are dropped because this buffer is too full."""
        self.is_sharing = is_tight or (self.is_sharing and bool(self.messages))
        dropped: list[Event] = []
        for name, payload in self.uncounted:
            is_shared = self.is_sharing and len(payload) >= LONG
            self.events.append(Event("message", frozenset({name}), payload, is_shared))
            while len(self.messages) > 1 and self._is_too_full:
                dropped += self._drop([self.next_to_drop])
        self.uncounted = []
        return dropped

    @property
    def _is_too_full(self) -> bool:
        return len(self.messages) > MAX_PENDING or self.size > self.budget.each

    @property
    def next_to_drop(self) -> Event:
        return self.messages[-1 if self.overflow in (Overflow.DROP_NEWEST, Overflow.CLOSE) else 0]

    def make_room(self, count: int) -> list[Event]:
        """Drop messages in favour of other buffers; return them."""
        if self.overflow is Overflow.CLOSE:
            dropped = self.messages
            assert count == len(dropped) + len(self.uncounted)
            self.uncounted, self.events, self.is_sharing = [], [], False
            return dropped
        return [gone for _ in range(count) for gone in self._drop([self.next_to_drop])]

    def signal(self, kind: str, name: bytes) -> None:
        self.events.append(Event(kind, frozenset({name})))

    def disconnect(self, names: frozenset[bytes] | None, lost: frozenset[bytes]) -> int:
        """Add a disconnect; return how many messages are dropped for it."""
        before = len(self.messages)
        if names is None:
            gaps = [n for n, event in enumerate(self.events) if event.kind == "disconnect" and event.names is None]
            if not gaps:
                self.events.append(Event("disconnect", None, lost=lost))
                return 0
            later = self.events[gaps[-1] + 1 :]
            self._drop([e for n, e in enumerate(later) if e.kind != "error" or _is_outdated(e, later[n:])])
            return before - len(self.messages)
        new = set(names)
        for name in names:
            gaps = [n for n, event in enumerate(self.events) if event.kind == "disconnect" and event.is_about(name)]
            if gaps:
                new.discard(name)
                self._drop([event for event in self.events[gaps[-1] + 1 :] if event.is_about(name)])
        if new:
            self.events.append(Event("disconnect", frozenset(new)))
        return before - len(self.messages)

    def remove(self, names: frozenset[bytes]) -> None:
        before = len(self.messages)
        kept = []
        for event in self.events:
            if event.names is None:
                event = event._replace(lost=event.lost - names)
                kept += [event] if event.lost else []
                continue
            left = event.names if event.kind == "message" else event.names - names
            if left and not left <= names:
                kept.append(event._replace(names=left))
        self.events = kept
        self.removed += before - len(self.messages)

    def clear(self) -> None:
        self.removed += len(self.messages)
        self.events, self.is_sharing = [], False

    def _drop(self, events: Iterable[Event]) -> list[Event]:
        events = list(events)
        self.events = [event for event in self.events if not any(event is gone for gone in events)]
        return events


def _is_outdated(error: Event, later: list[Event]) -> bool:
    """Whether the name of an error was activated after it."""
    return any(event.kind == "activation" and event.names == error.names for event in later)


names = st.sampled_from(NAMES)
some_names = st.sampled_from([frozenset(some) for size in (1, 2, 3) for some in itertools.combinations(NAMES, size)])
bursts = st.binary(min_size=1, max_size=10)  # a byte for each message
actions = st.lists(
    st.one_of(
        st.tuples(st.just("spread"), bursts),
        st.tuples(
            st.integers(0, 2),  # which of three buffers
            st.one_of(
                st.tuples(st.just("burst"), bursts),
                st.tuples(st.just("lose"), st.none() | some_names),
                st.tuples(st.just("activate"), names),
                st.tuples(st.just("refuse"), names),
                st.tuples(st.just("pop"), st.integers(1, 6)),
                st.tuples(st.just("take"), st.integers(1, 6)),
                st.tuples(st.just("pop_many"), st.integers(1, 6)),
                st.tuples(st.just("remove"), some_names),
            ),
        ),
    ),
    min_size=20,
    max_size=60,
)


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer_module, "BATCH_SIZE", 3)
    monkeypatch.setattr(buffer_module, "MAX_LENDERS", 2)
    monkeypatch.setattr(buffer_module, "SHARED_SIZE", LONG)
    monkeypatch.setattr(event_list_module, "SLACK", 8)
    monkeypatch.setattr(event_index_module, "OUTDATED", 8)
    monkeypatch.setattr(event_index_module, "INDEXED_AT_ONCE", 2)
    monkeypatch.setattr(event_index_module, "FEW", 1)


class Harness:
    """A buffer with its model, its server and its consumer."""

    def __init__(self, overflow: Overflow, room: Room) -> None:
        self.room = room
        self.buffer = new_buffer(MAX_PENDING, overflow, room.budget, self)
        self.model = Model(overflow, room.budget)
        self.server: set[bytes] = set()  # active names
        self.subscribed = set(NAMES)
        self.seen: set[bytes] = set()  # active names, as the consumer was notified
        self.received = self.delivered = self.dropped = self.removed = 0
        self.is_reminded = self.closed = False
        for name in NAMES:
            self.activate(name)
        self.pop(len(NAMES))

    def burst(self, messages: bytes) -> None:
        for name, payload in self.room.new_messages(messages):
            self.put(name, payload)
        self.commit()

    def put(self, name: bytes, payload: bytes) -> None:
        if name not in self.server or self.closed:
            return
        self.received += 1
        said = self.buffer.put(name, payload)
        assert said in (FULL, DEFERRED) or self.is_reminded, "the burst would not be counted"
        self.is_reminded = said is not FULL
        self.model.uncounted.append((name, payload))
        if said is FULL:
            self.commit()

    def commit(self) -> None:
        self.is_reminded = False
        if self.buffer.fresh:
            self.room.commit(self)

    def lose(self, lost: frozenset[bytes] | None) -> None:
        active = self.server.intersection(NAMES if lost is None else lost)
        if active:
            names = None if lost is None else frozenset(active)
            dropped = disconnect(self.buffer, "lost", names, active if lost is None else None)
            assert dropped == self.model.disconnect(names, frozenset(active))
            self.dropped += dropped
            self.server -= active

    def activate(self, name: bytes) -> None:
        if name not in self.server:
            self.subscribed.add(name)
            self.server.add(name)
            self.buffer.signal(Signal.ACTIVATION, name, name)
            self.model.signal("activation", name)

    def refuse(self, name: bytes) -> None:
        if name not in self.server:
            self.subscribed.add(name)
            self.buffer.signal(Signal.ERROR, name, name)
            self.model.signal("error", name)

    def pop(self, times: int) -> None:
        for _ in range(times):
            self._check_popped(self.buffer.pop_message() or self.buffer.pop_signal())

    def take(self, times: int) -> None:
        """Pop as a fast consumer does: from the batch, without a look at anything else."""
        for _ in range(times):
            if batch := self.buffer.batch:
                self._check_popped((batch.pop(), batch.pop()))
                assert self.buffer, "the last message is not to be popped without a look"
            else:
                self.pop(1)

    def pop_many(self, most: int) -> None:
        """Pop a message with others, which may be in the batch; take some of these, and give the rest back."""
        had = len(self.buffer.batch) // 2
        self._check_popped(self.buffer.pop_message(most) or self.buffer.pop_signal())
        assert len(self.buffer.batch) // 2 <= max(had, most) - 1
        self.take(min(most - 1, len(self.buffer.batch) // 2) // 2)
        self.buffer.recall()

    def remove(self, names: frozenset[bytes]) -> None:
        self.server -= names
        self.seen -= names
        self.subscribed -= names
        if self.subscribed:
            self.removed += self.buffer.remove(names)
            self.model.remove(names)
        else:
            self.removed += self.buffer.clear()
            self.model.clear()

    def _check_popped(self, event: Any) -> None:
        expected = self.model.events.pop(0) if self.model.events else None
        if event is None:
            assert expected is None
        elif isinstance(event, tuple):
            assert expected is not None
            assert expected[:3] == ("message", frozenset({event[0]}), event[1])
            assert event[0] in self.seen, "a message of a name that is not active"
            self.delivered += 1
        else:
            names = event.names if event.names is None else frozenset(event.names)
            assert expected is not None
            assert expected[:2] == (event.kind.value, names)
            if event.kind is Signal.ACTIVATION:
                assert event.argument not in self.seen, "activated twice"
                self.seen.add(event.argument)
            elif event.kind is Signal.DISCONNECT:
                assert self.seen, "a disconnect, and no name is active"
                assert names is None or names <= self.seen, "a disconnect of a name that is not active"
                self.seen -= set(NAMES) if names is None else names

    def check(self) -> None:
        buffer, model = self.buffer, self.model
        assert len(buffer) == len(model.messages) <= MAX_PENDING
        assert buffer.signals == len(model.events) - len(model.messages)
        assert bool(buffer) == bool(model.events)
        assert buffer.signal_is_next == (bool(model.events) and model.events[0].kind != "message")
        assert self.removed == model.removed
        assert self.received == self.delivered + self.dropped + self.removed + len(buffer)
        assert size_of(buffer) == model.size
        assert model.size <= self.room.budget.each or len(buffer) == 1
        assert model.signal_count <= 5 * len(NAMES)
        assert not any(buffer._items[: buffer._head]), "a popped event stays in memory"
        assert len(buffer._items) <= 8 * len(model.events) + 64, "removed events pile up"


class Room:
    """Three buffers that share one budget. Checks which of them drops messages when the total is used up."""

    def __init__(self, policies: Iterable[Overflow], each: int | None, total: int | None) -> None:
        self.budget = Budget(each, total)
        self.total = 10**9 if total is None else total
        self.numbers = itertools.count()
        self.harnesses = [Harness(policy, self) for policy in policies]

    def new_messages(self, seeds: bytes) -> list[tuple[bytes, bytes]]:
        """Return a message for each byte: its channel, and a payload of its own."""
        return [(NAMES[seed % 3], b"%03d" % next(self.numbers) + b"x" * (seed // 3 % 16)) for seed in seeds]

    @property
    def used(self) -> int:
        """The bytes in all models: a shared payload once, the others for each model."""
        messages = [message for harness in self.harnesses for message in harness.model.messages]
        shared = {id(message.payload): message.payload for message in messages if message.is_shared}
        own = sum(message.size - message.is_shared * len(message.payload) for message in messages)
        return own + sum(map(len, shared.values()))

    def spread(self, messages: bytes) -> None:
        """Deliver the same messages to all three, as the fan-out of a burst does."""
        for name, payload in self.new_messages(messages):
            for harness in self.harnesses:
                harness.put(name, payload)
        for harness in self.harnesses:
            harness.commit()

    def commit(self, harness: Harness) -> None:
        losses = dict(harness.buffer.commit())
        model = harness.model
        size = sum(len(name) + len(payload) for name, payload in model.uncounted)
        replaced = model.replace()
        is_tight = self.used + size > self.total // 2
        own = len(replaced + model.commit(is_tight=is_tight))
        used = self.used
        for loser, count in losses.items():
            loser.dropped += count
        if own:
            losses[harness] -= own
        gone = {loser: loser.model.make_room(count) for loser, count in losses.items() if count}
        for loser in gone:
            loser.closed = loser.model.overflow is Overflow.CLOSE
        if used <= self.total:
            assert not gone, "there was room"
            return
        sizes = [sum(message.size for message in dropped) for dropped in gone.values()]
        assert self.used <= self.total or (len(model.messages) == 1 and self.used == model.size), "too many bytes"
        assert not sizes or self.used + max(sizes) > self.total, "more is dropped than necessary"
        for loser, dropped in gone.items():
            self._check_loser(loser, dropped, harness)

    def _check_loser(self, loser: Harness, dropped: list[Event], newcomer: Harness) -> None:
        """Check that none of the others was more than twice as large when the loser dropped its last message."""
        others = [other for other in self.harnesses if other is not loser and len(other.model.messages) > 1]
        ranked = [other.model.size for other in others if other.buffer.rank]
        if loser.model.messages or len(dropped) > 1:
            size = loser.model.size + sum(message.size for message in dropped[-1 if loser.model.messages else 0 :])
            assert max(ranked, default=0) < 2 * size, "a smaller buffer drops messages"
        else:
            assert not ranked, "the only message of a buffer is dropped, and others have several"
            assert loser is not newcomer, "an empty buffer does not take a message"

    def check(self) -> None:
        for harness in self.harnesses:
            harness.check()
        buffers = [harness.buffer for harness in self.harnesses]
        counted_twice = self.budget.loose - Budget(total=self.total).loose
        assert self.total == 10**9 or sum(map(size_of, buffers)) - counted_twice == self.used
        assert len(self.budget.lenders) <= 2


def disconnect(
    buffer: Buffer, argument: object, names: frozenset[bytes] | None, lost: Iterable[bytes] | None = None
) -> int:
    """Add a disconnect, and merge it with the earlier ones at once; return how many messages were dropped for it."""
    dropped = buffer.disconnect(argument, names, lost)
    while buffer.is_merging:
        dropped += buffer.merge_some()
    return dropped


def size_of(buffer: Buffer) -> int:
    """The bytes of the messages that are pending in a buffer."""
    return buffer.size - buffer._lent_size + sum(map(len, buffer.batch)) + sum(map(len, buffer.fresh))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    actions,
    st.tuples(*[st.sampled_from(Overflow)] * 3),
    st.sampled_from([(None, None), (60, None), (None, 30), (None, 90), (40, 150)]),
    st.sampled_from([budget_module.SMALL, 6]),
    st.sampled_from([event_list_module.SEARCH, 0]),
)
def test_a_buffer_does_what_its_model_does(
    script: list[tuple[Any, Any]],
    policies: tuple[Overflow, ...],
    bounds: tuple[int | None, int | None],
    small: int,
    search: int,
) -> None:
    """Any history gives the order, counts, bytes and gaps of a naive model."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(budget_module, "SMALL", small)
        monkeypatch.setattr(event_list_module, "SEARCH", search)
        play(Room(policies, *bounds), script)


def play(room: Room, script: list[tuple[Any, Any]]) -> None:
    for which, argument in script:
        if which == "spread":
            room.spread(argument)
        elif not room.harnesses[which].closed:
            action, detail = argument
            getattr(room.harnesses[which], action)(detail)
        room.check()
        if which == 0:
            buffers = [harness.buffer for harness in room.harnesses]
            expected = sum(map(len, buffers)), sum(map(size_of, buffers))
            assert room.budget.totals == expected
    for harness in room.harnesses:
        while harness.model.events:
            harness.take(1)
            harness.check()
        assert not harness.buffer
        assert harness.closed or harness.seen & harness.server == harness.server, "an activation is missing"
    assert room.budget.totals == (0, 0)
    assert not room.budget.lenders
    assert not room.budget.uncounted
    assert not room.budget._shared
    assert not any(room.budget._ranks.values())


def filled(messages: Iterable[tuple[bytes, bytes]], max_pending: int = 10_000) -> Buffer:
    buffer = new_buffer(max_pending, Overflow.DROP_OLDEST, Budget())
    for channel, data in messages:
        buffer.put(channel, data)
    buffer.commit()
    return buffer


def popped(buffer: Buffer) -> list[Any]:
    """All that is in a buffer: messages as they are, signals as kind, argument and names."""
    events: list[Any] = []
    while buffer:
        event = buffer.pop_message() or buffer.pop_signal()
        events.append((event.kind, event.argument, event.names) if isinstance(event, QueuedSignal) else event)
    return events


@pytest.mark.parametrize("names", [None, frozenset({b"a", b"b"})], ids=["all", "some"])
def test_reconnects_do_not_fill_the_buffer(names: frozenset[bytes] | None) -> None:
    """A thousand reconnects leave a bounded number of events."""
    buffer = new_buffer(MAX_PENDING, Overflow.DROP_OLDEST, Budget())
    for _ in range(1000):
        for name in (b"a", b"b"):
            buffer.signal(Signal.ACTIVATION, name, name)
            buffer.put(name, b"x")
        buffer.commit()
        disconnect(buffer, "lost", names)
    assert buffer.signals <= 3
    assert len(buffer) <= MAX_PENDING
    assert len(buffer._items) < 100


def test_disconnects_of_names_that_come_and_go_merge() -> None:
    """Disconnects merge, though each is about other names, and names are removed and added again."""
    buffer = filled([(b"z", b"")])
    for number in range(1000):
        names = frozenset(NAMES[: 1 + number % 3])
        for name in names:
            buffer.signal(Signal.ACTIVATION, name, name)
        disconnect(buffer, "lost", names)
        if number % 7 == 0:
            buffer.remove(frozenset({NAMES[number % 2]}))
    assert buffer.signals < 12


def test_refusals_and_grants_do_not_fill_the_buffer() -> None:
    """Only the last refusal of a name is kept, however often its permission changes."""
    buffer = filled([(b"z", b"")])
    for _ in range(1000):
        disconnect(buffer, "lost", None)
        buffer.signal(Signal.ERROR, "refused", b"a")
        buffer.signal(Signal.ACTIVATION, b"a", b"a")
    assert buffer.signals == 3


def test_a_disconnect_loses_the_names_that_are_removed() -> None:
    """A queued disconnect has only names that are subscribed to; without any it is removed."""
    buffer = filled([(b"z", b"")])
    disconnect(buffer, "lost", frozenset({b"a", b"b"}))
    buffer.signal(Signal.ACTIVATION, b"a", b"a")
    buffer.remove(frozenset({b"a"}))
    assert popped(buffer) == [(b"z", b""), (Signal.DISCONNECT, "lost", {b"b"})]
    buffer = filled([(b"z", b"")])
    disconnect(buffer, "lost", frozenset({b"a", b"b"}))
    for name in (b"a", b"b"):
        buffer.remove(frozenset({name}))
    assert popped(buffer) == [(b"z", b"")]


def test_a_disconnect_of_all_names_goes_with_the_last_of_them() -> None:
    """A queued disconnect of all names is removed with the last name that was active then, whatever was added since."""
    buffer = filled([(b"z", b"")])
    disconnect(buffer, "lost", None, [b"a", b"b"])
    for name in (b"a", b"new"):
        buffer.signal(Signal.ACTIVATION, name, name)
    disconnect(buffer, "lost again", None, [b"a", b"new"])
    buffer.remove(frozenset({b"a"}))
    assert buffer.signals == 1
    buffer.signal(Signal.ACTIVATION, b"new", b"new")
    buffer.remove(frozenset({b"b"}))
    assert popped(buffer) == [(b"z", b""), (Signal.ACTIVATION, b"new", {b"new"})]


def test_a_later_disconnect_has_only_the_names_that_are_new() -> None:
    """Names of a queued disconnect are not repeated in a later one."""
    buffer = filled([(b"a", b"1")])
    disconnect(buffer, "1", frozenset({b"a"}))
    for name in (b"a", b"b"):
        buffer.signal(Signal.ACTIVATION, name, name)
        buffer.put(name, b"2")
        buffer.commit()
    assert disconnect(buffer, "2", frozenset({b"a", b"b"})) == 1
    assert popped(buffer) == [
        (b"a", b"1"),
        (Signal.DISCONNECT, "1", {b"a"}),
        (Signal.ACTIVATION, b"b", {b"b"}),
        (b"b", b"2"),
        (Signal.DISCONNECT, "2", {b"b"}),
    ]


def test_a_refusal_survives_merged_disconnects() -> None:
    """Merging two disconnects keeps a refusal between them."""
    buffer = filled([])
    disconnect(buffer, "first", None)
    buffer.signal(Signal.ERROR, "refused", b"x")
    buffer.signal(Signal.ACTIVATION, b"y", b"y")
    disconnect(buffer, "second", None)
    assert popped(buffer) == [(Signal.DISCONNECT, "first", None), (Signal.ERROR, "refused", {b"x"})]


def test_a_disconnect_of_one_name_merges_with_one_of_all() -> None:
    """A disconnect of all names that is queued includes a later one of one name."""
    buffer = filled([])
    for error, names in (("1", frozenset({b"x"})), ("2", None), ("3", frozenset({b"x"}))):
        disconnect(buffer, error, names)
        buffer.signal(Signal.ACTIVATION, b"x", b"x")
    kinds = [(kind, argument) for kind, argument, _ in popped(buffer)]
    one, two = (Signal.DISCONNECT, "1"), (Signal.DISCONNECT, "2")
    assert kinds == [one, (Signal.ACTIVATION, b"x"), two, (Signal.ACTIVATION, b"x")]


def test_latest_forgets_what_a_second_disconnect_drops() -> None:
    """With `latest`, a message replaces an older one of its channel only, also after a disconnect has dropped some."""
    buffer = new_buffer(10, Overflow.LATEST, Budget(None, None))
    disconnect(buffer, "first", None)
    buffer.put(b"a", b"1")
    buffer.commit()
    assert disconnect(buffer, "second", None) == 1
    for channel, data in ((b"b", b"2"), (b"a", b"3")):
        buffer.put(channel, data)
        assert not buffer.commit()
    assert popped(buffer)[1:] == [(b"b", b"2"), (b"a", b"3")]


@pytest.mark.parametrize("kind", ["messages", "activations"])
def test_removing_names_one_by_one_does_not_walk_the_buffer(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work is that of the names' own events, and each other event is looked at a few times at most."""
    monkeypatch.undo()  # the sizes of every day
    total, removed = 10_000, 2_000
    buffer = filled([(b"other", b"x")] * (total - removed))
    for number in range(removed):
        name = b"%d" % number
        if kind == "activations":
            buffer.signal(Signal.ACTIVATION, name, name)
        else:
            buffer.put(name, b"x")
    buffer.commit()
    counted = buffer._items = Counted(buffer._items)
    dropped = sum(buffer.remove(frozenset({b"%d" % number})) for number in range(removed))
    assert dropped == (0 if kind == "activations" else removed)
    assert len(buffer) == total - removed
    assert counted.reads < 10 * total


def test_removing_many_names_at_once_walks_the_buffer_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a long backlog is indexed, the events about many names are found together, not name by name."""
    monkeypatch.undo()  # the sizes of every day
    buffer = filled([(b"other", b"x")] * 10_000)
    for number in range(40_000):
        buffer.signal(Signal.ACTIVATION, None, b"%d" % number)
    counted = buffer._items = Counted(buffer._items)
    assert buffer.remove(frozenset([b"%d" % number for number in range(100)])) == 0
    assert buffer.signals == 39_900
    assert counted.reads < 2 * len(counted)


def test_an_error_that_is_queued_after_a_search_is_removed() -> None:
    """A name that is removed takes its error with it, also when earlier removals have searched the queue."""
    names = [b"%d" % number for number in range(400)]
    buffer = filled([])
    for some in (names[:200], names[200:]):
        for name in some:
            buffer.signal(Signal.ERROR, "no", name)
        for name in (some[-1], some[0]):
            assert buffer.remove(frozenset({name})) == 0
    left = []
    while (signal := buffer.pop_signal()) is not None:
        left += signal.names or ()
    assert left == names[1:199] + names[201:399]


def test_the_payload_of_a_removed_message_is_freed_at_once() -> None:
    """A removed message leaves no payload in memory."""
    buffer = filled([(b"kept", b"x"), (b"gone", b"payload of its own"), (b"kept", b"y")])
    buffer.remove(frozenset({b"gone"}))
    assert not [item for item in buffer._items if item and item.startswith(b"payload")]
    assert popped(buffer) == [(b"kept", b"x"), (b"kept", b"y")]


def test_the_oldest_is_dropped_also_when_it_is_in_the_batch() -> None:
    """A batch does not protect its messages from overflow."""
    buffer = new_buffer(4, Overflow.DROP_OLDEST, Budget())
    for number in range(4):
        buffer.put(b"a", b"%d" % number)
    assert not buffer.commit()
    assert buffer.pop_message() == (b"a", b"0")
    assert buffer.batch
    for number in (4, 5):
        buffer.put(b"a", b"%d" % number)
    assert buffer.commit() == {None: 1}
    assert popped(buffer) == [(b"a", b"2"), (b"a", b"3"), (b"a", b"4"), (b"a", b"5")]


def test_a_removed_message_leaves_the_batch_too() -> None:
    """A batch does not protect its messages from the removal of their name."""
    buffer = filled([(b"a", b"0"), (b"b", b"1"), (b"a", b"2")])
    assert buffer.pop_message() == (b"a", b"0")
    assert buffer.batch
    assert buffer.remove(frozenset({b"b"})) == 1
    assert popped(buffer) == [(b"a", b"2")]


def test_no_payload_stays_shared_after_a_second_disconnect() -> None:
    """Long payloads that follow those that a second disconnect has dropped are counted off when they are popped."""
    budget = Budget(total=40_000)
    buffer = new_buffer(100, Overflow.DROP_OLDEST, budget)

    def put(count: int) -> None:
        for number in range(count):
            buffer.put(b"a", b"%2000d" % number)
            buffer.commit()

    put(1)
    buffer.disconnect("first", None, [b"a"])
    put(14)
    assert budget._shared
    buffer.disconnect("second", None, [b"a"])
    put(3)
    popped(buffer)
    assert (budget._shared, budget.totals) == ({}, (0, 0))


def test_popped_bytes_are_free_for_another_buffer() -> None:
    """The limit of all buffers sees what is pending, though a batch is counted together."""
    budget = Budget(total=100)
    one, two = (new_buffer(100, Overflow.DROP_OLDEST, budget) for _ in range(2))
    for _ in range(4):
        one.put(b"a", b"x" * 9)
    one.commit()
    assert one.pop_message()
    while one.batch:
        one.batch.pop()
    assert size_of(one) == 10
    two.put(b"a", b"x" * 79)
    assert not two.commit()
    assert budget.totals == (2, 90)


def test_the_newest_is_dropped_also_after_a_clear() -> None:
    """A buffer that made room once, and was cleared, drops its newest message the next time."""
    budget = Budget(total=40)
    stuck, other = (new_buffer(100, Overflow.DROP_NEWEST, budget, owner) for owner in ("stuck", "other"))
    for _ in range(2):
        stuck.clear()
        other.clear()
        for number in range(4):
            stuck.put(b"a", b"%09d" % number)
        assert not stuck.commit()
        other.put(b"b", b"x" * 9)
        assert other.commit() == {"stuck": 1}
    assert [int(data) for _, data in popped(stuck)] == [0, 1, 2]


def test_large_buffers_take_turns_to_make_room() -> None:
    """Ten buffers of one size drop one message each, and no buffer drops two before the others."""
    budget = Budget(total=10_000)
    numbers = itertools.count()
    large = [new_buffer(1000, Overflow.DROP_OLDEST, budget, number) for number in range(10)]
    for buffer in large:
        for _ in range(10):
            buffer.put(b"a", b"%099d" % next(numbers))
        assert not buffer.commit()
    newcomer = new_buffer(1000, Overflow.DROP_OLDEST, budget, "newcomer")
    newcomer.put(b"b", b"x" * 999)
    assert newcomer.commit() == dict.fromkeys(range(10), 1)


def test_the_total_is_exceeded_only_by_one_long_message() -> None:
    """Thousands of tiny stuck buffers keep half of the total; beside them, an empty buffer takes one message."""
    total = 1_000_000
    budget = Budget(total=total)
    numbers = itertools.count()

    def fill(size: int) -> dict[Any, int]:
        """Have an empty buffer take one message; return what was dropped."""
        buffer = new_buffer(1000, Overflow.DROP_OLDEST, budget, next(numbers))
        buffer.put(b"a", b"x" * (size - 1))
        keep.append(buffer)
        return buffer.commit()

    keep: list[Buffer] = []
    for _ in range(10_000):
        assert not fill(50)
    assert not fill(total // 2)
    assert budget.totals[1] == total
    assert fill(total // 2) == {10_000: 1}  # of the two long messages, the newer one is kept
    assert budget.totals[1] == total
    assert fill(total) == {10_001: 1}
    assert budget.totals == (10_001, total // 2 + total)
    for _ in range(20_000):  # tiny buffers that come now drop messages too
        fill(50)
        assert budget.totals[1] <= total


@pytest.mark.parametrize("seed", range(3))
def test_the_total_holds_whatever_is_buffered(seed: int) -> None:
    """Stuck buffers of all sizes never have more together than the total, or than half of it and one new message."""
    rng = random.Random(seed)
    total = 200_000
    budget = Budget(total=total)
    buffers = [new_buffer(1000, rng.choice([*Overflow]), budget, number) for number in range(3_000)]
    for _ in range(5_000):
        buffer = rng.choice(buffers)
        if rng.random() < 0.05:
            buffer.clear()
        size = rng.choice((20, 60, 60, 300, 5_000, rng.choice((60_000, 150_000))))
        buffer.put(b"a", bytes(size - 1))
        buffer.commit()
        newest = size if len(buffer) == 1 else 0
        used = budget.totals[1] - (budget.loose - total // 2)  # long payloads that are shared count once
        assert used <= max(total, total // 2 + newest)
