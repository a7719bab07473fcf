"""Reading a subscription with events(): messages, and the activations and disconnects between them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from redismpx import Activation, Disconnect, Message, Multiplexer, SlowConsumer, SubscriptionRefused
from redismpx.testing import Checker

from ..helpers.acl import limited, set_limited_user
from ..helpers.backoffs import QUICK
from ..helpers.monitor import kill_clients
from ..helpers.servers import Server
from ..helpers.waiting import until

pytestmark = [pytest.mark.one_flavour, pytest.mark.usefixtures("no_leaks")]


@pytest.fixture
async def mpx(url: str) -> AsyncIterator[Multiplexer]:
    async with Multiplexer(url, backoff=QUICK) as multiplexer:
        yield multiplexer


async def next_of(events: AsyncIterator[Any]) -> Any:
    async with asyncio.timeout(5):
        return await anext(events)


async def test_events_show_the_gap_where_it_lies(mpx: Multiplexer, admin: Redis) -> None:
    """Activation, messages, disconnect, activation: in order, also those that nobody waited for."""
    sub = mpx.new_channel_subscription(decode=int)
    events = sub.events()
    sub.add("a")
    await sub.wait_for_activation(timeout=5)
    await admin.publish("a", 1)
    await until(lambda: sub.pending == 1)
    await kill_clients(admin)
    await until(lambda: mpx.stats().connections == 2)
    await sub.wait_for_activation(timeout=5)
    await admin.publish("a", 2)
    assert await next_of(events) == Activation(b"a")
    assert await next_of(events) == Message(b"a", 1)
    gap = await next_of(events)
    assert isinstance(gap, Disconnect)
    assert "connection lost" in str(gap.error)
    assert [await next_of(events), await next_of(events)] == [Activation(b"a"), Message(b"a", 2)]
    waiting = asyncio.ensure_future(next_of(events))
    await asyncio.sleep(0)
    await kill_clients(admin)
    assert isinstance(await waiting, Disconnect)
    sub.close()
    with pytest.raises(StopAsyncIteration):
        await anext(events)


@pytest.mark.parametrize("pause", [0, 3], ids=["prompt", "slow"])
async def test_events_keep_the_order_through_reconnects(mpx: Multiplexer, admin: Redis, pause: int) -> None:
    """Under load and reconnects, the events of each name are (activation, messages, disconnect)*."""
    checker = Checker()
    on_message, on_disconnect, on_activation = checker.callbacks
    sub = mpx.new_channel_subscription()

    async def read() -> None:
        async for event in sub.events():
            match event:
                case Activation(name):
                    on_activation(name)
                case Message(channel, data):
                    on_message(channel, data)
                case Disconnect(error):
                    on_disconnect(error)
            for _ in range(pause):
                await asyncio.sleep(0)

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    sub.add("a", "b")
    for round_number in range(5):
        await sub.wait_for_activation(timeout=5)
        pipe = admin.pipeline(transaction=False)
        for number in range(200):
            pipe.publish("ab"[number % 2], f"{round_number} {number}")
        await pipe.execute()
        if round_number % 2:
            await until(lambda: not sub.pending)
        await kill_clients(admin)
        await until(lambda connections=round_number + 2: mpx.stats().connections == connections)  # type: ignore[misc]
    await sub.wait_for_activation(timeout=5)
    await admin.publish("a", "last")
    await until(lambda: checker.payloads[-1:] == [b"last"])
    assert not checker.faults
    assert checker.disconnects == 5
    sub.close()
    await reading


async def test_events_begin_with_what_is_active(mpx: Multiplexer, admin: Redis) -> None:
    """A late events() begins with the names that were active before the first buffered event."""
    sub = mpx.new_channel_subscription()
    sub.add("a", "b")
    await sub.wait_for_activation(timeout=5)
    await admin.publish("a", "1")
    await until(lambda: sub.pending == 1)
    sub.add("c")
    await sub.wait_for_activation(timeout=5)
    await kill_clients(admin)
    await until(lambda: mpx.stats().connections == 2)
    await sub.wait_for_activation(timeout=5)
    events = sub.events()
    assert {await next_of(events), await next_of(events)} == {Activation(b"a"), Activation(b"b")}
    assert [await next_of(events), await next_of(events)] == [Message(b"a", b"1"), Activation(b"c")]
    assert isinstance(await next_of(events), Disconnect)
    assert {(await next_of(events)).name for _ in range(3)} == {b"a", b"b", b"c"}
    assert sub.pending == 0
    assert await next_of_two(sub.events(), events, admin) == Message(b"b", b"2")


async def next_of_two(events: AsyncIterator[Any], others: AsyncIterator[Any], admin: Redis) -> Any:
    """Return the next event of one iterator, while another one waits in vain: there is one reader at a time."""
    waiting = asyncio.ensure_future(next_of(events))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="one reader"):
        await anext(others)
    await admin.publish("b", "2")
    return await waiting


async def test_a_cancelled_step_loses_no_event(mpx: Multiplexer, admin: Redis) -> None:
    """After a timeout, the iteration goes on where it was."""
    sub = mpx.new_pattern_subscription("a*")
    events = sub.events()
    assert await next_of(events) == Activation(b"a*")
    got: list[bytes] = []
    for number in range(20):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.001):
                while True:
                    got.append((await anext(events)).data)
        await admin.publish("ab", number)
    while len(got) < 20:
        got.append((await next_of(events)).data)
    assert got == [b"%d" % number for number in range(20)]


async def test_events_of_removed_names_are_not_read(mpx: Multiplexer, admin: Redis) -> None:
    """Nothing about a removed name is left, neither its activation nor its part in a gap."""
    sub = mpx.new_channel_subscription()
    events = sub.events()
    sub.add("a", "b")
    await sub.wait_for_activation(timeout=5)
    await admin.publish("a", "1")
    await admin.publish("b", "2")
    await until(lambda: sub.pending == 2)
    sub.remove("a")
    assert [await next_of(events), await next_of(events)] == [Activation(b"b"), Message(b"b", b"2")]
    assert sub.dropped == 1
    waiting = asyncio.ensure_future(next_of(events))
    await asyncio.sleep(0)
    sub.add("c")
    assert await waiting == Activation(b"c")


async def test_errors_go_to_on_error_while_events_are_read(server: Server, admin: Redis) -> None:
    """A rejected name and an overflow are reported, and no event is lost for it."""
    await set_limited_user(admin, "&ok")
    errors: list[Exception] = []

    async def on_error(error: Exception) -> None:
        await asyncio.sleep(0)
        errors.append(error)

    async with limited(server, on_error=on_error, max_pending=3) as mpx:
        sub = mpx.new_channel_subscription()
        events = sub.events()
        sub.add("forbidden", "ok")
        assert await next_of(events) == Activation(b"ok")
        await until(lambda: mpx.stats().channels == 2)
        waiting = asyncio.ensure_future(next_of(events))
        await until(lambda: any(isinstance(error, SubscriptionRefused) for error in errors))
        await admin.publish("ok", "0")
        assert await waiting == Message(b"ok", b"0")
        pipe = admin.pipeline(transaction=False)
        for number in range(1, 6):
            pipe.publish("ok", number)
        await pipe.execute()
        await until(lambda: sub.pending == 3)
        await until(lambda: any(isinstance(error, SlowConsumer) for error in errors))
        assert [(await next_of(events)).data for _ in range(3)] == [b"3", b"4", b"5"]


async def test_events_behind_an_error_are_not_lost(server: Server, admin: Redis) -> None:
    """A disconnect that arrives while on_error is awaited is read after it."""
    await set_limited_user(admin, "&ok")
    entered, gate = asyncio.Event(), asyncio.Event()

    async def on_error(error: Exception) -> None:
        entered.set()
        await gate.wait()

    async with limited(server, on_error=on_error) as mpx:
        sub = mpx.new_channel_subscription()
        events = sub.events()
        sub.add("ok")
        assert await next_of(events) == Activation(b"ok")
        waiting = asyncio.ensure_future(next_of(events))
        sub.add("forbidden")
        await entered.wait()
        await kill_clients(admin)
        await until(lambda: mpx.stats().connections == 2)
        gate.set()
        assert isinstance(await waiting, Disconnect)


async def test_events_are_the_only_way_to_read(mpx: Multiplexer) -> None:
    """Callbacks exclude events(), and events() excludes other ways to read."""
    for callbacks in ((print,), (None, print), (None, None, print)):
        with pytest.raises(RuntimeError, match="has callbacks"):
            mpx.new_channel_subscription(*callbacks).events()
    sub = mpx.new_channel_subscription()
    sub.events()
    for read in (sub.get_nowait, sub.__aiter__):
        with pytest.raises(RuntimeError, match="events"):
            read()
    with pytest.raises(RuntimeError, match="events"):
        await sub.get()
