"""The events that wait for a subscription's callbacks: in order, bounded, counted. No I/O, no clock."""

from __future__ import annotations

import enum
from collections import deque


class Signal(enum.Enum):
    """An event that is not a message. Signals are never dropped for lack of room; see disconnect() for their bound."""

    ACTIVATION = "activation"
    DISCONNECT = "disconnect"
    ERROR = "error"


class Backlog:
    """A FIFO of messages and signals, of which at most `max_pending` messages."""

    __slots__ = ("_max_pending", "_messages", "_sequence", "_signals", "overflowing")

    def __init__(self, max_pending: int) -> None:
        self._max_pending = max_pending
        # Two queues, merged by sequence number, so that the oldest message is at hand when it has to go.
        self._messages: deque[tuple[int, bytes, bytes]] = deque()
        self._signals: deque[tuple[int, Signal, object, frozenset[bytes] | None]] = deque()
        self._sequence = 0
        self.overflowing = False
        """Whether messages were dropped and more than half of the room is still taken."""

    def __len__(self) -> int:
        """Messages waiting."""
        return len(self._messages)

    def message(self, channel: bytes, data: bytes) -> int:
        """Add a message; return how many were dropped for it."""
        self._sequence += 1
        self._messages.append((self._sequence, channel, data))
        if len(self._messages) <= self._max_pending:
            return 0
        self._messages.popleft()
        return 1

    def signal(self, signal: Signal, argument: object, names: frozenset[bytes] | None) -> None:
        """Add a signal that concerns `names`; None stands for all of them."""
        self._sequence += 1
        self._signals.append((self._sequence, signal, argument, names))

    def disconnect(self, error: object, names: frozenset[bytes] | None) -> int:
        """Add a disconnect; return how many messages were dropped for it.

        If the same disconnect waits already, the connection between the two came and went unseen: both become one
        gap, and what was received in between is dropped. So reconnects cannot fill the queue of a stuck consumer.
        """
        for sequence, signal, _, earlier in self._signals:
            if signal is Signal.DISCONNECT and earlier == names:
                return self._remove(names, since=sequence)
        self.signal(Signal.DISCONNECT, error, names)
        return 0

    def discard(self, names: frozenset[bytes] | None) -> int:
        """Remove all that concerns only `names`; return how many messages that were."""
        return self._remove(names, since=0)

    def pop(self) -> tuple[Signal, object] | tuple[bytes, bytes] | None:
        """Remove and return the oldest event: a message as (channel, data), a signal with its argument."""
        messages, signals = self._messages, self._signals
        if messages and not (signals and signals[0][0] < messages[0][0]):
            _, channel, data = messages.popleft()
            if self.overflowing and len(messages) <= self._max_pending // 2:
                self.overflowing = False
            return channel, data
        if signals:
            _, signal, argument, _ = signals.popleft()
            return signal, argument
        return None

    def _remove(self, names: frozenset[bytes] | None, since: int) -> int:
        before = len(self._messages)
        self._messages = deque(m for m in self._messages if m[0] < since or not (names is None or m[1] in names))
        self._signals = deque(
            s for s in self._signals if s[0] <= since or not (names is None or (s[3] is not None and s[3] <= names))
        )
        return before - len(self._messages)
