"""What a multiplexer knows of its subscriptions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from redismpx import Multiplexer

from ..helpers.strike import Session, collected, struck


def consume(mpx: Multiplexer) -> None:
    asyncio.run(mpx._hub.consumed())


def save(mpx: Multiplexer) -> None:
    asyncio.run(mpx._hub.save_positions())


@pytest.mark.parametrize("step", [consume, save])
def test_a_finalizer_may_close_a_subscription_in_a_drain(step: Callable[[Multiplexer], None]) -> None:
    """A drain comes to its end, whenever the collector runs, and whatever subscriptions a finalizer closes."""
    at = 1
    while _drains(step, at):
        at += 1
    assert at > 10


def _drains(step: Callable[[Multiplexer], None], at: int) -> bool:
    mpx = Multiplexer("redis://localhost:1")
    subs = [mpx.new_stream_subscription(durable=name) for name in "abc"]
    was_struck = struck(at, "weakref", [Session(subs.pop().close)], lambda: step(mpx))
    mpx.close()
    return was_struck


@pytest.mark.parametrize("end", ["close", "drain"])
def test_a_finalizer_may_close_the_multiplexer_as_it_ends(end: str) -> None:
    """close() and drain() do what they promise, and raise nothing, although a finalizer closes it in the middle."""
    at = 1
    while _ends(end, at):
        at += 1
    assert at > 1


def _ends(end: str, at: int) -> bool:
    mpx = Multiplexer("redis://localhost:1")
    was_collected = collected(at, mpx.close, getattr(mpx._hub, end))
    assert mpx._hub.closed
    return was_collected
