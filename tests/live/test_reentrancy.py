"""Every public call from inside every callback, plain and async."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.backoff import ConstantBackoff

from redismpx import Multiplexer
from redismpx._io.delivery import reporter
from redismpx._io.runtime import log
from redismpx.testing import Checker

from ..helpers.monitor import settled
from ..helpers.waiting import until

pytestmark = [pytest.mark.one_flavour, pytest.mark.usefixtures("no_leaks")]


@pytest.mark.parametrize("event", ["message", "activation", "disconnect", "error"])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_every_public_call_works_inside_every_callback(
    url: str, admin: Redis, event: str, is_async: bool
) -> None:
    """Each public call that does not close works inside each callback, plain and async."""
    done: list[str] = []
    failures: list[BaseException] = []
    neighbour = Checker()

    def use(*_: object) -> None:
        if done:
            return
        done.append(event)
        try:
            mpx.stats()
            repr(mpx)
            sub.add("another", "third")
            sub.remove("third")
            other = mpx.new_channel_subscription(print)
            other.add("a", "b")
            other.clear()
            other.close()
            mpx.new_pattern_subscription("x*").close()
            promises = mpx.new_promise_subscription("y")
            promises.clear()
            promises.close()
            readable = mpx.new_channel_subscription()
            readable.add("a")
            with pytest.raises(asyncio.QueueEmpty):
                readable.get_nowait()
            readable.close()
        except BaseException as error:
            failures.append(error)

    async def use_async(*_: object) -> None:
        if done:
            return
        await asyncio.sleep(0)
        use()
        try:
            await mpx.connect(5)
            async with mpx.new_channel_subscription() as fresh:
                fresh.add("fresh")
                await fresh.wait_for_activation(timeout=5)
                await admin.publish("fresh", "x")
                assert (await fresh.get(5)).data == b"x"
            promise = await mpx.new_promise_subscription("z").wait_for_new_promise("1", 5)
            await admin.publish("z1", "kept")
            assert await promise == b"kept"
        except BaseException as error:
            failures.append(error)
        done.append("async")

    def nothing(*_: object) -> None: ...

    def fail(*_: object) -> None:
        raise ValueError

    act: Callable[..., Any] = use_async if is_async else use
    async with Multiplexer(url, backoff=ConstantBackoff(0.01)) as mpx:
        beside = mpx.new_channel_subscription(*neighbour.callbacks)
        beside.add("a")
        await beside.wait_for_activation(timeout=5)
        sub = mpx.new_channel_subscription(
            {"message": act, "error": fail}.get(event, nothing),
            act if event == "disconnect" else nothing,
            act if event == "activation" else nothing,
            on_error=act if event == "error" else nothing,
        )
        sub.add("a")
        if event != "activation":
            await sub.wait_for_activation(timeout=5)
            if event == "disconnect":
                await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            else:
                await admin.publish("a", "1")
        await until(lambda: len(done) == 1 + is_async)
        assert failures == []
        await sub.wait_for_activation(timeout=5)
        await settled(admin, {b"a", b"another"}, int(is_async))
        await admin.publish("a", "2")
        await until(lambda: b"2" in neighbour.payloads)
        assert not neighbour.faults


@pytest.mark.parametrize("failure", [SystemExit, KeyboardInterrupt])
def test_an_exit_is_reported_to_on_error_first(url: str, failure: type[BaseException]) -> None:
    """SystemExit and KeyboardInterrupt in a callback go to on_error before they end the program."""
    errors: list[BaseException] = []

    async def main() -> None:
        def leave(channel: bytes, message: bytes) -> None:
            raise failure

        async with Multiplexer(url) as mpx, Redis.from_url(url) as client:
            sub = mpx.new_channel_subscription(leave, on_error=errors.append)
            sub.add("exit")
            await sub.wait_for_activation(timeout=5)
            await client.publish("exit", "1")
            await asyncio.sleep(5)

    with pytest.raises(failure):
        asyncio.run(main())
    assert [type(error) for error in errors] == [failure]


async def test_the_log_counts_suppressed_records(
    url: str, admin: Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record after a rate-limited interval says how many were left out."""
    seen = 0

    def fail(*_: object) -> None:
        nonlocal seen
        seen += 1
        raise ValueError

    async with Multiplexer(url) as mpx:
        sub = mpx.new_channel_subscription(fail)
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        monkeypatch.setattr(reporter, "LOG_INTERVAL", 0.2)
        monkeypatch.setattr(log, "LOG_INTERVAL", 0.2)
        for number in range(1, 11):
            await admin.publish("a", number)
            await until(lambda expected=number: seen == expected)
        await asyncio.sleep(0.25)  # the interval is over
        await admin.publish("a", "again")
        await until(lambda: len(caplog.records) == 2)
    assert [r.levelno for r in caplog.records] == [logging.ERROR] * 2
    assert "(9 more like this since the last record)" in caplog.records[1].getMessage()
