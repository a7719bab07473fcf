"""on_close: what a subscription is told that others have ended."""

from __future__ import annotations

import asyncio
import logging

import pytest
from redis.asyncio import Redis

from redismpx import Multiplexer
from redismpx._io.runtime.slices import SLICE_STEPS

from ..helpers.logs import loud
from ..helpers.waiting import until

pytestmark = [pytest.mark.one_flavour, pytest.mark.usefixtures("no_leaks")]


async def test_on_close_says_why_a_subscription_ended(url: str, admin: Redis) -> None:
    """It is called once, as the last callback: for an overflow, or for the end of the multiplexer."""
    events: list[tuple[str, object]] = []
    gate = asyncio.Event()

    def note(name: str) -> dict[str, object]:
        return {
            "on_message": lambda *_: gate.wait(),
            "on_activation": lambda _: events.append((name, "active")),
            "on_close": lambda reason: events.append((name, reason)),
        }

    async with Multiplexer(url, on_error=lambda _: None) as mpx:
        slow = mpx.new_channel_subscription(**note("slow"), max_pending=2, overflow="close")  # type: ignore[call-overload]
        own = mpx.new_channel_subscription(**note("own"))  # type: ignore[call-overload]
        pattern = mpx.new_pattern_subscription("p*", **note("pattern"))  # type: ignore[call-overload]
        slow.add("a")
        own.add("a")
        for sub in (slow, own, pattern):
            await sub.wait_for_activation(timeout=5)
        for _ in range(5):
            await admin.publish("a", "x")
        await until(lambda: slow.closed)
        slow.close()
        own.close()
        mpx.close()
        assert [event for event in events if event[1] != "active"] == [
            ("slow", "overflow"),
            ("pattern", "multiplexer closed"),
        ]
        assert len(events) == 5


async def test_aclose_waits_for_each_on_close(url: str) -> None:
    """Of very many subscriptions, each gets its on_close, and none after aclose()."""
    total = 3 * SLICE_STEPS
    closed: list[int] = []
    async with Multiplexer(url) as mpx:
        for number in range(total):
            mpx.new_channel_subscription(print, on_close=lambda _, number=number: closed.append(number))  # type: ignore[misc]
        mpx.close()
        assert 0 < len(closed) < total
        await mpx.aclose()
        assert sorted(closed) == list(range(total))


async def test_an_error_in_on_close_is_logged(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """It ends nothing else; and on_close may close whatever it likes."""
    caplog.set_level(logging.WARNING, "redismpx")
    closed: list[str] = []

    def fail(reason: str) -> None:
        mpx.close()
        raise ValueError(reason)

    async with Multiplexer(url) as mpx:
        mpx.new_channel_subscription(print, on_close=fail)
        mpx.new_channel_subscription(print, on_close=closed.append)
    assert closed == ["multiplexer closed"]
    (record,) = loud(caplog)
    assert record.getMessage() == "on_close of a channel subscription raised ValueError"


async def test_on_close_is_a_plain_function(url: str) -> None:
    """A coroutine function could not be awaited there."""

    async def on_close(reason: str) -> None: ...

    async with Multiplexer(url) as mpx:
        with pytest.raises(TypeError, match="on_close must be a plain function"):
            mpx.new_channel_subscription(on_close=on_close)
        with pytest.raises(TypeError, match=r"on_close is called as on_close\(reason\)"):
            mpx.new_pattern_subscription("a", on_close=lambda: None)  # type: ignore[arg-type,misc]
