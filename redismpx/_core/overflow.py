"""What happens when the buffer of a subscription is full."""

from __future__ import annotations

import enum


class Overflow(enum.Enum):
    """Which message is dropped when a subscription's buffer is full: in number, or in bytes."""

    DROP_OLDEST = "drop_oldest"
    """The oldest message in the buffer."""
    DROP_NEWEST = "drop_newest"
    """The message that has just arrived."""
    LATEST = "latest"
    """Always the earlier message of the same channel; with more than `max_pending` channels, the oldest message."""
    CLOSE = "close"
    """The message that has just arrived, and the subscription is closed."""
