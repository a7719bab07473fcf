"""A finalizer may call any method in the middle of any other: nothing is lost, counted twice, or seen half done."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from redismpx._core import buffer as buffer_module
from redismpx._core import event_list as event_list_module
from redismpx._core.budget import Budget
from redismpx._core.buffer import FULL, Buffer
from redismpx._core.critical import CriticalSection
from redismpx._core.entry import Entry, SubscriberState
from redismpx._core.events import Signal
from redismpx._core.latest import new_buffer
from redismpx._core.overflow import Overflow
from redismpx._core.wire import Kind

from ..helpers.strike import Session

NAMES = (b"a", b"b", b"c")


def strike(at: int, call: Callable[[], object], finalize: Callable[[], object]) -> bool:
    """Make a call; at its `at`-th event, run a finalizer. Return whether there were so many events.

    The garbage collector runs when a function begins, after a call of a function of C, and at the end of each round of
    a loop. The last is left out here: each loop of the core calls something.
    """
    left = at

    def trace(frame: object, event: str, argument: object) -> None:
        nonlocal left
        left -= event != "c_call"
        if left == 0:
            sys.setprofile(None)
            finalize()

    sys.setprofile(trace)
    try:
        call()
    finally:
        sys.setprofile(None)
    return left <= 0


class Desk:
    """Some buffers of one budget, as subscriptions use them: each message that is put in is accounted for."""

    def __init__(self, overflow: Overflow, total: int | None, max_pending: int) -> None:
        self.budget = Budget(total=total)
        self.loose = self.budget.loose
        self.buffers = [new_buffer(max_pending, overflow, self.budget, number) for number in range(2)]
        self.put: Counter[Any] = Counter()
        self.gone: Counter[Any] = Counter()  # popped or dropped
        self.popped: list[bytes] = []
        self.popped_by_finalizer: list[bytes] = []
        self.is_latest = overflow is Overflow.LATEST
        self.is_closed = False

    @property
    def buffer(self) -> Buffer:
        return self.buffers[0]

    def fill(self, buffer: Buffer, count: int) -> None:
        for _ in range(count):
            number = self.put[buffer.owner]
            self.put[buffer.owner] += 1
            payload = b"%06d" % number if number % 2 else b"%06d" % number * 300
            if buffer.put(NAMES[number % 3], payload) is FULL:
                self.commit(buffer)

    def commit(self, buffer: Buffer) -> None:
        for number, count in buffer.commit().items():
            self.gone[number] += count

    def flush(self) -> None:
        if self.buffer.fresh:
            self.commit(self.buffer)

    def pop(self) -> None:
        message = self.buffer.pop_message()
        if message is not None:
            self.gone[0] += 1
            self.popped.append(message[1][:6])
        else:
            self.buffer.pop_signal()

    def get_nowait(self) -> None:
        is_odd = len(self.buffer.batch) & 1
        if not (self.budget.critical.is_open or is_odd) and (message := self.buffer.pop_message()) is not None:
            self.gone[0] += 1
            self.popped_by_finalizer.append(message[1][:6])

    def take(self) -> None:
        while batch := self.buffer.batch:
            _, data = batch.pop(), batch.pop()
            self.gone[0] += 1
            self.popped.append(data[:6])

    def drop(self, number: int, count: int) -> None:
        self.gone[number] += count

    def remove(self) -> None:
        self.flush()
        self.drop(0, self.buffer.remove(frozenset({b"b"})))

    def clear(self) -> None:
        self.flush()
        self.drop(0, self.buffer.clear())

    def close(self) -> None:
        self.is_closed = True
        self.drop(0, self.buffer.close())

    def lose(self) -> None:
        self.flush()
        self.drop(0, self.buffer.disconnect("lost", frozenset(NAMES)))
        while self.buffer.is_merging:
            self.drop(0, self.buffer.merge_some())

    def lose_all(self) -> None:
        self.flush()
        self.drop(0, self.buffer.disconnect("lost", None, NAMES))

    def refuse(self) -> None:
        self.flush()
        self.buffer.signal(Signal.ERROR, "refused", b"a")

    def flush_other(self) -> None:
        other = self.buffers[1]
        self.fill(other, 1)
        self.commit(other)

    def burst(self) -> None:
        self.fill(self.buffer, 2)

    def ask(self) -> None:
        assert self.budget.totals >= (0, 0)

    def finalize(self, name: str) -> None:
        """Call a method as a finalizer does."""
        if name in ("get_nowait", "ask") or not self.budget.critical.postpone(getattr(self, name)):
            getattr(self, name)()

    def check(self) -> None:
        """Check the counters, then pop everything."""
        critical = self.budget.critical
        assert (critical.is_open, critical.postponed) == (False, [])
        if self.is_closed:  # also messages that were about to be put in; a subscription ignores them
            self.close()
        pending = [len(buffer) for buffer in self.buffers]
        assert [self.put[number] - self.gone[number] for number in range(2)] == pending
        assert self.budget.totals[0] == sum(pending)
        for buffer in self.buffers:
            if buffer.fresh:
                self.commit(buffer)
        while self.buffer:
            self.pop()
        assert self.gone[0] == self.put[0]
        assert self.is_latest or self.popped == sorted(self.popped)
        popped = self.popped + self.popped_by_finalizer
        assert len(set(popped)) == len(popped)
        self.drop(1, self.buffers[1].clear())
        assert self.budget.totals == (0, 0)
        assert (self.budget.loose, self.budget._shared) == (self.loose, {})
        assert not any(self.budget._ranks.values())
        assert not self.budget.lenders | self.budget.uncounted


FINALIZERS = ("clear", "close", "remove", "get_nowait", "ask")
STEPS = ("burst", "flush", "pop", "take", "remove", "clear", "close", "lose", "lose_all", "refuse", "flush_other")
ROOMS = {"roomy": (None, 100), "tight": (8_000, 100), "full": (None, 6)}


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("overflow", Overflow)
def test_a_finalizer_sees_no_change_half_done(overflow: Overflow, room: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a finalizer does, and wherever it interrupts, each message is popped or dropped, once and in order."""
    monkeypatch.setattr(event_list_module, "SLACK", 4)
    monkeypatch.setattr(event_list_module, "SEARCH", 1)
    monkeypatch.setattr(buffer_module, "BATCH_SIZE", 4)
    for step in STEPS:
        for finalizer in FINALIZERS:
            for at in range(1, 2_000):
                desk = Desk(overflow, *ROOMS[room])
                desk.fill(desk.buffer, 9)
                desk.flush()
                desk.flush_other()
                desk.pop()
                if at % 2:
                    desk.lose()
                desk.fill(desk.buffer, 3)
                struck = strike(at, getattr(desk, step), lambda: desk.finalize(finalizer))  # noqa: B023
                desk.check()
                if not struck:
                    break
            else:
                pytest.fail("the step has no end")


def test_a_change_inside_another_ends_with_it() -> None:
    """What is postponed happens in order, at the end of the outer change."""
    critical = CriticalSection()
    done: list[int] = []
    with critical:
        with critical:
            assert critical.postpone(lambda: done.append(1))
            assert critical.postpone(lambda: done.append(2))
        assert not done
    assert done == [1, 2]
    assert not critical.postpone(lambda: done.append(3))


def test_each_step_of_an_iteration_is_a_change() -> None:
    """Between two steps, nothing is postponed."""
    critical = CriticalSection()
    depths = iter([lambda: critical.depth] * 2)
    steps = (ask() for ask in depths)
    assert [(depth, critical.depth) for depth in critical.each(steps)] == [(1, 0), (1, 0)]


def test_the_collector_may_run_in_the_middle_of_a_copy() -> None:
    """An activation goes on although the collector runs just then, and a finalizer removes a subscriber."""
    thresholds = gc.get_threshold()
    for threshold in range(1, 20):
        entry = Entry(Kind.CHANNEL, b"a", 0)
        for subscriber in range(1, 100):
            entry.add(subscriber)
        gc.collect()
        Session(lambda: entry.remove(5))  # noqa: B023
        gc.set_threshold(threshold)
        try:
            activated = sum(1 for _ in entry.change_all(SubscriberState.ACTIVE))
        finally:
            gc.set_threshold(*thresholds)
        assert activated in (99, 100)
        gc.collect()
