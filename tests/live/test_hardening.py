"""Corner cases that were found by trying to break the library."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis import CredentialProvider
from redis.asyncio import Redis
from redis.backoff import AbstractBackoff, ConstantBackoff

from redismpx import Multiplexer, PromiseInterrupted, SubscriptionRefused
from redismpx._io.session import dispatcher as dispatch_module
from redismpx._io.session import reconnect as retries_module
from redismpx.testing import Checker

from ..helpers.acl import limited, set_limited_user
from ..helpers.counted import Counted
from ..helpers.fake_server import FakeServer, shake_hands
from ..helpers.servers import Server
from ..helpers.waiting import until

pytestmark = [pytest.mark.one_flavour, pytest.mark.usefixtures("no_leaks")]


@pytest.fixture
async def mpx(url: str) -> AsyncIterator[Multiplexer]:
    async with Multiplexer(url, backoff=ConstantBackoff(0.01)) as multiplexer:
        yield multiplexer


async def kill_clients(admin: Redis, mpx: Multiplexer) -> None:
    connections = mpx.stats().connections
    await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    await until(lambda: mpx.stats().connections > connections)


async def test_promises_do_not_wait_for_a_hanging_on_error(
    server: Server, admin: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promises are kept and interrupted while on_error hangs."""
    monkeypatch.setattr(dispatch_module, "RETRY_REFUSED", 0.05)

    async def on_error(error: Exception) -> None:
        await asyncio.Event().wait()

    await set_limited_user(admin)
    async with limited(server, on_error=on_error) as mpx:
        promises = mpx.new_promise_subscription("p-")
        with pytest.raises(SubscriptionRefused):
            await promises.wait_for_activation(timeout=5)
        await set_limited_user(admin, "&*")
        await until(lambda: promises._inbox.active == 1)
        kept = promises.new_promise("x", 5)
        broken = promises.new_promise("y", 5)
        await admin.publish("p-x", "payload")
        assert await kept == b"payload"
        await kill_clients(admin, mpx)
        with pytest.raises(PromiseInterrupted):
            await broken


@pytest.mark.parametrize("how", ["async", "returns"])
async def test_aclose_ends_a_callback_that_called_close(url: str, admin: Redis, how: str) -> None:
    """aclose() cancels a callback that called close() and then hangs."""
    mpx = Multiplexer(url)

    async def close_and_go_on(*_: object) -> None:
        mpx.close()
        await asyncio.Event().wait()

    def close_and_return(*_: object) -> Any:
        mpx.close()
        return asyncio.Event().wait()

    sub = mpx.new_channel_subscription(close_and_go_on if how == "async" else close_and_return)
    sub.add("a")
    await sub.wait_for_activation(timeout=5)
    await admin.publish("a", "1")
    await until(lambda: mpx.stats().state == "closed")
    await asyncio.wait_for(mpx.aclose(), 2)
    assert not [t for t in asyncio.all_tasks() if "redismpx" in t.get_name()]


async def test_an_on_error_that_closes_at_a_refusal_leaves_no_timer(server: Server, admin: Redis) -> None:
    """Closing from on_error at a refused name leaves no retry timer."""
    await set_limited_user(admin)
    mpx = limited(server, on_error=lambda _: mpx.close())
    mpx.new_channel_subscription(print).add("a")
    await until(lambda: mpx.stats().state == "closed")
    await mpx.aclose()  # no_leaks looks for the timer


async def test_removing_channels_one_by_one_does_not_walk_the_buffer(mpx: Multiplexer, admin: Redis) -> None:
    """To remove one of many channels costs its own events, however many others are queued behind a callback."""
    total = 2000
    entered = asyncio.Event()

    async def hang(channel: bytes, message: bytes) -> None:
        entered.set()
        await asyncio.Event().wait()

    sub = mpx.new_channel_subscription(hang)
    names = [b"%d" % number for number in range(total)]
    sub.add("hot")
    await sub.wait_for_activation(timeout=5)
    await admin.publish("hot", "first")
    await asyncio.wait_for(entered.wait(), 5)
    sub.add(*names)
    await sub.wait_for_activation(timeout=10)
    pipe = admin.pipeline(transaction=False)
    for name in names:
        pipe.publish("hot", "x")
        pipe.publish(name, "x")
    await pipe.execute()
    await until(lambda: sub.pending == 2 * total)
    buffer = sub._inbox.buffer
    assert buffer is not None
    counted = buffer._items = Counted(buffer._items)
    for name in names:
        sub.remove(name)
    assert (sub.pending, sub.dropped) == (total, total)
    assert counted.reads < 20 * total


class Faulty(CredentialProvider):
    """Its first answer is the cancellation of a task of its own."""

    asked = 0

    def get_credentials(self) -> tuple[str, ...]:
        raise NotImplementedError

    async def get_credentials_async(self) -> tuple[str, ...]:
        self.asked += 1
        if self.asked == 1:
            raise asyncio.CancelledError
        return ()


async def test_a_foreign_cancellation_is_a_failed_connection(url: str) -> None:
    """A CancelledError of a credential provider fails the attempt to connect, which is repeated."""
    async with Multiplexer(url, credential_provider=Faulty()) as mpx:
        await mpx.connect(5)
        assert "CancelledError" in repr(mpx.stats().last_error.__cause__)  # type: ignore[union-attr]


class Failing(AbstractBackoff):
    def compute(self, failures: int) -> Any:
        return None if failures % 2 else 1 / 0


async def test_a_failing_backoff_is_logged_and_replaced(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A backoff that raises or returns nonsense is logged once, and a default delay is used."""
    monkeypatch.setattr(retries_module, "FALLBACK_DELAY", 0.01)
    server.kill()
    async with Multiplexer(server.url, backoff=Failing()) as mpx:
        mpx.new_channel_subscription(print).add("a")
        await until(lambda: mpx._hub.deployment.main._policy.failures >= 5)
        assert caplog.text.count("the backoff raised an exception") == 1
        server.start()
        await mpx.connect(5)


async def test_a_link_that_swallows_our_commands_is_left() -> None:
    """A connection whose outgoing half is dead is left, although messages still arrive."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await shake_hands(reader, writer)
        while True:
            writer.write(b"*3\r\n$7\r\nmessage\r\n$1\r\nx\r\n$1\r\ny\r\n")
            await asyncio.sleep(0.01)

    fake = FakeServer(script)
    async with fake.run() as url, Multiplexer(url, ping_interval=0.1, ping_timeout=0.1) as mpx:
        mpx.new_channel_subscription(print).add("a")
        most = 0

        def left() -> bool:
            nonlocal most
            most = max(most, len(mpx._hub.deployment.main.registry._in_flight.commands))
            return fake.accepted >= 3

        await until(left)
        assert most <= 4


async def test_a_reset_right_after_the_handshake_is_noticed() -> None:
    """A connection that is reset between handshake and first read is replaced."""
    connections = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        if connections == 1:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        await reader.read()

    async def on_connect(connection: Any) -> None:
        connection._parser.on_connect(connection)
        if connections <= 1:
            await until(lambda: connection._reader.exception() is not None)

    async with FakeServer(script).run() as url:
        mpx = Multiplexer(url, ping_interval=None, redis_connect_func=on_connect)
        mpx.new_channel_subscription(print).add("a")
        await until(lambda: connections == 2)
        await mpx.aclose()


async def test_reports_run_one_at_a_time_and_end_with_close(mpx: Multiplexer, admin: Redis) -> None:
    """Reports to a hanging on_error need one task, which ends with the subscription."""
    gate = asyncio.Event()
    ended: list[str] = []

    async def slow(channel: bytes, message: bytes) -> None:
        await gate.wait()

    async def on_error(error: Exception) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("on_error")

    sub = mpx.new_channel_subscription(slow, max_pending=2, on_error=on_error)
    sub.add("a")
    await sub.wait_for_activation(timeout=5)
    before = len(asyncio.all_tasks())
    for episode in range(5):
        for _ in range(8):
            await admin.publish("a", "x")
        await until(lambda expected=8 * (episode + 1): mpx.stats().messages == expected)
        gate.set()
        await until(lambda: sub._inbox.idle)
        gate.clear()
        assert len(asyncio.all_tasks()) <= before + 1
    sub.close()
    await until(lambda: ended == ["on_error"])


async def test_a_cancelled_worker_loses_nothing(mpx: Multiplexer, admin: Redis) -> None:
    """A callback that cancels its own task loses no event."""
    checker = Checker()
    tasks: list[asyncio.Task[Any]] = []

    async def on_message(channel: bytes, message: bytes) -> None:
        checker.on_message(channel, message)
        if message == b"first":
            task = asyncio.current_task()
            assert task is not None
            tasks.append(task)
            await asyncio.Event().wait()

    sub = mpx.new_channel_subscription(on_message, checker.on_disconnect, checker.on_activation)
    sub.add("a")
    await sub.wait_for_activation(timeout=5)
    await admin.publish("a", "first")
    await admin.publish("a", "second")
    await until(lambda: sub.pending == 1)
    await kill_clients(admin, mpx)
    await sub.wait_for_activation(timeout=5)
    tasks[0].cancel()
    await until(lambda: checker.kinds == ["activation", "message", "message", "disconnect", "activation"])
    await admin.publish("a", "third")
    await until(lambda: checker.payloads == [b"first", b"second", b"third"])
    assert not checker.faults
    assert sub.dropped == 0


async def test_callbacks_do_not_run_in_a_callers_context(mpx: Multiplexer, admin: Redis) -> None:
    """Callbacks do not see the context variables of whichever caller started them."""
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")
    seen: list[str] = []

    def note(*_: object) -> None:
        seen.append(user.get())

    async def note_later(*_: object) -> None:
        note()

    async def client(name: str) -> None:
        user.set(name)
        sub = mpx.new_channel_subscription(note_later, None, note)
        sub.add("a")
        await sub.wait_for_activation(timeout=5)

    for name in ("alice", "bob"):
        await asyncio.create_task(client(name))
    await admin.publish("a", "1")
    await until(lambda: len(seen) == 4)
    assert seen == ["nobody"] * 4


async def test_a_rejected_unsubscribe_is_warned_of_once(
    server: Server, admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that rejects UNSUBSCRIBE causes one warning."""
    await set_limited_user(admin, "&*", "-unsubscribe")
    async with limited(server) as mpx:
        sub = mpx.new_channel_subscription()
        names = [str(number) for number in range(20)]
        sub.add(*names)
        await sub.wait_for_activation(timeout=5)
        for name in names:
            sub.remove(name)
            await asyncio.sleep(0.005)
        await until(lambda: mpx._hub.deployment.main.registry.oldest_command is None)
    assert sum("rejects an unsubscribe" in r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING) == 1
