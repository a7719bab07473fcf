"""The buffer of the policy `latest`, and the choice between it and the buffer of the other policies."""

from __future__ import annotations

from .budget import Budget
from .buffer import Buffer, Losses
from .events import pairs, take_whole
from .overflow import Overflow


def new_buffer(max_pending: int, overflow: Overflow, budget: Budget, owner: object = None) -> Buffer:
    """Return a buffer that drops messages as `overflow` says."""
    kind = Latest if overflow is Overflow.LATEST else Buffer
    return kind(max_pending, budget, overflow, owner)


class Latest(Buffer):
    """A buffer in which only the newest message of each channel is pending; beyond the bounds the oldest is dropped.

    Each is counted at once and none is lent, for each may be replaced.
    """

    __slots__ = ("_newest",)

    def __init__(self, max_pending: int, budget: Budget, overflow: Overflow, owner: object) -> None:
        super().__init__(max_pending, budget, overflow, owner)
        self._newest: dict[bytes, int] = {}  # position of the newest message of each channel; it may be gone
        self._room = -1
        self._rearm_at = 0  # replacing is the purpose: an episode lasts until the consumer has caught up

    def commit(self) -> Losses:
        losses: Losses = {}
        with self._budget.critical:
            fresh = take_whole(self.fresh)
            for channel, data in pairs(fresh):
                position = self._newest.get(channel, -1)
                if position >= self._head and self._items[position] is not None:
                    self._remove_message(position)
                    self.limit = "overflow"
                    losses[self.owner] = losses.get(self.owner, 0) + 1
                self._newest[channel] = len(self._items)
                self._squeeze([channel, data], len(channel) + len(data), losses)
        return losses

    def pop_message(self, most: int = 0) -> tuple[bytes, bytes] | None:
        with self._budget.critical:
            return self._pop_one()

    def _count_off(self, start: int, count: int, size: int) -> None:
        self._newest = {channel: position for channel, position in self._newest.items() if position < start}
        super()._count_off(start, count, size)

    def clear(self) -> int:
        self._newest.clear()
        return super().clear()

    def _compact(self) -> None:
        super()._compact()
        channels = enumerate(self._items[::2])
        self._newest = {channel: 2 * number for number, channel in channels if channel is not None}
