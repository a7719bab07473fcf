"""The limits of one multiplexer: a call over a limit raises its own exception and changes nothing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from redismpx import (
    LimitReached,
    Multiplexer,
    SlowConsumer,
    TooManyChannels,
    TooManyPatterns,
    TooManyPromises,
)

from ..helpers.monitor import settled
from ..helpers.waiting import until

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_max_channels_counts_all_subscriptions(url: str, admin: Redis) -> None:
    """max_channels limits the distinct channels of all subscriptions; add() over it changes nothing."""
    async with Multiplexer(url, max_channels=3) as mpx:
        one, other = mpx.new_channel_subscription(), mpx.new_channel_subscription()
        one.add("a", "b")
        with pytest.raises(TooManyChannels, match="max_channels=3") as caught:
            other.add("c", "d")
        assert (caught.value.limit, caught.value.value) == ("max_channels", 3)
        assert isinstance(caught.value, LimitReached)
        assert other.channels == frozenset()
        other.add("a", "b", "c")  # what is wanted already costs nothing
        await other.wait_for_activation(timeout=5)
        one.remove("a", "b")
        with pytest.raises(TooManyChannels):
            one.add("d")
        other.remove("c")
        one.add("d", "d")  # one of them, twice
        await settled(admin, {b"a", b"b", b"d"})
        assert mpx.stats().channels == 3


async def test_max_patterns_counts_patterns_and_prefixes() -> None:
    """max_patterns limits the distinct patterns, prefixes of promises included."""
    async with Multiplexer("redis://127.0.0.1:1", max_patterns=2) as mpx:
        first, _second = mpx.new_pattern_subscription("a*"), mpx.new_pattern_subscription("a*")
        mpx.new_promise_subscription("p")
        for make in (mpx.new_pattern_subscription, mpx.new_promise_subscription):
            with pytest.raises(TooManyPatterns):
                make("b*")  # type: ignore[operator]
        assert mpx.stats().subscriptions == 3
        assert mpx.stats().patterns == 2
        first.close()
        assert mpx.stats().patterns == 2


async def test_max_promises_counts_pending_promises(url: str, admin: Redis) -> None:
    """max_promises limits the pending promises, and each outcome makes room."""
    async with Multiplexer(url, max_promises=2) as mpx:
        subs = [mpx.new_promise_subscription(prefix) for prefix in ("a", "b")]
        for sub in subs:
            await sub.wait_for_activation(timeout=5)

        async def kept() -> None:
            promise = subs[0].new_promise("1", 5)
            await admin.publish(promise.channel, "x")
            assert await promise == b"x"

        async def expired() -> None:
            with pytest.raises(TimeoutError):
                await subs[0].new_promise("1", 0)

        async def cancelled() -> None:
            subs[1].new_promise("1").cancel()

        async def kept_by_hand() -> None:
            subs[1].new_promise("1").set_result(b"x")

        async def broken_by_hand() -> None:
            promise = subs[1].new_promise("1", 5)
            promise.set_exception(ValueError())
            assert isinstance(promise.exception(), ValueError)

        async def cleared() -> None:
            promise = subs[1].new_promise("1", 5)
            subs[1].clear()
            assert promise.done()

        standing = subs[1].new_promise("stays")
        for settle in (kept, expired, cancelled, kept_by_hand, broken_by_hand):
            await settle()
            assert mpx.stats().promises == 1
        await cleared()
        assert standing.done()
        assert mpx.stats().promises == 0
        promises = [subs[0].new_promise("1"), subs[1].new_promise("1")]
        with pytest.raises(TooManyPromises):
            subs[0].new_promise("2")
        with pytest.raises(TooManyPromises):
            await subs[0].wait_for_new_promise("2", 5)
        assert mpx.stats().promises == 2
    assert all(promise.done() for promise in promises)
    assert mpx.stats().promises == 0


@pytest.mark.parametrize(
    ("ask", "what"),
    [
        (lambda mpx: mpx.new_channel_subscription().add("good", b"x" * 65_537), "a channel of 65537 bytes"),
        (lambda mpx: mpx.new_pattern_subscription(b"x" * 1_025), "a pattern of 1025 bytes"),
        (lambda mpx: mpx.new_pattern_subscription("*a" * 101), "101 stars"),
        (lambda mpx: mpx.new_promise_subscription("x" * 1_025), "a prefix of 1025 bytes"),
    ],
)
async def test_oversized_names_and_patterns_raise(ask: Callable[[Multiplexer], Any], what: str) -> None:
    """A name that is too long, or a pattern with too many stars, raises and changes nothing."""
    async with Multiplexer("redis://127.0.0.1:1") as mpx:
        with pytest.raises(ValueError, match=what):
            ask(mpx)
        assert (mpx.stats().channels, mpx.stats().patterns) == (0, 0)


async def test_an_oversized_suffix_raises(url: str) -> None:
    """A promise's suffix is limited like a name."""
    async with Multiplexer(url) as mpx:
        sub = mpx.new_promise_subscription("a")
        await sub.wait_for_activation(timeout=5)
        with pytest.raises(ValueError, match="a suffix of 65537 bytes"):
            sub.new_promise("x" * 65_537)


async def test_limits_can_be_turned_off(url: str, admin: Redis) -> None:
    """With None for each limit, the server alone decides."""
    async with Multiplexer(
        url, max_channels=None, max_patterns=None, max_promises=None, max_name_bytes=None,
        max_pattern_bytes=None, max_pattern_stars=None, max_pending_bytes=None, max_total_pending_bytes=None,
    ) as mpx:  # fmt: skip
        channel, pattern = b"c" * 100_000, b"*p" * 1_000
        sub = mpx.new_channel_subscription()
        sub.add(channel)
        await sub.wait_for_activation(timeout=5)
        listener = mpx.new_pattern_subscription(pattern)
        await listener.wait_for_activation(timeout=5)
        await settled(admin, {channel}, 1)


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest", "latest", "close"])
async def test_max_pending_bytes_bounds_a_buffer(url: str, admin: Redis, overflow: str) -> None:
    """max_pending_bytes limits the bytes of one buffer, by its overflow policy."""
    errors: list[Exception] = []
    async with Multiplexer(url, max_pending_bytes=1000, overflow=overflow, on_error=errors.append) as mpx:
        sub = mpx.new_channel_subscription()
        channels = [b"%02d" % number for number in range(20)]
        sub.add(*channels)
        await sub.wait_for_activation(timeout=5)
        for channel in channels:
            await admin.publish(channel, channel * 49)  # 100 bytes each, the name among them
        await until(lambda: sub.closed or mpx.stats().messages == 20)
        assert [type(error) for error in errors] == [SlowConsumer]
        if overflow == "close":
            assert sub.closed
            assert mpx.stats().pending_bytes == 0
            return
        assert (sub.pending, sub.dropped, mpx.stats().pending_bytes) == (10, 10, 1000)
        kept = channels[:10] if overflow == "drop_newest" else channels[10:]
        assert [(await sub.get()).channel for _ in range(10)] == kept
        assert mpx.stats().pending_bytes == 0
        await admin.publish(channels[0], b"x" * 999)  # an empty buffer takes one message of any size
        await until(lambda: sub.pending == 1)
        await admin.publish(channels[0], b"x")
        await until(lambda: sub.dropped == 11)
        assert len((await sub.get(5)).data) == (999 if overflow == "drop_newest" else 1)


async def test_max_total_pending_bytes_bounds_all_buffers(url: str, admin: Redis) -> None:
    """max_total_pending_bytes limits all buffers together; stuck consumers share it, and drop for others."""
    async with Multiplexer(url, max_total_pending_bytes=1000, on_error=lambda _: None) as mpx:
        subs = [mpx.new_channel_subscription(hang) for _ in range(4)]
        reader = mpx.new_channel_subscription()
        for sub in (*subs, reader):
            sub.add("a")
            await sub.wait_for_activation(timeout=5)
        for number in range(20):
            await admin.publish("a", b"%099d" % number)
            assert int((await reader.get(5)).data) == number
            assert mpx.stats().pending_bytes <= 1000
        stats = mpx.stats()
        assert stats.pending_bytes == 100 * stats.pending >= 900
        assert {sub.pending for sub in subs} <= {2, 3}
        assert stats.pending + stats.dropped == 19 * 4  # each consumer has one message
        assert reader.dropped == 0
        subs[0].close()
        assert mpx.stats().pending_bytes == 100 * sum(sub.pending for sub in subs[1:])


async def hang(*_: object) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest", "latest", "close"])
async def test_stuck_consumers_leave_room_for_a_small_one(url: str, admin: Redis, overflow: str) -> None:
    """Consumers that get stuck one after another use up the total; a later one gets its burst all the same."""
    errors: list[Exception] = []
    async with Multiplexer(url, max_total_pending_bytes=100_000, overflow=overflow, on_error=errors.append) as mpx:
        subs, got = [], []
        for number in range(20):
            sub = mpx.new_channel_subscription(hang)
            sub.add(*(f"{number}:{room}" for room in range(12)))
            await sub.wait_for_activation(timeout=5)
            subs.append(sub)
            await publish(admin, [f"{number}:{room}" for room in range(12)], b"x" * 999)
            await until(lambda total=12 * (number + 1): mpx.stats().messages == total)
        assert mpx.stats().pending_bytes > 50_000
        healthy = mpx.new_channel_subscription(overflow="drop_oldest")
        healthy.add("healthy")
        await healthy.wait_for_activation(timeout=5)
        before = mpx.stats()
        await publish(admin, ["healthy"] * 6, b"y" * 990)
        await until(lambda: healthy.pending == 6)
        got = [healthy.get_nowait() for _ in range(6)]
        assert len(got) == 6
        assert healthy.dropped == 0
        stats = mpx.stats()
        assert stats.pending_bytes <= 100_000
        assert stats.pending + stats.dropped == before.pending + before.dropped == 20 * 11
        assert {type(error) for error in errors} == {SlowConsumer}
        assert {error.limit for error in errors if isinstance(error, SlowConsumer)} == {"max_total_pending_bytes"}


async def test_a_long_payload_for_many_is_counted_once(url: str, admin: Redis) -> None:
    """A long message to a hundred prompt readers takes its room once, and nobody drops it."""
    errors: list[Exception] = []
    async with Multiplexer(url, max_total_pending_bytes=1_000_000, on_error=errors.append) as mpx:
        subs = [mpx.new_channel_subscription() for _ in range(100)]
        for sub in subs:
            sub.add("a")
        for sub in subs:
            await sub.wait_for_activation(timeout=5)
        await publish(admin, ["a"] * 4, b"x" * 100_000)
        await until(lambda: all(sub.pending == 4 for sub in subs))
        assert mpx.stats().pending_bytes == 400 * 100_001
        for sub in subs:
            assert [len(sub.get_nowait().data) for _ in range(4)] == [100_000] * 4
        assert mpx.stats().pending_bytes == mpx.stats().dropped == 0
        assert not errors


@pytest.mark.parametrize(
    ("option", "value", "size"),
    [("max_pending", 2, 1), ("max_pending_bytes", 250, 99), ("max_total_pending_bytes", 250, 99)],
)
async def test_slow_consumer_names_the_limit(url: str, admin: Redis, option: str, value: int, size: int) -> None:
    """SlowConsumer says which limit was reached, as an attribute and in its advice."""
    errors: list[Exception] = []
    async with Multiplexer(url, **{option: value}, on_error=errors.append) as mpx:  # type: ignore[arg-type]
        sub = mpx.new_channel_subscription()
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        await publish(admin, ["a"] * 3, b"x" * size)
        await until(lambda: sub.dropped == 1)
        (error,) = errors
        assert isinstance(error, SlowConsumer)
        assert (error.limit, error.dropped, error.pending) == (option, 1, 2)
        assert f"raise {option}" in str(error)


async def publish(admin: Redis, channels: list[str], payload: bytes) -> None:
    pipe = admin.pipeline(transaction=False)
    for channel in channels:
        pipe.publish(channel, payload)
    await pipe.execute()


async def test_pending_bytes_are_exact_after_each_message(url: str, admin: Redis) -> None:
    """Also while a reader takes messages from its batch, and in a callback in the middle of a burst."""
    total = 100
    async with Multiplexer(url) as mpx:
        reader = mpx.new_channel_subscription()
        received = 0

        def look(*_: bytes) -> None:
            nonlocal received
            received += 1
            assert mpx.stats().pending_bytes == 100 * received

        errors: list[Exception] = []
        reader.add("a")
        await reader.wait_for_activation(timeout=5)
        other = mpx.new_channel_subscription(look, on_error=errors.append)
        other.add("a")
        await other.wait_for_activation(timeout=5)
        pipe = admin.pipeline(transaction=False)
        for number in range(total):
            pipe.publish("a", b"%099d" % number)
        await pipe.execute()
        await until(lambda: received == total)
        assert not errors
        async for message in reader:
            left = total - int(message.data) - 1
            stats = mpx.stats()
            assert (stats.pending, stats.pending_bytes) == (left, 100 * left)
            if not left:
                break


def test_exhausting_every_limit_stays_within_512_mb(url: str) -> None:
    """Random calls beyond every limit raise, change nothing and fit into 512 MB of address space."""
    command = [sys.executable, "-m", "tests.helpers.exhaust", url, "7"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
