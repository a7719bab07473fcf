"""The events that wait for a subscription's consumer: in order, bounded, counted. No I/O, no clock."""

from __future__ import annotations

import enum
import sys
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator

HAND = 32  # messages that are handled together

LATER = object()
"""What put() returns when settle() is to be called when no more messages come for now."""
FULL = object()
"""What put() returns when settle() is to be called at once."""


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
    """The bytes of names and payloads that may wait: in each buffer, and in all of a multiplexer's together.

    No buffer may hold more than is left free for all. So there is always room for one more, however many are full.
    """

    __slots__ = ("each", "total", "used")

    def __init__(self, each: int | None = None, total: int | None = None) -> None:
        self.each: int = sys.maxsize if each is None else each
        self.total: int = sys.maxsize if total is None else total
        self.used: int = 0


class Buffer:
    """A FIFO of messages and signals: at most `max_pending` messages, and no more bytes than the budget allows.

    Beyond that the oldest message gives way, or the newest. Messages come many at a time, and are counted together:
    after put() settle() is to be called, in the end and before anything else. Whoever takes very many takes them from
    `hand`, and asks pop_message() when there is none.
    """

    __slots__ = ("_budget", "_bytes", "_count", "_dealt", "_drop_newest", "_most", "_portions", "_put", "_quiet",
                 "_rearm_at", "_spare", "fresh", "hand", "overflowing", "signals")  # fmt: skip

    def __init__(self, max_pending: int, budget: Budget, drop_newest: bool = False) -> None:
        # Messages and signals are two queues, merged by how many messages were put before each signal, so that the
        # message which gives way is easily found. A message is two items in a list of many: a tuple for each would have
        # the garbage collector walk the whole heap again and again while many come.
        self.fresh: list[bytes] = []
        """The newest messages, which are not counted yet: channel, payload, channel, ..."""
        self._portions: deque[list[bytes]] = deque()  # those before them, HAND at most in each, the next one last
        self.hand: list[bytes] = []
        """The very next messages, the next one last: ..., payload, channel. Their bytes count until all are gone."""
        self.signals: deque[tuple[int, Signal, object, frozenset[bytes] | None]] = deque()
        """The signals that wait: the place of each, what it is, its argument, and the names that it concerns."""
        self.overflowing: bool = False
        """Whether messages were dropped, and the consumer has not caught up since."""
        self._most = max_pending
        self._drop_newest = drop_newest
        self._rearm_at = max_pending // 2
        self._put = 0  # messages put so far, without those dropped as the newest
        self._count = 0  # messages in `_portions`
        self._spare = 2 * max_pending  # items for which `fresh` has room, as far as their number goes
        self._quiet = 0  # items in `fresh` up to which put() has nothing to say
        self._budget = budget
        self._bytes = 0  # that wait here, without those in `fresh`
        self._dealt = 0  # of these, what `hand` had at first

    def __len__(self) -> int:
        """Messages waiting."""
        return self._count + (len(self.fresh) + len(self.hand)) // 2

    def __bool__(self) -> bool:
        """Whether anything waits, a message or a signal."""
        return bool(self.signals) or len(self) > 0

    @property
    def signal_is_next(self) -> bool:
        """Whether the oldest event is a signal."""
        return bool(self.signals) and not self.hand and self._oldest() >= self.signals[0][0]

    def put(self, channel: bytes, data: bytes) -> object:
        """Add a message to those that settle() will count; return LATER, FULL, or None if nothing is to be done."""
        fresh = self.fresh
        fresh.append(channel)
        fresh.append(data)
        return self._remind() if len(fresh) > self._quiet else None

    def _remind(self) -> object:
        if len(self.fresh) > self._spare:
            return FULL
        self._quiet = self._spare
        return LATER

    def settle(self) -> int:
        """Count what is fresh, in one go if there is room for all of it; return how many were dropped for it."""
        fresh, self.fresh, self._quiet = self.fresh, [], 0
        self._measure()
        budget, dropped = self._budget, 0
        size = sum(map(len, fresh))
        waiting = self._bytes + size
        if len(fresh) <= self._spare and waiting <= budget.each and waiting + budget.used + size <= budget.total:
            for start in range(0, len(fresh), 2 * HAND):
                self._portions.append(fresh[start : start + 2 * HAND][::-1])
            self._put += len(fresh) // 2
            self._count += len(fresh) // 2
            self._spare -= len(fresh)
            self._grow(size)
        else:
            for channel, data in _pairs(fresh):
                dropped += self.message(channel, data)
        return dropped

    def message(self, channel: bytes, data: bytes) -> int:
        """Add a message, and count it; return how many were dropped for it."""
        self.take_back()
        is_after_signal = self.signals and self.signals[-1][0] == self._put
        if not self._portions or len(self._portions[-1]) >= 2 * HAND or is_after_signal:
            self._portions.append([])
        self._portions[-1][:0] = (data, channel)
        self._put += 1
        self._count += 1
        self._grow(len(channel) + len(data))
        dropped = self._make_room()
        self._measure()
        return dropped

    def signal(self, signal: Signal, argument: object, names: frozenset[bytes] | None) -> None:
        """Add a signal that concerns `names`; None stands for all of them."""
        self.take_back()
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
        hand = self.hand
        if not hand:
            self._deal()
            if not hand:
                return None
        channel, data = hand.pop(), hand.pop()
        if not hand:
            self.take_back()
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
        self.take_back()
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

    # --- the hand

    def _deal(self) -> None:
        """Lay the next portion at hand, but of the last portion not the last message.

        Only one message, if something else must happen when it is gone. So whoever takes from the hand need not look.
        """
        self._grow(-self._dealt)
        self._dealt = 0
        if not self._count or (self.signals and self.signal_is_next):
            return
        portion, left = self._portions[0], 0
        if self.signals or self.overflowing:
            left = len(portion) - 2
        elif len(self._portions) == 1:
            left = min(2, len(portion) - 2)
        self.hand.extend(portion[left:])
        del portion[left:]
        if not portion:
            self._portions.popleft()
        self._count -= len(self.hand) // 2
        self._dealt = sum(map(len, self.hand))

    def take_back(self) -> None:
        """Put what is at hand back to the others, and count it exactly."""
        if self._dealt or self.hand:
            self._grow(sum(map(len, self.hand)) - self._dealt)
            self._dealt = 0
        if self.hand:
            self._portions.appendleft(self.hand.copy())
            self._count += len(self.hand) // 2
            self.hand.clear()

    # --- the messages; how they are kept

    def _oldest(self) -> int:
        """Return the place of the oldest message: how many were put before it, and not dropped as the newest."""
        return self._put - self._count

    def _give_way(self) -> None:
        """Remove the message that is to go when there is no room."""
        portions = self._portions
        if self._drop_newest:
            gone = portions[-1][:2]
            del portions[-1][:2]
            if not portions[-1]:
                portions.pop()
            self._put -= 1
        else:
            gone = [portions[0].pop(), portions[0].pop()]
            if not portions[0]:
                portions.popleft()
        self._count -= 1
        self._grow(-sum(map(len, gone)))

    def _keep(self, wanted: Callable[[int, bytes], bool]) -> None:
        """Remove all messages but the wanted, by their places and channels."""
        place = self._oldest()
        places: list[int] = []  # of those that are kept
        portions, self._portions = self._portions, deque()
        for portion in portions:
            kept: list[bytes] = []
            for channel, data in _pairs(portion[::-1]):
                if wanted(place, channel):
                    places.append(place)
                    kept += (channel, data)
                else:
                    self._grow(-len(channel) - len(data))
                place += 1
            if kept:
                self._portions.append(kept[::-1])
        self._count = len(places)
        first = self._oldest()
        self.signals = deque((first + bisect_left(places, s[0]), *s[1:]) for s in self.signals)

    # --- the room

    def _make_room(self) -> int:
        """Have as many messages give way as must; return how many."""
        budget, dropped = self._budget, 0
        while (
            len(self) > self._most
            or self._bytes > budget.each
            or self._bytes + budget.used > budget.total  # more than is left free
        ):
            self._give_way()
            dropped += 1
            if self._drop_newest:  # there was room without it
                break
        return dropped

    def _measure(self) -> None:
        self._spare = 2 * (self._most - len(self))

    def _grow(self, size: int) -> None:
        self._bytes += size
        self._budget.used += size

    def _rearm(self) -> None:
        """End the episode of an overflow, if the consumer has caught up."""
        budget = self._budget
        if len(self) <= self._rearm_at and self._bytes <= min(budget.each, budget.total - budget.used) // 2:
            self.overflowing = False


class Latest(Buffer):
    """A buffer in which only the newest message of each channel waits; beyond the bounds the oldest gives way.

    Each is counted at once, for it may replace another, and none is dealt before it is asked for.
    """

    __slots__ = ("_messages",)

    def __init__(self, max_pending: int, budget: Budget) -> None:
        super().__init__(max_pending, budget)
        self._messages: OrderedDict[bytes, tuple[int, bytes]] = OrderedDict()
        self._spare = -1
        self._rearm_at = 0  # replacing is what it is for: an episode lasts until the consumer has caught up

    def __len__(self) -> int:
        return len(self._messages)

    def message(self, channel: bytes, data: bytes) -> int:
        replaced = self._messages.pop(channel, None)
        self._messages[channel] = (self._put, data)
        self._put += 1
        if replaced is None:
            self._grow(len(channel) + len(data))
            return self._make_room()
        self._grow(len(data) - len(replaced[1]))
        return 1 + self._make_room()

    def pop_message(self) -> tuple[bytes, bytes] | None:
        if not self._messages or self.signal_is_next:
            return None
        channel, data = self._pop()
        if self.overflowing:
            self._rearm()
        return channel, data

    def _pop(self) -> tuple[bytes, bytes]:
        channel, (_, data) = self._messages.popitem(last=False)
        self._grow(-len(channel) - len(data))
        return channel, data

    def _measure(self) -> None:
        """There is never any room to spare."""

    def _oldest(self) -> int:
        return next(iter(self._messages.values()), (self._put,))[0]

    def _give_way(self) -> None:
        self._pop()

    def _keep(self, wanted: Callable[[int, bytes], bool]) -> None:
        for channel, (place, data) in tuple(self._messages.items()):
            if not wanted(place, channel):
                del self._messages[channel]
                self._grow(-len(channel) - len(data))


def _pairs(items: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Take channel, payload, channel, ... two by two."""
    one_by_one = iter(items)
    return zip(one_by_one, one_by_one, strict=True)


def new_buffer(max_pending: int, overflow: Overflow, budget: Budget) -> Buffer:
    """Make a buffer of which messages give way as `overflow` says."""
    if overflow is Overflow.LATEST:
        return Latest(max_pending, budget)
    return Buffer(max_pending, budget, drop_newest=overflow is not Overflow.DROP_OLDEST)
