"""Log records and reprs show no secret and no payload, and escape and shorten names."""

from __future__ import annotations

import asyncio
import logging

import pytest
from redis.asyncio import Redis
from redis.backoff import ConstantBackoff

from redismpx import ConnectionLost, InactiveSubscription, Multiplexer, SubscriptionRefused

from ..helpers.checker import Checker
from ..helpers.fake_server import FakeServer, read_command
from ..helpers.servers import Server
from ..helpers.waiting import until

pytestmark = pytest.mark.usefixtures("no_leaks")

PASSWORD = "canary-password"
PAYLOAD = b"canary-payload"


async def test_no_secret_and_no_payload_is_logged_in_an_outage(
    server: Server, admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Log records, reprs and errors of a failing callback and an outage show no password and no payload."""
    caplog.set_level(logging.DEBUG)
    await admin.execute_command("ACL", "SETUSER", "someone", "on", f">{PASSWORD}", "allchannels", "+@all")
    shown: list[object] = []
    url = f"redis://someone:{PASSWORD}@127.0.0.1:{server.port}"
    async with Multiplexer(url, backoff=ConstantBackoff(0.01)) as mpx:
        checker = Checker()

        def fail(channel: bytes, message: bytes) -> None:
            checker.on_message(channel, message)
            raise ValueError

        sub = mpx.new_channel_subscription(fail, checker.on_disconnect, checker.on_activation)
        sub.add("a")
        await sub.wait_for_activation(5)
        promises = mpx.new_promise_subscription("p-")
        promise = await promises.wait_for_new_promise("x", 5)
        await admin.publish("a", PAYLOAD)
        await admin.publish("p-x", PAYLOAD)
        await until(lambda: checker.messages == 1 and promise.done())
        shown += [mpx, sub, promises, promise, mpx.stats()]
        server.kill()
        await until(lambda: sum("attempt" in r.getMessage() for r in caplog.records) >= 3)
        shown += [mpx, mpx.stats(), mpx.stats().last_error]
        with pytest.raises(TimeoutError) as caught:
            await mpx.connect(0.01)
        shown += [caught.value, caught.value.__cause__]
    text = caplog.text + " ".join(f"{each!r} {each}" for each in shown)
    assert "redismpx" in caplog.text
    assert PASSWORD not in text
    assert PAYLOAD.decode() not in text


async def test_a_password_repeated_by_the_server_is_hidden(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Redis 5 and some proxies repeat the arguments of HELLO or AUTH in their error."""
    caplog.set_level(logging.DEBUG)
    asked: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        command = await read_command(reader)
        asked.append(command[0])
        arguments = b" ".join(b"`%b`," % argument for argument in command[1:])
        writer.write(b"-ERR unknown command `%b`, with args beginning with: %b\r\n" % (command[0], arguments))
        await reader.read()

    async with FakeServer(script).run() as url:
        mpx = Multiplexer(url.partition("?")[0], username="someone", password=PASSWORD, backoff=ConstantBackoff(0.01))
        with pytest.raises(TimeoutError):
            await mpx.connect(0.2)
        await until(lambda: asked[:2] == [b"HELLO", b"AUTH"])
        shown: list[object] = [mpx.stats()]
        cause: BaseException | None = mpx.stats().last_error
        while cause is not None:
            shown.append(cause)
            cause = cause.__cause__ or cause.__context__
        await mpx.aclose()
    text = caplog.text + " ".join(f"{each!r} {each}" for each in shown)
    assert "unknown command" in text
    assert PASSWORD not in text


async def test_events_without_on_error_are_logged(
    server: Server, admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Without on_error, refusals and slow consumers are logged, one record for each episode."""
    await admin.execute_command("ACL", "SETUSER", "default", "resetchannels", "&ok*")
    stuck = asyncio.Event()
    async with Multiplexer(server.url) as mpx:

        async def hang(channel: bytes, message: bytes) -> None:
            await stuck.wait()

        refused = mpx.new_channel_subscription(print)
        refused.add(*(f"no-{number}" for number in range(100)))
        slow = mpx.new_channel_subscription(hang, max_pending=1)
        slow.add("ok")
        await slow.wait_for_activation(5)
        for _ in range(10):
            await admin.publish("ok", "x")
        await until(lambda: slow.dropped == 8 and len(refused._inbox.refusals) == 100)
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 2
    assert "NOPERM" in warnings[0]
    assert "the consumer is too slow" in warnings[1]


async def test_hostile_names_are_escaped_and_shortened(url: str) -> None:
    """Names in reprs and errors are escaped and shortened."""
    hostile = b"\n\x1b[31m" + b"x" * 1000
    async with Multiplexer(url) as mpx:
        pattern = mpx.new_pattern_subscription(hostile, print)
        promises = mpx.new_promise_subscription(hostile)
        await promises.wait_for_activation(5)
        promise = promises.new_promise("x", 5)
        errors = [
            SubscriptionRefused("channel", hostile, "NOPERM"),
            InactiveSubscription(hostile),
            ConnectionLost("gone", frozenset({hostile})),
        ]
        for each in (pattern, promises, promise, *errors):
            text = f"{each!r} {each}"
            assert "\n" not in text
            assert "\x1b" not in text
            assert len(text) < 600
        promise.cancel()


@pytest.mark.parametrize("state", ["idle", "closed"])
async def test_the_repr_shows_the_state(state: str) -> None:
    """repr() of a multiplexer shows its state and counters."""
    mpx = Multiplexer("redis://127.0.0.1:1")
    if state == "closed":
        mpx.close()
    assert repr(mpx) == f"<Multiplexer {state} epoch=0 channels=0 patterns=0 pending=0 dropped=0>"
