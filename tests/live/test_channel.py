"""Channel subscriptions against real servers."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from redis.asyncio import Redis

from redismpx import ConnectionLost, Multiplexer, SubscriptionIsClosed, SubscriptionRefused
from redismpx._core.entry import Entry
from redismpx._io.runtime.slices import SLICE_STEPS
from redismpx.testing import Checker

from ..helpers.monitor import Monitor, settled
from ..helpers.waiting import until

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_ten_subscribers_cost_one_subscribe(url: str, admin: Redis) -> None:
    """Ten subscribers cost one SUBSCRIBE, and the last one to leave costs one UNSUBSCRIBE."""
    async with Monitor(admin) as monitor, Multiplexer(url) as mpx:
        checkers = [Checker() for _ in range(10)]
        subs = [mpx.new_channel_subscription(*c.callbacks) for c in checkers]
        for sub in subs:
            sub.add("news")
            await sub.wait_for_activation(timeout=5)  # one after the other: the later nine find it joined
        assert await admin.publish("news", "1") == 1
        await until(lambda: all(c.payloads == [b"1"] for c in checkers))

        for sub in subs[:9]:
            sub.remove("news")
            await asyncio.sleep(0)
        assert await admin.publish("news", "2") == 1
        await until(lambda: checkers[9].payloads == [b"1", b"2"])
        assert all(c.payloads == [b"1"] for c in checkers[:9])
        await monitor.saw("nine are gone")
        assert monitor.count("SUBSCRIBE") == 1
        assert monitor.count("UNSUBSCRIBE") == 0

        subs[9].remove("news")
        await settled(admin, set())
        await monitor.saw("all are gone")
        assert monitor.count("UNSUBSCRIBE", "news") == 1
        assert not any(c.faults for c in checkers)


async def test_one_connection_serves_channels_patterns_and_promises(url: str, admin: Redis) -> None:
    """Any number of subscriptions of all kinds shares one connection."""
    async with Multiplexer(url, client_name="the-one") as mpx:
        subs = [mpx.new_channel_subscription(lambda *_: None) for _ in range(50)]
        for number, sub in enumerate(subs):
            sub.add(f"c{number}")
        pattern = mpx.new_pattern_subscription("p*", lambda *_: None)
        promises = mpx.new_promise_subscription("r-")
        for each in (*subs, pattern, promises):
            await each.wait_for_activation(timeout=5)
        clients = [c for c in await admin.client_list() if c["name"] == "the-one"]
        assert len(clients) == 1
        assert (clients[0]["sub"], clients[0]["psub"]) == ("50", "2")


async def test_activation_precedes_messages_and_is_not_inside_add(url: str, admin: Redis) -> None:
    """Activation comes before the first message, and add() never calls it directly."""
    async with Multiplexer(url) as mpx:
        first, late = Checker(), Checker()
        sub = mpx.new_channel_subscription(*first.callbacks)
        sub.add("a", b"b")
        assert first.events == []
        await sub.wait_for_activation(timeout=5)
        assert sub.channels == {b"a", b"b"}
        other = mpx.new_channel_subscription(*late.callbacks)
        other.add("a")
        assert late.events == []
        await other.wait_for_activation(timeout=5)
        await admin.publish("a", "1")
        await until(lambda: first.messages == late.messages == 1)
        assert first.kinds == ["activation", "activation", "message"]
        assert late.kinds == ["activation", "message"]
        other.remove("a")
        other.add("a")  # joined all the while: no traffic, and an activation of its own again
        await other.wait_for_activation(timeout=5)
        assert late.kinds == ["activation", "message", "activation"]


async def test_clear_keeps_a_subscription_open_and_close_ends_it(url: str, admin: Redis) -> None:
    """clear() unsubscribes all names and leaves the subscription usable; close() ends it for good."""
    async with Multiplexer(url) as mpx:
        checker = Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks)
        sub.add("a", "b", "c")
        await sub.wait_for_activation(timeout=5)
        sub.clear()
        assert sub.channels == frozenset()
        await settled(admin, set())
        sub.add("d")
        await sub.wait_for_activation(timeout=5)
        sub.close()
        sub.close()
        assert sub.closed
        await settled(admin, set())
        for call in (sub.add, sub.remove):
            with pytest.raises(SubscriptionIsClosed):
                call("e")
        with pytest.raises(SubscriptionIsClosed):
            sub.clear()
        with pytest.raises(SubscriptionIsClosed):
            await sub.wait_for_activation(timeout=1)
        assert checker.kinds == ["activation"] * 4


async def test_close_wakes_wait_for_activation(url: str) -> None:
    """close() makes a pending wait_for_activation() raise SubscriptionIsClosed."""
    async with Multiplexer(url) as mpx:
        sub = mpx.new_channel_subscription(lambda *_: None)
        await mpx.connect(5)
        sub.add("a")
        waiter = asyncio.ensure_future(sub.wait_for_activation(timeout=5))
        await asyncio.sleep(0)
        sub.close()
        with pytest.raises(SubscriptionIsClosed):
            await waiter


async def test_async_with_closes_a_subscription(url: str, admin: Redis) -> None:
    """A subscription used with `async with` is closed at the end of the block."""
    async with Multiplexer(url) as mpx:
        async with mpx.new_channel_subscription(lambda *_: None) as sub:
            sub.add("a")
            await sub.wait_for_activation(timeout=5)
        assert sub.closed
        await settled(admin, set())


async def test_the_same_text_can_be_channel_and_pattern(url: str, admin: Redis) -> None:
    """A channel and a pattern of the same text are independent."""
    async with Multiplexer(url) as mpx:
        channels, patterns = Checker(), Checker(lambda _: b"a*")
        sub = mpx.new_channel_subscription(*channels.callbacks)
        sub.add("a*")
        listener = mpx.new_pattern_subscription("a*", *patterns.callbacks)
        await sub.wait_for_activation(timeout=5)
        await listener.wait_for_activation(timeout=5)
        assert await admin.publish("a*", "both") == 2
        assert await admin.publish("ab", "pattern") == 1
        await until(lambda: patterns.payloads == [b"both", b"pattern"])
        assert channels.payloads == [b"both"]
        sub.close()
        await settled(admin, set(), 1)
        assert await admin.publish("a*", "pattern") == 1
        listener.close()
        await settled(admin, set(), 0)
        assert not channels.faults + patterns.faults


async def test_a_hundred_thousand_channels_are_sent_in_batches(url: str, admin: Redis) -> None:
    """100,000 channels are subscribed with at most 512 names in a command."""
    async with Monitor(admin) as monitor, Multiplexer(url) as mpx:
        checker = Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks)
        sub.add(*(f"c{number}" for number in range(100_000)))
        await sub.wait_for_activation(timeout=30)
        assert checker.activations == 100_000
        await monitor.saw("done")
        sizes = [command.count(" ") for command in monitor.commands if command.startswith("SUBSCRIBE")]
        assert sum(sizes) == 100_000
        assert max(sizes) <= 512


def pass_events(inbox: Any, name: bytes) -> None:
    """Pass the events of a channel to an inbox: straight to its callbacks, and by way of its buffer."""
    for busy in (False, True):
        if busy:
            inbox.hold()
        assert inbox.deliver(name, b"late") is None
        inbox.activate(name)
        inbox.refuse(SubscriptionRefused("channel", name, "no"))
        inbox.disconnect(ConnectionLost("its name", frozenset({name})))
        inbox.flush()


async def test_very_many_channels_are_cleared_in_time_slices(url: str, admin: Redis) -> None:
    """clear() returns at once. Events of channels that are still registered are ignored; a channel may join again."""
    total = 3000
    names = [b"%d" % number for number in range(total)]
    seen: list[tuple[bytes, bytes]] = []
    active: list[bytes] = []
    signals: list[object] = []
    async with Multiplexer(url) as mpx:
        sub = mpx.new_channel_subscription(
            lambda *message: seen.append(message), signals.append, active.append, on_error=signals.append
        )
        other = mpx.new_channel_subscription(lambda *_: None)
        sub.add(*names)
        other.add("other")
        await sub.wait_for_activation(timeout=5)
        await other.wait_for_activation(timeout=5)
        active.clear()
        sub.clear()
        assert sub.channels == sub.active == frozenset()
        inbox = sub._inbox
        assert len(inbox.leaving) == total - SLICE_STEPS == mpx.stats().channels - 1

        again, gone, *_ = inbox.leaving
        sub.add(again)
        pass_events(inbox, gone)
        inbox.disconnect(ConnectionLost("all names"), iter([gone]))
        inbox.resume()
        await sub.wait_for_activation(timeout=5)
        await until(lambda: mpx.stats().channels == 2)
        assert active == [again]
        assert not inbox.leaving
        await settled(admin, {again, b"other"}, 0)
        for name in (gone, again, b"other"):
            await admin.publish(name, "x")
        await until(lambda: mpx.stats().messages == 2)
        assert seen == [(again, b"x")]
        assert not signals
        assert sub.pending == sub.dropped == 0


async def test_very_many_channels_are_removed_in_time_slices(url: str, admin: Redis) -> None:
    """remove() returns at once. Removed channels that are still registered have no events; the others keep theirs."""
    total, extra = 3000, 400
    names = [b"%d" % number for number in range(total)]
    late = [b"late %d" % number for number in range(extra)]
    seen: list[tuple[bytes, bytes]] = []
    signals: list[ConnectionLost] = []
    async with Multiplexer(url, on_error=lambda error: signals.append(error)) as mpx:  # type: ignore[arg-type]
        sub = mpx.new_channel_subscription(lambda *message: seen.append(message), signals.append)
        sub.add(*names)
        await sub.wait_for_activation(timeout=5)
        inbox = sub._inbox
        sub.add(*late)  # these are not active yet
        sub.remove(*names[:1000], *late[:300], "unknown")
        sub.remove(*names[1000:1500])
        assert sub.channels == {*names[1500:], *late[300:]}
        assert sub.active == {*names[1500:]}
        assert inbox.active == 1500
        assert len(inbox.leaving) == 1800 - SLICE_STEPS
        assert mpx.stats().channels == total + extra - SLICE_STEPS
        gone = next(name for name in names[:1000] if name in inbox.leaving)
        again = next(name for name in names[1000:1500] if name in inbox.leaving)
        with pytest.raises(ValueError, match="is not a name of this subscription"):
            await sub.wait_for_activation(gone, timeout=5)

        sub.add(again)
        pass_events(inbox, gone)
        inbox.resume()
        await sub.wait_for_activation(timeout=5)
        assert sub.active == sub.channels == {*names[1500:], *late[300:], again}
        await until(lambda: mpx.stats().channels == len(sub.channels))
        assert not inbox.leaving
        await settled(admin, set(sub.channels), 0)
        for name in (gone, again, names[-1]):
            await admin.publish(name, "x")
        await until(lambda: mpx.stats().messages == 2)
        assert seen == [(again, b"x"), (names[-1], b"x")]
        assert not signals
        assert sub.pending == sub.dropped == 0


async def test_a_disconnect_is_not_about_leaving_channels(url: str) -> None:
    """A connection that is lost while removed channels are still registered is a gap of the other channels only."""
    names = [b"%d" % number for number in range(1000)]
    async with Multiplexer(url) as mpx:
        sub = mpx.new_channel_subscription()
        sub.add(*names, "stays")
        await sub.wait_for_activation(timeout=5)
        sub.remove(*names)
        inbox = sub._inbox
        assert inbox.leaving
        buffer = inbox.hold()
        inbox.disconnect(ConnectionLost("all names"), {*inbox.leaving, b"stays"})
        assert buffer.active_before(()) == {b"stays"}
        sub.remove("stays")
        assert not buffer.signals


async def test_names_of_a_closed_multiplexer_are_freed_in_time_slices(url: str) -> None:
    """close() forgets very many names at once, but frees them in the next iterations; aclose() waits for that."""

    def names() -> int:
        return sum(type(known) is Entry and known.name.startswith(b"freed") for known in gc.get_objects())

    async with Multiplexer(url) as mpx:
        sub = mpx.new_channel_subscription()
        sub.add(*(f"freed {number}" for number in range(1000)))
        await sub.wait_for_activation(timeout=5)
        mpx.close()
        assert mpx.stats().channels == 0
        assert names() >= 1000 - SLICE_STEPS
        await mpx.aclose()
        assert names() == 0


async def test_very_many_channels_are_closed_in_time_slices(url: str, admin: Redis) -> None:
    """close() returns at once; no message is delivered, and the channels leave room for others."""
    total = 3000
    seen: list[bytes] = []
    async with Multiplexer(url, max_channels=total) as mpx:
        sub = mpx.new_channel_subscription(lambda channel, _: seen.append(channel))
        sub.add(*(str(number) for number in range(total)))
        await sub.wait_for_activation(timeout=5)
        sub.close()
        assert sub.closed
        assert not sub.active
        assert mpx.stats().channels == total - SLICE_STEPS
        assert sub._inbox.deliver(b"1", b"late") is None
        other = mpx.new_channel_subscription()
        other.add(*(f"other {number}" for number in range(total)))
        await other.wait_for_activation(timeout=5)
        assert mpx.stats().channels == total
        assert await admin.publish("2999", "x") == 0
    assert not seen
