"""The buffer against a naive model: order, bounds, counts, bytes, gaps, and the order of events of each name."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redismpx._core import buffer as buffer_module
from redismpx._core import event_list as event_list_module
from redismpx._core.buffer import DEFERRED, FULL, Budget, Buffer, Overflow, new_buffer
from redismpx._core.event_list import QueuedSignal, Signal

from ..helpers.counted import Counted

NAMES = [b"a", b"b", b"c"]
MAX_PENDING = 8


class Event(NamedTuple):
    """An event of the model: a message of one name with a payload, or a signal about one name, some names or all."""

    kind: str
    names: frozenset[bytes] | None
    payload: bytes = b""

    @property
    def size(self) -> int:
        assert self.names is not None
        return sum(map(len, self.names)) + len(self.payload)

    def is_about(self, name: bytes) -> bool:
        return self.names is None or name in self.names


class Model:
    """What a buffer is to do, with a walk through all that is queued for each step."""

    def __init__(self, overflow: Overflow, budget: Budget, others: list[Model]) -> None:
        self.overflow = overflow
        self.budget = budget
        self.others = others  # all models of one budget
        self.events: list[Event] = []
        self.dropped = 0
        self.removed = 0
        others.append(self)

    @property
    def messages(self) -> list[Event]:
        return [event for event in self.events if event.kind == "message"]

    @property
    def signal_count(self) -> int:
        return len(self.events) - len(self.messages)

    @property
    def pending_bytes(self) -> int:
        return sum(event.size for event in self.messages)

    @property
    def is_too_full(self) -> bool:
        used = sum(model.pending_bytes for model in self.others)
        return (
            len(self.messages) > MAX_PENDING
            or self.pending_bytes > self.budget.each
            or self.pending_bytes + used > self.budget.total
        )

    def message(self, name: bytes, payload: bytes) -> None:
        if self.overflow is Overflow.LATEST:
            self._drop([event for event in self.messages if event.is_about(name)])
        self.events.append(Event("message", frozenset({name}), payload))
        while self.messages and self.is_too_full:
            if self.overflow in (Overflow.DROP_NEWEST, Overflow.CLOSE):
                self._drop([self.messages[-1]])
                break
            self._drop([self.messages[0]])

    def signal(self, kind: str, name: bytes) -> None:
        self.events.append(Event(kind, frozenset({name})))

    def disconnect(self, names: frozenset[bytes] | None) -> None:
        if names is None:
            gaps = [n for n, event in enumerate(self.events) if event.kind == "disconnect" and event.names is None]
            if not gaps:
                self.events.append(Event("disconnect", None))
                return
            later = self.events[gaps[-1] + 1 :]
            self._drop([e for n, e in enumerate(later) if e.kind != "error" or _is_outdated(e, later[n:])])
            return
        new = set(names)
        for name in names:
            gaps = [n for n, event in enumerate(self.events) if event.kind == "disconnect" and event.is_about(name)]
            if gaps:
                new.discard(name)
                self._drop([event for event in self.events[gaps[-1] + 1 :] if event.is_about(name)])
        if new:
            self.events.append(Event("disconnect", frozenset(new)))

    def remove(self, names: frozenset[bytes]) -> None:
        before = len(self.messages)
        kept = []
        for event in self.events:
            left = event.names if event.names is None or event.kind == "message" else event.names - names
            if event.names is None or (left and not left <= names):
                kept.append(event._replace(names=left))
        self.events = kept
        self.removed += before - len(self.messages)

    def clear(self) -> None:
        self.removed += len(self.messages)
        self.events = []

    def _drop(self, events: Iterable[Event]) -> None:
        for gone in events:
            self.dropped += gone.kind == "message"
            self.events = [event for event in self.events if event is not gone]


def _is_outdated(error: Event, later: list[Event]) -> bool:
    """Whether the name of an error was activated after it."""
    return any(event.kind == "activation" and event.names == error.names for event in later)


names = st.sampled_from(NAMES)
some_names = st.sampled_from([frozenset(some) for size in (1, 2, 3) for some in itertools.combinations(NAMES, size)])
actions = st.lists(
    st.tuples(
        st.integers(0, 1),  # which of two buffers
        st.one_of(
            st.tuples(st.just("burst"), st.binary(min_size=1, max_size=10)),  # a byte for each message
            st.tuples(st.just("lose"), st.none() | some_names),
            st.tuples(st.just("activate"), names),
            st.tuples(st.just("refuse"), names),
            st.tuples(st.just("pop"), st.integers(1, 6)),
            st.tuples(st.just("take"), st.integers(1, 6)),
            st.tuples(st.just("remove"), some_names),
        ),
    ),
    min_size=20,
    max_size=60,
)


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer_module, "BATCH_SIZE", 3)
    monkeypatch.setattr(event_list_module, "SLACK", 8)


class Harness:
    """A buffer with its model, its server and its consumer."""

    def __init__(self, overflow: Overflow, budget: Budget, models: list[Model]) -> None:
        self.budget = budget
        self.buffer = new_buffer(MAX_PENDING, overflow, budget)
        self.model = Model(overflow, budget, models)
        self.server: set[bytes] = set()  # active names
        self.subscribed = set(NAMES)
        self.seen: set[bytes] = set()  # active names, as the consumer was notified
        self.received = self.delivered = self.dropped = self.removed = 0
        self.numbers = itertools.count()
        for name in NAMES:
            self.activate(name)
        self.pop(len(NAMES))

    def burst(self, messages: bytes) -> None:
        is_reminded = False
        for message in messages:
            name, length = NAMES[message % 3], message // 3 % 10
            if name not in self.server:
                continue
            payload = b"%d " % next(self.numbers) + b"x" * length
            self.received += 1
            said = self.buffer.put(name, payload)
            assert said in (FULL, DEFERRED) or is_reminded, "the burst would not be counted"
            is_reminded = said is not FULL
            self.model.message(name, payload)
            if said is FULL:
                self.dropped += self.buffer.commit()
            assert len(self.buffer) <= MAX_PENDING
        if self.buffer.fresh:
            self.dropped += self.buffer.commit()

    def lose(self, lost: frozenset[bytes] | None) -> None:
        active = self.server.intersection(NAMES if lost is None else lost)
        if active:
            names = None if lost is None else frozenset(active)
            self.dropped += self.buffer.disconnect("lost", names)
            self.model.disconnect(names)
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
            assert expected == Event("message", frozenset({event[0]}), event[1])
            assert event[0] in self.seen, "a message of a name that is not active"
            self.delivered += 1
        else:
            names = event.names if event.names is None else frozenset(event.names)
            assert expected == Event(event.kind.value, names)
            if event.kind is Signal.ACTIVATION:
                assert event.argument not in self.seen, "activated twice"
                self.seen.add(event.argument)
            elif event.kind is Signal.DISCONNECT:
                assert names is None or names <= self.seen, "a disconnect of a name that is not active"
                self.seen -= set(NAMES) if names is None else names

    def check(self) -> None:
        buffer, model = self.buffer, self.model
        assert len(buffer) == len(model.messages) <= MAX_PENDING
        assert buffer.signals == len(model.events) - len(model.messages)
        assert bool(buffer) == bool(model.events)
        assert buffer.signal_is_next == (bool(model.events) and model.events[0].kind != "message")
        assert (self.dropped, self.removed) == (model.dropped, model.removed)
        assert self.received == self.delivered + self.dropped + self.removed + len(buffer)
        assert buffer.pending_bytes == model.pending_bytes <= self.budget.each
        assert model.signal_count <= 5 * len(NAMES)
        assert not any(buffer._items[: buffer._head]), "a popped event stays in memory"
        assert len(buffer._items) <= 8 * len(model.events) + 64, "removed events pile up"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    actions,
    st.sampled_from(Overflow),
    st.sampled_from([(None, None), (60, None), (None, 60), (40, 90)]),
)
def test_a_buffer_does_what_its_model_does(
    script: list[tuple[int, tuple[str, Any]]], overflow: Overflow, bounds: tuple[int | None, int | None]
) -> None:
    """Any history gives the order, counts, bytes and gaps of a naive model."""
    budget, models = Budget(*bounds), []
    harnesses = [Harness(overflow, budget, models) for _ in range(2)]
    for which, (action, argument) in script:
        getattr(harnesses[which], action)(argument)
        for harness in harnesses:
            harness.check()
        assert sum(model.pending_bytes for model in models) <= budget.total
    for harness in harnesses:
        while harness.model.events:
            harness.take(1)
            harness.check()
        assert not harness.buffer
        assert harness.seen & harness.server == harness.server, "the consumer was not notified of an activation"
    budget.recall()
    assert budget.used == 0
    assert not budget.lenders


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
        buffer.disconnect("lost", names)
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
        buffer.disconnect("lost", names)
        if number % 7 == 0:
            buffer.remove(frozenset({NAMES[number % 2]}))
    assert buffer.signals < 12


def test_refusals_and_grants_do_not_fill_the_buffer() -> None:
    """Only the last refusal of a name is kept, however often its permission changes."""
    buffer = filled([(b"z", b"")])
    for _ in range(1000):
        buffer.disconnect("lost", None)
        buffer.signal(Signal.ERROR, "refused", b"a")
        buffer.signal(Signal.ACTIVATION, b"a", b"a")
    assert buffer.signals == 3


def test_a_disconnect_loses_the_names_that_are_removed() -> None:
    """A queued disconnect has only names that are subscribed to; without any it is removed."""
    buffer = filled([(b"z", b"")])
    buffer.disconnect("lost", frozenset({b"a", b"b"}))
    buffer.signal(Signal.ACTIVATION, b"a", b"a")
    buffer.remove(frozenset({b"a"}))
    assert popped(buffer) == [(b"z", b""), (Signal.DISCONNECT, "lost", {b"b"})]
    buffer = filled([(b"z", b"")])
    buffer.disconnect("lost", frozenset({b"a", b"b"}))
    for name in (b"a", b"b"):
        buffer.remove(frozenset({name}))
    assert popped(buffer) == [(b"z", b"")]


def test_a_later_disconnect_has_only_the_names_that_are_new() -> None:
    """Names of a queued disconnect are not repeated in a later one."""
    buffer = filled([(b"a", b"1")])
    buffer.disconnect("1", frozenset({b"a"}))
    for name in (b"a", b"b"):
        buffer.signal(Signal.ACTIVATION, name, name)
        buffer.put(name, b"2")
        buffer.commit()
    assert buffer.disconnect("2", frozenset({b"a", b"b"})) == 1
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
    buffer.disconnect("first", None)
    buffer.signal(Signal.ERROR, "refused", b"x")
    buffer.signal(Signal.ACTIVATION, b"y", b"y")
    buffer.disconnect("second", None)
    assert popped(buffer) == [(Signal.DISCONNECT, "first", None), (Signal.ERROR, "refused", {b"x"})]


def test_a_disconnect_of_one_name_merges_with_one_of_all() -> None:
    """A disconnect of all names that is queued includes a later one of one name."""
    buffer = filled([])
    for error, names in (("1", frozenset({b"x"})), ("2", None), ("3", frozenset({b"x"}))):
        buffer.disconnect(error, names)
        buffer.signal(Signal.ACTIVATION, b"x", b"x")
    kinds = [(kind, argument) for kind, argument, _ in popped(buffer)]
    one, two = (Signal.DISCONNECT, "1"), (Signal.DISCONNECT, "2")
    assert kinds == [one, (Signal.ACTIVATION, b"x"), two, (Signal.ACTIVATION, b"x")]


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
    assert buffer.commit() == 0
    assert buffer.pop_message() == (b"a", b"0")
    assert buffer.batch
    for number in (4, 5):
        buffer.put(b"a", b"%d" % number)
    assert buffer.commit() == 1
    assert popped(buffer) == [(b"a", b"2"), (b"a", b"3"), (b"a", b"4"), (b"a", b"5")]


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
    assert one.pending_bytes == 10
    two.put(b"a", b"x" * 39)
    assert two.commit() == 0
    assert budget.used == 50
