"""The events that wait for a subscription's consumer: in order, bounded, counted. No I/O, no clock."""

from __future__ import annotations

import enum
import sys
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any


class Overflow(enum.Enum):
    """What gives way when more messages, or more bytes, would wait for a subscription's consumer than may."""

    DROP_OLDEST = "drop_oldest"
    """The oldest message that waits."""
    DROP_NEWEST = "drop_newest"
    """The message that just came."""
    LATEST = "latest"
    """Whenever one waits, the earlier message of the same channel; beyond `max_pending` channels, the oldest."""
    CLOSE = "close"
    """The subscription: it is closed."""


class Signal(enum.Enum):
    """An event that is not a message. Signals are never dropped for lack of room; see disconnect() for their bound."""

    ACTIVATION = "activation"
    DISCONNECT = "disconnect"
    ERROR = "error"


class Budget:
    """The bytes of names and payloads that may wait: in each backlog, and in all of a multiplexer's together.

    No backlog may hold more than is left free for all. So there is always room for one more, however many are full.
    """

    __slots__ = ("each", "total", "used")

    def __init__(self, each: int | None = None, total: int | None = None) -> None:
        self.each: int = sys.maxsize if each is None else each
        self.total: int = sys.maxsize if total is None else total
        self.used: int = 0


class Backlog:
    """A FIFO of messages and signals: at most `max_pending` messages, and no more bytes than the budget allows.

    Beyond that the oldest message gives way, or the newest. Whoever puts very many puts them into `fresh`, each as its
    channel and its payload, and calls settle() when there are more than `spare` items, and before anything else.
    """

    __slots__ = ("_budget", "_bytes", "_drop_newest", "_put", "_rearm_at", "_room", "fresh", "messages", "overflowing",
                 "signals", "spare")  # fmt: skip

    def __init__(self, max_pending: int, budget: Budget, drop_newest: bool = False) -> None:
        # Two queues, merged by how many messages were put before each signal, so that the message which gives way is at
        # hand. Channel, payload, channel, ...: a tuple for each message would have the garbage collector walk the whole
        # heap again and again while many come.
        self.messages: Any = deque()
        """The messages that wait, in order; empty if none does."""
        self.signals: deque[tuple[int, Signal, object, frozenset[bytes] | None]] = deque()
        """The signals that wait: the place of each, what it is, its argument, and the names that it concerns."""
        self.fresh: list[bytes] = []
        """The messages that wait behind all that, and are not counted yet."""
        self.overflowing: bool = False
        """Whether messages were dropped, and the consumer has not caught up since."""
        self._room = 2 * max_pending  # in `messages`
        self.spare = self._room
        """How many items `fresh` may have; for so many there is room, as far as their number goes."""
        self._drop_newest = drop_newest
        self._rearm_at = max_pending // 2
        self._put = 0  # messages put so far, without those dropped as the newest
        self._budget = budget
        self._bytes = 0  # that wait here, in `messages`

    def __len__(self) -> int:
        """Messages waiting."""
        return (len(self.messages) + len(self.fresh)) // 2

    def __bool__(self) -> bool:
        """Whether anything waits, a message or a signal."""
        return bool(self.messages or self.fresh or self.signals)

    @property
    def signal_is_next(self) -> bool:
        """Whether the oldest event is a signal."""
        return bool(self.signals) and not (self.messages and self._oldest() < self.signals[0][0])

    def message(self, channel: bytes, data: bytes) -> int:
        """Add a message; return how many were dropped for it."""
        self.messages.extend((channel, data))
        self._put += 1
        self._grow(len(channel) + len(data))
        dropped = self._make_room()
        self.spare = self._room - len(self.messages)
        return dropped

    def settle(self) -> int:
        """Count what is fresh, in one go if there is room for all of it; return how many were dropped for it."""
        fresh, budget, dropped = self.fresh, self._budget, 0
        size = sum(map(len, fresh))
        waiting = self._bytes + size
        if len(fresh) <= self.spare and waiting <= budget.each and waiting + budget.used + size <= budget.total:
            self.messages.extend(fresh)
            self._put += len(fresh) // 2
            self._grow(size)
        else:
            items = iter(fresh)
            for channel, data in zip(items, items, strict=True):
                dropped += self.message(channel, data)
        fresh.clear()
        if self.spare >= 0:
            self.spare = self._room - len(self.messages)
        return dropped

    def signal(self, signal: Signal, argument: object, names: frozenset[bytes] | None) -> None:
        """Add a signal that concerns `names`; None stands for all of them."""
        self.signals.append((self._put, signal, argument, names))

    def disconnect(self, error: object, names: frozenset[bytes] | None) -> int:
        """Add a disconnect; return how many messages were dropped for it.

        If the same disconnect waits already, the connection between the two came and went unseen: both become one
        gap, and what was received in between is dropped. So reconnects cannot fill the queue of a stuck consumer.
        """
        for later, (place, signal, _, earlier) in enumerate(reversed(self.signals)):
            if signal is Signal.DISCONNECT:
                if earlier == names:
                    return self._remove(names, since=place, signals=len(self.signals) - later, errors=False)
                if earlier is None or names is None or earlier & names:
                    break  # another gap of these names is between
        self.signal(Signal.DISCONNECT, error, names)
        return 0

    def discard(self, names: frozenset[bytes] | None) -> int:
        """Remove all that concerns only `names`, or, for None, all; return how many messages that were."""
        dropped = self._remove(names, since=0, signals=0, errors=True)
        if names is None:
            dropped += len(self.fresh) // 2
            self.fresh.clear()
        return dropped

    def pop_message(self) -> tuple[bytes, bytes] | None:
        """Remove and return the oldest event, if that is a message: its channel and payload."""
        messages = self.messages
        if not messages or (self.signals and self.signal_is_next):
            return None
        channel, data = messages.popleft(), messages.popleft()
        size = len(channel) + len(data)
        self._bytes -= size
        self._budget.used -= size
        if self.overflowing:
            self._rearm()
        return channel, data

    def pop_signal(self) -> tuple[Signal, object] | None:
        """Remove and return the oldest event, if that is a signal: which, and its argument."""
        if not self.signal_is_next:
            return None
        _, signal, argument, _ = self.signals.popleft()
        return signal, argument

    def _remove(self, names: frozenset[bytes] | None, since: int, signals: int, errors: bool) -> int:
        """Remove what concerns only `names`, but the messages before the place `since`, and the first `signals`.

        Return how many messages that were.
        """
        before = len(self)
        self._keep(lambda place, channel: place < since or not (names is None or channel in names))
        self.signals = deque(
            s
            for number, s in enumerate(self.signals)
            if number < signals
            or (s[1] is Signal.ERROR and not errors)
            or not (names is None or (s[3] is not None and s[3] <= names))
        )
        self._rearm()
        return before - len(self)

    # --- the messages; how they are kept

    def _oldest(self) -> int:
        """Return the place of the oldest message: how many were put before it, and not dropped as the newest."""
        return self._put - len(self.messages) // 2

    def _give_way(self) -> None:
        """Remove the message that is to go when there is no room."""
        if self._drop_newest:
            pop = self.messages.pop
            self._put -= 1
        else:
            pop = self.messages.popleft
        self._grow(-len(pop()) - len(pop()))

    def _keep(self, wanted: Callable[[int, bytes], bool]) -> None:
        """Remove all messages but the wanted, by their places and channels."""
        items = iter(self.messages)
        kept: list[int] = []
        messages, first = deque[bytes](), self._oldest()
        for place, (channel, data) in enumerate(zip(items, items, strict=True), first):
            if wanted(place, channel):
                kept.append(place)
                messages.extend((channel, data))
            else:
                self._grow(-len(channel) - len(data))
        self.messages, first = messages, self._put - len(kept)
        self.signals = deque((first + bisect_left(kept, s[0]), *s[1:]) for s in self.signals)

    # --- the room

    def _make_room(self) -> int:
        """Have as many messages give way as must; return how many."""
        budget, dropped = self._budget, 0
        while (
            len(self.messages) > self._room
            or self._bytes > budget.each
            or self._bytes + budget.used > budget.total  # more than is left free
        ):
            self._give_way()
            dropped += 1
            if self._drop_newest:  # there was room without it
                break
        return dropped

    def _grow(self, size: int) -> None:
        self._bytes += size
        self._budget.used += size

    def _rearm(self) -> None:
        """End the episode of an overflow, if the consumer has caught up."""
        budget = self._budget
        if len(self) <= self._rearm_at and self._bytes <= min(budget.each, budget.total - budget.used) // 2:
            self.overflowing = False


class Latest(Backlog):
    """A backlog in which only the newest message of each channel waits; beyond the bounds the oldest gives way."""

    __slots__ = ()

    def __init__(self, max_pending: int, budget: Budget) -> None:
        super().__init__(max_pending, budget)
        self.messages: OrderedDict[bytes, tuple[int, bytes]] = OrderedDict()
        self.spare = -1  # each message may replace another, so each is counted at once
        self._room = max_pending
        self._rearm_at = 0  # replacing is what it is for: an episode lasts until the consumer has caught up

    def __len__(self) -> int:
        return len(self.messages)

    def message(self, channel: bytes, data: bytes) -> int:
        replaced = self.messages.pop(channel, None)
        self.messages[channel] = (self._put, data)
        self._put += 1
        if replaced is None:
            self._grow(len(channel) + len(data))
            return self._make_room()
        self._grow(len(data) - len(replaced[1]))
        return 1 + self._make_room()

    def _oldest(self) -> int:
        return next(iter(self.messages.values()))[0]

    def pop_message(self) -> tuple[bytes, bytes] | None:
        if not self.messages or self.signal_is_next:
            return None
        channel, (_, data) = self.messages.popitem(last=False)
        self._grow(-len(channel) - len(data))
        if self.overflowing:
            self._rearm()
        return channel, data

    def _give_way(self) -> None:
        channel, (_, data) = self.messages.popitem(last=False)
        self._grow(-len(channel) - len(data))

    def _keep(self, wanted: Callable[[int, bytes], bool]) -> None:
        for channel, (place, data) in tuple(self.messages.items()):
            if not wanted(place, channel):
                del self.messages[channel]
                self._grow(-len(channel) - len(data))


def new_backlog(max_pending: int, overflow: Overflow, budget: Budget) -> Backlog:
    """Make a backlog of which messages give way as `overflow` says."""
    if overflow is Overflow.LATEST:
        return Latest(max_pending, budget)
    return Backlog(max_pending, budget, drop_newest=overflow is not Overflow.DROP_OLDEST)
