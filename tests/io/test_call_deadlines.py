"""The deadlines of the calls of a pipeline, on a simulated clock."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from redismpx._io.publishing.deadlines import LAG, CallDeadlines

from ..helpers.loops import Clock


class Calls:
    """Calls whose deadlines are looked at; `found` has the times at which some of them were found overdue."""

    def __init__(self) -> None:
        self.loop = Clock()
        self.found: list[float] = []
        self.deadlines = CallDeadlines(5.0, lambda: self.found.append(self.deadlines.passed))

    def look_at(self, deadline: float) -> None:
        async def look() -> None:
            self.deadlines.look_at(deadline)

        self.loop.run_until_complete(look())

    def go_to(self, now: float) -> None:
        """Let time pass, in which the loop runs nothing."""
        self.loop.now = now
        self.loop.run_ready()


@pytest.fixture
def calls() -> Iterator[Calls]:
    calls = Calls()
    yield calls
    calls.deadlines.cancel()
    calls.loop.close()


def test_a_timer_in_time_finds_calls_overdue(calls: Calls) -> None:
    """A call is overdue at its deadline."""
    calls.look_at(1.0)
    calls.go_to(0.9)
    assert calls.found == []
    calls.go_to(1.0 + LAG / 2)
    assert calls.found == [1.0 + LAG / 2]


def test_lost_time_is_added_to_the_deadline(calls: Calls) -> None:
    """A late timer finds no call overdue until as much time has passed again, also if more calls come."""
    calls.look_at(1.0)
    calls.go_to(1.5)
    calls.look_at(0.5)
    calls.go_to(1.9)
    assert calls.found == []
    calls.go_to(2.0)
    assert calls.found == [2.0]


def test_a_stop_of_the_process_adds_one_timeout_at_most(calls: Calls) -> None:
    """After an hour in which the process was stopped, a silent server is noticed as soon as otherwise."""
    calls.look_at(5.0)
    calls.go_to(3600.0)
    calls.look_at(3605.0)
    calls.go_to(3605.0)
    assert calls.found == [3605.0]


def test_a_loop_that_is_always_busy_finds_calls_overdue(calls: Calls) -> None:
    """Lost time is added a few times in a row, and not for ever: each time the replies that had come were read."""
    calls.look_at(1.1)
    for tenths in range(2, 60, 2):
        calls.go_to(tenths / 10)
    assert len(calls.found) == 1


def test_a_deadline_that_is_over_is_not_a_late_timer(calls: Calls) -> None:
    """Calls that waited elsewhere and come after their deadline are overdue at once, one after the other."""
    calls.go_to(9.0)
    for _ in range(3):
        calls.look_at(1.0)
        calls.go_to(9.0)
    assert calls.found == [9.0] * 3
