"""The calls for one slot of a cluster, in their order.

While the nodes do not agree who owns a slot, a node may reject the first calls of a batch and accept the others. So the
calls go one at a time until a node has accepted one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from ..runtime.slices import Step
from .call import PublishCall
from .pipeline import Pipeline


class SlotQueue:
    """The calls for one slot, while there are any."""

    __slots__ = ("_first", "_going", "_held", "_owner", "_pipeline", "calls")

    def __init__(self, owner: Callable[[], Pipeline]) -> None:
        self.calls: int = 0
        """How many calls have no outcome yet."""
        self._owner = owner
        self._pipeline: Pipeline | None = None  # that has carried a call which was accepted, and so carries all calls
        self._going: Pipeline | None = None  # otherwise: that carries the first call
        self._first: PublishCall | None = None
        self._held: deque[PublishCall] = deque()  # the calls behind it

    @property
    def held(self) -> list[PublishCall]:
        """The calls that are in no pipeline and have no outcome."""
        return [call for call in self._held if not call.outcome.done()]

    def put(self, call: PublishCall) -> None:
        """Queue a call that was made just now."""
        if self._pipeline is not None:
            self._pipeline.put(call)
        elif self._first is None:
            self._first, self._going = call, self._owner()
            self._going.put(call)
        else:
            self._held.append(call)

    def divert(self, calls: Sequence[PublishCall]) -> None:
        """Take calls back from a pipeline, and send them to the owner of the slot, one at a time."""
        self._held.extendleft(reversed(calls))
        self._pipeline = None
        self._advance()

    def accepted(self, call: PublishCall) -> None:
        """Take note that a node has accepted a call: it gets the others in batches."""
        if call is self._first:
            self._first, self._pipeline = None, self._going
            assert self._pipeline is not None
            self._pipeline.put_first(list(self._sendable()))

    def ended(self, call: PublishCall) -> None:
        """Take note that a call has its outcome, and was perhaps not accepted."""
        if call is self._first:
            self._advance()

    def close(self) -> Iterator[Step]:
        """Take out the calls that are in no pipeline; return, for each, a step that fails it."""
        held, self._held = self._held, deque()
        return (call.close for call in held)

    def _advance(self) -> None:
        """Send the first call, if there is one."""
        self._first = next(self._sendable(), None)
        if self._first is not None:
            self._going = self._owner()
            self._going.put_first([self._first])

    def _sendable(self) -> Iterator[PublishCall]:
        """Take the held calls out, but not those that were cancelled."""
        while self._held:
            call = self._held.popleft()
            if not call.outcome.done():
                yield call
