"""What a subscription knows of its names."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from redismpx import Multiplexer, SubscriptionRefused

from ..helpers.strike import Session, struck


def test_a_finalizer_may_remove_a_name_that_was_rejected() -> None:
    """A wait for the activation of a rejected name raises what it should, whenever the collector runs."""
    at = 1
    while _raises_what_it_should(at):
        at += 1
    assert at > 5


def _raises_what_it_should(at: int) -> bool:
    mpx = Multiplexer("redis://localhost:1")
    sub = mpx.new_channel_subscription()
    sub.add("a")
    sub._inbox.refuse(SubscriptionRefused("subscribe", b"a", "NOPERM"))

    async def wait() -> None:
        with suppress(SubscriptionRefused, ValueError):
            await sub.wait_for_activation("a")

    was_struck = struck(
        at, "redismpx/subscription.py", [Session(lambda: sub.closed or sub.remove("a"))], lambda: asyncio.run(wait())
    )
    mpx.close()
    return was_struck
