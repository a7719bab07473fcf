"""Changes that a finalizer must not see half done. No I/O, no clock.

The garbage collector runs the finalizers of users' objects in nearly any line, and they may call the methods of any
subscription. In the middle of a change, such a call is postponed to the end of the change.

Not for code that calls functions of users, which may call the same methods and rely on their effect. There, a loop runs
over a copy, which `[*...]` makes: on Python 3.11 the collector may run in the middle of `tuple()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TypeVar

Made = TypeVar("Made")


class CriticalSection:
    """The changes of one multiplexer that are going on, one inside another, and the calls that wait for their end."""

    __slots__ = ("depth", "is_entered", "postponed")

    def __init__(self) -> None:
        self.depth: int = 0
        """How many changes are going on, by `with`."""
        self.is_entered: bool = False
        """Whether one is going on that says so itself, to save time. It has no other such change inside."""
        self.postponed: list[Callable[[], object]] = []

    @property
    def is_open(self) -> bool:
        """Whether a change is going on."""
        return self.is_entered or self.depth > 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1
        if self.postponed:
            self.catch_up()

    def postpone(self, call: Callable[[], object]) -> bool:
        """Have a call made at the end of the change that is going on; return False if there is none."""
        if not self.is_open:
            return False
        self.postponed.append(call)
        return True

    def catch_up(self) -> None:
        """Make the calls that were postponed, unless a change is still going on."""
        while self.postponed and not self.is_open:
            self.postponed.pop(0)()

    def each(self, steps: Iterator[Made]) -> Iterator[Made]:
        """Yield what an iterator yields; each step of the iterator is a change."""
        while True:
            with self:
                some = tuple(islice(steps, 1))
            if not some:
                return
            yield some[0]
