"""A slow consumer's queue is bounded, its counters are exact, and other subscriptions are not affected."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from redismpx import ChannelSubscription, ConnectionLost, Multiplexer, Overflow, SlowConsumer

from ..helpers.flood import FLOOD
from ..helpers.lengths import at_length
from ..helpers.waiting import until

pytestmark = [pytest.mark.one_flavour, pytest.mark.usefixtures("no_leaks")]

KEPT = {
    "drop_oldest": list(range(91, 101)),
    "drop_newest": list(range(1, 11)),
    "latest": [100],
    "close": [],
}


async def publish(admin: Redis, channel: str, numbers: range) -> None:
    for start in range(0, len(numbers), 10_000):
        pipe = admin.pipeline(transaction=False)
        for number in numbers[start : start + 10_000]:
            pipe.publish(channel, number)
        await pipe.execute()


class Slow:
    """A consumer that waits at a gate, and counts."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.seen: list[int] = []
        self.errors: list[Exception] = []

    def on_message(self, channel: bytes, message: bytes) -> Awaitable[object]:
        self.seen.append(int(message))
        return self.gate.wait()

    def subscribe(self, mpx: Multiplexer, **options: Any) -> ChannelSubscription[bytes]:
        return mpx.new_channel_subscription(self.on_message, on_error=self.errors.append, **options)


@pytest.mark.parametrize("policy", list(Overflow), ids=lambda policy: policy.value)
async def test_each_policy_keeps_the_right_messages(url: str, admin: Redis, policy: Overflow) -> None:
    """Each overflow policy keeps the messages that it names, counts the others and spares other subscriptions."""
    async with Multiplexer(url, max_pending=10, overflow=policy) as mpx:
        slow = Slow()
        sub = slow.subscribe(mpx)
        fast = mpx.new_channel_subscription(lambda *_: None)
        for each in (sub, fast):
            each.add("a")
            await each.wait_for_activation(timeout=5)
        await publish(admin, "a", range(101))
        await until(lambda: mpx.stats().messages == 101)
        assert slow.seen == [0]
        kept = KEPT[policy.value]
        assert sub.pending == len(kept)
        received = 12 if policy is Overflow.CLOSE else 101  # after that it was closed
        assert 1 + sub.pending + sub.dropped == received
        assert [type(e) for e in slow.errors] == [SlowConsumer]
        assert sub.closed == (policy is Overflow.CLOSE)
        slow.gate.set()
        await until(lambda: slow.seen == [0, *kept])
        assert not fast.closed
        assert fast.dropped == 0


@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest", "latest"])
async def test_a_slow_consumer_is_reported_once_per_episode(url: str, admin: Redis, policy: str) -> None:
    """SlowConsumer goes to on_error once for each episode."""
    async with Multiplexer(url) as mpx:
        slow = Slow()
        sub = slow.subscribe(mpx, max_pending=10, overflow=policy)
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        for episode in (1, 2):
            await publish(admin, "a", range(50))
            await until(lambda expected=50 * episode: mpx.stats().messages == expected)
            assert len(slow.errors) == episode
            error = slow.errors[-1]
            assert isinstance(error, SlowConsumer)
            assert 1 <= error.pending <= 10
            slow.gate.set()
            await until(lambda: sub.pending == 0 and sub._inbox.idle)
            slow.gate.clear()


async def test_latest_keeps_the_newest_message_of_each_channel(url: str, admin: Redis) -> None:
    """`latest` keeps the newest message of each channel, in the order received."""
    async with Multiplexer(url) as mpx:
        sub = mpx.new_channel_subscription(max_pending=2, overflow="latest")
        sub.add("a", "b", "c")
        await sub.wait_for_activation(timeout=5)
        for channel, payload in (("a", 1), ("b", 2), ("a", 3), ("a", 4)):
            await admin.publish(channel, payload)
        await until(lambda: mpx.stats().messages == 4)
        assert (sub.pending, sub.dropped) == (2, 2)
        assert [(await sub.get()).data for _ in range(2)] == [b"2", b"4"]
        for channel in "abc":
            await admin.publish(channel, channel)
        await until(lambda: mpx.stats().messages == 7)
        assert (sub.pending, sub.dropped) == (2, 3)  # beyond the bound, the oldest channel
        assert [(await sub.get()).data for _ in range(2)] == [b"b", b"c"]


@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest", "latest"])
async def test_counters_are_exact_in_the_middle_of_a_burst(url: str, admin: Redis, policy: str) -> None:
    """received = delivered + dropped + pending holds inside callbacks, in the middle of a burst."""
    async with Multiplexer(url, on_error=lambda _: None) as mpx:
        reader = mpx.new_channel_subscription(max_pending=10, overflow=policy)
        received, read = 0, [-1]
        errors: list[Exception] = []

        def look(*_: bytes) -> None:
            nonlocal received
            received += 1
            if received == 2:
                reader.remove("b")
            elif received % 3 == 0:
                message = reader.get_nowait()
                assert message.channel in reader.channels
                read.append(int(message.data))
            assert reader.pending <= 10
            assert len(read) - 1 + reader.pending + reader.dropped == received

        other = mpx.new_pattern_subscription("[ab]", look, on_error=errors.append)
        reader.add("a", "b")
        await reader.wait_for_activation(timeout=5)
        await other.wait_for_activation(timeout=5)
        pipe = admin.pipeline(transaction=False)
        for number in range(100):
            pipe.publish("a" if number else "b", number)
        await pipe.execute()
        await until(lambda: received == 100)
        assert not errors
        assert read == sorted(read)


async def test_an_event_keeps_its_place_in_a_burst(url: str) -> None:
    """An activation or disconnect between two messages is delivered between them."""
    seen: list[object] = []
    async with Multiplexer(url) as mpx:
        sub = mpx.new_channel_subscription(None, seen.append, seen.append)
        inbox = sub._inbox
        for number, event in enumerate([lambda: inbox.activate(b"x"), lambda: inbox.disconnect(ConnectionLost("x"))]):
            inbox.deliver(b"a", b"before")
            event()
            inbox.deliver(b"a", b"after")
            inbox.flush()
            assert (await sub.get()).data == b"before"
            assert len(seen) == number
            assert (await sub.get()).data == b"after"
            assert len(seen) == number + 1


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 if sys.platform == "linux" else 0


@pytest.mark.parametrize("shared_server", ["valkey"], indirect=True)
@pytest.mark.parametrize("policy", list(Overflow), ids=lambda policy: policy.value)
async def test_a_flood_past_a_stuck_subscription(url: str, admin: Redis, policy: Overflow) -> None:
    """A fast subscription gets all messages of a flood beside a stuck one, whose buffer and memory stay bounded."""
    # The buffer of the other two policies never grows with the number of messages.
    total, room = at_length(1_000_000, 400_000) if policy.value.startswith("drop") else 100_000, 1000
    await admin.config_set("client-output-buffer-limit", "pubsub 0 0 0")
    async with Multiplexer(url) as mpx:
        slow = Slow()
        stuck = slow.subscribe(mpx, max_pending=room, overflow=policy)
        received = 0

        def count(channel: bytes, message: bytes) -> None:
            nonlocal received
            assert int(message) == received
            received += 1
            if received % 100 == 0 and policy is not Overflow.CLOSE:
                assert len(slow.seen) + stuck.pending + stuck.dropped == received

        fast = mpx.new_channel_subscription(count, on_error=slow.errors.append)
        for each in (stuck, fast):
            each.add("a")
            await each.wait_for_activation(timeout=5)
        before = resident()
        port = url.rpartition(":")[2]
        flood = await asyncio.create_subprocess_exec(sys.executable, "-c", FLOOD, port, str(total))
        await until(lambda: received == total, 100)
        assert await flood.wait() == 0
        assert resident() - before < 50 * max(total, 400_000)
        assert fast.dropped == fast.pending == 0
        assert [type(e) for e in slow.errors] == [SlowConsumer]
        if policy is not Overflow.CLOSE:
            assert 1 + stuck.pending + stuck.dropped == total
        assert stuck.pending == {"drop_oldest": room, "drop_newest": room, "latest": 1, "close": 0}[policy.value]
        slow.gate.set()
