"""The search for forbidden names, against a server that rejects each command that has one."""

from __future__ import annotations

import math
import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redismpx._core.bisection import LARGE_COMMAND, MANY_FORBIDDEN, Bisection, Probe

COMMAND_SIZE = 512  # names in an ordinary command


class Search:
    """Sends names in ordinary commands and probes, and counts the commands until each name has a reply."""

    def __init__(self, names: list[bytes], forbidden: set[bytes]) -> None:
        self.names = names
        self.forbidden = forbidden
        self.accepted: list[bytes] = []
        self.rejected: list[bytes] = []
        self.commands = 0
        self._bisection = Bisection()
        self._unsent = deque(names)
        self._probes: deque[Probe] = deque()
        self._in_flight: deque[tuple[Probe, bool]] = deque()

    @property
    def extra(self) -> int:
        """The commands beyond those that would do if no name were forbidden."""
        return self.commands - math.ceil(len(self.names) / COMMAND_SIZE)

    def run(self, random: random.Random) -> Search:
        """Run to the end. Replies come in order; `random` decides how many of them come between two flushes."""
        self._flush()
        while self._in_flight:
            for _ in range(random.randint(1, len(self._in_flight))):
                self._take_reply()
            self._flush()
        assert not self._unsent
        assert not self._probes
        return self

    def _flush(self) -> None:
        self._in_flight += [(probe, True) for probe in self._probes]
        self._probes.clear()
        while self._unsent:
            size = min(COMMAND_SIZE, len(self._unsent))
            self._in_flight.append((Probe(tuple([self._unsent.popleft() for _ in range(size)])), False))

    def _take_reply(self) -> None:
        probe, is_probe = self._in_flight.popleft()
        self.commands += 1
        assert probe.names, "a command without names"
        if self.forbidden.isdisjoint(probe.names):
            self.accepted += probe.names
            step = self._bisection.accepted(len(probe.names), probe if is_probe else None)
        else:
            if len(probe.names) == 1:
                self.rejected += probe.names
            step = self._bisection.rejected(probe)
        self._probes += step.probes
        self._unsent += step.released


def numbered(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


SEEDS = st.integers(0, 2**32).map(random.Random)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 1_200), st.sampled_from(["few", "row", "share"]), SEEDS)
def test_exactly_the_forbidden_names_end_rejected(count: int, which: str, seeded: random.Random) -> None:
    """Whatever names are forbidden, each name is accepted once or rejected alone once, at a bounded cost."""
    names = numbered(count)
    if which == "row":
        start = seeded.randrange(count)
        forbidden = set(names[start : start + seeded.randint(1, 300)])
    else:
        most = min(count, 12) if which == "few" else count
        forbidden = set(seeded.sample(names, seeded.randint(0, most)))
    search = Search(names, forbidden).run(seeded)
    assert sorted(search.rejected) == sorted(forbidden)
    assert sorted(search.accepted) == sorted(set(names) - forbidden)
    assert search.extra <= 3 * count


@settings(deadline=None)
@given(st.integers(1, 4 * COMMAND_SIZE), st.integers(0, 4), SEEDS)
def test_few_forbidden_names_cost_a_search_each(count: int, few: int, seeded: random.Random) -> None:
    """Up to four forbidden names cost log2(512) + 2 commands each, wherever they are."""
    names = numbered(count)
    forbidden = set(seeded.sample(names, min(few, count)))
    search = Search(names, forbidden).run(seeded)
    assert search.extra <= len(forbidden) * (math.log2(COMMAND_SIZE) + 2)


@pytest.mark.parametrize("count", [2, 16, 100, COMMAND_SIZE, 4 * COMMAND_SIZE])
def test_many_forbidden_names_cost_two_commands_each(count: int) -> None:
    """Where every name is forbidden, a name costs two commands, beyond the search for the first four."""
    names = numbered(count)
    search = Search(names, set(names)).run(random.Random(0))
    assert search.extra <= 2 * count + 4 * (math.log2(COMMAND_SIZE) + 2)


def test_a_large_accepted_command_ends_the_costly_search() -> None:
    """After many forbidden names, one in a later command is searched for in halves again, one at a time."""
    bisection = Bisection()
    rejected = Probe(tuple(numbered(COMMAND_SIZE)))
    assert len(bisection.rejected(rejected).probes) == 1
    for name in numbered(MANY_FORBIDDEN):
        bisection.rejected(Probe((name,)))
    assert len(bisection.rejected(rejected).probes) == 2
    bisection.accepted(LARGE_COMMAND - 1)
    assert len(bisection.rejected(rejected).probes) == 2
    bisection.accepted(LARGE_COMMAND)
    assert len(bisection.rejected(rejected).probes) == 1
