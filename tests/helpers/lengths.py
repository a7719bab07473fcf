"""How long the longest tests are: short, or at full length."""

from __future__ import annotations

import os

IS_FULL = bool(os.environ.get("REDISMPX_FULL"))
"""REDISMPX_FULL=1 runs the tests that call `at_length()` at their full length."""


def at_length(full: int, short: int) -> int:
    """Return a number for this run: what a test needs to show its promise, or the number of its full length."""
    return full if IS_FULL else short
