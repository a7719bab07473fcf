"""A subscription without callbacks that nobody refers to any more is closed, with a warning; no other one is."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis.asyncio import Redis

from redismpx import Multiplexer

from ..helpers.monitor import settled
from ..helpers.waiting import until

pytestmark = [pytest.mark.one_flavour, pytest.mark.usefixtures("no_leaks")]


def collect() -> None:
    gc.collect()


def collect_in_a_thread() -> None:
    thread = threading.Thread(target=gc.collect)
    thread.start()
    thread.join()


@pytest.fixture
def no_warning() -> Iterator[None]:
    """A ResourceWarning fails the test."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
        gc.collect()
    assert [warning for warning in caught if warning.category is ResourceWarning] == []


@pytest.mark.parametrize("collecting", [collect, collect_in_a_thread])
@pytest.mark.parametrize("overflow", ["drop_oldest", "close"])
@pytest.mark.parametrize("kind", ["channel", "pattern", "sharded"])
async def test_an_unread_subscription_warns_and_is_closed(
    url: str, admin: Redis, kind: str, overflow: str, collecting: Callable[[], None]
) -> None:
    """A lost subscription warns where the garbage collector finds it, and the loop unsubscribes from its names."""
    async with Multiplexer(url) as mpx:
        other = mpx.new_channel_subscription()
        other.add("a")
        lost: Any
        if kind == "pattern":
            lost = mpx.new_pattern_subscription("lost*", overflow=overflow)
        else:
            lost = mpx.new_channel_subscription(sharded=kind == "sharded", overflow=overflow)
            lost.add("lost", "a")
        await lost.wait_for_activation(timeout=5)
        await other.wait_for_activation(timeout=5)
        await admin.publish("lost", "x")
        await until(lambda: kind == "sharded" or mpx.stats().pending == 1)
        lost.pending  # noqa: B018, a last look
        cycle: list[object] = [lost]
        cycle.append(cycle)
        del lost, cycle
        with pytest.warns(ResourceWarning, match=r"Subscription .* is closed, because nobody refers to it"):
            collecting()
        await until(lambda: mpx.stats().subscriptions == 1)
        await settled(admin, {b"a"}, 0)
        assert mpx.stats().pending == 0
        await admin.publish("a", "still here")
        assert (await other.get(5)).data == b"still here"


@pytest.mark.parametrize("callback", ["on_message", "on_disconnect", "on_activation"])
async def test_a_subscription_with_callbacks_lives_on(url: str, admin: Redis, callback: str, no_warning: None) -> None:
    """A subscription with callbacks needs no reference."""
    seen: list[object] = []
    async with Multiplexer(url) as mpx:
        mpx.new_channel_subscription(**{callback: lambda *arguments: seen.append(arguments)}).add("a")  # type: ignore[arg-type]
        gc.collect()
        await settled(admin, {b"a"}, 0)
        if callback == "on_message":
            await admin.publish("a", "x")
        else:
            await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await until(lambda: bool(seen))
        gc.collect()
        assert mpx.stats().subscriptions == 1


@pytest.mark.parametrize("how", ["get", "async for", "wait_for_activation"])
async def test_a_subscription_that_a_task_reads_lives_on(url: str, admin: Redis, how: str, no_warning: None) -> None:
    """The task that reads a subscription keeps it, also while it waits."""

    async def read() -> bytes:
        sub = mpx.new_channel_subscription()
        sub.add("a")
        try:
            if how == "wait_for_activation":
                await sub.wait_for_activation(timeout=5)
            if how == "async for":
                async for message in sub:
                    return message.data
            return (await sub.get(5)).data
        finally:
            sub.close()

    async with Multiplexer(url) as mpx:
        task = asyncio.create_task(read())
        await settled(admin, {b"a"}, 0)
        gc.collect()
        await admin.publish("a", "x")
        assert await task == b"x"


async def test_nothing_is_said_of_what_costs_nothing(url: str, no_warning: None) -> None:
    """A closed subscription, and one without channels, warn of nothing; both are forgotten."""
    async with Multiplexer(url) as mpx:
        closed = mpx.new_channel_subscription()
        closed.add("a")
        closed.close()
        del closed
        empty = mpx.new_channel_subscription()
        empty.add("a")
        empty.clear()
        del empty
        async with mpx.new_channel_subscription() as sub:
            sub.add("a")
        del sub
        with pytest.raises(ValueError, match="empty"):
            mpx.new_pattern_subscription("")
        gc.collect()
        await until(lambda: mpx.stats().subscriptions == 0)


def test_a_multiplexer_that_never_ran_says_nothing(no_warning: None) -> None:
    """Before a loop runs nothing is buffered: dropping all of it is no leak."""
    mpx = Multiplexer("redis://127.0.0.1:1")
    mpx.new_channel_subscription().add("a")
    del mpx


def test_a_subscription_lost_before_the_loop_is_closed(url: str, no_warning: None) -> None:
    """A subscription that was lost before the first call in a loop is never subscribed."""
    mpx = Multiplexer(url)
    mpx.new_channel_subscription().add("lost")
    gc.collect()

    async def main() -> None:
        async with Redis.from_url(url) as admin, mpx:
            assert mpx.stats().channels == 0
            await mpx.connect(5)
            await settled(admin, set(), 0)

    asyncio.run(main())


def test_a_closed_loop_is_left_alone(url: str, no_warning: None) -> None:
    """A subscription that is found after the end of its loop is forgotten."""
    kept: list[object] = []

    async def main() -> None:
        mpx = Multiplexer(url)
        sub = mpx.new_channel_subscription()
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        kept.append(sub)

    asyncio.run(main())
    kept.clear()
    gc.collect()


async def test_a_forked_child_leaves_the_parent_alone(url: str, admin: Redis) -> None:
    """A subscription that the garbage collector finds in a forked child is not closed in the parent."""
    async with Multiplexer(url) as mpx:
        subs = [mpx.new_channel_subscription()]
        subs[0].add("a")
        await subs[0].wait_for_activation(timeout=5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the process forks with threads
            child = os.fork()
        if child == 0:
            subs.clear()
            gc.collect()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        await admin.publish("a", "x")
        assert (await subs[0].get(5)).data == b"x"
        assert mpx.stats().subscriptions == 1
