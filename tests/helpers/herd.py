"""Measure how many clients connect at the same moment."""

from __future__ import annotations

MOST = 60  # connection attempts, of a thousand clients, that any 100 ms after an outage may have


def peak(times: list[float], window: float = 0.1) -> int:
    """Return the highest number of times within any `window` seconds."""
    times = sorted(times)
    most = first = 0
    for last, time in enumerate(times):
        while time - times[first] >= window:
            first += 1
        most = max(most, last - first + 1)
    return most
