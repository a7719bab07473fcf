"""Networked promises: exactly one outcome each, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
from collections import Counter

import pytest
from redis.asyncio import Redis
from redis.backoff import ConstantBackoff

from redismpx import (
    ConnectionLost,
    InactiveSubscription,
    Multiplexer,
    Promise,
    PromiseInterrupted,
    PromiseTimeout,
    RedisMPXError,
    SubscriptionIsClosed,
    TooManyPromises,
)
from redismpx._io.runtime.slices import SLICE_STEPS

from ..helpers.monitor import kill_clients
from ..helpers.servers import Server
from ..helpers.waiting import until

pytestmark = [pytest.mark.one_flavour, pytest.mark.usefixtures("no_leaks")]


async def test_a_promise_gets_the_next_message_on_its_channel(url: str, admin: Redis) -> None:
    """A promise gets the next message on exactly its channel, and can be awaited again."""
    async with Multiplexer(url) as mpx:
        promises = mpx.new_promise_subscription("hello-")
        await promises.wait_for_activation(timeout=5)
        promise = promises.new_promise("world", 10)
        assert promise.channel == b"hello-world"
        assert promises.pending == mpx.stats().promises == 1
        await admin.publish("hello-worlds", "no")
        assert await admin.publish("hello-world", "yes") == 1
        assert await promise == b"yes"
        assert await promise == b"yes"  # as often as one likes
        await admin.publish("hello-world", "late")
        assert promises.pending == 0


async def test_a_message_counts_before_the_promise_is_awaited(url: str, admin: Redis) -> None:
    """A message keeps a promise that nobody awaits yet."""
    async with Multiplexer(url) as mpx:
        promises = mpx.new_promise_subscription("p-")
        promise = await promises.wait_for_new_promise("x", 10)
        await admin.publish("p-x", "early")
        await until(promise.done)
        assert await promise == b"early"


async def test_the_timeout_starts_when_the_promise_is_made(url: str) -> None:
    """The timeout runs from the creation of the promise, awaited or not."""
    async with Multiplexer(url) as mpx:
        promises = mpx.new_promise_subscription("p-")
        await promises.wait_for_activation(timeout=5)
        promise = promises.new_promise("x", 0.05)
        await until(promise.done)  # nobody awaits it
        with pytest.raises(PromiseTimeout) as caught:
            await promise
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.channel == b"p-x"
        assert promises.pending == 0


async def test_all_promises_of_one_channel_get_the_message(url: str, admin: Redis) -> None:
    """All promises of one channel get the message, except those that are done."""
    async with Multiplexer(url) as mpx:
        promises = mpx.new_promise_subscription("p-")
        await promises.wait_for_activation(timeout=5)
        several = [promises.new_promise("x", 10) for _ in range(5)]
        several[1].cancel()
        several[3].set_result(b"by hand")
        await admin.publish("p-x", "all")
        assert await several[0] == await several[2] == await several[4] == b"all"
        assert several[1].cancelled()
        assert several[3].result() == b"by hand"
        assert promises.pending == 0


async def test_a_promise_without_suffix_is_unguessable(url: str, admin: Redis) -> None:
    """Without a suffix each promise gets a long random channel."""
    async with Multiplexer(url) as mpx:
        promises = mpx.new_promise_subscription("p-")
        await promises.wait_for_activation(timeout=5)
        several = [promises.new_promise(timeout=10) for _ in range(100)]
        assert len({p.channel for p in several}) == 100
        assert all(len(p.channel) >= 20 for p in several)
        await admin.publish(several[0].channel, "mine")
        assert await several[0] == b"mine"


async def test_new_promise_needs_an_active_subscription(server: Server) -> None:
    """new_promise() raises while inactive; wait_for_new_promise() waits without a busy loop."""
    server.kill()
    mpx = Multiplexer(server.url, backoff=ConstantBackoff(0.01))
    promises = mpx.new_promise_subscription("p[-")
    with pytest.raises(InactiveSubscription) as inactive:
        promises.new_promise("x", 1)
    assert inactive.value.pattern == b"p\\[-*"
    with pytest.raises(PromiseTimeout):
        await promises.wait_for_new_promise("x", 0.05)
    waiter = asyncio.ensure_future(promises.wait_for_new_promise("x", 30))
    ticks = 0
    while ticks < 20:
        await asyncio.sleep(0)
        ticks += 1
    assert not waiter.done()
    server.start()
    promise = await waiter
    promise.cancel()
    await mpx.aclose()


async def test_one_timeout_covers_activation_and_promise(server: Server) -> None:
    """The timeout of wait_for_new_promise() covers the wait for activation and the promise."""
    server.kill()
    mpx = Multiplexer(server.url, backoff=ConstantBackoff(0.01))
    promises = mpx.new_promise_subscription("p-")
    loop = asyncio.get_running_loop()
    began = loop.time()
    waiter = asyncio.ensure_future(promises.wait_for_new_promise("x", 3))
    await asyncio.sleep(0.5)  # part of the three seconds
    server.start()
    promise = await waiter
    assert promise._seconds is not None
    assert loop.time() + promise._seconds == pytest.approx(began + 3, abs=0.2)
    promise.cancel()
    await mpx.aclose()


async def test_a_lost_connection_interrupts_promises(server: Server, admin: Redis) -> None:
    """A lost connection interrupts promises, with ConnectionLost as the cause."""
    async with Multiplexer(server.url, backoff=ConstantBackoff(0.01)) as mpx:
        promises = mpx.new_promise_subscription("p-")
        promise = await promises.wait_for_new_promise("x", 30)
        await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        with pytest.raises(PromiseInterrupted) as caught:
            await promise
        assert caught.value.reason == "connection lost"
        assert isinstance(caught.value.__cause__, ConnectionLost)
        assert isinstance(caught.value, asyncio.CancelledError)  # what code for RedisMPX catches
        assert isinstance(caught.value, RedisMPXError)
        again = await promises.wait_for_new_promise("x", 30)
        await admin.publish("p-x", "now")
        assert await again == b"now"


async def test_clear_and_close_interrupt_promises(server: Server) -> None:
    """clear() interrupts promises and stays open; close() also wakes the waiting calls."""
    async with Multiplexer(server.url) as mpx:
        promises = mpx.new_promise_subscription("p-")
        first = await promises.wait_for_new_promise("x", 30)
        promises.clear()
        with pytest.raises(PromiseInterrupted) as cleared:
            await first
        assert cleared.value.reason == "cleared"
        second = promises.new_promise("x", 30)
        promises.close()
        promises.close()
        with pytest.raises(PromiseInterrupted) as closed:
            await second
        assert closed.value.reason == "closed"
        for futile in (promises.wait_for_activation(timeout=1), promises.wait_for_new_promise("x", 1)):
            with pytest.raises(SubscriptionIsClosed):
                await futile
        with pytest.raises(SubscriptionIsClosed):
            promises.new_promise("x", 1)
        with pytest.raises(SubscriptionIsClosed):
            promises.clear()

        server.freeze()
        waiting = mpx.new_promise_subscription("q-")
        waiter = asyncio.ensure_future(waiting.wait_for_new_promise("x", 30))
        await asyncio.sleep(0)
        waiting.close()
        with pytest.raises(SubscriptionIsClosed):
            await waiter
        server.thaw()


async def test_cancelling_the_awaiting_task_cancels_the_promise(url: str) -> None:
    """A promise whose awaiting task is cancelled is no longer pending."""
    async with Multiplexer(url) as mpx:
        promises = mpx.new_promise_subscription("p-")
        await promises.wait_for_activation(timeout=5)

        async def wait() -> bytes:
            return await promises.new_promise("x", 30)

        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        assert promises.pending == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert promises.pending == 0
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(promises.new_promise("x", 30), 0.01)
        assert promises.pending == 0


async def test_an_unawaited_broken_promise_logs_nothing(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A promise that times out unawaited causes no `never retrieved` record."""
    async with Multiplexer(url) as mpx:
        promises = mpx.new_promise_subscription("p-")
        await promises.wait_for_activation(timeout=5)
        promises.new_promise("x", 0.01)
        await until(lambda: promises.pending == 0)
        promises.new_promise("x", 10)
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_a_hundred_thousand_promises_have_one_outcome_each(server: Server, admin: Redis) -> None:
    """Half are kept, a quarter time out, and a lost connection interrupts the rest."""
    total = 100_000
    async with Multiplexer(server.url, backoff=ConstantBackoff(0.01)) as mpx:
        promises = mpx.new_promise_subscription("p-")
        await promises.wait_for_activation(timeout=5)
        several = []
        outcomes = [0] * total

        def count(number: int) -> None:
            outcomes[number] += 1

        for number in range(total):
            promise = promises.new_promise(str(number), 110 if number % 4 else 1.5)
            promise.add_done_callback(lambda _, number=number: count(number))
            several.append(promise)
        assert promises.pending == mpx.stats().promises == total

        for start in range(0, total, 10_000):  # the odd ones are fulfilled, twice
            pipe = admin.pipeline(transaction=False)
            for number in range(start + 1, start + 10_000, 2):
                pipe.publish(f"p-{number}", number)
                pipe.publish(f"p-{number}", "again")
            await pipe.execute()
        await until(lambda: all(p.done() for p in several[1::2]), 60)
        await until(lambda: all(p.done() for p in several[::4]), 60)
        assert promises.pending == total // 4
        await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await until(lambda: promises.pending == 0, 60)
        await asyncio.sleep(0)

        assert outcomes == [1] * total
        for number, promise in enumerate(several):
            if number % 2:
                assert promise.result() == b"%d" % number
            elif number % 4 == 0:
                assert isinstance(promise.exception(), PromiseTimeout)
            else:
                assert isinstance(promise.exception(), PromiseInterrupted)
        assert promises._outstanding.promises == promises._outstanding.deadlines._queues == {}
        assert mpx.stats().promises == 0


@pytest.mark.parametrize("how", ["clear", "close", "close the multiplexer", "lose"])
async def test_very_many_promises_fail_in_time_slices(url: str, admin: Redis, how: str) -> None:
    """Only some promises fail at once. The others get no message any more, and count until they have failed."""
    total = 20_000
    async with Multiplexer(url, max_promises=total) as mpx:
        promises = mpx.new_promise_subscription("p-")
        await promises.wait_for_activation(timeout=5)
        several = [promises.new_promise(str(number), 60) for number in range(total)]
        if how == "clear":
            promises.clear()
        elif how == "close":
            promises.close()
        elif how == "close the multiplexer":
            mpx.close()
        else:
            await kill_clients(admin)
            await until(lambda: several[0].done())
        failed = sum(promise.done() for promise in several)
        assert 0 < failed < total
        ends = how == "close the multiplexer"  # then the end of the subscription is a step, too
        assert how == "lose" or failed == SLICE_STEPS - ends
        assert promises.pending == mpx.stats().promises == total - failed
        promises._resolve(b"p-%d" % (total - 1), b"too late")
        assert not several[-1].done()
        several[-2].cancel()
        new = promises.new_promise("0", 60) if how == "clear" else None
        await until(lambda: all(promise.done() for promise in several))
        assert several.pop(-2).cancelled()
        reasons = {error.reason for p in several if isinstance(error := p.exception(), PromiseInterrupted)}
        assert reasons == {{"clear": "cleared", "lose": "connection lost"}.get(how, "closed")}
        assert promises.pending == mpx.stats().promises == (new is not None)


async def test_promises_that_are_failing_leave_room_for_new_ones(url: str) -> None:
    """After clear(), as many promises as max_promises can be made at once."""
    total = 20_000
    async with Multiplexer(url, max_promises=total) as mpx:
        promises = mpx.new_promise_subscription("p-")
        await promises.wait_for_activation(timeout=5)
        for _ in range(2):
            several = [promises.new_promise(str(number)) for number in range(total)]
            with pytest.raises(TooManyPromises):
                promises.new_promise()
            promises.clear()
        assert promises.pending > 0
        await until(lambda: promises.pending == 0)
        assert all(isinstance(promise.exception(), PromiseInterrupted) for promise in several)


async def test_a_message_at_the_deadline_is_one_outcome(
    url: str, admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """When message and deadline coincide, there is one outcome and no error in the log."""
    total = 20_000
    async with Multiplexer(url) as mpx:
        promises = mpx.new_promise_subscription("p-")
        await promises.wait_for_activation(timeout=5)
        outcomes: Counter[str] = Counter()
        calls = 0

        def note(promise: asyncio.Future[bytes]) -> None:
            nonlocal calls
            calls += 1
            outcomes["timeout" if promise.exception() else "kept"] += 1

        dice = random.Random(7)
        loop = asyncio.get_running_loop()
        spread = 0.02
        for start in range(0, total, 1000):
            pipe = admin.pipeline(transaction=False)
            several = []
            for number in range(start, start + 1000):
                pipe.publish(f"p-{number}", number)
            began = loop.time()
            publishing = asyncio.ensure_future(pipe.execute())
            for number in range(start, start + 1000):  # deadlines all around the time when the messages come
                several.append(promises.new_promise(str(number), dice.uniform(0, spread)))
                several[-1].add_done_callback(note)
            await publishing
            spread = 2 * (loop.time() - began)
            await until(lambda several=several: all(promise.done() for promise in several))
        await until(lambda: calls == total)
        assert outcomes.total() == total
        assert min(outcomes["kept"], outcomes["timeout"]) > 10  # both happen
        assert promises._outstanding.promises == promises._outstanding.deadlines._queues == {}
    assert caplog.records == []  # such as an InvalidStateError in a callback of the loop


async def test_cancelled_promises_leave_nothing(url: str) -> None:
    """60,000 cancelled promises leave no object and no deadline."""
    async with Multiplexer(url) as mpx:
        promises = mpx.new_promise_subscription("p-")
        await promises.wait_for_activation(timeout=5)

        async def wait(number: int) -> None:
            await promises.new_promise(str(number), 600)

        for _ in range(6):
            for _ in range(10_000):
                promises.new_promise(None, 600).cancel()
            tasks = [asyncio.ensure_future(wait(number)) for number in range(1000)]
            await asyncio.sleep(0)
            assert promises.pending == 1000
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            del tasks, task
            assert promises._outstanding.promises == promises._outstanding.deadlines._queues == {}
            gc.collect()
            assert not [each for each in gc.get_objects() if isinstance(each, Promise)]


async def test_a_done_callback_may_make_and_cancel_promises(url: str) -> None:
    """Callbacks of interrupted promises may make new promises and cancel others."""
    async with Multiplexer(url) as mpx:
        promises = mpx.new_promise_subscription("p-")
        await promises.wait_for_activation(timeout=5)
        several = [promises.new_promise(str(number), 30) for number in range(100)]
        made: list[Promise] = []

        def react(_: object) -> None:
            for promise in several:
                promise.cancel()
            made.append(promises.new_promise("new", 30))

        for promise in several:
            promise.add_done_callback(react)
        promises.clear()
        await until(lambda: len(made) == 100)
        assert promises.pending == 100
        assert {type(promise.exception()) for promise in several} == {PromiseInterrupted}
        promises.close()
        assert promises.pending == 0
        assert all(promise.done() for promise in made)


async def test_overlapping_prefixes_get_their_own_messages(url: str, admin: Redis) -> None:
    """Promises of overlapping and equal prefixes on one channel all get its message."""
    async with Multiplexer(url) as mpx:
        short, long = mpx.new_promise_subscription("a"), mpx.new_promise_subscription("ab")
        twin = mpx.new_promise_subscription("a")
        one = await short.wait_for_new_promise("bc", 10)
        two = await long.wait_for_new_promise("c", 10)
        three = await twin.wait_for_new_promise("bc", 10)
        assert await admin.publish("abc", "x") == 2
        assert await one == await two == await three == b"x"


async def test_an_invalid_suffix_or_timeout_makes_no_promise(url: str) -> None:
    """new_promise() with an invalid suffix or timeout raises, and leaves no promise."""
    async with Multiplexer(url) as mpx:
        promises = mpx.new_promise_subscription("p-")
        await promises.wait_for_activation(timeout=5)
        for suffix, timeout in ((1, 1), ("\ud800", 1), ("x", -1), ("x", "1")):
            with pytest.raises((TypeError, ValueError)):
                promises.new_promise(suffix, timeout)  # type: ignore[arg-type]
        assert promises.pending == 0
        empty = mpx.new_promise_subscription("")
        await empty.wait_for_activation(timeout=5)
        with pytest.raises(ValueError, match="empty channel"):
            empty.new_promise("", 1)
