"""The buffer against a model: order, bound, counts, and the grammar of events after any disconnects."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redismpx._core import buffer as buffer_module
from redismpx._core.buffer import FULL, LATER, Budget, Overflow, Signal, new_buffer

NAMES = [b"a", b"b"]
BOUND = 8

actions = st.lists(
    st.one_of(
        st.tuples(st.just("message"), st.sampled_from(NAMES)),
        st.tuples(st.just("fresh"), st.sampled_from(NAMES)),
        st.tuples(st.just("settle"), st.none()),
        st.tuples(st.just("neighbour"), st.sampled_from(NAMES)),
        st.tuples(st.just("lose"), st.none()),
        st.tuples(st.just("lose"), st.sampled_from(NAMES)),
        st.tuples(st.just("activate"), st.sampled_from(NAMES)),
        st.tuples(st.just("pop"), st.none()),
        st.tuples(st.just("take"), st.none()),
        st.tuples(st.just("remove"), st.sampled_from(NAMES)),
    ),
    min_size=20,
    max_size=60,
)
ALL_ACTIVE: list[tuple[str, bytes | None]] = [("activate", b"a"), ("activate", b"b"), ("pop", None), ("pop", None)]


@pytest.fixture(autouse=True)
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer_module, "HAND", 2)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    actions.map(ALL_ACTIVE.__add__),
    st.sampled_from(Overflow),
    st.sampled_from([(None, None), (25, None), (None, 25), (20, 30)]),
)
def test_any_history_is_ordered_bounded_and_counted(
    script: list[tuple[str, bytes | None]], overflow: Overflow, bounds: tuple[int | None, int | None]
) -> None:
    """After any history, events are in order and follow the grammar, bounds hold and counts are exact."""
    budget = Budget(*bounds)
    buffer, neighbour = new_buffer(BOUND, overflow, budget), new_buffer(BOUND, overflow, budget)
    server: set[bytes] = set()  # active, as the wire has it
    seen: set[bytes] = set()  # active, as the callbacks were told
    received = delivered = dropped = forgotten = 0
    removed = False
    last = dict.fromkeys(NAMES, -1.0)

    def take(from_hand: bool = False) -> bool:
        nonlocal delivered
        event: tuple[object, object] | None
        if from_hand and buffer.hand:
            assert not buffer.signals
            event = buffer.hand.pop(), buffer.hand.pop()
            assert buffer, "the last one is not to be taken without a look"
        else:
            event = buffer.pop_message() or buffer.pop_signal()
        if event is None:
            return False
        first, second = event
        if isinstance(first, bytes):
            delivered += 1
            assert first in seen, "a message of what is not active"
            assert float(second) > last[first], "out of order"  # type: ignore[arg-type]
            last[first] = float(second)  # type: ignore[arg-type]
        elif first is Signal.ACTIVATION:
            assert second not in seen, "activated twice"
            seen.add(second)  # type: ignore[arg-type]
        elif first is Signal.DISCONNECT:
            names = set(NAMES) if second is None else second
            # A connection that had been active for a name removed since is a gap of its subscription all the same.
            assert names & seen or (second is None and removed), "a disconnect with nothing active"  # type: ignore[operator]
            seen.difference_update(names)  # type: ignore[arg-type]
        return True

    for number, (action, name) in enumerate(script):
        if action not in ("fresh", "take") and not (action == "remove" and server == {name}):  # then all goes anyway
            dropped += buffer.settle()
        if action in ("pop", "take"):
            take(from_hand=action == "take")
        elif action == "lose":
            names = None if name is None else frozenset({name})
            if server & (set(NAMES) if names is None else names):
                dropped += buffer.disconnect(names, names)
                server -= set(NAMES) if names is None else names
        elif action == "activate" and name not in server:
            assert name is not None
            server.add(name)
            buffer.signal(Signal.ACTIVATION, name, frozenset({name}))
        elif action == "message" and name in server:
            assert name is not None
            received += 1
            dropped += buffer.message(name, b"%d" % number)
        elif action == "fresh" and name in server:
            assert name is not None
            for part in range(4):
                received += 1
                said = buffer.put(name, b"%d.%d" % (number, part))
                assert said in (FULL, LATER) or len(buffer.fresh) > 2, "it would not be counted"
                if said is FULL:
                    dropped += buffer.settle()
        elif action == "neighbour" and name is not None:
            neighbour.message(name, b"%d" % number)
        elif action == "remove" and name is not None:
            removed = True
            server.discard(name)
            forgotten += buffer.discard(None if not server else frozenset({name}))
            seen.discard(name)
            if not server:
                seen.clear()
        assert len(buffer) <= BOUND
        assert budget.used <= budget.total
        assert buffer._bytes <= budget.each
        assert received == delivered + dropped + forgotten + len(buffer)
    dropped += buffer.settle()
    while take():
        pass
    assert seen == server, "what the callbacks were told is not what is so"
    while neighbour.pop_message() is not None:
        pass
    assert budget.used == buffer._bytes == 0


def test_reconnects_do_not_fill_a_stuck_consumers_buffer() -> None:
    """A thousand reconnects leave a bounded number of events in the buffer of a stuck consumer."""
    buffer = new_buffer(BOUND, Overflow.DROP_OLDEST, Budget())
    for _ in range(1000):
        for name in NAMES:
            buffer.signal(Signal.ACTIVATION, name, frozenset({name}))
            buffer.message(name, b"x")
        buffer.disconnect("lost", None)
    assert len(buffer.signals) <= 2 * len(NAMES) + 1
    assert len(buffer) <= BOUND


def test_the_oldest_is_dropped_even_from_the_batch_in_use() -> None:
    """drop_oldest also drops from the messages that are prepared for delivery."""
    buffer = new_buffer(4, Overflow.DROP_OLDEST, Budget())
    for number in range(4):
        buffer.put(b"a", b"%d" % number)
    assert buffer.settle() == 0
    assert buffer.pop_message() == (b"a", b"0")
    assert buffer.hand == [b"1", b"a"]
    for number in (4, 5):
        buffer.put(b"a", b"%d" % number)
    assert buffer.settle() == 1
    left = [buffer.pop_message() for _ in range(5)]
    assert left == [(b"a", b"2"), (b"a", b"3"), (b"a", b"4"), (b"a", b"5"), None]
