"""Disconnects of the same names merge little by little, while events are popped, removed and added."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from redismpx._core import buffer as buffer_module
from redismpx._core import event_index as event_index_module
from redismpx._core import event_list as event_list_module
from redismpx._core.budget import Budget
from redismpx._core.events import QueuedSignal, Signal, pairs
from redismpx._core.latest import new_buffer
from redismpx._core.overflow import Overflow

from ..helpers.counted import Counted

NAMES = [b"a", b"b", b"c", b"d"]
FEW, MANY = 4, 1_000  # messages that a buffer has room for; no script has as many as the second

names = st.sampled_from(NAMES)
some_names = st.sets(names, min_size=1).map(frozenset)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("burst"), st.lists(names, min_size=1, max_size=6)),
        st.tuples(st.just("lose"), some_names),
        st.tuples(st.just("lose_all"), st.none()),
        st.tuples(st.just("activate"), names),
        st.tuples(st.just("activate_all"), st.none()),
        st.tuples(st.just("refuse"), names),
        st.tuples(st.just("pop"), st.integers(1, 6)),
        st.tuples(st.just("remove"), some_names),
        st.tuples(st.just("merge"), st.integers(1, 4)),
    ),
    min_size=10,
    max_size=60,
)


LOST_TWICE: list[tuple[str, Any]] = [
    ("lose", frozenset({b"a"})),
    ("activate", b"a"),
    ("lose", frozenset({b"a"})),
    ("activate", b"a"),
    ("burst", [b"a"]),
    ("merge", 4),
]


class Desk:
    """A buffer between a server and a consumer, which know what the events of a name may be at each moment."""

    def __init__(self, overflow: Overflow, max_pending: int) -> None:
        self.budget = Budget()
        self.buffer = new_buffer(max_pending, overflow, self.budget, None)
        self.overflow = overflow
        self.drops_for_room = max_pending == FEW or overflow is Overflow.LATEST
        self.active: set[bytes] = set()  # for the server
        self.seen: set[bytes] = set()  # active, as far as the consumer was notified
        self.numbers = itertools.count()
        self.sizes: dict[int, int] = {}
        self.popped: list[int] = []
        self.current: defaultdict[bytes, list[int]] = defaultdict(list)  # messages since the last activation of a name
        self.gone = 0  # messages that were dropped or removed
        for name in NAMES:
            self.activate(name)

    def burst(self, some: list[bytes]) -> None:
        for name in some:
            if name in self.active:
                number = next(self.numbers)
                data = b"%d" % number
                self.sizes[number] = len(name) + len(data)
                self.current[name].append(number)
                self.buffer.put(name, data)
        if self.buffer.fresh:
            self.gone += sum(self.buffer.commit().values())

    def lose(self, some: frozenset[bytes]) -> None:
        lost = self.active & some
        if lost:
            self._forget(lost)
            self.gone += self.buffer.disconnect("lost", frozenset(lost))

    def lose_all(self, _: None) -> None:
        if self.active:
            lost = set(self.active)
            self._forget(lost)
            self.gone += self.buffer.disconnect("lost", None, lost)

    def _forget(self, lost: set[bytes] | frozenset[bytes]) -> None:
        self.active -= lost
        for name in lost:
            self.current[name].clear()

    def activate(self, name: bytes) -> None:
        if name not in self.active:
            self.active.add(name)
            self.buffer.signal(Signal.ACTIVATION, name, name)

    def activate_all(self, _: None) -> None:
        for name in NAMES:
            self.activate(name)

    def refuse(self, name: bytes) -> None:
        if name not in self.active:
            self.buffer.signal(Signal.ERROR, name, name)

    def remove(self, some: frozenset[bytes]) -> None:
        self._forget(some)
        self.seen -= some
        self.gone += self.buffer.remove(some)

    def merge(self, steps: int) -> None:
        for _ in range(steps):
            if self.buffer.is_merging:
                self.gone += self.buffer.merge_some()

    def pop(self, times: int) -> None:
        for _ in range(times):
            event: Any = self.buffer.pop_message() or self.buffer.pop_signal()
            if isinstance(event, tuple):
                assert event[0] in self.seen, "a message of a name that is not active"
                self.popped.append(int(event[1]))
            elif event is not None and event.kind is Signal.ACTIVATION:
                assert event.argument not in self.seen, "activated twice"
                self.seen.add(event.argument)
            elif event is not None and event.kind is Signal.DISCONNECT:
                assert self.seen, "a disconnect, and no name is active"
                assert event.names is None or event.names <= self.seen, "a disconnect of a name that is not active"
                self.seen -= set(NAMES) if event.names is None else event.names

    @property
    def queued(self) -> list[int]:
        """The messages in the buffer."""
        items = [*self.buffer._items[self.buffer._head :], *reversed(self.buffer.batch)]
        return [int(data) for channel, data in pairs(items) if channel is not None]

    def check(self) -> None:
        buffer = self.buffer
        assert len(self.sizes) == len(self.popped) + self.gone + len(buffer)
        assert self.budget.totals == (len(buffer), sum(self.sizes[number] for number in self.queued))
        assert self.overflow is Overflow.LATEST or self.popped == sorted(self.popped)
        if not buffer.is_merging:
            gaps = [name for item in buffer._items if isinstance(item, QueuedSignal) for name in gap_names(item)]
            assert len(gaps) == len(set(gaps)), "a name is in two disconnects"

    def end(self) -> None:
        """Merge the rest and pop all: what was received since the last activation of each name arrives."""
        for _ in range(1_000):
            self.merge(1)
        assert not self.buffer.is_merging
        self.check()
        while self.buffer:
            self.pop(1)
        self.check()
        assert self.seen == self.active
        expected = {number for numbers in self.current.values() for number in numbers}
        assert self.drops_for_room or expected <= set(self.popped), "a message is dropped without a gap"
        assert self.budget.totals == (0, 0)


def gap_names(signal: QueuedSignal) -> set[bytes]:
    return set(signal.names or ()) if signal.kind is Signal.DISCONNECT else set()


@pytest.fixture
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer_module, "BATCH_SIZE", 3)
    monkeypatch.setattr(event_list_module, "SLACK", 8)
    monkeypatch.setattr(event_list_module, "MERGED_AT_ONCE", 1)
    monkeypatch.setattr(event_index_module, "OUTDATED", 8)
    monkeypatch.setattr(event_index_module, "INDEXED_AT_ONCE", 2)
    monkeypatch.setattr(event_index_module, "FEW", 1)


@pytest.mark.usefixtures("small_sizes")
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    actions,
    st.sampled_from([Overflow.DROP_OLDEST, Overflow.DROP_NEWEST, Overflow.LATEST]),
    st.sampled_from([FEW, MANY]),
    st.sampled_from([event_list_module.SEARCH, 0]),
)
@example(LOST_TWICE, Overflow.DROP_OLDEST, MANY, event_list_module.SEARCH)
@example(LOST_TWICE, Overflow.DROP_OLDEST, MANY, 0)
def test_events_stay_in_order_between_two_steps(
    script: list[tuple[str, Any]], overflow: Overflow, max_pending: int, search: int
) -> None:
    """Whatever happens while disconnects merge, the events of each name are in order, and all bytes are counted."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(event_list_module, "SEARCH", search)
        desk = Desk(overflow, max_pending)
        for action, detail in script:
            getattr(desk, action)(detail)
            desk.check()
        desk.end()


def test_no_step_looks_at_all_events_or_names() -> None:
    """A second disconnect of very many names is added without a look at the queue, and merges in small steps."""
    total = 20_000
    buffer = new_buffer(10, Overflow.DROP_OLDEST, Budget())
    many = frozenset([b"%d" % number for number in range(total)])
    buffer.disconnect("first", many)
    for name in many:
        buffer.signal(Signal.ACTIVATION, name, name)
    counted = buffer._items = Counted(buffer._items)
    buffer.disconnect("second", many)
    assert counted.reads < 10
    most = before = steps = 0
    while buffer.is_merging:
        before = counted.reads
        buffer.merge_some()
        steps += 1
        if buffer._items is counted:  # otherwise it was the last step, which deletes what the others left behind
            most = max(most, counted.reads - before)
    assert most < total / 2
    assert steps > 50
    assert counted.reads < 20 * total
    assert buffer.signals == 1
    signal = buffer.pop_signal()
    assert signal is not None
    assert (signal.argument, signal.names) == ("first", many)


@pytest.mark.usefixtures("small_sizes")
def test_merging_ends_though_messages_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages that are dropped for lack of room, faster than names are merged, do not make it begin again."""
    monkeypatch.setattr(event_index_module, "INDEXED_AT_ONCE", 4)
    buffer = new_buffer(FEW, Overflow.DROP_OLDEST, Budget())
    many = frozenset([b"%d" % number for number in range(50)])
    buffer.disconnect("first", many)
    for name in many:
        buffer.signal(Signal.ACTIVATION, name, name)
    buffer.disconnect("second", many)
    for _ in range(500):
        for _ in range(3):
            buffer.put(b"other", b"x")
        buffer.commit()
        buffer.merge_some()
    assert not buffer.is_merging
    assert buffer.signals == 1
    assert len(buffer._items) < 100


@pytest.mark.usefixtures("small_sizes")
def test_merging_ends_though_messages_are_added_faster() -> None:
    """Messages that are added faster than they are indexed do not keep disconnects from merging."""
    buffer = new_buffer(FEW, Overflow.DROP_OLDEST, Budget())
    many = frozenset([b"%d" % number for number in range(50)])
    buffer.disconnect("first", many)
    for name in many:
        buffer.signal(Signal.ACTIVATION, name, name)
    buffer.disconnect("second", many)
    steps = 0
    while buffer.is_merging:
        for _ in range(20):  # ten times as many as are indexed in one step
            buffer.put(b"other", b"x")
        buffer.commit()
        buffer.merge_some()
        steps += 1
        assert steps < 200
    assert buffer.signals == 1
    assert len(buffer._items) < 100


@pytest.mark.parametrize("backlog", [0, 100], ids=["a sweep", "a search"])
def test_a_name_leaves_a_disconnect_of_many_without_a_copy(backlog: int) -> None:
    """To remove one name neither copies nor indexes the names of a disconnect."""
    many = [b"%d" % number for number in range(1_000)]
    buffer = new_buffer(10, Overflow.DROP_OLDEST, Budget())
    buffer.disconnect("lost", frozenset(many))
    for number in range(backlog):
        buffer.signal(Signal.ACTIVATION, None, b"other %d" % number)
    buffer.remove(frozenset(many[:1]))
    signal = buffer._items[1]
    kept = signal.names
    for name in many[1:10]:
        buffer.remove(frozenset({name}))
    assert kept is signal.names
    assert kept == set(many[10:])
    assert (0 if buffer._index is None else len(buffer._index)) == backlog
