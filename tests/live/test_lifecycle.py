"""Before a loop runs, in another loop, after a fork, and at the end: no task, socket or callback is left."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import sys
import threading
import warnings
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.backoff import ConstantBackoff

from redismpx import (
    ConnectionLost,
    Multiplexer,
    MultiplexerIsClosed,
    PromiseInterrupted,
    Stats,
    SubscriptionIsClosed,
)
from redismpx._core.buffer import Buffer
from redismpx._core.registry import Registry
from redismpx._io.runtime import tasks as tasks_module
from redismpx._io.session import dispatcher as dispatcher_module
from redismpx._io.session import fan_out as fan_out_module
from redismpx._io.session.dispatcher import Dispatcher
from redismpx._io.session.link import Link
from redismpx._io.session.session import Session
from redismpx.testing import Checker

from ..helpers.acl import limited, set_limited_user
from ..helpers.fake_server import FakeServer, shake_hands
from ..helpers.leaks import open_sockets
from ..helpers.monitor import settled
from ..helpers.programs import run_program
from ..helpers.servers import Server
from ..helpers.waiting import until

pytestmark = [pytest.mark.one_flavour, pytest.mark.usefixtures("no_leaks")]


def test_a_multiplexer_made_before_a_loop_starts_inside_it(url: str) -> None:
    """Subscriptions made before any loop runs start with the first call inside one."""
    checker = Checker()
    mpx = Multiplexer(url)
    sub = mpx.new_channel_subscription(*checker.callbacks)
    sub.add("a", "b")
    sub.remove("b")
    promises = mpx.new_promise_subscription("p-")
    assert mpx.stats().state == "idle"
    assert not mpx.connected

    async def main() -> None:
        await sub.wait_for_activation(timeout=5)
        promise = await promises.wait_for_new_promise("x", 5)
        async with Redis.from_url(url) as client:
            await client.publish("a", "1")
            await client.publish("p-x", "2")
            assert await promise == b"2"
            await until(lambda: checker.payloads == [b"1"])
        await mpx.aclose()

    asyncio.run(main())
    assert checker.kinds == ["activation", "message"]


def test_another_loop_or_thread_raises(url: str) -> None:
    """Calls from another loop or thread raise RuntimeError."""
    mpx = Multiplexer(url)

    async def bind() -> None:
        await mpx.connect(5)

    def use() -> None:
        for call in (lambda: mpx.new_channel_subscription(print), lambda: mpx.new_promise_subscription("x"), mpx.close):
            with pytest.raises(RuntimeError, match="another event loop or thread"):
                call()

    async def elsewhere() -> None:
        use()
        with pytest.raises(RuntimeError):
            await mpx.connect()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(bind())
    asyncio.run(elsewhere())
    failures: list[BaseException] = []

    def in_thread() -> None:
        try:
            use()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert failures == []
    sub = mpx.new_channel_subscription(print)  # between two runs of its own loop
    sub.add("a")
    loop.run_until_complete(sub.wait_for_activation(timeout=5))
    loop.run_until_complete(mpx.aclose())
    loop.close()


async def test_a_forked_child_raises_and_the_parent_goes_on(url: str, admin: Redis) -> None:
    """After a fork the child's copy raises RuntimeError, and the parent misses nothing."""
    async with Multiplexer(url) as mpx:
        checker = Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks)
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, which others started
            child = os.fork()
        if child == 0:
            code = 1
            try:
                sub.add("b")
            except RuntimeError as error:
                code = 0 if "forked" in str(error) else 2
            finally:
                os._exit(code)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        for number in range(100):
            await admin.publish("a", number)
        await until(lambda: checker.messages == 100)
        assert not checker.faults
        assert checker.disconnects == 0


def test_a_multiplexer_made_before_a_fork_works_in_both(url: str) -> None:
    """A multiplexer that was not started before a fork works in parent and child."""
    program = """
import asyncio, os, sys
from redismpx import Multiplexer
mpx = Multiplexer(sys.argv[1])
sub = mpx.new_channel_subscription(print)
sub.add("a")
async def main():
    await sub.wait_for_activation(timeout=5)
    await mpx.aclose()
child = os.fork()
asyncio.run(main())
if child:
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    run_program(program, url)


def test_a_loop_may_end_at_any_moment_of_connecting(url: str) -> None:
    """Python 3.11's wait_for, which redis-py sends with, may swallow the cancellation by asyncio.run."""
    program = """
import asyncio, sys
from redismpx import Multiplexer
async def main(ticks):
    mpx = Multiplexer(sys.argv[1])
    publishing = asyncio.ensure_future(mpx.publish("a", "x"))
    for _ in range(ticks):
        await asyncio.sleep(0)
for ticks in range(60):
    asyncio.run(main(ticks))
"""
    run_program(program, url)


@pytest.mark.parametrize("how", ["return", "raise", "cancel"])
def test_a_loop_ending_without_aclose_prints_nothing(url: str, how: str) -> None:
    """A program that ends its loop without closing exits cleanly and prints nothing."""
    program = """
import asyncio, sys
from redismpx import Multiplexer
url, how = sys.argv[1:]
async def main():
    mpx = Multiplexer(url)
    async def hang(*_): await asyncio.Event().wait()
    sub = mpx.new_channel_subscription(hang, None, hang)
    sub.add("a")
    await mpx.new_promise_subscription("p").wait_for_new_promise("x", 5)
    if how == "raise":
        raise KeyError
    if how == "cancel":
        asyncio.current_task().cancel()
        await asyncio.sleep(1)
try:
    asyncio.run(main())
except (KeyError, asyncio.CancelledError):
    pass
"""
    run_program(program, url, how)


async def test_after_aclose_calls_raise_and_state_is_readable(url: str) -> None:
    """After aclose() each call raises its own error; stats, repr and `closed` still work."""
    mpx = Multiplexer(url)
    sub = mpx.new_channel_subscription(print)
    sub.add("a")
    pattern = mpx.new_pattern_subscription("a*", print)
    promises = mpx.new_promise_subscription("p-")
    promise = await promises.wait_for_new_promise("x", 5)
    waiter = asyncio.ensure_future(mpx.connect())
    await mpx.aclose()
    await mpx.aclose()
    mpx.close()
    await asyncio.gather(waiter, return_exceptions=True)
    with pytest.raises(PromiseInterrupted) as interrupted:
        await promise
    assert interrupted.value.reason == "closed"
    for call in (
        lambda: mpx.new_channel_subscription(print),
        lambda: mpx.new_pattern_subscription("a", print),
        lambda: mpx.new_promise_subscription("a"),
    ):
        with pytest.raises(MultiplexerIsClosed):
            call()
    with pytest.raises(MultiplexerIsClosed):
        await mpx.connect()
    for each in (sub, pattern, promises):
        assert each.closed
        assert "closed" in repr(each)
        each.close()
        with pytest.raises(SubscriptionIsClosed):
            await each.wait_for_activation()
    with pytest.raises(SubscriptionIsClosed):
        sub.add("b")
    assert isinstance(mpx.stats(), Stats)
    assert not mpx.connected
    assert "closed" in repr(mpx)


async def test_closing_an_unstarted_multiplexer_connects_nowhere() -> None:
    """Closing a multiplexer that was never used opens no connection."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    fake = FakeServer(script)
    async with fake.run() as url:
        await Multiplexer(url).aclose()
        Multiplexer(url).close()
        port = int(url.partition("?")[0].rpartition(":")[2])
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        await until(lambda: fake.accepted > 0)  # connections are accepted in order: a multiplexer's would be first
        writer.close()
    assert fake.accepted == 1


async def test_close_during_backoff_wakes_connect(server: Server) -> None:
    """close() during a backoff makes connect() raise MultiplexerIsClosed."""
    server.kill()
    mpx = Multiplexer(server.url)
    waiter = asyncio.ensure_future(mpx.connect())
    await until(lambda: mpx.stats().state == "backing off")
    mpx.close()
    with pytest.raises(MultiplexerIsClosed):
        await waiter


async def test_no_callback_after_close_returns(url: str, admin: Redis) -> None:
    """After close() returns, no callback is called for messages that are in the socket."""
    mpx = Multiplexer(url)
    checker = Checker()
    sub = mpx.new_channel_subscription(*checker.callbacks)
    sub.add("a")
    await sub.wait_for_activation(timeout=5)
    pipe = admin.pipeline(transaction=False)
    for number in range(1000):
        pipe.publish("a", number)
    await pipe.execute()  # waiting in the socket
    mpx.close()
    seen = len(checker.events)
    await mpx.aclose()
    await settled(admin, set())
    assert len(checker.events) == seen


@pytest.mark.parametrize("how", ["mpx", "sub", "remove"])
async def test_nothing_read_before_close_is_delivered_after_it(url: str, admin: Redis, how: str) -> None:
    """A callback that closes or removes gets none of the messages that were read with its own."""
    async with Multiplexer(url) as mpx:
        seen: list[bytes] = []

        def on_message(channel: bytes, message: bytes) -> None:
            seen.append(message)
            if how == "mpx":
                mpx.close()
            elif how == "sub":
                sub.close()
            else:
                sub.remove("a")

        sub = mpx.new_channel_subscription(on_message)
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        pipe = admin.pipeline(transaction=False)
        for number in range(100):
            pipe.publish("a", number)
        await pipe.execute()  # all in one read of the socket
        await settled(admin, set())
        assert seen == [b"0"]


@pytest.mark.parametrize("pauses", [1, 2, 3, 4, 5, 6, 8])
async def test_aclose_while_connecting_logs_no_error(url: str, pauses: int, caplog: pytest.LogCaptureFixture) -> None:
    """aclose() while connecting logs nothing."""
    for _ in range(5):
        async with Multiplexer(url):
            for _ in range(pauses):
                await asyncio.sleep(0.00005)
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_aclose_does_not_wait_for_a_silent_handshake() -> None:
    """aclose() is quick while a server never answers the handshake."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # accepts, and never says a word

    fake = FakeServer(script)
    async with fake.run() as url:
        mpx = Multiplexer(url.partition("?")[0])
        mpx.new_channel_subscription(lambda *_: None).add("a")
        await until(lambda: fake.accepted == 1)
        loop = asyncio.get_running_loop()
        began = loop.time()
        mpx.close()
        await until(lambda: not [t for t in asyncio.all_tasks() if "redismpx" in t.get_name()], 1)
        await mpx.aclose()
        assert loop.time() - began < 1


async def test_a_peer_that_stops_reading_does_not_block_closing() -> None:
    """add() and aclose() do not wait for a peer that reads nothing."""
    stuck = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await shake_hands(reader, writer)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await stuck.wait()

    async with FakeServer(script).run() as url:
        mpx = Multiplexer(url)
        sub = mpx.new_channel_subscription(lambda *_: None)
        sub.add("a")
        await mpx.connect(5)
        for number in range(50):
            sub.add(*(b"%d-%d" % (number, each) + b"x" * 1000 for each in range(100)))
            await asyncio.sleep(0)
        await asyncio.wait_for(mpx.aclose(), 1)
        stuck.set()


async def test_a_cancelled_aclose_goes_on(url: str, admin: Redis) -> None:
    """Closing goes on after aclose() was cancelled, and a second aclose() waits for its end."""
    release = asyncio.Event()
    entered = asyncio.Event()

    async def stubborn(channel: bytes, message: bytes) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            await release.wait()

    mpx = Multiplexer(url)
    sub = mpx.new_channel_subscription(stubborn)
    sub.add("a")
    await sub.wait_for_activation(timeout=5)
    await admin.publish("a", "1")
    await entered.wait()
    closing = asyncio.ensure_future(mpx.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    again = asyncio.ensure_future(mpx.aclose())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not again.done()
    release.set()
    await again


async def test_aclose_gives_up_on_an_uncancellable_callback(
    url: str, admin: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """aclose() stops waiting for a callback that swallows its cancellation, and logs it."""
    monkeypatch.setattr(tasks_module, "END_TIMEOUT", 0.05)
    release = asyncio.Event()

    async def stubborn(channel: bytes, message: bytes) -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    mpx = Multiplexer(url)
    sub = mpx.new_channel_subscription(stubborn)
    sub.add("a")
    await sub.wait_for_activation(timeout=5)
    await admin.publish("a", "1")
    await until(lambda: sub._inbox.worker is not None)
    await asyncio.wait_for(mpx.aclose(), 1)
    assert "did not end" in caplog.text
    release.set()
    await mpx.aclose()


async def test_a_thousand_multiplexers_leave_nothing(url: str) -> None:
    """A thousand multiplexers, opened and closed, leave no socket and no task."""
    before = open_sockets()
    for number in range(1000):
        mpx = Multiplexer(url)
        sub = mpx.new_channel_subscription(lambda *_: None)
        sub.add("a")
        if number % 2:
            await sub.wait_for_activation(timeout=5)
        await mpx.aclose()
    await asyncio.sleep(0)
    assert open_sockets() <= before
    assert not [t for t in asyncio.all_tasks() if "redismpx" in t.get_name()]


ENTRIES: list[tuple[type, str]] = [
    (Session, "_flush"),
    (Session, "_retry"),
    (Link, "_watch"),
    (Link, "_take"),
    (Link, "_note_reply"),
    (Dispatcher, "receive"),
    (Dispatcher, "_take_other"),
    (Dispatcher, "_take_error"),
    (Dispatcher, "_deliver_chunk"),
    (Dispatcher, "lose"),
    (Registry, "next_commands"),
    (Registry, "activate_late"),
    (Registry, "confirm"),
    (Registry, "refuse"),
    (Registry, "retry_refused"),
    (Registry, "nameless"),
    (Registry, "pong"),
    (Registry, "connection_lost"),
]


@pytest.mark.parametrize(("owner", "name"), ENTRIES, ids=lambda entry: getattr(entry, "__name__", entry))
async def test_an_internal_error_is_critical_and_a_disconnect(
    server: Server,
    admin: Redis,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    owner: type,
    name: str,
) -> None:
    """An exception in any method that the loop calls is CRITICAL in the log, ends the connection and is recovered."""
    for module in dispatcher_module, fan_out_module:
        monkeypatch.setattr(module, "FANOUT_CHUNK", 1)
    await set_limited_user(admin, "&*", "-psubscribe")
    async with limited(server, ping_interval=0.05) as mpx:
        checker = Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks)
        twin = mpx.new_channel_subscription(lambda *_: None)
        for each in (sub, twin):
            each.add("a")
            await each.wait_for_activation(timeout=5)

        function = getattr(owner, name)
        faults: list[Exception] = []

        def faulty(*arguments: Any, **options: Any) -> Any:
            if not faults:
                faults.append(RuntimeError("injected"))
                raise faults[0]
            return function(*arguments, **options)

        monkeypatch.setattr(owner, name, faulty)
        sub.add("b")  # flush, confirm
        mpx.new_pattern_subscription("refused", on_error=lambda _: None)  # refuse
        mpx.new_channel_subscription(lambda *_: None).add("a")  # welcome
        await admin.publish("a", "x")  # fan out to more than a chunk
        if name in ("_retry", "retry_refused"):
            await until(lambda: mpx._hub.deployment.main._retrying is not None)
            mpx._hub.deployment.main._retry_in(0)
        if name in ("lose", "connection_lost"):
            await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await until(lambda: bool(faults))
        await until(lambda: "disconnect" in checker.kinds)
        await sub.wait_for_activation(timeout=5)
        await admin.publish("b", "y")
        await until(lambda: b"y" in checker.payloads)
        assert not checker.faults
        assert mpx.stats().connections == 2
        (error,) = (event for kind, event in checker.events if kind == "disconnect")
        assert isinstance(error, ConnectionLost)
        if name not in ("lose", "connection_lost"):
            assert "internal error" in error.reason
            assert error.__cause__ is faults[0]
        records = [r for r in caplog.records if r.levelno == logging.CRITICAL]
        assert ["internal error" in r.getMessage() for r in records] == [True]
        assert not [r for r in caplog.records if r.name == "asyncio"]


async def test_an_internal_error_in_a_worker_is_critical(
    url: str, admin: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception in a worker is logged as CRITICAL, and delivery goes on."""
    seen: list[bytes] = []

    async def on_message(channel: bytes, message: bytes) -> None:
        await asyncio.sleep(0)
        seen.append(message)

    pop_message = Buffer.pop_message
    faults: list[Exception] = []

    def faulty(buffer: Buffer) -> object:
        if not faults:
            faults.append(RuntimeError("injected"))
            raise faults[0]
        return pop_message(buffer)

    monkeypatch.setattr(Buffer, "pop_message", faulty)
    async with Multiplexer(url) as mpx:
        sub = mpx.new_channel_subscription(on_message)
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        for number in range(3):
            await admin.publish("a", number)
        await until(lambda: seen == [b"0", b"1", b"2"])
    records = [r.getMessage() for r in caplog.records if r.levelno == logging.CRITICAL]
    assert records == ["internal error in redismpx a channel subscription"]


@pytest.mark.parametrize("error", [RuntimeError("a filter's"), GeneratorExit("a filter's")], ids=repr)
@pytest.mark.parametrize("level", [logging.DEBUG, logging.WARNING])
async def test_a_raising_logging_filter_loses_nothing(
    server: Server, admin: Redis, capsys: pytest.CaptureFixture[str], level: int, error: BaseException
) -> None:
    """A logging filter that raises anything at each record loses no event and no connection."""
    calls = 0

    def raising(record: logging.LogRecord) -> bool:
        nonlocal calls
        calls += 1
        raise error

    def on_message(channel: bytes, message: bytes) -> None:
        checker.on_message(channel, message)
        raise ValueError

    logger = logging.getLogger("redismpx")
    logger.addFilter(raising)
    logger.setLevel(level)
    try:
        async with Multiplexer(server.url, backoff=ConstantBackoff(0.01)) as mpx:
            checker = Checker()
            sub = mpx.new_channel_subscription(on_message, checker.on_disconnect, checker.on_activation)
            sub.add("a")
            await sub.wait_for_activation(timeout=5)
            await admin.publish("a", "1")
            await until(lambda: checker.messages == 1)
            await admin.publish("a", "2")
            await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await until(lambda: mpx.stats().connections == 2)
            await sub.wait_for_activation(timeout=5)
    finally:
        logger.removeFilter(raising)
        logger.setLevel(logging.NOTSET)
    assert checker.kinds == ["activation", "message", "message", "disconnect", "activation"]
    assert calls >= 2
    assert "a filter's" in capsys.readouterr().err


async def test_a_closed_stderr_loses_nothing(server: Server, admin: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that has closed sys.stderr, where records and the errors of handlers go, loses nothing."""
    closed = io.StringIO()
    closed.close()
    handler = logging.StreamHandler(closed)
    logger = logging.getLogger("redismpx")
    logger.addHandler(handler)
    monkeypatch.setattr(sys, "stderr", closed)
    checker = Checker()

    def on_message(channel: bytes, message: bytes) -> None:
        checker.on_message(channel, message)
        raise ValueError

    try:
        async with Multiplexer(server.url, backoff=ConstantBackoff(0.01)) as mpx:
            sub = mpx.new_channel_subscription(on_message, checker.on_disconnect, checker.on_activation)
            sub.add("a")
            await sub.wait_for_activation(timeout=5)
            await admin.publish("a", "1")
            await admin.publish("a", "2")
            await until(lambda: checker.messages == 2)
            await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await until(lambda: mpx.stats().connections == 2)
            await sub.wait_for_activation(timeout=5)
    finally:
        logger.removeHandler(handler)
    assert checker.kinds == ["activation", "message", "message", "disconnect", "activation"]
