"""drain(): unsubscribe, deliver what is queued, close."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.backoff import ConstantBackoff

from redismpx import Multiplexer, MultiplexerIsClosed, PromiseInterrupted
from redismpx.testing import Checker

from ..helpers.acl import limited, set_limited_user
from ..helpers.fake_server import FakeServer, read_command, shake_hands
from ..helpers.monitor import settled, subscribed
from ..helpers.servers import Server
from ..helpers.waiting import until

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_drain_delivers_received_messages_and_no_later_ones(url: str, admin: Redis) -> None:
    """drain() delivers what was received before the unsubscribe, and nothing after it."""
    mpx = Multiplexer(url)
    seen: list[int] = []

    async def slow(channel: bytes, message: bytes) -> None:
        await asyncio.sleep(0)
        seen.append(int(message))

    sub = mpx.new_channel_subscription(slow, max_pending=20_000)
    pattern = mpx.new_pattern_subscription("b*", max_pending=20_000)
    sub.add("a")
    await sub.wait_for_activation(timeout=5)
    await pattern.wait_for_activation(timeout=5)
    pipe = admin.pipeline(transaction=False)
    for number in range(10_000):
        pipe.publish("a", number)
        pipe.publish("bb", number)
    await pipe.execute()  # in the socket, most of it
    read: list[int] = []

    async def read_all() -> None:
        read.extend([int(message.data) async for message in pattern])

    reading = asyncio.ensure_future(read_all())
    draining = asyncio.ensure_future(mpx.drain(30))
    await until(lambda: mpx._hub.draining)
    for call in (lambda: mpx.new_channel_subscription(print), lambda: sub.add("c")):
        with pytest.raises(MultiplexerIsClosed):
            call()
    sub.remove("never")
    await draining
    await reading  # the iteration ended
    assert seen == read == list(range(10_000))
    assert (await subscribed(admin)) == (set(), 0)
    assert mpx.stats().state == "closed"
    assert sub.dropped == pattern.dropped == 0
    await mpx.drain()
    await admin.publish("a", "after")
    assert len(seen) == 10_000


async def test_messages_before_the_confirmation_are_delivered() -> None:
    """Messages between UNSUBSCRIBE and its confirmation are delivered."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await shake_hands(reader, writer) == [b"SUBSCRIBE", b"a"]
        writer.write(b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n")
        assert await read_command(reader) == [b"UNSUBSCRIBE", b"a"]
        for _ in range(3):
            writer.write(b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n")
            await asyncio.sleep(0.02)
        writer.write(b"*3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:0\r\n")
        await reader.read()

    async with FakeServer(script).run() as url:
        mpx = Multiplexer(url)
        checker = Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks)
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        await mpx.drain(5)
        assert checker.kinds == ["activation", *["message"] * 3]


async def test_a_rejected_unsubscribe_does_not_block_drain(server: Server, admin: Redis) -> None:
    """drain() ends although the server rejects the UNSUBSCRIBE."""
    await set_limited_user(admin, "&*", "-unsubscribe")
    mpx = limited(server)
    sub = mpx.new_channel_subscription()
    sub.add("a")
    await sub.wait_for_activation(timeout=5)
    await asyncio.wait_for(mpx.drain(), 5)


async def test_drain_during_an_outage_delivers_the_queue(server: Server, admin: Redis) -> None:
    """During an outage drain() delivers the queue."""
    mpx = Multiplexer(server.url, backoff=ConstantBackoff(0.01))
    gate = asyncio.Event()
    checker = Checker()

    async def slow(channel: bytes, message: bytes) -> None:
        await gate.wait()
        checker.on_message(channel, message)

    sub = mpx.new_channel_subscription(slow, checker.on_disconnect, checker.on_activation)
    sub.add("a")
    await sub.wait_for_activation(timeout=5)
    for number in range(5):
        await admin.publish("a", number)
    await until(lambda: sub.pending == 4)
    server.kill()
    await until(lambda: not mpx.connected)
    draining = asyncio.ensure_future(mpx.drain(5))
    await asyncio.sleep(0)
    gate.set()
    await draining
    assert checker.kinds == ["activation", *["message"] * 5, "disconnect"]


async def test_drain_leaves_a_stuck_consumer_at_its_timeout(url: str, admin: Redis) -> None:
    """drain() raises TimeoutError that counts the undelivered messages, and closes."""
    mpx = Multiplexer(url)

    async def hang(channel: bytes, message: bytes) -> None:
        await asyncio.Event().wait()

    sub = mpx.new_channel_subscription(hang)
    sub.add("a")
    await sub.wait_for_activation(timeout=5)
    promise = await mpx.new_promise_subscription("p").wait_for_new_promise("x", 30)
    for _ in range(3):
        await admin.publish("a", "x")
    await until(lambda: sub.pending == 2)
    with pytest.raises(TimeoutError, match="2 messages not consumed"):
        await mpx.drain(0.1)
    assert sub.closed
    assert sub.dropped == 2
    with pytest.raises(PromiseInterrupted):
        await promise


async def test_a_cancelled_drain_closes_at_once(url: str) -> None:
    """Cancelling drain() closes the multiplexer at once."""
    mpx = Multiplexer(url)
    unread = mpx.new_channel_subscription()
    unread.add("a")
    await unread.wait_for_activation(timeout=5)
    async with Redis.from_url(url) as client:
        await client.publish("a", "x")
        await until(lambda: unread.pending == 1)
        draining = asyncio.ensure_future(mpx.drain())
        await settled(client, set())  # it has unsubscribed, and waits for the reader
    draining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await draining
    assert unread.closed
    await mpx.aclose()


async def test_an_unstarted_multiplexer_drains_at_once() -> None:
    """drain() of a multiplexer that was never used returns at once."""
    mpx = Multiplexer("redis://127.0.0.1:1")
    await asyncio.wait_for(mpx.drain(), 1)
    assert mpx.stats().state == "closed"


@pytest.mark.parametrize("event", ["message", "activation", "disconnect", "error"])
@pytest.mark.parametrize("suspends", [False, True], ids=["at-once", "later"])
async def test_drain_may_be_called_inside_any_callback(url: str, admin: Redis, event: str, suspends: bool) -> None:
    """drain() inside any callback delivers, closes and returns."""
    mpx = Multiplexer(url, backoff=ConstantBackoff(0.01))
    done = asyncio.Event()
    seen: list[bytes] = []

    async def drain(*_: Any) -> None:
        if suspends:
            await asyncio.sleep(0)
        await mpx.drain(5)
        done.set()

    def nothing(*_: Any) -> None:
        pass

    def fail(*_: Any) -> None:
        raise ValueError

    sub = mpx.new_channel_subscription(
        {"message": drain, "error": fail}.get(event, nothing),
        drain if event == "disconnect" else nothing,
        drain if event == "activation" else nothing,
        on_error=drain if event == "error" else nothing,
    )
    other = mpx.new_channel_subscription(lambda _, message: seen.append(message))
    other.add("a")
    await other.wait_for_activation(timeout=5)
    sub.add("a")
    if event != "activation":
        await sub.wait_for_activation(timeout=5)
        if event == "disconnect":
            await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        else:
            await admin.publish("a", "1")
    await asyncio.wait_for(done.wait(), 5)
    await until(lambda: mpx.stats().state == "closed")
    await mpx.aclose()
    assert (await subscribed(admin)) == (set(), 0)
