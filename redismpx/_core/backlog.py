"""The events that wait for a subscription's consumer: in order, bounded, counted. No I/O, no clock."""

from __future__ import annotations

import enum
import sys
from collections import OrderedDict, deque
from collections.abc import Callable
from itertools import chain
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

    @property
    def room(self) -> int:
        """How many bytes a backlog may hold now."""
        return min(self.each, self.total - self.used)


Waiting = tuple[int, bytes, bytes]  # a message, with its place in the order of events


def _size(message: Waiting) -> int:
    return len(message[1]) + len(message[2])


class _Queue:
    """Messages in order; beyond the room there is, the oldest or the newest gives way."""

    __slots__ = ("_drop_newest", "_flat", "_room")

    def __init__(self, room: int, drop_newest: bool) -> None:
        self._room = room
        self._drop_newest = drop_newest
        # Place, channel, payload, place, ...: a tuple for each would have the garbage collector walk the whole heap
        # again and again while many come.
        self._flat: deque[Any] = deque()

    def __len__(self) -> int:
        return len(self._flat) // 3

    def push(self, message: Waiting) -> Waiting | None:
        """Add a message; return the one that gives way to it, if any."""
        self._flat.extend(message)
        return self.give_way() if len(self) > self._room else None

    def oldest(self) -> int:
        """Return the place of the oldest message."""
        place: int = self._flat[0]
        return place

    def take(self) -> Waiting:
        """Remove and return the oldest message."""
        pop = self._flat.popleft
        return pop(), pop(), pop()

    def give_way(self) -> Waiting:
        """Remove and return the message that is to go when there is no room."""
        if not self._drop_newest:
            return self.take()
        pop = self._flat.pop
        data, channel, place = pop(), pop(), pop()
        return place, channel, data

    def keep(self, wanted: Callable[[Waiting], bool]) -> None:
        """Remove all but the wanted."""
        items = iter(self._flat)
        messages = zip(items, items, items, strict=True)
        self._flat = deque(chain.from_iterable(m for m in messages if wanted(m)))


class _Latest:
    """The newest message of each channel, in order; beyond the room there is, the oldest gives way."""

    __slots__ = ("_messages", "_room")

    def __init__(self, room: int) -> None:
        self._room = room
        self._messages: OrderedDict[bytes, Waiting] = OrderedDict()

    def __len__(self) -> int:
        return len(self._messages)

    def push(self, message: Waiting) -> Waiting | None:
        """Add a message; return the one that gives way to it, if any."""
        replaced = self._messages.pop(message[1], None)
        self._messages[message[1]] = message
        return self.take() if len(self._messages) > self._room else replaced

    def oldest(self) -> int:
        """Return the place of the oldest message."""
        return next(iter(self._messages.values()))[0]

    def take(self) -> Waiting:
        """Remove and return the oldest message."""
        return self._messages.popitem(last=False)[1]

    give_way = take

    def keep(self, wanted: Callable[[Waiting], bool]) -> None:
        """Remove all but the wanted."""
        self._messages = OrderedDict((m[1], m) for m in self._messages.values() if wanted(m))


class Backlog:
    """A FIFO of messages and signals: at most `max_pending` messages, and no more bytes than the budget allows."""

    __slots__ = ("_budget", "_bytes", "_messages", "_rearm_at", "_sequence", "_signals", "overflowing")

    def __init__(self, max_pending: int, overflow: Overflow, budget: Budget) -> None:
        # Two queues, merged by their place in the order, so that the message which gives way is at hand.
        self._messages: _Queue | _Latest
        if overflow is Overflow.LATEST:
            self._messages = _Latest(max_pending)
            self._rearm_at = 0  # replacing is what it is for: an episode lasts until the consumer has caught up
        else:
            self._messages = _Queue(max_pending, overflow is not Overflow.DROP_OLDEST)
            self._rearm_at = max_pending // 2
        self._signals: deque[tuple[int, Signal, object, frozenset[bytes] | None]] = deque()
        self._sequence = 0
        self._budget = budget
        self._bytes = 0  # that wait here
        self.overflowing = False
        """Whether messages were dropped, and the consumer has not caught up since."""

    def __len__(self) -> int:
        """Messages waiting."""
        return len(self._messages)

    def __bool__(self) -> bool:
        """Whether anything waits, a message or a signal."""
        return bool(self._messages or self._signals)

    @property
    def signal_is_next(self) -> bool:
        """Whether the oldest event is a signal."""
        return bool(self._signals) and not (self._messages and self._messages.oldest() < self._signals[0][0])

    def message(self, channel: bytes, data: bytes) -> int:
        """Add a message; return how many were dropped for it."""
        self._sequence += 1
        message = (self._sequence, channel, data)
        self._grow(_size(message))
        gone = self._messages.push(message)
        dropped = 0
        if gone is not None:
            self._grow(-_size(gone))
            dropped = 1
        while self._bytes > self._budget.room:
            self._grow(-_size(self._messages.give_way()))
            dropped += 1
        return dropped

    def signal(self, signal: Signal, argument: object, names: frozenset[bytes] | None) -> None:
        """Add a signal that concerns `names`; None stands for all of them."""
        self._sequence += 1
        self._signals.append((self._sequence, signal, argument, names))

    def disconnect(self, error: object, names: frozenset[bytes] | None) -> int:
        """Add a disconnect; return how many messages were dropped for it.

        If the same disconnect waits already, the connection between the two came and went unseen: both become one
        gap, and what was received in between is dropped. So reconnects cannot fill the queue of a stuck consumer.
        """
        for sequence, signal, _, earlier in reversed(self._signals):
            if signal is Signal.DISCONNECT:
                if earlier == names:
                    return self._remove(names, since=sequence, errors=False)
                if earlier is None or names is None or earlier & names:
                    break  # another gap of these names is between
        self.signal(Signal.DISCONNECT, error, names)
        return 0

    def discard(self, names: frozenset[bytes] | None) -> int:
        """Remove all that concerns only `names`; return how many messages that were."""
        return self._remove(names, since=0, errors=True)

    def pop_message(self) -> tuple[bytes, bytes] | None:
        """Remove and return the oldest event, if that is a message: its channel and payload."""
        if not self._messages or self.signal_is_next:
            return None
        message = self._messages.take()
        self._grow(-_size(message))
        if self.overflowing:
            self._rearm()
        return message[1:]

    def pop_signal(self) -> tuple[Signal, object] | None:
        """Remove and return the oldest event, if that is a signal: which, and its argument."""
        if not self.signal_is_next:
            return None
        _, signal, argument, _ = self._signals.popleft()
        return signal, argument

    def _remove(self, names: frozenset[bytes] | None, since: int, errors: bool) -> int:
        """Remove what came after `since` and concerns only `names`; return how many messages that were."""
        before, freed = len(self._messages), 0

        def stays(message: Waiting) -> bool:
            nonlocal freed
            if message[0] < since or not (names is None or message[1] in names):
                return True
            freed += _size(message)
            return False

        self._messages.keep(stays)
        self._grow(-freed)
        self._signals = deque(
            s
            for s in self._signals
            if s[0] <= since
            or (s[1] is Signal.ERROR and not errors)
            or not (names is None or (s[3] is not None and s[3] <= names))
        )
        self._rearm()
        return before - len(self._messages)

    def _grow(self, size: int) -> None:
        self._bytes += size
        self._budget.used += size

    def _rearm(self) -> None:
        """End the episode of an overflow, if the consumer has caught up."""
        if len(self._messages) <= self._rearm_at and self._bytes <= self._budget.room // 2:
            self.overflowing = False
