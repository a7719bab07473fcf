"""Very many streams of one subscription: whatever grows with their number is done some at a time, in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import ResponseError

from redismpx import ConnectionLost, Multiplexer, StreamMessage, SubscriptionRefused, TooManyChannels
from redismpx._core.recovery import CursorState
from redismpx._core.scripts import LOAD, SAVE, Evaluation, positions_key
from redismpx._io.runtime.slices import SLICE_STEPS
from redismpx._io.streams.positions import SAVED_AT_ONCE
from redismpx.testing import Checker

from ..helpers.backoffs import QUICK
from ..helpers.ends import ENDS, end
from ..helpers.servers import Server
from ..helpers.waiting import until

pytestmark = pytest.mark.usefixtures("no_leaks")

TOTAL = 3 * SLICE_STEPS
NAMES = [b"s%d" % number for number in range(TOTAL)]


@pytest.fixture
async def mpx(server: Server) -> AsyncIterator[Multiplexer]:
    async with Multiplexer(server.admin_url, backoff=QUICK, tail_interval=None) as mpx:
        yield mpx


async def follow(mpx: Multiplexer, checker: Checker | None = None, **options: Any) -> Any:
    """Return a subscription to all streams, all of which are active."""
    checker = checker or Checker()
    sub = mpx.new_stream_subscription(
        lambda message: checker.on_message(message.channel, message.data),
        on_disconnect=checker.on_disconnect,
        on_activation=checker.on_activation,
        on_error=checker.on_error,
        **options,
    )
    sub.add(*NAMES)
    await sub.wait_for_activation(timeout=30)
    streams = mpx._hub._streams
    await until(lambda: not (streams._jobs or streams._running))
    return sub


async def test_very_many_streams_are_added_in_slices(mpx: Multiplexer) -> None:
    """add() returns at once; each stream begins where it was told to, unless it is removed before."""
    checker = Checker()
    sub = mpx.new_stream_subscription(on_activation=checker.on_activation, on_error=checker.on_error)
    sub.add(*NAMES, after="0")
    assert sub.channels == {*NAMES}
    assert len(sub._subscriber.cursors) == mpx.stats().channels == SLICE_STEPS
    *_, gone, again, last = NAMES
    assert sub.position(last) == b"0"
    with pytest.raises(ValueError, match="in this subscription already"):
        sub.add(last, after="0")
    sub.remove(gone, again)
    sub.add(again, last, "one more", after=None)
    assert sub.channels == {*NAMES, b"one more"} - {gone}
    with pytest.raises(ValueError, match="not a stream of this subscription"):
        sub.position(gone)
    await sub.wait_for_activation(timeout=30)
    assert sub.active == checker.active == sub.channels
    assert (checker.faults, checker.errors, mpx.stats().channels) == ([], [], TOTAL)


@pytest.mark.parametrize("how", ENDS)
async def test_an_end_comes_while_streams_are_added(mpx: Multiplexer, how: str) -> None:
    """After a clear or an end of any kind, none of the streams is followed any more."""
    sub = mpx.new_stream_subscription()
    await mpx.connect(10)
    sub.add(*NAMES)
    await end(how, mpx, sub)
    assert mpx._hub.joining == 0
    if how in ("clear", "close"):
        assert not mpx._hub._streams.streams


async def test_streams_that_are_being_added_count_for_the_limit(server: Server) -> None:
    """The limit holds also for streams that are not yet subscribed to."""
    async with Multiplexer(server.admin_url, max_channels=TOTAL + 1) as mpx:
        sub = mpx.new_stream_subscription()
        sub.add(*NAMES)
        with pytest.raises(TooManyChannels):
            sub.add("one", "two")
        sub.clear()
        sub.add("one", "two")
        assert sub.channels == {b"one", b"two"}


@pytest.mark.parametrize("call", ["remove", "clear"])
async def test_very_many_streams_are_removed_in_slices(mpx: Multiplexer, call: str) -> None:
    """The call returns at once. Events of removed streams are ignored; one of them may be added again."""
    checker = Checker()
    sub = await follow(mpx, checker)
    subscriber, streams = sub._subscriber, mpx._hub._streams
    removed = NAMES[1:] if call == "remove" else NAMES
    checker.removed(*removed)
    if call == "remove":
        sub.remove(*removed)
    else:
        sub.clear()
    assert sub.channels == sub.active == set(NAMES) - set(removed)
    assert len(subscriber.leaving) == len(removed) - SLICE_STEPS
    again, gone, *_ = subscriber.leaving
    checker.added(again)
    sub.add(again)
    assert again not in subscriber.leaving
    subscriber.activate(gone)
    assert subscriber.deliver(gone, b"0-0 1-1 1") is None
    subscriber.refuse(SubscriptionRefused("channel", gone, "no"))
    assert subscriber.disconnect(ConnectionLost("a test", frozenset({gone}))) is None
    await sub.wait_for_activation(timeout=10)
    await until(lambda: mpx.stats().channels == len(sub.channels))
    assert set(streams.streams) == sub.channels == sub.active
    assert (subscriber.leaving, checker.faults, checker.errors, checker.disconnects) == ({}, [], [], 0)
    await mpx.append(again, "1")
    await until(lambda: checker.messages == 1)


@pytest.mark.parametrize("call", ["remove", "clear"])
async def test_very_many_streams_are_removed_in_a_page(
    mpx: Multiplexer, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The reader gets no message of the rest of the page, although the channels are still registered."""
    monkeypatch.setattr("redismpx._io.streams.streams.TIME_SLICE", 0.0)  # the fewest messages at a time: 64
    name = NAMES[-1]
    await asyncio.gather(*[mpx.append(name, "x") for _ in range(900)])
    sub = mpx.new_stream_subscription()
    sub.add(*NAMES[:-1])
    await sub.wait_for_activation(timeout=30)
    sub.add(name, after="0")
    await sub.get(10)
    assert sub.pending < 500
    getattr(sub, call)(*(NAMES if call == "remove" else ()))
    assert name in sub._subscriber.leaving
    await until(lambda: not mpx.stats().channels)
    assert sub.pending == 0


async def test_a_closed_subscription_leaves_its_streams_in_slices(mpx: Multiplexer) -> None:
    """close() returns at once; then nothing is left of the streams."""
    sub = await follow(mpx)
    streams = mpx._hub._streams.streams
    sub.close()
    assert len(streams) > SLICE_STEPS
    await until(lambda: not (streams or mpx.stats().channels))


async def test_the_ends_of_streams_are_looked_at_in_slices(mpx: Multiplexer) -> None:
    """Of the streams without messages, some are taken in each iteration, and the next look follows the last one."""
    sub = await follow(mpx)
    streams = mpx._hub._streams
    streams._tail_interval = 1_000.0
    streams._look_at_tails()
    assert len(streams._quiet) == SLICE_STEPS
    await until(lambda: len(streams._quiet) == TOTAL)
    assert list(streams._timers) == ["tails"]
    streams._look_at_tails()
    assert len(streams._jobs) == SLICE_STEPS
    sub.remove(*NAMES[-10:])
    await until(lambda: not (streams._jobs or streams._running or mpx._hub.slices.are_pending))
    assert len(streams._quiet) == TOTAL - 10


async def test_a_loss_of_very_many_streams_is_told_in_slices(mpx: Multiplexer) -> None:
    """Until the end of the loss, the names are active; names that are removed meanwhile are not lost."""
    checker = Checker()
    sub = await follow(mpx, checker)
    subscriber = sub._subscriber
    steps = subscriber.disconnect(ConnectionLost("a test", frozenset(NAMES)))
    for _ in range(TOTAL // 2):
        next(steps)
    cursors = subscriber.cursors.values()
    assert sum(cursor.state is CursorState.WAITING for cursor in cursors) == TOTAL // 2
    assert len(sub.active) == subscriber.inbox.active == TOTAL
    assert not checker.disconnects
    gone = {NAMES[0], NAMES[-1]}  # one that is lost already, and one that is not
    sub.remove(*gone)
    checker.removed(*gone)
    assert len(sub.active) == subscriber.inbox.active == TOTAL - 2
    assert len([*steps]) == TOTAL - TOTAL // 2
    assert (checker.disconnects, subscriber.inbox.active, len(sub.active)) == (1, 0, 0)
    assert checker.events[-1][1].names == set(NAMES) - gone
    assert (checker.faults, subscriber._losses) == ([], [])


async def test_very_many_streams_recover_from_a_loss(mpx: Multiplexer, admin: Redis) -> None:
    """One disconnect, then each stream is active again and goes on where it was."""
    checker = Checker()
    sub = await follow(mpx, checker)
    await mpx.append(NAMES[5], "1")
    await until(lambda: checker.messages == 1)
    await admin.client_kill_filter(_type="pubsub")
    await mpx.append(NAMES[5], "2")
    await until(lambda: checker.activations == 2 * TOTAL and checker.messages == 2)
    assert (checker.disconnects, checker.faults, sub.active) == (1, [], set(NAMES))


async def test_very_many_streams_catch_up_in_slices(mpx: Multiplexer) -> None:
    """Some read on in each iteration of the loop, and each of them once."""
    sub = await follow(mpx)
    subscriber = sub._subscriber
    subscriber.inbox.on_behind()
    assert sub.lagging
    subscriber._caught_up()
    states = [cursor.state for cursor in subscriber.cursors.values()]
    assert states.count(CursorState.READING) == SLICE_STEPS
    await until(lambda: all(cursor.state is CursorState.LIVE for cursor in subscriber.cursors.values()))


# --- durable positions


async def consumed(mpx: Multiplexer, admin: Redis) -> Any:
    """Return a subscription that is through with the last entry of each stream, which is not saved yet."""
    pipe = admin.pipeline(transaction=False)
    for name in NAMES:
        pipe.xadd(name, {"other": ""}, id="7-7")
    await pipe.execute()
    sub = await follow(mpx, durable="d")
    for cursor in sub._subscriber.cursors.values():
        assert cursor.handed == b"7-7"
        sub._subscriber.through(cursor)
    return sub


async def saved(admin: Redis) -> int:
    """Return how many streams have the position of consumed()."""
    pipe = admin.pipeline(transaction=False)
    for name in NAMES:
        pipe.hget(positions_key(name, key_slot), "d")
    return (await pipe.execute(raise_on_error=False)).count(b"7-7")


async def test_positions_are_saved_some_at_a_time(
    mpx: Multiplexer, admin: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """commit() has so many calls in flight, and a rejected one does not keep the others from being saved."""
    sub = await consumed(mpx, admin)
    publisher = mpx._hub.deployment.publisher
    evaluate, running, most = publisher.evaluate, 0, 0

    async def count(*arguments: Any) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            return await evaluate(*arguments)
        finally:
            running -= 1

    monkeypatch.setattr(publisher, "evaluate", count)
    await admin.set(positions_key(NAMES[-3], key_slot), "another type")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await sub.commit()
    assert most == SAVED_AT_ONCE
    assert await saved(admin) == TOTAL - 1
    await admin.delete(positions_key(NAMES[-3], key_slot))
    await sub.commit()
    assert await saved(admin) == TOTAL


@pytest.mark.parametrize("call", ["remove", "clear", "close", "drain"])
async def test_positions_of_very_many_left_streams_are_saved(mpx: Multiplexer, admin: Redis, call: str) -> None:
    """None is lost; streams that are added again begin at their position."""
    sub = await consumed(mpx, admin)
    if call == "drain":
        await mpx.drain()
    else:
        getattr(sub, call)(*(NAMES if call == "remove" else ()))
    if call == "close":
        sub = mpx.new_stream_subscription(print, durable="d")
    if call != "drain":
        sub.add(*NAMES)
        await sub.wait_for_activation(timeout=30)
        assert {sub.position(name) for name in NAMES} == {b"7-7"}
    assert await saved(admin) == TOTAL


async def test_a_stream_removed_before_its_position_is_known(mpx: Multiplexer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not become active when the position arrives."""
    publisher = mpx._hub.deployment.publisher
    evaluate, asked, go_on = publisher.evaluate, asyncio.Event(), asyncio.Event()
    done = 0

    async def wait(*arguments: Any) -> Any:
        nonlocal done
        asked.set()
        await go_on.wait()
        result = await evaluate(*arguments)
        done += 1
        return result

    monkeypatch.setattr(publisher, "evaluate", wait)
    active: list[bytes] = []
    sub = mpx.new_stream_subscription(print, on_activation=active.append, durable="d")
    sub.add("s", after="0")
    await asked.wait()
    sub.remove("s")
    go_on.set()
    await until(lambda: done > 0)
    await asyncio.sleep(0)
    assert (active, sub.active, sub._subscriber.inbox.active) == ([], frozenset(), 0)


async def test_a_position_is_loaded_after_it_is_saved(mpx: Multiplexer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that is removed and added again begins at the position that is saved meanwhile."""
    publisher = mpx._hub.deployment.publisher
    evaluate, go_on, order = publisher.evaluate, asyncio.Event(), list[Any]()

    async def hold_saves(name: bytes, evaluation: Evaluation) -> Any:
        if evaluation.script is SAVE:
            await go_on.wait()
        order.append(evaluation.script)
        return await evaluate(name, evaluation)

    got: list[StreamMessage[bytes]] = []
    sub = mpx.new_stream_subscription(got.append, durable="d")
    sub.add("s", after="0")
    await mpx.append("s", "x")
    await until(lambda: bool(got))
    monkeypatch.setattr(publisher, "evaluate", hold_saves)
    sub.remove("s")
    sub.add("s")
    await until(lambda: sub._subscriber.cursors[b"s"].is_active)
    for _ in range(10):
        await asyncio.sleep(0)
    assert LOAD not in order
    go_on.set()
    await sub.wait_for_activation(timeout=5)
    assert order[:2] == [SAVE, LOAD]
    assert sub.position("s") == got[0].id
