"""Delays between attempts to connect that are short enough for tests."""

from __future__ import annotations

from redis.backoff import ConstantBackoff

QUICK = ConstantBackoff(0.01)  # seconds
