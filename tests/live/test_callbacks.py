"""What callbacks may do, and that they cannot harm other subscriptions."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.backoff import ConstantBackoff

from redismpx import ChannelSubscription, ConnectionLost, Multiplexer
from redismpx.testing import Checker

from ..helpers.monitor import settled
from ..helpers.waiting import until

pytestmark = [pytest.mark.one_flavour, pytest.mark.usefixtures("no_leaks")]

got: list[tuple[bytes, bytes]] = []


@pytest.fixture
async def mpx(url: str) -> AsyncIterator[Multiplexer]:
    got.clear()
    async with Multiplexer(url, backoff=ConstantBackoff(0.01)) as multiplexer:
        yield multiplexer


async def joined(mpx: Multiplexer, channel: str, *callbacks: Any, **options: Any) -> ChannelSubscription:
    sub = mpx.new_channel_subscription(*callbacks, **options)
    sub.add(channel)
    await sub.wait_for_activation(timeout=5)
    return sub


async def remember(channel: bytes, message: bytes) -> None:
    await asyncio.sleep(0)
    got.append((channel, message))


class Bound:
    async def method(self, channel: bytes, message: bytes) -> None:
        await remember(channel, message)


class Functor:
    async def __call__(self, channel: bytes, message: bytes) -> None:
        await remember(channel, message)


class Awaited:
    def __init__(self, channel: bytes, message: bytes) -> None:
        self.arguments = (channel, message)

    def __await__(self) -> Any:
        return remember(*self.arguments).__await__()


@pytest.mark.parametrize(
    "on_message",
    [
        remember,
        lambda channel, message: remember(channel, message),
        lambda channel, message: got.append((channel, message)),
        functools.partial(remember),
        Bound().method,
        Functor(),
        Awaited,
        lambda channel, message: asyncio.ensure_future(remember(channel, message)),
        lambda channel, message: (got.append((channel, message)), "not awaitable")[1],
    ],
    ids=["function", "lambda-async", "lambda", "partial", "method", "object", "awaitable", "task", "odd-result"],
)
async def test_any_returned_awaitable_is_awaited(mpx: Multiplexer, admin: Redis, on_message: Any) -> None:
    """Functions, lambdas, partials, methods and objects can be callbacks, plain or returning an awaitable."""
    await joined(mpx, "a", on_message)
    await admin.publish("a", "1")
    await admin.publish("a", "2")
    await until(lambda: got == [(b"a", b"1"), (b"a", b"2")])


async def test_async_callbacks_run_one_at_a_time_and_in_order(mpx: Multiplexer, admin: Redis) -> None:
    """All async callbacks of a subscription run one after the other, in the order of events."""
    running = 0
    seen: list[object] = []

    async def slow(*arguments: object) -> None:
        nonlocal running
        running += 1
        assert running == 1
        for _ in range(len(seen) % 3):
            await asyncio.sleep(0)
        seen.append(arguments[-1])
        running -= 1

    sub = mpx.new_channel_subscription(slow, slow, slow)
    sub.add("a")
    await sub.wait_for_activation(timeout=5)
    for number in range(100):
        await admin.publish("a", number)
    await until(lambda: len(seen) == 101)
    await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    await until(lambda: len(seen) == 103)
    assert seen[:101] == [b"a", *(b"%d" % number for number in range(100))]
    assert isinstance(seen[101], ConnectionLost)
    assert seen[102] == b"a"


async def test_an_idle_subscription_has_no_task(mpx: Multiplexer, admin: Redis) -> None:
    """A subscription without pending events has no task."""
    before = asyncio.all_tasks()
    sub = await joined(mpx, "a", remember)
    await admin.publish("a", "1")
    await until(lambda: len(got) == 1)
    await until(lambda: sub._inbox.worker is None)
    assert asyncio.all_tasks() <= before


async def test_a_hanging_callback_delays_no_other_subscription(mpx: Multiplexer, admin: Redis) -> None:
    """A callback that never returns blocks its own subscription only."""

    async def hang(channel: bytes, message: bytes) -> None:
        await asyncio.Event().wait()

    stuck = await joined(mpx, "a", hang)
    checker = Checker()
    await joined(mpx, "a", *checker.callbacks)
    for number in range(1000):
        await admin.publish("a", number)
    await until(lambda: checker.messages == 1000)
    assert stuck.pending == 999
    assert not checker.faults


@pytest.mark.parametrize(
    "failure", [ValueError("no"), asyncio.CancelledError(), GeneratorExit(), BaseException("base")]
)
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_an_exception_goes_to_on_error_and_the_log(
    mpx: Multiplexer, admin: Redis, caplog: pytest.LogCaptureFixture, failure: BaseException, is_async: bool
) -> None:
    """A callback's exception goes to on_error and, rate-limited, to the log; delivery goes on."""
    seen: list[bytes] = []
    errors: list[BaseException] = []

    def fail(channel: bytes, message: bytes) -> None:
        seen.append(message)
        raise failure

    async def fail_later(channel: bytes, message: bytes) -> None:
        await asyncio.sleep(0)
        fail(channel, message)

    checker = Checker()
    sub = await joined(mpx, "a", fail_later if is_async else fail, on_error=errors.append)
    sub.add("alone")
    await sub.wait_for_activation(timeout=5)
    await joined(mpx, "a", *checker.callbacks)
    for number in range(10):
        await admin.publish("a" if number % 2 else "alone", number)
    await until(lambda: len(errors) == 10)
    assert seen == [b"%d" % number for number in range(10)]
    assert errors == [failure] * 10
    assert checker.messages == 5
    assert mpx.stats().connections == 1
    records = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(records) == 1  # rate-limited
    assert records[0].exc_info


async def test_a_raising_on_error_is_logged_only(
    mpx: Multiplexer, admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception in on_error is logged, and on_error is not called for it."""
    calls = 0

    def fail(*_: object) -> None:
        raise ValueError

    def on_error(error: Exception) -> None:
        nonlocal calls
        calls += 1
        raise RuntimeError("on_error itself")

    async def on_error_later(error: Exception) -> None:
        await asyncio.sleep(0)
        on_error(error)

    checker = Checker()
    await joined(mpx, "a", fail, on_error=on_error)
    await joined(mpx, "a", fail, on_error=on_error_later)
    await joined(mpx, "a", *checker.callbacks)
    await admin.publish("a", "1")
    await until(lambda: calls == 2 and checker.messages == 1)
    await until(lambda: sum("on_error" in r.getMessage() for r in caplog.records) == 2)


async def test_the_multiplexers_on_error_is_the_default(url: str, admin: Redis) -> None:
    """A subscription without on_error uses the multiplexer's."""
    errors: list[Exception] = []

    async def on_error(error: Exception) -> None:
        await asyncio.sleep(0)
        errors.append(error)

    def fail(*_: object) -> None:
        raise ValueError

    async with Multiplexer(url, on_error=on_error) as mpx:
        await joined(mpx, "a", fail)
        await admin.publish("a", "1")
        await until(lambda: [type(e) for e in errors] == [ValueError])


async def test_a_subscriber_removed_during_a_fan_out_gets_nothing(mpx: Multiplexer, admin: Redis) -> None:
    """A callback may remove other subscriptions while a message is delivered: they do not get it."""
    subs: list[ChannelSubscription] = []
    calls = [0] * 5

    def first(channel: bytes, message: bytes) -> None:
        calls[0] += 1
        subs[1].remove("a")
        subs[2].close()
        subs[3].remove("a")
        subs[3].add("a")  # anew: not active yet
        subs[0].remove("a")

    for number in range(5):
        on_message: Callable[..., None] = first
        if number:
            on_message = functools.partial(lambda number, *_: calls.__setitem__(number, calls[number] + 1), number)
        subs.append(await joined(mpx, "a", on_message))
    await admin.publish("a", "1")
    await until(lambda: calls[4] == 1)
    assert calls == [1, 0, 0, 0, 1]
    await subs[3].wait_for_activation(timeout=5)
    await admin.publish("a", "2")
    await until(lambda: calls[4] == 2)
    assert calls == [1, 0, 0, 1, 2]


async def test_pending_messages_of_a_removed_channel_are_dropped(mpx: Multiplexer, admin: Redis) -> None:
    """remove() drops and counts the channel's pending messages; adding it again starts anew."""
    gate = asyncio.Event()
    seen: list[tuple[bytes, bytes]] = []

    async def slow(channel: bytes, message: bytes) -> None:
        await gate.wait()
        seen.append((channel, message))

    sub = mpx.new_channel_subscription(slow, None, lambda name: seen.append((b"activation", name)))
    sub.add("a", "b")
    await sub.wait_for_activation(timeout=5)
    seen.clear()
    for number in range(3):
        await admin.publish("a", number)
        await admin.publish("b", number)
    await until(lambda: sub.pending == 5)
    sub.remove("a")
    assert sub.pending == 3
    sub.add("a")
    await sub.wait_for_activation(timeout=5)
    await admin.publish("a", "new")
    await until(lambda: sub.pending == 4)
    gate.set()
    await until(lambda: len(seen) == 6)
    assert seen == [(b"a", b"0"), (b"b", b"0"), (b"b", b"1"), (b"b", b"2"), (b"activation", b"a"), (b"a", b"new")]
    assert sub.dropped == 2  # received = delivered + dropped + pending, at every moment


async def test_reconnects_do_not_fill_the_queue_of_a_stuck_consumer(mpx: Multiplexer, admin: Redis) -> None:
    """While a callback hangs, any number of reconnects is one disconnect and one activation in its queue."""
    gate = asyncio.Event()
    checker = Checker()

    async def slow(channel: bytes, message: bytes) -> None:
        await gate.wait()
        checker.on_message(channel, message)

    sub = mpx.new_channel_subscription(slow, checker.on_disconnect, checker.on_activation)
    sub.add("a")
    await sub.wait_for_activation(timeout=5)
    await admin.publish("a", "first")
    for number in range(5):
        await admin.publish("a", number)
        connections = mpx.stats().connections
        await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await until(lambda since=connections: mpx.stats().connections > since)
        await sub.wait_for_activation(timeout=5)
    gate.set()
    await until(lambda: sub.pending == 0 and checker.kinds[-1] == "activation")
    assert not checker.faults
    assert checker.kinds == ["activation", "message", "message", "disconnect", "activation"]
    assert sub.dropped == 4  # received on connections that came and went unseen


async def test_a_callback_may_await_a_promise(mpx: Multiplexer, admin: Redis) -> None:
    """A callback may await a promise or an activation that arrives over the same connection."""
    promises = mpx.new_promise_subscription("p-")
    await promises.wait_for_activation(timeout=5)
    results: list[bytes] = []

    async def ask(channel: bytes, message: bytes) -> None:
        promise = promises.new_promise("x", 5)
        await admin.publish(promise.channel, b"answer to " + message)
        other = mpx.new_channel_subscription(remember)
        other.add("b")
        await other.wait_for_activation(timeout=5)
        results.append(await promise)

    await joined(mpx, "a", ask)
    await admin.publish("a", "1")
    await until(lambda: results == [b"answer to 1"])


async def test_a_slow_on_disconnect_does_not_delay_the_reconnect(mpx: Multiplexer, admin: Redis) -> None:
    """The reconnect does not wait for on_disconnect; later events wait in the queue."""
    gate = asyncio.Event()
    checker = Checker()

    async def slow(error: ConnectionLost) -> None:
        await gate.wait()
        checker.on_disconnect(error)

    sub = await joined(mpx, "a", checker.on_message, slow, checker.on_activation)
    await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    await until(lambda: mpx.stats().connections == 2)
    await sub.wait_for_activation(timeout=5)
    await admin.publish("a", "1")
    await until(lambda: sub.pending == 1)
    assert checker.kinds == ["activation"]
    gate.set()
    await until(lambda: sub.pending == 0)
    assert checker.kinds == ["activation", "disconnect", "activation", "message"]
    assert not checker.faults


@pytest.mark.parametrize("is_report", [False, True], ids=["message", "error"])
async def test_an_unstarted_coroutine_is_no_warning(url: str, admin: Redis, is_report: bool) -> None:
    """A coroutine that closing keeps from running causes no `never awaited` warning."""
    mpx = Multiplexer(url)

    async def never(*_: object) -> None:
        await asyncio.sleep(0)

    def fail(*_: object) -> None:
        raise ValueError

    if is_report:
        await joined(mpx, "a", fail, on_error=never)
    else:
        await joined(mpx, "a", never)
    await joined(mpx, "a", lambda *_: mpx.close())
    await admin.publish("a", "1")
    await until(lambda: mpx.stats().state == "closed")
    await mpx.aclose()


def test_system_exit_ends_the_loop_after_the_fan_out(url: str) -> None:
    """SystemExit in a callback ends the loop after all other subscribers got the message."""
    seen: list[bytes] = []

    def leave(channel: bytes, message: bytes) -> None:
        raise SystemExit(3)

    async def main() -> None:
        async with Multiplexer(url) as mpx, Redis.from_url(url) as client:
            for on_message in (leave, lambda _, message: seen.append(message)):
                sub = mpx.new_channel_subscription(on_message)
                sub.add("exit")
                await sub.wait_for_activation(timeout=5)
            await client.publish("exit", "1")
            await asyncio.sleep(5)

    with pytest.raises(SystemExit) as caught:
        asyncio.run(main())
    assert caught.value.code == 3
    assert seen == [b"1"]


async def test_a_callback_that_often_raises_misses_nothing(
    mpx: Multiplexer, admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 10,000 messages none is missed although every third callback raises; the log has a few records."""
    total = 10_000
    checker = Checker()

    def on_message(channel: bytes, message: bytes) -> None:
        checker.on_message(channel, message)
        if int(message) % 3 == 0:
            raise [ValueError, KeyError, MemoryError][int(message) % 9 // 3]

    await joined(mpx, "a", on_message, checker.on_disconnect, checker.on_activation, on_error=checker.errors.append)
    for start in range(0, total, 1000):
        pipe = admin.pipeline(transaction=False)
        for number in range(start, start + 1000):
            pipe.publish("a", number)
        await pipe.execute()
    await until(lambda: checker.messages == total)
    assert not checker.faults
    assert Counter(map(type, checker.errors)) == {ValueError: 1112, KeyError: 1111, MemoryError: 1111}
    assert mpx.stats().connections == 1
    assert len(caplog.records) < 3 * 5  # one of each kind in ten seconds


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_on_disconnect_may_raise_and_change_channels(mpx: Multiplexer, admin: Redis, is_async: bool) -> None:
    """on_disconnect may remove and add channels and then raise."""
    checker = Checker()

    def on_disconnect(error: ConnectionLost) -> None:
        checker.on_disconnect(error)
        sub.remove("a")
        sub.add("a", f"since-{checker.disconnects}")
        raise ValueError

    async def on_disconnect_later(error: ConnectionLost) -> None:
        await asyncio.sleep(0)
        on_disconnect(error)

    callbacks = checker.on_message, on_disconnect_later if is_async else on_disconnect, checker.on_activation
    sub = await joined(mpx, "a", *callbacks, on_error=checker.on_error)
    for kill in (1, 2):
        await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await until(lambda expected=kill: checker.disconnects == expected)
        await sub.wait_for_activation(timeout=5)
        await until(lambda expected=kill: len(checker.active) == 1 + expected)
    await settled(admin, {b"a", b"since-1", b"since-2"})
    await until(lambda: [type(e) for e in checker.errors] == [ValueError] * 2)
    await admin.publish("a", "1")
    await until(lambda: checker.payloads == [b"1"])
    assert not checker.faults
