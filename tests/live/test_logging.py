"""Log records and reprs show no secret and no payload, and escape and shorten names."""

from __future__ import annotations

import asyncio
import logging
import re

import pytest
from redis.asyncio import Redis
from redis.backoff import ConstantBackoff

from redismpx import ConnectionLost, InactiveSubscription, Multiplexer, SubscriptionRefused
from redismpx._io.delivery import reporter
from redismpx._io.runtime import log, tasks
from redismpx._io.session import outage
from redismpx.testing import Checker

from ..helpers.fake_server import FakeServer, read_command
from ..helpers.options import session_options
from ..helpers.servers import Server
from ..helpers.waiting import until

pytestmark = [pytest.mark.one_flavour, pytest.mark.usefixtures("no_leaks")]

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
        await sub.wait_for_activation(timeout=5)
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
        await slow.wait_for_activation(timeout=5)
        for _ in range(10):
            await admin.publish("ok", "x")
        await until(lambda: slow.dropped == 8 and len(refused._inbox.refusals) == 100)
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 2
    assert "NOPERM" in warnings[0]
    assert "the consumer is too slow" in warnings[1]


async def test_failing_subscriptions_log_a_few_records(
    url: str, admin: Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message to 200 failing subscriptions is a few records of each kind, and the next record counts the others."""
    counts = {"fail": 0, "decode": 0}

    def fail(channel: bytes, data: bytes) -> None:
        counts["fail"] += 1
        raise KeyError(data)

    def decode(data: bytes) -> object:
        counts["decode"] += 1
        raise ValueError

    async with Multiplexer(url) as mpx:
        subs = [mpx.new_channel_subscription(fail) for _ in range(200)]
        subs += [mpx.new_channel_subscription(fail, decode=decode) for _ in range(200)]
        for sub in subs:
            sub.add("a")
        await mpx.connect(5)
        for sub in subs:
            await sub.wait_for_activation(timeout=5)
        await admin.publish("a", "x")
        await until(lambda: counts == {"fail": 200, "decode": 200})
        other = mpx.new_channel_subscription(lambda *_: 1 / 0)
        other.add("other")
        await other.wait_for_activation(timeout=5)
        await admin.publish("other", "x")  # an error of another kind is not left out
        await until(lambda: "ZeroDivisionError" in caplog.text)
        texts = [record.getMessage() for record in caplog.records]
        assert sum("KeyError" in text for text in texts) == log.RECORDS
        assert sum("cannot be decoded" in text for text in texts) == log.RECORDS
        for module in (log, reporter):
            monkeypatch.setattr(module, "LOG_INTERVAL", 0.0)  # it is over
        caplog.clear()
        await admin.publish("a", "x")
        await until(lambda: counts == {"fail": 400, "decode": 400})
    for word in ("KeyError", "cannot be decoded"):
        first, *_ = [record.getMessage() for record in caplog.records if word in record.getMessage()]
        assert f"({200 - log.RECORDS} more like this since the last record)" in first


async def test_any_number_of_types_of_errors_is_bounded(
    url: str, admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A callback that raises a new type of exception each time logs a bounded number of records."""
    count = 0

    def fail(*_: object) -> None:
        nonlocal count
        count += 1
        raise type(f"Error{count}", (Exception,), {})

    async with Multiplexer(url) as mpx:
        sub = mpx.new_channel_subscription(fail)
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        for _ in range(300):
            await admin.publish("a", "x")
        await until(lambda: count == 300)
        assert len(caplog.records) == log.KINDS + log.RECORDS
        assert len(sub._inbox.reporter._logged) <= log.KINDS


async def test_stuck_callbacks_are_a_few_records(
    url: str, admin: Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many callbacks that ignore their cancellation some are named, and the others are counted."""
    monkeypatch.setattr(tasks, "END_TIMEOUT", 0.05)
    gate = asyncio.Event()
    stuck = 0

    async def ignore(channel: bytes, data: bytes) -> None:
        nonlocal stuck
        stuck += 1
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                continue

    mpx = Multiplexer(url)
    subs = [mpx.new_channel_subscription(ignore) for _ in range(50)]
    for sub in subs:
        sub.add("a")
    for sub in subs:
        await sub.wait_for_activation(timeout=5)
    await admin.publish("a", "x")
    await until(lambda: stuck == 50)
    await mpx.aclose()
    texts = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    gate.set()
    assert len(texts) == log.RECORDS + 1
    assert texts[-1].startswith(f"{50 - log.RECORDS} more tasks did not end")
    await until(lambda: not [task for task in asyncio.all_tasks() if "redismpx" in task.get_name()])


# --- the end of an outage


def ends(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.getMessage().startswith("connected to ")]


async def test_the_end_of_an_outage_is_a_warning(
    server: Server, admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """The record says how long the outage was, and how many subscriptions and names were interrupted."""
    caplog.set_level(logging.INFO)
    async with Multiplexer(server.url, backoff=ConstantBackoff(0.01), delivery_probe=60) as mpx:
        subs = [mpx.new_channel_subscription(print) for _ in range(3)]
        for number, sub in enumerate(subs):
            sub.add("shared", f"own {number}")
        idle = mpx.new_channel_subscription(print)
        for sub in subs:
            await sub.wait_for_activation(timeout=5)
        server.kill()
        await until(lambda: mpx.stats().last_error is not None)
        await asyncio.sleep(0.3)  # how long the outage is
        idle.add("later")
        server.start()
        for sub in subs:
            await sub.wait_for_activation(timeout=10)
    first, second = ends(caplog)
    assert (first.levelname, first.getMessage()) == ("INFO", f"connected to 127.0.0.1:{server.port}")
    assert second.levelname == "WARNING"
    found = re.fullmatch(
        r"connected to Redis at 127\.0\.0\.1:\d+ after an outage of ([\d.]+) s; "
        r"interrupted: 3 subscriptions, (\d+) names; what was published is missed",
        second.getMessage(),
    )
    assert found, second.getMessage()
    assert 0.3 <= float(found[1]) < 10
    assert int(found[2]) == 4  # without that of the probe


async def test_the_first_connection_after_failures_is_a_warning(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage at the start ends with a record too; nothing was interrupted."""
    server.kill()
    async with Multiplexer(server.url, backoff=ConstantBackoff(0.01)) as mpx:
        sub = mpx.new_channel_subscription(print)
        sub.add("a")
        await until(lambda: mpx.stats().last_error is not None)
        server.start()
        await sub.wait_for_activation(timeout=10)
    (record,) = ends(caplog)
    assert record.levelname == "WARNING"
    assert record.getMessage().endswith("; no subscription was interrupted")


async def test_an_outage_that_was_not_logged_ends_quietly(
    server: Server, admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a connection that breaks again and again, one loss and one return are warnings."""
    caplog.set_level(logging.INFO)
    async with Multiplexer(server.url, backoff=ConstantBackoff(0.01)) as mpx:
        sub = mpx.new_channel_subscription(print)
        sub.add("a")
        for losses in range(1, 6):
            await sub.wait_for_activation(timeout=5)
            await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await until(lambda losses=losses: mpx.stats().connections == losses + 1)
        await sub.wait_for_activation(timeout=5)
    assert [record.levelname for record in ends(caplog)] == ["INFO", "WARNING", "INFO", "INFO", "INFO", "INFO"]


def test_many_servers_of_a_cluster_log_a_few_records(caplog: pytest.LogCaptureFixture) -> None:
    """When hundreds of servers are lost together, a few outages are logged, and the ends of these only."""
    options = session_options()
    logs = [outage.Outages(options) for _ in range(300)]
    caplog.set_level(logging.WARNING)
    for number, each in enumerate(logs):
        each.begin(f"node {number}", ConnectionLost("gone"), outage.Gap(1, 2))
        each.failed(f"node {number}", ConnectionLost("gone"), is_first=True, is_flapping=False)
    assert len(caplog.records) == log.RECORDS
    for number, each in enumerate(logs):
        if number % 2:
            each.ended(f"node {number}")
        else:
            each.given_up(f"node {number}")
    texts = [record.getMessage() for record in caplog.records[log.RECORDS :]]
    assert len(texts) == log.RECORDS
    assert "not needed any more, after an outage of" in texts[0]
    assert "connected to Redis at node 1 after an outage of" in texts[1]


async def test_hostile_names_are_escaped_and_shortened(url: str) -> None:
    """Names in reprs and errors are escaped and shortened."""
    hostile = b"\n\x1b[31m" + b"x" * 1000
    async with Multiplexer(url) as mpx:
        pattern = mpx.new_pattern_subscription(hostile, print)
        promises = mpx.new_promise_subscription(hostile)
        await promises.wait_for_activation(timeout=5)
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


@pytest.mark.parametrize("state", ["waits for an event loop", "closed"])
async def test_the_repr_shows_the_state(state: str) -> None:
    """repr() of a multiplexer shows its state and counters."""
    mpx = Multiplexer("redis://127.0.0.1:1")
    if state == "closed":
        mpx.close()
    assert repr(mpx) == f"<Multiplexer {state} epoch=0 channels=0 patterns=0 pending=0 dropped=0>"
