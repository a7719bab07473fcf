"""Key subscriptions on one server: which events arrive, how they are read, and what the setting of the server does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from redismpx import (
    Activation,
    ConnectionLost,
    Disconnect,
    KeyEvent,
    KeyEventsDisabled,
    Multiplexer,
    SubscriptionIsClosed,
    SubscriptionRefused,
    TooManyPatterns,
    escape_glob,
)

from ..helpers.acl import limited, set_limited_user
from ..helpers.backoffs import QUICK
from ..helpers.logs import warnings
from ..helpers.servers import Server
from ..helpers.waiting import eventually, until

pytestmark = pytest.mark.usefixtures("no_leaks")

HOSTILE = [b"a:b", b"__keyspace@1__:x", b"line\r\nbreak", b"\0\xff", b"*[?\\", b""]


async def publishing(admin: Redis, flags: str = "KA") -> None:
    """Turn on key events."""
    await admin.config_set("notify-keyspace-events", flags)


@pytest.fixture
async def mpx(server: Server, admin: Redis) -> AsyncIterator[Multiplexer]:
    await publishing(admin)
    async with Multiplexer(server.url, backoff=QUICK) as mpx:
        yield mpx


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Redis]:
    async with Redis.from_url(server.url) as client:
        yield client


async def test_events_of_all_matching_keys_arrive(mpx: Multiplexer, client: Redis) -> None:
    """Each event of each key that matches arrives once, in order, with the very bytes of the key; no other one does."""
    got: list[KeyEvent] = []
    names: list[bytes] = []
    sub = mpx.new_key_subscription("h:*", got.append, on_activation=names.append)
    await sub.wait_for_activation(timeout=10)
    for key in HOSTILE:
        await client.set(b"h:" + key, 1)
        await client.set(b"other:" + key, 1)
        await client.delete(b"h:" + key)
    await until(lambda: len(got) == 2 * len(HOSTILE))
    assert got == [KeyEvent(b"h:" + key, event, 0) for key in HOSTILE for event in (b"set", b"del")]
    assert (names, sub.pattern, sub.active) == ([b"h:*"], b"h:*", True)


async def test_only_the_chosen_events_are_delivered(mpx: Multiplexer, client: Redis) -> None:
    """Other events take no room in the buffer, and do not count as dropped."""
    sub = mpx.new_key_subscription("k*", events={"expired", b"del"}, max_pending=2)
    await sub.wait_for_activation(timeout=10)
    for number in range(100):
        await client.set(f"k{number}", 1)
    await client.delete("k1")
    await client.set("k2", 1, px=1)
    async with asyncio.timeout(10):
        while await client.exists("k2"):
            await asyncio.sleep(0.01)
    assert [await sub.get(10), await sub.get(10)] == [KeyEvent(b"k1", b"del", 0), KeyEvent(b"k2", b"expired", 0)]
    assert (sub.pending, sub.dropped) == (0, 0)


async def test_a_key_without_glob_characters_is_a_channel(mpx: Multiplexer, client: Redis) -> None:
    """A single key costs the server no pattern, also one that `escape_glob()` had to escape."""
    keys = [b"plain", b"*[?\\"]
    subs = [mpx.new_key_subscription(escape_glob(key)) for key in keys]
    for sub in subs:
        await sub.wait_for_activation(timeout=10)
    assert set(await client.pubsub_channels()) == {b"__keyspace@0__:" + key for key in keys}
    assert await client.pubsub_numpat() == 0
    for key, sub in zip(keys, subs, strict=True):
        await client.set(key, 1)
        assert await sub.get(10) == KeyEvent(key, b"set", 0)


async def test_a_database_has_its_own_events(mpx: Multiplexer, server: Server, admin: Redis) -> None:
    """A subscription gets the events of its database only."""
    async with mpx.new_key_subscription("*", db=3) as sub, Redis.from_url(server.url, db=3) as third:
        await sub.wait_for_activation(timeout=10)
        await admin.set("elsewhere", 1)
        await third.set("here", 1)
        assert await sub.get(10) == KeyEvent(b"here", b"set", 3)


async def test_events_are_read_one_by_one(mpx: Multiplexer, client: Redis) -> None:
    """A subscription without on_event is an iterator, which ends when it closes; with on_event it cannot be read."""
    sub = mpx.new_key_subscription("k*")
    await sub.wait_for_activation(timeout=10)
    for number in range(10):
        await client.set(f"k{number}", 1)
    with pytest.raises(RuntimeError, match="make one without on_event"):
        mpx.new_key_subscription("k*", print).get_nowait()
    await until(lambda: sub.pending == 10)
    assert sub.get_nowait() == KeyEvent(b"k0", b"set", 0)
    got = []
    async for event in sub:
        got.append(event.key)
        if len(got) == 9:
            sub.close()
    assert got == [b"k%d" % number for number in range(1, 10)]
    assert sub.closed
    with pytest.raises(SubscriptionIsClosed):
        await sub.get()


async def test_a_lost_connection_is_a_gap_of_key_events(mpx: Multiplexer, admin: Redis) -> None:
    """A lost connection is one disconnect, then an activation; no event between the two counts, all others arrive."""
    got: list[object] = []
    sub = mpx.new_key_subscription("k*", got.append, got.append, got.append)
    await sub.wait_for_activation(timeout=10)
    await admin.set("k1", 1)
    await until(lambda: len(got) == 2)
    await admin.client_kill_filter(_type="pubsub")
    await until(lambda: len(got) == 4)
    await admin.set("k2", 1)
    await until(lambda: len(got) == 5)
    lost = got[2]
    assert isinstance(lost, ConnectionLost)
    assert lost.node is None
    assert [got[0], got[1], got[3], got[4]] == [b"k*", (b"k1", b"set", 0, ()), b"k*", (b"k2", b"set", 0, ())]


async def test_events_have_the_gap_where_it_lies(mpx: Multiplexer, admin: Redis) -> None:
    """`events()` has the activation of the pattern, each event, and the gap, in order; another way to read raises."""
    sub = mpx.new_key_subscription("k*")
    await sub.wait_for_activation(timeout=10)
    events = sub.events()
    await admin.set("k1", 1)
    assert [await anext(events), await anext(events)] == [Activation(b"k*"), KeyEvent(b"k1", b"set", 0)]
    await admin.client_kill_filter(_type="pubsub")
    gap = await anext(events)
    assert isinstance(gap, Disconnect)
    assert await anext(events) == Activation(b"k*")
    await admin.set("k2", 1)
    assert await anext(events) == KeyEvent(b"k2", b"set", 0)
    with pytest.raises(RuntimeError, match="cannot be read in another way"):
        sub.get_nowait()
    with pytest.raises(RuntimeError, match="has callbacks"):
        mpx.new_key_subscription("k*", print).events()
    sub.close()
    assert [event async for event in events] == []


async def test_a_setting_that_lacks_letters_is_reported_once(server: Server, admin: Redis) -> None:
    """One error says which letters are missing, and how to set them, and is not repeated after a reconnect."""
    await publishing(admin, "Ex")
    errors: list[Exception] = []
    activations: list[bytes] = []
    async with Multiplexer(server.url, backoff=QUICK, on_error=errors.append) as mpx:
        mpx.new_key_subscription("k*", print, on_activation=activations.append, events={"set", "expired"})
        await until(lambda: len(errors) == 1)
        await admin.client_kill_filter(_type="pubsub")
        await until(lambda: len(activations) == 2)
        mpx.new_key_subscription("else*", print, events={"expired"})  # its question is asked after the second one
        await until(lambda: len(errors) == 2)
        await publishing(admin, "xK")
        fine = mpx.new_key_subscription("fine*", print, events={"expired"})
        await fine.wait_for_activation(timeout=10)
        mpx.new_key_subscription("last*", print, events={"set"})
        await until(lambda: len(errors) == 3)
    found = [(error.pattern, error.missing) for error in errors if isinstance(error, KeyEventsDisabled)]
    assert found == [(b"k*", "K$"), (b"else*", "K"), (b"last*", "$")]
    assert "CONFIG SET notify-keyspace-events xEK$" in str(errors[0])


async def test_a_forbidden_config_is_no_error(server: Server, admin: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """Where CONFIG is forbidden, nothing is said, and events arrive."""
    await publishing(admin)
    await set_limited_user(admin, "&__keyspace@0__:k*")
    errors: list[Exception] = []
    async with limited(server, on_error=errors.append) as mpx:
        sub = mpx.new_key_subscription("k*")
        await sub.wait_for_activation(timeout=10)

        async def unasked() -> str:
            stats = await admin.info("commandstats")
            return "" if stats.get("cmdstat_config|get", {}).get("rejected_calls") else repr(stats)

        await eventually(unasked)
        await admin.set("k", 1)
        assert await sub.get(10) == KeyEvent(b"k", b"set", 0)
        other = mpx.new_key_subscription("other*")
        with pytest.raises(SubscriptionRefused, match="__keyspace@0__:other"):
            await other.wait_for_activation(timeout=10)
    assert [type(error) for error in errors] == [SubscriptionRefused]
    assert not [text for text in warnings(caplog) if "notify-keyspace-events" in text]


async def test_subkeys_arrive_with_their_event(mpx: Multiplexer, client: Redis) -> None:
    """With subkeys=True, the messages of subkey notifications are read; here, they are published by hand."""
    async with mpx.new_key_subscription("user:*", events={"hset"}, subkeys=True) as sub:
        await sub.wait_for_activation(timeout=10)
        await client.publish("__subkeyspace@0__:user:1", b"hdel|4:name")
        await client.publish("__subkeyspace@0__:user:1", b"hset|4:name,3:a,b")
        event = await sub.get(10)
    assert event == KeyEvent(b"user:1", b"hset", 0, (b"name", b"a,b"))
    assert repr(event) == "KeyEvent(key=b'user:1', event=b'hset', db=0, <2 subkeys>)"


async def test_a_lost_key_subscription_is_closed(mpx: Multiplexer, client: Redis) -> None:
    """A subscription that nobody can read any more is closed with a warning; one with callbacks stays."""
    got: list[KeyEvent] = []
    mpx.new_key_subscription("kept*", got.append)
    sub = mpx.new_key_subscription("lost*")
    await sub.wait_for_activation(timeout=10)
    left = [sub]
    del sub
    with pytest.warns(ResourceWarning, match=r"<KeySubscription b'lost\*' active=1/1"):
        left.clear()
    await until(lambda: mpx.stats().patterns == 1)
    await client.set("kept", 1)
    await until(lambda: len(got) == 1)


async def test_wrong_arguments_are_found_at_the_call(server: Server) -> None:
    """Each invalid argument raises at once, with a text that names it, and subscribes to nothing."""
    async with Multiplexer(server.url, max_patterns=1) as mpx:
        for error, text, arguments, options in [
            (TypeError, "a key pattern must be str or bytes", (7,), {}),
            (ValueError, "must not be empty", ("",), {}),
            (TypeError, "db must be an int", ("k",), {"db": "0"}),
            (ValueError, "db must be at least 0", ("k",), {"db": -1}),
            (TypeError, "events must be a set", ("k",), {"events": "set"}),
            (ValueError, "events must not be empty", ("k",), {"events": ()}),
            (TypeError, r"on_event is called as on_event\(event\)", ("k", lambda: None), {}),
        ]:
            with pytest.raises(error, match=text):
                mpx.new_key_subscription(*arguments, **options)
        assert mpx.stats().subscriptions == 0
        mpx.new_key_subscription("a*", print)
        with pytest.raises(TooManyPatterns):
            mpx.new_key_subscription("b*", print)
