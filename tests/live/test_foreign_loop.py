"""Each public entry rejects a loop and a thread that are not its multiplexer's own."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from redis.asyncio import Redis

from redismpx import (
    ChannelSubscription,
    KeySubscription,
    Multiplexer,
    PatternSubscription,
    Promise,
    PromiseSubscription,
    Service,
    StreamSubscription,
)
from redismpx.errors import MultiplexerIsClosed

from ..helpers.monitor import settled
from ..helpers.waiting import until

pytestmark = [pytest.mark.one_flavour, pytest.mark.usefixtures("no_leaks")]

REJECTION = "another event loop or thread"

Entry = Callable[[Any], object]


async def enter(manager: Any) -> None:
    async with manager:
        raise AssertionError


READ: dict[str, Entry] = {
    "close": lambda sub: sub.close(),
    "wait_for_activation": lambda sub: sub.wait_for_activation(timeout=1),
    "get": lambda sub: sub.get(1),
    "get_nowait": lambda sub: sub.get_nowait(),
    "__aiter__": lambda sub: aiter(sub),
    "__anext__": lambda sub: anext(sub),
    "__aenter__": enter,
    "events": lambda sub: sub.events(),
}
ENTRIES: dict[type, dict[str, Entry]] = {
    Multiplexer: {
        "new_channel_subscription": lambda mpx: mpx.new_channel_subscription(),
        "new_pattern_subscription": lambda mpx: mpx.new_pattern_subscription("x"),
        "new_key_subscription": lambda mpx: mpx.new_key_subscription("x"),
        "new_stream_subscription": lambda mpx: mpx.new_stream_subscription(),
        "append": lambda mpx: mpx.append("x", "x"),
        "history": lambda mpx: mpx.history("x"),
        "delete_position": lambda mpx: mpx.delete_position("x", "x"),
        "new_promise_subscription": lambda mpx: mpx.new_promise_subscription("x"),
        "subscribe": lambda mpx: enter(mpx.subscribe("x")),
        "publish": lambda mpx: mpx.publish("x", "x"),
        "request": lambda mpx: mpx.request("x", "x", timeout=1),
        "request_many": lambda mpx: mpx.request_many("x", "x", timeout=1),
        "serve": lambda mpx: mpx.serve("x", bytes),
        "connect": lambda mpx: mpx.connect(1),
        "close": lambda mpx: mpx.close(),
        "drain": lambda mpx: mpx.drain(1),
        "aclose": lambda mpx: mpx.aclose(),
        "__aenter__": enter,
    },
    ChannelSubscription: {
        **READ,
        "add": lambda sub: sub.add("x"),
        "remove": lambda sub: sub.remove("a"),
        "clear": lambda sub: sub.clear(),
    },
    PatternSubscription: READ,
    KeySubscription: READ,
    StreamSubscription: {
        **READ,
        "add": lambda sub: sub.add("x"),
        "remove": lambda sub: sub.remove("a"),
        "clear": lambda sub: sub.clear(),
        "commit": lambda sub: sub.commit(),
        "position": lambda sub: sub.position("a"),
    },
    PromiseSubscription: {
        "close": lambda promises: promises.close(),
        "wait_for_activation": lambda promises: promises.wait_for_activation(timeout=1),
        "new_promise": lambda promises: promises.new_promise("x", 1),
        "wait_for_new_promise": lambda promises: promises.wait_for_new_promise("x", 1),
        "clear": lambda promises: promises.clear(),
        "__aenter__": enter,
    },
    Promise: {
        "get": lambda promise: promise.get(),
        "cancel": lambda promise: promise.cancel(),
        "set_result": lambda promise: promise.set_result(b""),
        "set_exception": lambda promise: promise.set_exception(ValueError()),
    },
    Service: {
        "close": lambda service: service.close(),
        "wait_for_activation": lambda service: service.wait_for_activation(timeout=1),
        "__aenter__": enter,
    },
}
"""For each public class, a call of each of its methods."""
ANYWHERE = {"stats", "__aexit__"}
"""Methods that may be called anywhere, or only after another one."""


def entries_of(kind: type) -> set[str]:
    """The methods of a class and of its bases in this package, without those that only show something."""
    names = {
        name
        for base in kind.__mro__
        if base.__module__.startswith("redismpx.")
        for name, value in vars(base).items()
        if inspect.isfunction(value) and (not name.startswith("_") or name.startswith("__a"))
    }
    return names - ANYWHERE


@pytest.mark.parametrize("kind", ENTRIES, ids=lambda kind: kind.__name__)
def test_no_entry_is_forgotten(kind: type) -> None:
    """Each public method has a call in this module."""
    assert entries_of(kind) == set(ENTRIES[kind])


@pytest.fixture
async def objects(url: str) -> AsyncIterator[dict[type, Any]]:
    """An active object of each public class, and its multiplexer."""
    async with Multiplexer(url) as mpx:
        channels, pattern = mpx.new_channel_subscription(), mpx.new_pattern_subscription("p*")
        channels.add("a")
        promises = mpx.new_promise_subscription("promise-")
        service = mpx.serve("service", lambda request: request.body)
        keys = mpx.new_key_subscription("k*")
        streams = mpx.new_stream_subscription(durable="position")
        streams.add("a")
        for sub in (channels, pattern, promises, service, keys, streams):
            await sub.wait_for_activation(timeout=5)
        promise = promises.new_promise("kept", 30)
        found = (mpx, channels, pattern, promises, promise, service, keys, streams)
        yield {type(each): each for each in found}


def in_a_thread(use: Callable[[], None]) -> None:
    """Run a function in a thread; raise what it raises."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            use()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    if failures:
        raise failures[0]


async def call(entry: Entry, example: object) -> None:
    async with asyncio.timeout(5):
        result = entry(example)
        if inspect.isawaitable(result):
            await result


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind, entries in ENTRIES.items() for name in entries],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
async def test_each_entry_rejects_another_loop(objects: dict[type, Any], admin: Redis, kind: type, name: str) -> None:
    """A call in the loop of another thread, or in a thread without a loop, raises RuntimeError and changes nothing."""
    mpx = objects[Multiplexer]
    before = mpx.stats()
    entry = ENTRIES[kind][name]

    def use_with_a_loop() -> None:
        with pytest.raises(RuntimeError, match=REJECTION):
            asyncio.run(call(entry, objects[kind]))

    def use_without_a_loop() -> None:
        with pytest.raises(RuntimeError, match=REJECTION):
            result = entry(objects[kind])
            if isinstance(result, Coroutine):
                result.send(None)

    await asyncio.to_thread(in_a_thread, use_with_a_loop)
    if name != "subscribe":  # asyncio needs a loop for it
        await asyncio.to_thread(in_a_thread, use_without_a_loop)
    after = mpx.stats()
    assert (after.subscriptions, after.channels, after.patterns, after.promises, after.state) == (
        before.subscriptions, before.channels, before.patterns, before.promises, "connected"
    )  # fmt: skip
    await settled(admin, {b"a", b"service"}, 3)
    await mpx.publish("promise-kept", "kept")
    assert await objects[Promise] == b"kept"
    await mpx.publish("a", "still here")
    assert (await objects[ChannelSubscription].get(5)).data == b"still here"


async def test_an_iteration_that_began_here_is_not_read_elsewhere(url: str) -> None:
    """An iterator that was made in its own loop rejects another loop where it would wait."""
    async with Multiplexer(url) as mpx:
        sub = mpx.new_channel_subscription()
        sub.add("a")
        replies = mpx.request_many("service", b"", timeout=5)
        messages = aiter(sub)
        for iterator in (messages, replies):

            def use(iterator: Any = iterator) -> None:
                with pytest.raises(RuntimeError, match=REJECTION):
                    asyncio.run(call(anext, iterator))

            await asyncio.to_thread(in_a_thread, use)
        await mpx.publish("a", "x")
        assert (await anext(messages)).data == b"x"
        assert mpx.stats().subscriptions == 1


async def test_after_the_end_any_thread_may_close_again(url: str, admin: Redis) -> None:
    """While a callback still runs, aclose() elsewhere is rejected; when nothing runs any more, it has no effect."""
    gate = asyncio.Event()
    entered = asyncio.Event()

    async def hold(channel: bytes, data: bytes) -> None:
        entered.set()
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                continue

    mpx = Multiplexer(url)
    sub = mpx.new_channel_subscription(hold)
    sub.add("a")
    await sub.wait_for_activation(timeout=5)
    await admin.publish("a", "x")
    await entered.wait()
    mpx.close()

    def use(rejects: bool) -> None:
        mpx.close()
        sub.close()
        with pytest.raises(MultiplexerIsClosed):
            mpx.new_channel_subscription()
        if rejects:
            with pytest.raises(RuntimeError, match=REJECTION):
                asyncio.run(mpx.aclose())
        else:
            asyncio.run(mpx.aclose())

    await asyncio.to_thread(in_a_thread, lambda: use(rejects=True))
    gate.set()
    await mpx.aclose()
    await until(lambda: not [task for task in asyncio.all_tasks() if "redismpx" in task.get_name()])
    await asyncio.to_thread(in_a_thread, lambda: use(rejects=False))
