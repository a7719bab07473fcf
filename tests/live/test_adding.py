"""`add()` of very many channels, which are subscribed to in the next iterations of the event loop."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from redismpx import Multiplexer, TooManyChannels
from redismpx._io.runtime.slices import SLICE_STEPS
from redismpx.channel import _STEP_NAMES

from ..helpers.ends import ENDS, end
from ..helpers.monitor import settled
from ..helpers.waiting import until

pytestmark = pytest.mark.usefixtures("no_leaks")

AT_ONCE = SLICE_STEPS * _STEP_NAMES
TOTAL = 2 * AT_ONCE
NAMES = [b"%d" % number for number in range(TOTAL)]


async def test_very_many_channels_are_added_in_time_slices(url: str, admin: Redis) -> None:
    """add() returns before all channels are subscribed to; each becomes active once, unless it is removed before."""
    active: list[bytes] = []
    seen: list[tuple[bytes, bytes]] = []
    async with Multiplexer(url) as mpx:
        sub = mpx.new_channel_subscription(lambda *message: seen.append(message), on_activation=active.append)
        sub.add(*NAMES)
        assert sub.channels == {*NAMES}
        assert mpx.stats().channels == AT_ONCE
        *_, gone, again, last = NAMES
        sub.remove(gone, again)
        sub.add(again, last, "one more")
        assert mpx.stats().channels == AT_ONCE + 2
        wanted = {*NAMES, b"one more"} - {gone}
        assert sub.channels == wanted
        await sub.wait_for_activation(timeout=20)
        assert sub.active == wanted
        assert sorted(active) == sorted(wanted)
        await settled(admin, wanted, 0)
        for name in (gone, again, last):
            await admin.publish(name, "x")
        await until(lambda: mpx.stats().messages == 2)
        assert seen == [(again, b"x"), (last, b"x")]


async def test_channels_are_cleared_while_they_are_added(url: str, admin: Redis) -> None:
    """Channels that come, go and come again within one iteration are subscribed to once, and stay."""
    active: list[bytes] = []
    async with Multiplexer(url) as mpx:
        sub = mpx.new_channel_subscription(on_activation=active.append)
        sub.add(*NAMES)
        sub.clear()
        sub.add(*NAMES[1:])
        await sub.wait_for_activation(timeout=20)
        assert sorted(active) == sorted(NAMES[1:])
        await until(lambda: mpx.stats().channels == len(sub.channels) == TOTAL - 1)
        await settled(admin, {*NAMES[1:]}, 0)


@pytest.mark.parametrize("how", ENDS)
async def test_an_end_comes_while_channels_are_added(url: str, admin: Redis, how: str) -> None:
    """After a clear or an end of any kind, none of the channels is subscribed to any more."""
    async with Multiplexer(url) as mpx:
        sub = mpx.new_channel_subscription()
        await mpx.connect(5)
        sub.add(*NAMES)
        await end(how, mpx, sub)
        await settled(admin, set())


async def test_channels_that_are_being_added_count_for_the_limit(url: str) -> None:
    """The limit holds, and is exact, also for channels that are not yet subscribed to."""
    async with Multiplexer(url, max_channels=TOTAL + 1) as mpx:
        sub, other = mpx.new_channel_subscription(), mpx.new_channel_subscription()
        sub.add(*NAMES)
        with pytest.raises(TooManyChannels):
            other.add("one", "two")
        assert mpx.stats().channels == TOTAL  # that call has completed the other one, to count exactly
        other.add("one", *NAMES)
        with pytest.raises(TooManyChannels):
            sub.add("two")
        sub.clear()
        other.clear()
        sub.add("two")
        await sub.wait_for_activation(timeout=20)


async def test_a_limit_of_patterns_does_not_hurry_channels(url: str) -> None:
    """Channels that are being added do not count as patterns: a new pattern leaves them to the next iterations."""
    async with Multiplexer(url, max_patterns=1) as mpx:
        mpx.new_channel_subscription().add(*NAMES)
        mpx.new_pattern_subscription("a*")
        assert mpx.stats().channels == AT_ONCE


async def test_sharded_channels_are_added_in_time_slices(url: str, admin: Redis) -> None:
    """Very many shard channels are added in the same way."""
    async with Multiplexer(url) as mpx:
        sub = mpx.new_channel_subscription(sharded=True)
        sub.add(*NAMES)
        assert mpx.stats().channels == AT_ONCE
        await sub.wait_for_activation(timeout=20)
        assert sub.active == {*NAMES} == set(await admin.execute_command("PUBSUB", "SHARDCHANNELS"))
