"""A finalizer may cancel a promise while promises get their outcomes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from redismpx.promise import Promise, _Outstanding
from redismpx.stats import Counters

from ..helpers.loops import Clock
from ..helpers.strike import collected

NAMES = [b"a", b"b", b"c"]


class Promises:
    """A few promises with one timeout, on a simulated clock."""

    def __init__(self) -> None:
        self.loop = Clock()
        self.errors: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self.loop.run_until_complete(self._make())

    async def _make(self) -> None:
        self.outstanding = _Outstanding(Counters(), lambda: None)
        self.all = [Promise(self.outstanding, name, 1.0, 1.0) for name in NAMES]

    def expire(self) -> None:
        self.loop.now = 2.0
        self.loop.run_ready()

    def fail(self) -> None:
        for step in self.outstanding.fail("closed", None):
            step()

    def resolve(self) -> None:
        for name in NAMES:
            for promise in self.outstanding.promises.pop(name, ()):
                promise._resolve(b"x")

    def cancel(self) -> None:
        for promise in self.all:
            promise.cancel()


@pytest.mark.parametrize("change", [Promises.expire, Promises.fail, Promises.resolve, Promises.cancel])
@pytest.mark.parametrize("number", range(len(NAMES)))
def test_a_finalizer_may_cancel_a_promise_at_any_moment(change: Callable[[Promises], None], number: int) -> None:
    """Each promise has one outcome, and is counted once, although the collector runs just then."""
    at = 1
    while _has_one_outcome_each(change, number, at):
        at += 1
    assert at > 1


def _has_one_outcome_each(change: Callable[[Promises], None], number: int, at: int) -> bool:
    promises = Promises()
    was_collected = collected(at, promises.all[number].cancel, lambda: change(promises))
    assert promises.errors == []
    assert all(promise.done() for promise in promises.all)
    assert promises.outstanding.count == promises.outstanding.counters.promises == 0
    assert promises.outstanding.deadlines._queues == {}
    promises.loop.close()
    return was_collected
