"""The ways in which a subscription loses all of its names."""

from __future__ import annotations

from redismpx import ChannelSubscription, Multiplexer, StreamSubscription

from .waiting import until

ENDS = ["clear", "close", "close the multiplexer", "drain"]


async def end(how: str, mpx: Multiplexer, sub: ChannelSubscription[bytes] | StreamSubscription[bytes]) -> None:
    """Have the only subscription of a multiplexer lose its names, and wait until none is subscribed to."""
    if how == "drain":
        await mpx.drain()
    else:
        {"clear": sub.clear, "close": sub.close}.get(how, mpx.close)()
    await mpx._hub.slices.done()
    await until(lambda: not mpx.stats().channels)
    assert sub.closed == (how != "clear")
