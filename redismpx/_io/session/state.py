"""What a session may be doing, and which state follows which. No logic."""

from __future__ import annotations

import enum


class SessionState(enum.Enum):
    """What a session is doing."""

    IDLE = "idle"  # no loop has run yet, or no connection was needed yet
    DIALLING = "dialling"
    CONNECTED = "connected"
    BACKING_OFF = "backing off"
    CLOSED = "closed"


SESSION_TRANSITIONS: dict[SessionState, frozenset[SessionState]] = {
    SessionState.IDLE: frozenset({SessionState.DIALLING, SessionState.CLOSED}),
    SessionState.DIALLING: frozenset({SessionState.CONNECTED, SessionState.BACKING_OFF, SessionState.CLOSED}),
    SessionState.CONNECTED: frozenset({SessionState.BACKING_OFF, SessionState.CLOSED}),
    SessionState.BACKING_OFF: frozenset({SessionState.DIALLING, SessionState.CLOSED}),
    SessionState.CLOSED: frozenset(),
}
