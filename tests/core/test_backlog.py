"""The backlog against a model: order, bound, counts, and the grammar of events after any disconnects."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from redismpx._core.backlog import Budget, Overflow, Signal, new_backlog

NAMES = [b"a", b"b"]
BOUND = 3

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
        st.tuples(st.just("remove"), st.sampled_from(NAMES)),
    ),
    max_size=60,
)


@settings(max_examples=500, deadline=None)
@given(actions, st.sampled_from(Overflow), st.sampled_from([(None, None), (7, None), (None, 7), (6, 9)]))
def test_what_comes_out_is_in_order_bounded_counted_and_keeps_the_grammar(
    script: list[tuple[str, bytes | None]], overflow: Overflow, bounds: tuple[int | None, int | None]
) -> None:
    budget = Budget(*bounds)
    backlog, neighbour = new_backlog(BOUND, overflow, budget), new_backlog(BOUND, overflow, budget)
    server: set[bytes] = set()  # active, as the wire has it
    seen: set[bytes] = set()  # active, as the callbacks were told
    received = delivered = dropped = forgotten = 0
    removed = False
    last = dict.fromkeys(NAMES, -1)

    def take() -> bool:
        nonlocal delivered
        event = backlog.pop_message() or backlog.pop_signal()
        if event is None:
            return False
        first, second = event
        if isinstance(first, bytes):
            delivered += 1
            assert first in seen, "a message of what is not active"
            assert int(second) > last[first], "out of order"  # type: ignore[call-overload]
            last[first] = int(second)  # type: ignore[call-overload]
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
        if action != "fresh" and not (action == "remove" and server == {name}):  # then all goes anyway
            dropped += backlog.settle()
        if action == "pop":
            take()
        elif action == "lose":
            names = None if name is None else frozenset({name})
            if server & (set(NAMES) if names is None else names):
                dropped += backlog.disconnect(names, names)
                server -= set(NAMES) if names is None else names
        elif action == "activate" and name not in server:
            assert name is not None
            server.add(name)
            backlog.signal(Signal.ACTIVATION, name, frozenset({name}))
        elif action == "message" and name in server:
            assert name is not None
            received += 1
            dropped += backlog.message(name, b"%d" % number)
        elif action == "fresh" and name in server:
            assert name is not None
            received += 1
            backlog.fresh += (name, b"%d" % number)
            if len(backlog.fresh) > backlog.spare:
                dropped += backlog.settle()
        elif action == "neighbour" and name is not None:
            neighbour.message(name, b"%d" % number)
        elif action == "remove" and name is not None:
            removed = True
            server.discard(name)
            forgotten += backlog.discard(None if not server else frozenset({name}))
            seen.discard(name)
            if not server:
                seen.clear()
        assert len(backlog) <= BOUND
        assert budget.used <= budget.total
        assert backlog._bytes <= budget.each
        assert received == delivered + dropped + forgotten + len(backlog)
    dropped += backlog.settle()
    while take():
        pass
    assert seen == server, "what the callbacks were told is not what is so"
    while neighbour.pop_message() is not None:
        pass
    assert budget.used == backlog._bytes == 0


def test_a_stuck_consumer_holds_a_bounded_backlog_through_any_number_of_reconnects() -> None:
    backlog = new_backlog(BOUND, Overflow.DROP_OLDEST, Budget())
    for _ in range(1000):
        for name in NAMES:
            backlog.signal(Signal.ACTIVATION, name, frozenset({name}))
            backlog.message(name, b"x")
        backlog.disconnect("lost", None)
    assert len(backlog.signals) <= 2 * len(NAMES) + 1
    assert len(backlog) <= BOUND
