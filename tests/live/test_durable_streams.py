"""A consumer goes on from the position that it has saved: before it was killed, or at its end."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

import pytest
from redis.asyncio import Redis

from redismpx import Multiplexer, MultiplexerIsClosed, StreamMessage, blocking
from redismpx.testing import Proxy

from ..helpers.servers import Server
from ..helpers.waiting import until

CONSUMER = """
import asyncio, os, sys
from redismpx import Multiplexer

async def main(url, path):
    with open(path, "ab", buffering=0) as file:
        async with Multiplexer(url) as mpx:
            sub = mpx.new_stream_subscription(durable="d")
            sub.add("s", after="0")
            count = 0
            async for message in sub:
                file.write(message.data + b"\\n")
                count += 1
                if count % 10 == 0:
                    await sub.commit()

asyncio.run(main(*sys.argv[1:]))
"""
KILLS = int(os.environ.get("REDISMPX_KILLS", "8"))


@pytest.mark.timeout(60 + 5 * KILLS)
@pytest.mark.usefixtures("no_leaks")
async def test_a_killed_consumer_skips_nothing(server: Server, tmp_path: Path) -> None:
    """Killed at random moments, it repeats at most what it handled since it last saved its position."""
    path = tmp_path / "handled"
    total = 0
    async with Multiplexer(server.admin_url) as mpx:
        for kill in range(KILLS + 1):
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", CONSUMER, server.admin_url, str(path))
            stop = asyncio.get_running_loop().time() + random.uniform(0.3, 1.0)
            while asyncio.get_running_loop().time() < stop:
                await mpx.append("s", b"%d" % total, max_length=None)
                total += 1
            if kill < KILLS:
                process.send_signal(signal.SIGKILL)
                await process.wait()
        async with asyncio.timeout(20):
            while not path.exists() or not path.read_bytes().endswith(b"\n%d\n" % (total - 1)):
                await asyncio.sleep(0.02)
        process.terminate()
        await process.wait()
    highest, repeated = -1, 0
    for number in map(int, path.read_bytes().split()):
        assert number <= highest + 1, f"{number} after {highest}"
        assert highest - number < 20, f"{number} again, after {highest}"
        repeated += number <= highest
        highest = max(highest, number)
    assert highest == total - 1
    assert repeated <= 20 * KILLS


KEY = "s{s}:mpx:positions"


@pytest.mark.usefixtures("no_leaks")
async def test_aclose_saves_exactly_what_was_handled(server: Server, admin: Redis) -> None:
    """Ended in the middle of a busy stream, its callback has handled each message once, whatever the number of ends."""
    handled: list[bytes] = []

    async def append() -> None:
        async with Multiplexer(server.admin_url) as other:
            while True:
                await other.append("s", "x", max_length=None)

    appending = asyncio.create_task(append())
    for _ in range(10):
        async with Multiplexer(server.admin_url) as mpx:
            sub = mpx.new_stream_subscription(lambda message: handled.append(message.id), durable="d")
            sub.add("s", after="0")
            count = len(handled) + 20
            await until(lambda count=count: len(handled) > count)
        assert await admin.hget(KEY, "d") == handled[-1]
    appending.cancel()
    await asyncio.wait([appending])
    assert handled == [entry_id for entry_id, _ in await admin.xrange("s")][: len(handled)]


@pytest.mark.usefixtures("no_leaks")
async def test_aclose_waits_for_saves_of_closed_subscriptions(server: Server, admin: Redis) -> None:
    """A subscription that was closed just before aclose() has its positions saved."""
    async with Multiplexer(server.admin_url) as mpx:
        ids = [await mpx.append("s", "x") for _ in range(3)]
        async with mpx.new_stream_subscription(durable="d") as sub:
            sub.add("s", after="0")
            for _ in range(3):
                await sub.get(10)
    assert await admin.hget(KEY, "d") == ids[1]  # the last message that was read may not have been handled


async def handle_one(mpx: Multiplexer) -> StreamMessage:
    """Make a durable subscription, and have it handle one message."""
    handled: list[StreamMessage] = []
    sub = mpx.new_stream_subscription(handled.append, durable="d")
    sub.add("s", after="0")
    await mpx.append("s", "x")
    await until(lambda: bool(handled))
    return handled[0]


@pytest.mark.usefixtures("no_leaks")
async def test_two_calls_of_aclose_save(server: Server, admin: Redis) -> None:
    """A second aclose() does not end the save that the first one waits for."""
    mpx = Multiplexer(server.admin_url)
    message = await handle_one(mpx)
    await asyncio.gather(mpx.aclose(), mpx.aclose())
    assert await admin.hget(KEY, "d") == message.id


@pytest.mark.usefixtures("no_leaks")
async def test_close_saves_no_position(server: Server, admin: Redis) -> None:
    """close() does not wait, so it saves nothing: the message is delivered again."""
    mpx = Multiplexer(server.admin_url)
    message = await handle_one(mpx)
    mpx.close()
    await mpx.aclose()
    assert await admin.hget(KEY, "d") is None
    async with Multiplexer(server.admin_url) as mpx:
        sub = mpx.new_stream_subscription(durable="d")
        sub.add("s", after="0")
        assert (await sub.get(10)).id == message.id


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("ending", ["aclose", "drain"])
async def test_positions_delay_the_end_by_a_second(
    server: Server, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    """If Redis does not answer, the end waits for a second, rejects new subscriptions meanwhile, and logs a warning."""
    loop = asyncio.get_running_loop()
    with Proxy(server.port) as proxy:
        reasons: list[str] = []
        handled: list[StreamMessage] = []
        mpx = Multiplexer(proxy.url, publish_timeout=60)
        sub = mpx.new_stream_subscription(handled.append, durable="d", on_close=reasons.append)
        sub.add("s", after="0")
        await mpx.append("s", "x")
        await until(lambda: bool(handled))
        proxy.to_client.hole = True
        begin = loop.time()
        ended = asyncio.create_task(mpx.aclose() if ending == "aclose" else mpx.drain(0.5))
        await asyncio.sleep(0)
        with pytest.raises(MultiplexerIsClosed):
            mpx.new_stream_subscription()
        assert not sub.closed or reasons == ["multiplexer closed"]
        if ending == "drain":
            with pytest.raises(TimeoutError):
                await ended
        await ended if ending == "aclose" else None
        # It does not wait for the call, which may take as long as `publish_timeout`; a busy machine may be late.
        assert (0.9 if ending == "aclose" else 1.4) <= loop.time() - begin < 30
    assert reasons == ["multiplexer closed"]
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "positions of streams were not saved within 1 s: the last messages are delivered again"
    ]


@pytest.mark.usefixtures("no_leaks")
async def test_a_cancelled_aclose_closes_at_once(server: Server) -> None:
    """Cancelled while positions are being saved, aclose() has closed everything."""
    with Proxy(server.port) as proxy:
        mpx = Multiplexer(proxy.url)
        await handle_one(mpx)
        proxy.to_client.hole = True
        ended = asyncio.create_task(mpx.aclose())
        await asyncio.sleep(0)
        assert mpx.stats().state != "closed"
        ended.cancel()
        await asyncio.wait([ended])
        assert mpx.stats().state == "closed"
        await mpx.aclose()


@pytest.mark.usefixtures("no_leaks")
async def test_a_drain_without_a_connection_raises_nothing(server: Server) -> None:
    """A position that drain() cannot save, because there is no connection, is delivered again; drain() just ends."""
    mpx = Multiplexer(server.admin_url, publish_timeout=0.2)
    await handle_one(mpx)
    server.kill()
    await mpx.drain()


@pytest.mark.usefixtures("no_leaks")
async def test_aclose_in_a_callback_saves(server: Server, admin: Redis) -> None:
    """A callback that awaits aclose() is not waited for; what was handled before is saved, its own message is not."""
    handled: list[bytes] = []
    mpx = Multiplexer(server.admin_url)

    async def on_message(message: StreamMessage) -> None:
        if message.data == b"end":
            await mpx.aclose()
        handled.append(message.id)

    sub = mpx.new_stream_subscription(on_message, durable="d")
    sub.add("s", after="0")
    await sub.wait_for_activation(timeout=10)
    for data in "one", "two", "end":
        await mpx.append("s", data)
    await until(lambda: len(handled) == 3)
    await mpx.aclose()
    assert await admin.hget(KEY, "d") == handled[1]


async def test_closing_a_blocking_multiplexer_saves(server: Server, admin: Redis) -> None:
    """When close() returns in a thread, the position of the last message that was handled is saved."""

    def consume() -> list[bytes]:
        with blocking.Multiplexer(server.admin_url) as mpx:
            sub = mpx.new_stream_subscription(durable="d")
            sub.add("s", after="0")
            for number in range(3):
                mpx.append("s", str(number))
            return [message.id for message in sub.listen(timeout=0.3)]

    handled = await asyncio.to_thread(consume)
    assert len(handled) == 3
    assert await admin.hget(KEY, "d") == handled[-1]


@pytest.mark.usefixtures("no_leaks")
async def test_a_rejected_save_is_logged_once(
    server: Server, admin: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A missing right is one WARNING with what to do, until positions are saved again, however many saves fail."""
    monkeypatch.setattr("redismpx._io.streams.positions.SAVE_INTERVAL", 0.02)

    async def grant(rule: str) -> None:
        await admin.execute_command("ACL", "SETUSER", "u", "on", ">secret", "~*", "&*", "+@all", rule)

    await grant("-hset")
    async with Multiplexer(server.admin_url, username="u", password="secret") as mpx:
        subs = [mpx.new_stream_subscription(lambda _: None, durable=name) for name in ("d", "e")]
        for sub in subs:
            sub.add("s", after="0")
        for outage in range(2):
            entry_id = await mpx.append("s", "x")
            await until(lambda outage=outage: len(caplog.records) > outage)
            await admin.execute_command("ACL", "LOG", "RESET")
            async with asyncio.timeout(10):
                while sum(int(entry["count"]) for entry in await admin.acl_log()) < 6:
                    await asyncio.sleep(0.02)
            await grant("+hset")
            async with asyncio.timeout(10):
                while await admin.hmget(KEY, ["d", "e"]) != [entry_id, entry_id]:
                    await asyncio.sleep(0.02)
            await grant("-hset")
    texts = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(texts) == 2
    assert all(KEY in text and "+hset" in text for text in texts)
