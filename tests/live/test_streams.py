"""Streams on one server: what is appended arrives once and in order, or a gap stands in its place."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, ResponseError

from redismpx import (
    Activation,
    ConnectionLost,
    DecodeError,
    Disconnect,
    MessageGap,
    Multiplexer,
    SlowConsumer,
    StreamMessage,
    SubscriptionRefused,
)
from redismpx.testing import Proxy

from ..helpers.backoffs import QUICK
from ..helpers.servers import Server
from ..helpers.waiting import until

pytestmark = pytest.mark.usefixtures("no_leaks")

LAST_ID = b"18446744073709551615-18446744073709551615"
HOSTILE = [b"room:1", b"{tag}x", b"a{b", b"a}b", b"{}", b"{}x{y}", b"line\r\nbreak \0\xff", b""]


@pytest.fixture
async def mpx(server: Server) -> AsyncIterator[Multiplexer]:
    async with Multiplexer(server.admin_url, backoff=QUICK, tail_interval=None) as mpx:
        yield mpx


async def kill(admin: Redis) -> None:
    """Kill the subscribed connections."""
    await admin.client_kill_filter(_type="pubsub")


def data_of(events: list[Any]) -> list[Any]:
    """The payloads of messages, and the other events as they are."""
    return [event.data if isinstance(event, StreamMessage) else event for event in events]


# --- append and history


@pytest.mark.parametrize("name", HOSTILE)
async def test_an_appended_message_arrives_with_its_id(mpx: Multiplexer, name: bytes) -> None:
    """append() returns the id that the subscription and the history have, for names and payloads of any bytes."""
    got: list[StreamMessage[bytes]] = []
    sub = mpx.new_stream_subscription(got.append)
    sub.add(name)
    await sub.wait_for_activation(timeout=10)
    payloads = [b"", b"a b c", b"\r\n\0\xff", b" x"]
    ids = [await mpx.append(name, payload, key=b"k%d" % number) for number, payload in enumerate(payloads)]
    await until(lambda: len(got) == len(payloads))
    assert [(m.channel, m.data, m.id) for m in got] == [(name, p, i) for p, i in zip(payloads, ids, strict=True)]
    assert await mpx.history(name) == got
    assert await mpx.history(name, after=ids[1], limit=1) == got[2:3]
    assert got[0].timestamp == int(ids[0].split(b"-")[0]) / 1000
    assert sub.position(name) == ids[-1]


async def test_a_key_makes_append_idempotent(mpx: Multiplexer, admin: Redis) -> None:
    """The same key within ten minutes appends nothing, publishes nothing, and returns the first id."""
    got: list[StreamMessage[bytes]] = []
    sub = mpx.new_stream_subscription(got.append)
    sub.add("s")
    await sub.wait_for_activation(timeout=10)
    first = await mpx.append("s", "1", key="k")
    assert await mpx.append("s", "2", key="k") == first
    await mpx.append("other", "3", key="k")  # appended: the key belongs to the stream
    assert await admin.xlen("other") == 1
    await mpx.append("s", "4")
    await until(lambda: len(got) == 2)
    assert data_of(got) == [b"1", b"4"]
    (once,) = await admin.keys("s*:mpx:key:k")
    assert 590 < await admin.ttl(once) <= 600


async def test_max_length_and_max_age_bound_the_history(mpx: Multiplexer, admin: Redis) -> None:
    """Older messages are removed in blocks, and the stream expires; None lifts a bound."""
    for number in range(1_000):
        await mpx.append("s", b"%d" % number, max_length=10, max_age=0.5)
    assert 10 <= await admin.xlen("s") < 300
    assert 0 < await admin.pttl("s") <= 500
    await mpx.append("s", "x", max_length=None, max_age=None)
    assert await admin.pttl("s") == -1
    before = await admin.xlen("s")
    await asyncio.sleep(0.6)
    await mpx.append("s", "y", max_length=None, max_age=0.5)
    assert await admin.xlen("s") < before


async def test_a_history_is_read_in_pages_that_are_bounded(mpx: Multiplexer, admin: Redis) -> None:
    """Each page has at most 1,000 entries and about 256 kB of payloads; entries of others are there too, in order."""
    pipeline = admin.pipeline(transaction=False)
    for number in range(1, 2_501):
        pipeline.xadd("s", {"prev": "0-0", "data": f"{number} "}, id=f"{number}-1")
    for number in range(10):
        pipeline.xadd("s", {"data": b"x" * 100_000, "prev": "9-9"}, id=f"3000-{number}")
    pipeline.xadd("s", {"foreign": "1", "other": "2"}, id=LAST_ID)
    await pipeline.execute()
    expected = [(entry_id, fields.get(b"data", b"")) for entry_id, fields in await admin.xrange("s")]
    await mpx.history("s", limit=1)
    for after, limit, pages in [(b"0", 2_511, 6), (b"0", 2_512, 6), (b"0", 2_001, 3), (b"1000-1", 1_000, 1)]:
        await admin.config_resetstat()
        got = [(message.id, message.data) for message in await mpx.history("s", after=after, limit=limit)]
        first = 1_000 if after != b"0" else 0
        assert got == expected[first : first + limit]
        assert (await admin.info("commandstats"))["cmdstat_evalsha"]["calls"] == pages
    assert await mpx.history("s", after=LAST_ID) == []
    assert await mpx.history("nothing") == []


@pytest.mark.one_flavour
async def test_a_page_is_read_in_few_batches(mpx: Multiplexer, admin: Redis) -> None:
    """The script reads 16 entries, then as many as before and 16, but at most 128, because they may be large."""
    pipeline = admin.pipeline(transaction=False)
    for number in range(1, 1_001):
        pipeline.xadd("s", {"prev": f"{number - 1}-0", "data": "x"}, id=f"{number}-0")
    await pipeline.execute()
    await admin.config_resetstat()
    assert len(await mpx.history("s", limit=1_000)) == 1_000
    assert (await admin.info("commandstats"))["cmdstat_xrange"]["calls"] == 10
    got: list[bytes] = []
    sub = mpx.new_stream_subscription(lambda message: got.append(message.id))
    sub.add("s", after=b"0")
    await until(lambda: len(got) == 1_000)
    assert (await admin.info("commandstats"))["cmdstat_xrange"]["calls"] == 20


async def test_a_page_may_end_at_the_greatest_id(mpx: Multiplexer, admin: Redis) -> None:
    """The last id of a stream may be the greatest that there can be: nothing is read behind it."""
    pipeline = admin.pipeline(transaction=False)
    for entry_id in [*(b"%d-1" % number for number in range(1, 16)), LAST_ID]:  # as many as the script reads at once
        pipeline.xadd("s", {"data": "x"}, id=entry_id)
    await pipeline.execute()
    got: list[bytes] = []
    sub = mpx.new_stream_subscription(lambda message: got.append(message.id))
    sub.add("s", after=b"0")
    await until(lambda: len(got) == 16)
    assert got[-1] == LAST_ID
    assert [message.id for message in await mpx.history("s")] == got


async def test_append_and_publish_keep_their_order(mpx: Multiplexer) -> None:
    """Calls of append() and publish() go out in their order, the first ones of a connection too."""
    got: list[bytes] = []
    plain = mpx.new_channel_subscription(lambda channel, data: got.append(data.rpartition(b" ")[2]))
    plain.add("s")
    await plain.wait_for_activation(timeout=10)
    calls: list[Any] = [mpx.append("s", b"%d" % n) if n % 3 else mpx.publish("s", b"%d" % n) for n in range(600)]
    await asyncio.gather(*calls)
    await until(lambda: len(got) == 600)
    assert got == [b"%d" % number for number in range(600)]


async def test_append_survives_a_lost_script(mpx: Multiplexer, admin: Redis) -> None:
    """A server that has forgotten the script gets it again, and each call is done once, in order."""
    await mpx.append("s", "0")
    await admin.script_flush()
    await asyncio.gather(*[mpx.append("s", b"%d" % number) for number in range(1, 50)])
    assert [m.data for m in await mpx.history("s")] == [b"%d" % number for number in range(50)]


async def test_the_errors_of_append_say_what_to_do(mpx: Multiplexer, admin: Redis) -> None:
    """A key of another type, a full memory and a replica are reported as such, each with a note."""
    await admin.set("s", 1)
    with pytest.raises(ResponseError, match="WRONGTYPE") as caught:
        await mpx.append("s", "x")
    assert "another type" in caught.value.__notes__[0]
    await admin.config_set("maxmemory", 1)
    with pytest.raises(OutOfMemoryError) as caught:
        await mpx.append("t", "x")
    assert "maxmemory" in caught.value.__notes__[0]
    await admin.config_set("maxmemory", 0)
    assert await admin.exists("t") == 0
    for bad in [{"max_length": 0}, {"max_age": -1}, {"max_age": 0}]:
        with pytest.raises(ValueError, match=next(iter(bad))):
            await mpx.append("t", "x", **bad)


async def test_nothing_is_appended_without_the_right_to_publish(server: Server, admin: Redis) -> None:
    """The right to publish is checked before the entry is added, where the server can do that."""
    rules = "reset on >secret ~* &other +@all"
    await admin.execute_command("ACL", "SETUSER", "writer", *rules.split())
    async with Multiplexer(server.admin_url, username="writer", password="secret") as mpx:
        with pytest.raises(ResponseError) as caught:
            await mpx.append("s", "x")
        assert "ACL" in caught.value.__notes__[0]
    assert await admin.exists("s") == 0


async def test_a_lost_append_can_be_repeated(server: Server) -> None:
    """A call whose reply was lost says that it was sent; with its key, the repetition appends nothing."""
    with Proxy(server.port) as proxy:
        async with Multiplexer(proxy.url, publish_timeout=0.3) as mpx:
            await mpx.append("s", "0")
            proxy.to_client.hole = True
            with pytest.raises(ConnectionLost) as caught:
                await mpx.append("s", "1", key="k")
            assert caught.value.sent
            proxy.heal()
            await mpx.append("s", "1", key="k")
            assert [m.data for m in await mpx.history("s")] == [b"0", b"1"]


# --- losses


async def test_what_was_missed_is_read_after_a_reconnect(mpx: Multiplexer, admin: Redis) -> None:
    """Messages that were appended while there was no connection come after the next activation, in order."""
    sub = mpx.new_stream_subscription()
    sub.add("s")
    await sub.wait_for_activation(timeout=10)
    events = sub.events()
    await mpx.append("s", "0")
    got: list[Any] = [await anext(events), await anext(events)]
    async with Multiplexer(mpx_url(mpx)) as other:
        for number in range(1, 6):
            await kill(admin)
            await asyncio.gather(*[other.append("s", f"{number}.{part}") for part in range(3)])
            while len([event for event in got if isinstance(event, StreamMessage)]) < 1 + 3 * number:
                got.append(await asyncio.wait_for(anext(events), 10))
    messages = [event.data for event in got if isinstance(event, StreamMessage)]
    assert messages == [b"0"] + [b"%d.%d" % (number, part) for number in range(1, 6) for part in range(3)]
    others = [type(event) for event in got if not isinstance(event, StreamMessage)]
    assert others == [Activation] + [Disconnect, Activation] * 5


def mpx_url(mpx: Multiplexer) -> str:
    options = mpx._client.connection_pool.connection_kwargs
    return f"redis://{options['host']}:{options['port']}"


async def test_a_trimmed_history_is_a_gap_in_its_place(mpx: Multiplexer, admin: Redis) -> None:
    """What Redis has removed meanwhile is one gap with the ids around it, for each subscription."""
    got: list[Any] = []
    subs = [mpx.new_stream_subscription(got.append, got.append) for _ in range(3)]
    for sub in subs:
        sub.add("s")
        await sub.wait_for_activation(timeout=10)
    ids = [await mpx.append("s", b"0")]
    await until(lambda: len(got) == 3)
    await kill(admin)
    pipeline = admin.pipeline()
    pipeline.xadd("s", {"prev": ids[0], "data": "1"}, id="9999999999998-0")
    pipeline.xadd("s", {"prev": "9999999999998-0", "data": "2"}, id="9999999999999-0")
    pipeline.xtrim("s", maxlen=1, approximate=False)
    await pipeline.execute()
    await until(lambda: len(got) == 9)
    gap = got[3]
    assert (gap.channel, gap.after, gap.before, gap.reason) == (b"s", ids[0], b"9999999999999-0", "trimmed")
    assert data_of(got[4:5]) == [b"2"]


async def test_an_entry_with_a_link_that_is_no_id_stops_nothing(mpx: Multiplexer, admin: Redis) -> None:
    """An entry of others may have a field with the name of our link: it is delivered, and all that follow."""
    await admin.xadd("s", {"prev": "garbage", "data": "theirs"})
    await mpx.append("s", "ours")
    async with mpx.new_stream_subscription() as sub:
        sub.add("s", after=b"0")
        assert data_of([await sub.get(10), await sub.get(10)]) == [b"theirs", b"ours"]
        await mpx.append("s", "more")
        assert (await sub.get(10)).data == b"more"


async def test_a_flushed_history_is_a_gap_after_a_loss(mpx: Multiplexer, admin: Redis) -> None:
    """A stream that is gone is a gap with the reason, also before anything is appended again."""
    got: list[Any] = []
    sub = mpx.new_stream_subscription(got.append, got.append)
    sub.add("s")
    await sub.wait_for_activation(timeout=10)
    first = await mpx.append("s", "0")
    await until(lambda: len(got) == 1)
    await admin.flushall()
    await kill(admin)
    await until(lambda: len(got) == 2)
    assert (got[1].after, got[1].before, got[1].reason) == (first, None, "expired")
    await mpx.append("s", "1")
    await until(lambda: len(got) == 3)
    assert data_of(got[2:]) == [b"1"]


async def test_an_expired_stream_is_no_gap_while_connected(mpx: Multiplexer, admin: Redis) -> None:
    """A subscription that had all messages on one connection gets the first of the next history without a gap."""
    got: list[Any] = []
    sub = mpx.new_stream_subscription(got.append, got.append)
    sub.add("s")
    await sub.wait_for_activation(timeout=10)
    await mpx.append("s", "0")
    await until(lambda: len(got) == 1)
    await admin.delete("s")
    await mpx.append("s", "1")
    await mpx.append("s", "2")
    await until(lambda: len(got) == 3)
    assert data_of(got) == [b"0", b"1", b"2"]


async def test_a_gap_without_on_gap_goes_to_on_error(mpx: Multiplexer, admin: Redis) -> None:
    """No gap is silent."""
    errors: list[Exception] = []
    sub = mpx.new_stream_subscription(lambda message: None, on_error=errors.append)
    sub.add("s", after=b"1-1")
    await until(lambda: len(errors) == 1)
    assert isinstance(errors[0], MessageGap)


# --- positions


async def test_each_subscription_begins_at_its_own_position(mpx: Multiplexer) -> None:
    """From now on, from an id, or from the oldest message that is kept: all end up at the live messages."""
    ids = [await mpx.append("s", b"%d" % number) for number in range(5)]
    got: dict[Any, list[Any]] = {}
    for after in (None, b"0", "0-0", ids[0], ids[3], ids[4]):
        events = got[after] = []
        sub = mpx.new_stream_subscription(events.append, events.append)
        sub.add("s", after=after)
        await sub.wait_for_activation(timeout=10)
    await mpx.append("s", b"5")
    await until(lambda: all(events and data_of(events)[-1] == b"5" for events in got.values()))
    starts = {None: 5, b"0": 0, "0-0": 0, ids[0]: 1, ids[3]: 4, ids[4]: 5}
    assert {after: data_of(events) for after, events in got.items()} == {
        after: [b"%d" % number for number in range(start, 6)] for after, start in starts.items()
    }


async def test_an_id_from_the_future_is_a_gap(mpx: Multiplexer) -> None:
    """A position that the stream does not have is reported, and delivery goes on from its end."""
    await mpx.append("s", "0")
    got: list[Any] = []
    sub = mpx.new_stream_subscription(got.append, got.append)
    sub.add("s", after="99999999999999-7")
    await until(lambda: len(got) == 1)
    await mpx.append("s", "1")
    await until(lambda: len(got) == 2)
    assert (got[0].after, got[0].before, got[0].reason) == (b"99999999999999-7", None, "restarted")
    assert data_of(got[1:]) == [b"1"]


async def test_bad_positions_and_names_are_rejected(mpx: Multiplexer) -> None:
    """What is no id, and a position of a stream that is in the subscription already, change nothing."""
    sub = mpx.new_stream_subscription()
    for bad in ("x", "", "1-", "-1", "1-2-3", "1 ", "99999999999999999999"):
        with pytest.raises(ValueError, match="after must be the id"):
            sub.add("s", after=bad)
    with pytest.raises(TypeError, match="after must be"):
        sub.add("s", after=5)  # type: ignore[arg-type]
    assert not sub.channels
    sub.add("s")
    sub.add("s")
    with pytest.raises(ValueError, match="in this subscription already"):
        sub.add("t", "s", after="0")
    assert sub.channels == {b"s"}
    with pytest.raises(ValueError, match="not a stream of this subscription"):
        sub.position("t")
    with pytest.raises(RuntimeError, match="durable"):
        await sub.commit()


# --- entries and messages of others


async def test_plain_entries_are_delivered_with_the_next_append(mpx: Multiplexer, admin: Redis) -> None:
    """An entry that was written by XADD arrives before the message that is appended after it."""
    got: list[Any] = []
    sub = mpx.new_stream_subscription(got.append, got.append)
    sub.add("s")
    await sub.wait_for_activation(timeout=10)
    await mpx.append("s", "0")
    await admin.xadd("s", {"data": "1"})
    await admin.xadd("s", {"other": "field"})
    await mpx.append("s", "3")
    await until(lambda: len(got) == 4)
    assert data_of(got) == [b"0", b"1", b"", b"3"]


async def test_the_tail_is_looked_at_after_a_silence(server: Server, admin: Redis) -> None:
    """An entry whose message was never published is found without the next one."""
    async with Multiplexer(server.admin_url, tail_interval=0.2) as mpx:
        got: list[Any] = []
        sub = mpx.new_stream_subscription(got.append, got.append)
        sub.add("s")
        await sub.wait_for_activation(timeout=10)
        await mpx.append("s", "0")
        await admin.xadd("s", {"data": "1"})
        await until(lambda: len(got) == 2)
        assert data_of(got) == [b"0", b"1"]


async def test_forged_messages_deliver_nothing(mpx: Multiplexer, admin: Redis) -> None:
    """Messages on the channel that were not appended are not delivered, and cost a bounded number of reads."""
    got: list[Any] = []
    sub = mpx.new_stream_subscription(got.append, got.append)
    sub.add("s")
    await sub.wait_for_activation(timeout=10)
    first = await mpx.append("s", "0")
    await until(lambda: len(got) == 1)
    before = (await admin.info("commandstats"))["cmdstat_eval"]["calls"]
    for number in range(300):
        for forged in (b"x", b"", b"1 2 3", b"0-0 %d-1 x" % number, b"1-1 %d-2 x" % number, first + b" x y"):
            await admin.publish("s", forged)
    await asyncio.sleep(0.2)
    stats = await admin.info("commandstats")
    assert sum(stats[key]["calls"] for key in ("cmdstat_eval", "cmdstat_evalsha") if key in stats) - before < 60
    await mpx.append("s", "1")
    await until(lambda: len(got) == 2)
    assert data_of(got) == [b"0", b"1"]


async def test_a_key_of_another_type_is_refused_and_heals(
    mpx: Multiplexer, admin: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """wait_for_activation() says what is wrong; once the key is gone, the subscription begins."""
    monkeypatch.setattr("redismpx._io.streams.streams.RETRY_PAGE", 0.05)
    await admin.set("s", 1)
    errors: list[Exception] = []
    sub = mpx.new_stream_subscription(on_error=errors.append)
    sub.add("s")
    with pytest.raises(SubscriptionRefused, match="another type"):
        await sub.wait_for_activation(timeout=10)
    await admin.delete("s")
    async with asyncio.timeout(10):
        while not sub.active:
            await asyncio.sleep(0.01)
    await mpx.append("s", "x")
    assert (await sub.get(10)).data == b"x"
    assert len(errors) <= 1


async def test_pages_of_many_streams_leave_the_loop_free(mpx: Multiplexer, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one iteration of the loop, the pages of all streams together take one time slice."""
    monkeypatch.setattr("redismpx._io.streams.streams.TIME_SLICE", 0.0)  # the fewest messages at a time: 64
    names = [b"s%d" % number for number in range(16)]
    await asyncio.gather(*[mpx.append(name, "x") for name in names for _ in range(100)])
    delivered: Counter[int] = Counter()
    iterations = 0

    async def count() -> None:
        nonlocal iterations
        while True:
            iterations += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    mpx.new_stream_subscription(lambda _: delivered.update([iterations])).add(*names, after="0")
    await until(lambda: delivered.total() == 1_600)
    counting.cancel()
    assert max(delivered.values()) <= 2 * 64  # an iteration is counted in its middle


# --- slow consumers


async def test_a_slow_consumer_misses_nothing(mpx: Multiplexer) -> None:
    """Beyond max_pending the messages stay in Redis, one SlowConsumer is reported, and all of them arrive in order."""
    errors: list[Exception] = []
    got: list[bytes] = []
    go_on = asyncio.Event()

    async def on_message(message: StreamMessage[bytes]) -> None:
        await go_on.wait()
        got.append(message.data)

    sub = mpx.new_stream_subscription(on_message, max_pending=10, on_error=errors.append)
    sub.add("s")
    await sub.wait_for_activation(timeout=10)
    for number in range(500):
        await mpx.append("s", b"%d" % number)
    await until(lambda: sub.lagging)
    assert sub.pending <= 10
    assert [type(error) for error in errors] == [SlowConsumer]
    assert "none is lost" in str(errors[0])
    go_on.set()
    await until(lambda: len(got) == 500)
    assert got == [b"%d" % number for number in range(500)]
    await until(lambda: not sub.lagging)
    assert len(errors) == 1


@pytest.mark.parametrize("is_deleted_only", [False, True])
async def test_the_first_message_behind_a_gap_is_lost_too(
    mpx: Multiplexer, admin: Redis, is_deleted_only: bool
) -> None:
    """A gap at 0-0 names a message that has no room yet. If the stream is deleted meanwhile, a longer gap follows."""
    got: list[Any] = []
    go_on = asyncio.Event()

    async def on_message(message: StreamMessage[bytes]) -> None:
        got.append(message)
        await go_on.wait()

    sub = mpx.new_stream_subscription(on_message, got.append, max_pending=1, on_error=lambda error: None)
    sub.add("busy")
    await sub.wait_for_activation(timeout=10)
    busy = [await mpx.append("busy", b"%d" % number) for number in range(2)]
    await until(lambda: sub.pending == 1)
    ids = [await mpx.append("s", "x") for _ in range(2)]
    await admin.xtrim("s", maxlen=1, approximate=False)
    sub.add("s", after=b"0-0")
    await until(lambda: sub.lagging)
    await admin.delete("s")
    if not is_deleted_only:
        ids.append(await mpx.append("s", "y"))
    go_on.set()
    await until(lambda: len(got) == (4 if is_deleted_only else 5))
    if is_deleted_only:
        ids.append(await mpx.append("s", "y"))
        await until(lambda: len(got) == 5)
    assert [got[0].id, got[1].id, got[4].id] == [*busy, ids[2]]
    assert (got[2].after, got[2].before, got[2].reason) == (b"0-0", ids[1], "trimmed")
    second = (None, "expired") if is_deleted_only else (ids[2], "restarted")
    assert (got[3].after, got[3].before, got[3].reason) == (b"0-0", *second)


async def test_a_reader_that_pauses_misses_nothing(mpx: Multiplexer, admin: Redis) -> None:
    """Two losses that a reader has not seen are one for it, and the messages between them are read again."""
    sub = mpx.new_stream_subscription(max_pending=1_000)
    sub.add("s")
    await sub.wait_for_activation(timeout=10)
    events = sub.events()
    for number in range(20):
        await mpx.append("s", b"%d" % number)
        if number % 5 == 4:
            await kill(admin)
            await sub.wait_for_activation(timeout=10)
    got: list[Any] = []
    async with asyncio.timeout(10):
        while len([event for event in got if isinstance(event, StreamMessage)]) < 20:
            got.append(await anext(events))
    assert [e.data for e in got if isinstance(e, StreamMessage)] == [b"%d" % number for number in range(20)]
    grammar = [type(event).__name__[0] for event in got if not isinstance(event, StreamMessage)]
    assert grammar == ["A", "D"] * (len(grammar) // 2) + ["A"] * (len(grammar) % 2)


async def test_a_stream_that_is_removed_in_a_burst_is_not_read(mpx: Multiplexer) -> None:
    """A message that arrived just before its stream was removed is dropped, and one of another stream stays."""
    sub = mpx.new_stream_subscription()
    sub.add("a", "b")
    await sub.wait_for_activation(timeout=5)
    other = mpx.new_pattern_subscription("b", lambda *_: sub.remove("b"))
    await other.wait_for_activation(timeout=5)
    await asyncio.gather(mpx.append("b", "of b"), mpx.append("a", "of a"))
    assert (await sub.get(timeout=5)).data == b"of a"
    assert sub.pending == 0


async def test_a_payload_that_cannot_be_decoded_is_left_out(mpx: Multiplexer) -> None:
    """on_error gets the payload, and the next message follows."""
    errors: list[Exception] = []
    sub = mpx.new_stream_subscription(decode=int, on_error=errors.append)
    sub.add("s")
    await sub.wait_for_activation(timeout=10)
    for data in ("1", "x", "3"):
        await mpx.append("s", data)
    assert [(await sub.get(10)).data, (await sub.get(10)).data] == [1, 3]
    assert isinstance(errors[0], DecodeError)
    assert errors[0].data == b"x"


# --- positions in Redis


async def test_drain_ends_a_subscription_without_positions(url: str) -> None:
    """drain() delivers what a subscription without `durable` has received, and raises nothing."""
    mpx = Multiplexer(url)
    got: list[bytes] = []
    sub = mpx.new_stream_subscription(lambda message: got.append(message.data))
    sub.add("drained")
    await sub.wait_for_activation(timeout=5)
    await mpx.append("drained", "hello")
    await mpx.drain(5)
    assert got == [b"hello"]


async def test_a_durable_subscription_goes_on_where_it_was(server: Server, admin: Redis) -> None:
    """Its positions are saved: on commit(), within a second, when it is closed, and at drain()."""
    async with Multiplexer(server.admin_url) as mpx:
        for number in range(10):
            await mpx.append("s", b"%d" % number)
        sub = mpx.new_stream_subscription(durable="d")
        sub.add("s", after="0")
        assert [(await sub.get(10)).data for _ in range(3)] == [b"0", b"1", b"2"]
        await sub.commit()
        assert [(await sub.get(10)).data for _ in range(2)] == [b"3", b"4"]
        sub.close()  # the last message that was read may not have been handled
        (key,) = await admin.keys("*:mpx:positions")
        third = (await mpx.history("s"))[3].id
        await until_saved(admin, key, third)
    mpx = Multiplexer(server.admin_url)
    got: list[bytes] = []
    sub = mpx.new_stream_subscription(lambda message: got.append(message.data), durable="d")
    sub.add("s", after="0")
    await until(lambda: len(got) == 6)
    assert got == [b"4", b"5", b"6", b"7", b"8", b"9"]
    await mpx.drain(5)
    async with Multiplexer(server.admin_url) as mpx:
        assert await admin.hget(key, "d") == (await mpx.history("s"))[-1].id
        assert await mpx.delete_position("s", "d")
        assert not await mpx.delete_position("s", "d")


async def until_saved(admin: Redis, key: bytes, position: bytes) -> None:
    async with asyncio.timeout(10):
        while await admin.hget(key, "d") != position:
            await asyncio.sleep(0.01)


async def test_a_late_save_moves_no_position_backwards(mpx: Multiplexer, admin: Redis) -> None:
    """A position that another process has moved further stays there."""
    ids = [await mpx.append("s", b"%d" % number) for number in range(3)]
    sub = mpx.new_stream_subscription(durable="d")
    sub.add("s", after="0")
    await sub.get(10)
    await admin.hset("s{s}:mpx:positions", "d", ids[2])
    await sub.commit()
    assert await admin.hget("s{s}:mpx:positions", "d") == ids[2]
