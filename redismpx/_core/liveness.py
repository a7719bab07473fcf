"""Whether a connection is alive, judged by its replies. No I/O; every call gets the time.

The clock of the connection stands still while received data is not handled: this process is slow then, not the server.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

GRACE = 0.1  # seconds for one more read before a connection counts as lost


class LivenessState(enum.Enum):
    """What the replies say about the connection."""

    LIVE = "live"
    PINGED = "pinged"  # no reply for ping_interval, and a PING was sent
    DOUBTED = "doubted"  # no reply for ping_timeout more
    OVERDUE = "overdue"  # no reply to a command for ping_interval and ping_timeout, although other replies come


LIVENESS_TRANSITIONS: dict[LivenessState, frozenset[LivenessState]] = {
    LivenessState.LIVE: frozenset({LivenessState.PINGED, LivenessState.OVERDUE}),
    LivenessState.PINGED: frozenset({LivenessState.LIVE, LivenessState.DOUBTED}),
    LivenessState.DOUBTED: frozenset({LivenessState.LIVE}),
    LivenessState.OVERDUE: frozenset({LivenessState.LIVE}),
}


class Look(NamedTuple):
    """What follows from a look at the connection."""

    delay: float  # seconds until the next look
    ping: bool = False  # whether to send a PING
    loss: str | None = None  # why the connection counts as lost


class Liveness:
    """The judgement of one connection.

    A connection is lost when it gives no reply for `ping_interval`, and then none to a PING within `ping_timeout`; or
    when one command gets no reply in that time, although other replies come. Before that there is a second look: when
    the loop was held up, a timer may run before the socket is read.
    """

    def __init__(self, ping_interval: float, ping_timeout: float, now: float) -> None:
        self.state: LivenessState = LivenessState.LIVE
        self.round_trip: float | None = None
        """Seconds from the last PING to the first reply."""
        self._ping_interval = ping_interval
        self._ping_timeout = ping_timeout
        self._lag = 0.0  # seconds for which the clock stood still
        self._behind_since: float | None = None  # since when it stands still
        # By this clock:
        self._last_reply = now
        self._pinged = 0.0
        self._unanswered: tuple[object, float] = (None, 0.0)  # the oldest command without a reply, and since when

    def fell_behind(self, now: float) -> None:
        """Take note that received data is not handled yet."""
        if self._behind_since is None:
            self._behind_since = now

    def caught_up(self, now: float) -> None:
        """Take note that everything that was read is handled."""
        if self._behind_since is not None:
            self._lag += now - self._behind_since
            self._behind_since = None

    def replied(self, now: float) -> bool:
        """Take note of a complete reply; return whether the next look is due ping_interval from now.

        An error counts too: it shows that the server is alive.
        """
        self._last_reply = self.clock(now)
        if self.state is LivenessState.PINGED or self.state is LivenessState.DOUBTED:
            self.round_trip = self._last_reply - self._pinged
            self._move(LivenessState.LIVE)
            return True
        return False

    def look(self, now: float, oldest: object, *, unread: bool) -> Look:
        """Judge the connection.

        Args:
            now: the time.
            oldest: the oldest command without a reply; None if there is none.
            unread: whether the socket has data that was not read.
        """
        clock = self.clock(now)
        known, since = self._unanswered
        if oldest is not known:
            self._unanswered = (oldest, clock)
        due_in = self._ping_interval + self._ping_timeout  # seconds until that command is overdue
        if oldest is known and oldest is not None:
            due_in -= clock - since
        is_overdue = due_in <= 0
        if self.state is LivenessState.LIVE:
            silence = clock - self._last_reply
            if is_overdue:
                self._move(LivenessState.OVERDUE)
                return Look(GRACE)
            if silence < self._ping_interval and (oldest is None or oldest is known):
                return Look(min(self._ping_interval - silence, due_in))
            return self._ping(clock)  # also for a command that was sent since the last look
        if self.state is LivenessState.PINGED:
            left = self._pinged + self._ping_timeout - clock
            if left <= 0:
                self._move(LivenessState.DOUBTED)
            return Look(max(left, GRACE))
        if unread or self._behind_since is not None:
            return Look(GRACE)
        if self.state is LivenessState.DOUBTED:
            return Look(0, loss=f"no reply to PING within {self._ping_timeout:g} s")
        if is_overdue:
            return Look(0, loss="no reply to a command")
        self._move(LivenessState.LIVE)
        return Look(self._ping_interval)

    def check(self, now: float) -> Look | None:
        """Ping now; None while an earlier PING has no reply yet."""
        return self._ping(self.clock(now)) if self.state is LivenessState.LIVE else None

    def _ping(self, clock: float) -> Look:
        self._move(LivenessState.PINGED)
        self._pinged = clock
        return Look(self._ping_timeout, ping=True)

    def clock(self, now: float) -> float:
        """Return the time by the clock of the connection."""
        return (now if self._behind_since is None else self._behind_since) - self._lag

    def _move(self, state: LivenessState) -> None:
        if state not in LIVENESS_TRANSITIONS[self.state]:
            raise AssertionError(f"{self.state} to {state}")
        self.state = state
