"""The calls of a pipeline that wait for their batch. Sends nothing, and has no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence

from .call import PublishCall

PUBLISH_BATCH = 512  # calls; resolving so many takes about a time slice of the loop
PUBLISH_BATCH_BYTES = 1 << 20  # bytes copied and written at a time; a larger message goes alone


class CallQueue(deque[PublishCall]):
    """Calls in the order in which they are sent. Without a bound: each has a caller, which waits for `timeout`."""

    def __init__(self) -> None:
        super().__init__()
        self.is_sorted: bool = True
        """Whether the calls are in the order of their deadlines."""

    def put_first(self, calls: Sequence[PublishCall]) -> None:
        """Add calls that have waited elsewhere, the oldest first, before all others."""
        self.extendleft(reversed(calls))
        self.is_sorted = False

    def sort(self) -> None:
        """Put the calls into the order of their deadlines."""
        if not self.is_sorted:
            self._replace(sorted(self, key=lambda call: call.deadline))
            self.is_sorted = True

    def take(self, slots: Collection[int]) -> list[PublishCall]:
        """Remove the calls with one of these slots, and return them."""
        taken = [call for call in self if call.slot in slots]
        if taken:
            self._replace([call for call in self if call.slot not in slots])
        return taken

    def next_batch(
        self, most: int, passed: float, why: Callable[[], str], cause: BaseException | None
    ) -> deque[PublishCall]:
        """Remove calls from the beginning of the queue, and return those that are to be sent: the next batch.

        The batch has at most `most` bytes of commands; a call with a longer command is a batch of its own. Calls whose
        deadline has passed expire with the text `why` and the exception `cause`, and are left out.
        """
        batch: deque[PublishCall] = deque()
        size = 0
        for _ in range(min(len(self), PUBLISH_BATCH)):
            call = self[0]
            if call.deadline <= passed:
                call.expire(why(), cause)  # many expire together, and the timer has not come to it yet
            elif not call.outcome.done():
                size += len(call.command)
                if batch and size > most:
                    break
                batch.append(call)
            self.popleft()
        return batch

    def _replace(self, calls: Sequence[PublishCall]) -> None:
        self.clear()
        self.extend(calls)
