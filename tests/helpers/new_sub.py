"""Subscriptions whose events a checker gets."""

from __future__ import annotations

from typing import Any

from redismpx import Multiplexer
from redismpx.testing import Checker


def new_sub(mpx: Multiplexer, checker: Checker, *names: str | bytes, sharded: bool = True) -> Any:
    """Return a subscription of these names whose callbacks are those of `checker`."""
    sub = mpx.new_channel_subscription(*checker.callbacks, on_error=checker.on_error, sharded=sharded)
    sub.add(*names)
    return sub
