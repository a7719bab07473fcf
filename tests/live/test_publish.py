"""Publishing: calls keep their order, go out in batches, are sent once, and have one outcome each."""

from __future__ import annotations

import array
import asyncio
import dataclasses
import gc
import logging
import threading
import traceback
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import fakeredis
import msgspec
import pydantic
import pytest
from redis.asyncio import Redis, Sentinel
from redis.asyncio.connection import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff, NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from redismpx import ConnectionLost, DecodeError, Envelope, Multiplexer, MultiplexerIsClosed
from redismpx.testing import Faults, Proxy
from tools.measure_publish import publish_while_killing

from ..helpers.acl import PUBLISHER, SUBSCRIBER, set_user
from ..helpers.fake_server import FakeServer, read_command, shake_hands
from ..helpers.leaks import open_sockets
from ..helpers.monitor import Monitor
from ..helpers.programs import run_program
from ..helpers.sentinel import close
from ..helpers.servers import SentinelServer, Server, free_port
from ..helpers.waiting import until

pytestmark = pytest.mark.usefixtures("no_leaks")


@asynccontextmanager
async def hearing(url: str, *channels: str | bytes) -> AsyncIterator[list[tuple[bytes, bytes]]]:
    """What arrives on some channels, at a multiplexer of its own."""
    heard: list[tuple[bytes, bytes]] = []
    async with Multiplexer(url) as mpx:
        sub = mpx.new_channel_subscription(lambda channel, data: heard.append((channel, data)))
        sub.add(*channels)
        await sub.wait_for_activation(timeout=5)
        yield heard


def start(mpx: Multiplexer, *payloads: Any, channel: str = "a") -> list[asyncio.Task[int]]:
    return [asyncio.ensure_future(mpx.publish(channel, payload)) for payload in payloads]


async def outcomes(calls: list[asyncio.Task[int]]) -> list[Any]:
    return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20)


async def idle_connection_ended(mpx: Multiplexer) -> None:
    """Wait until the end of the connection has reached this process: before that, it cannot be known."""
    connection = mpx._hub.deployment.publisher._pipeline.current._connection
    assert connection is not None
    reader = connection._raw._reader
    await until(lambda: reader.at_eof() or reader.exception() is not None)


# --- order and batches


async def test_calls_keep_their_order(url: str) -> None:
    """Messages reach the server in the order of the calls to publish()."""
    async with hearing(url, "a", "b") as heard, Multiplexer(url) as mpx:
        calls = [asyncio.ensure_future(mpx.publish("ab"[n % 2], b"%d" % n)) for n in range(3000)]
        assert await outcomes(calls) == [1] * 3000
        await until(lambda: len(heard) == 3000)
        assert heard == [(b"ab"[n % 2 : n % 2 + 1], b"%d" % n) for n in range(3000)]
        assert mpx.stats().published == 3000


async def test_one_batch_is_in_flight_at_a_time() -> None:
    """Calls made while a batch awaits its replies go out together in the next batch."""
    seen: list[bytes] = []
    answer = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        command = await shake_hands(reader, writer)
        while True:
            assert command[:2] == [b"PUBLISH", b"a"]
            seen.append(command[2])
            if len(seen) == 1:
                await answer.wait()
                assert not reader._buffer  # type: ignore[attr-defined]  # nothing came behind it
            elif len(seen) == 2:
                while reader._buffer.count(b"PUBLISH") < 9:  # type: ignore[attr-defined]  # before any is answered
                    await asyncio.sleep(0.001)
            writer.write(b":%d\r\n" % len(seen))
            command = await read_command(reader)

    async with FakeServer(script).run() as url, Multiplexer(url) as mpx:
        calls = start(mpx, "0")
        await until(lambda: seen == [b"0"])
        calls += start(mpx, *map(str, range(1, 11)))
        await asyncio.sleep(0.05)  # time enough for a second batch, if there were one
        assert seen == [b"0"]
        answer.set()
        assert await outcomes(calls) == list(range(1, 12))
        assert seen == [b"%d" % n for n in range(11)]


async def test_large_messages_arrive_intact(url: str) -> None:
    """Messages of more than one batch's size arrive complete and in order."""
    async with hearing(url, "a") as heard, Multiplexer(url) as mpx:
        payloads = [b"%d" % n * 700_000 for n in range(8)]
        assert await outcomes(start(mpx, *payloads)) == [1] * 8
        await until(lambda: len(heard) == 8)
        assert [data for _, data in heard] == payloads


async def test_each_call_gets_its_own_count(url: str) -> None:
    """publish() returns the receivers of its own message, also within a batch."""
    async with hearing(url, "one", "two"), hearing(url, "two"), Multiplexer(url) as mpx:
        calls = [asyncio.ensure_future(mpx.publish(channel, "x")) for channel in ("none", "two", "one", "two", "none")]
        assert await outcomes(calls) == [0, 2, 1, 2, 0]


# --- what is published


class Order:
    def __bytes__(self) -> bytes:
        return b"tea"


@pytest.mark.parametrize(
    ("payload", "received"),
    [
        (b"tea", b"tea"),
        ("tée", "tée".encode()),
        (b"", b""),
        ("", b""),
        (bytearray(b"tea"), b"tea"),
        (memoryview(b"tea"), b"tea"),
        (memoryview(b"t-e-a-")[::2], b"tea"),
        (array.array("H", [1, 2]), array.array("H", [1, 2]).tobytes()),
        (Order(), b"tea"),
        (b"\r\n$3\r\nfoo\r\n\0\xff", b"\r\n$3\r\nfoo\r\n\0\xff"),
    ],
)
async def test_a_payload_arrives_as_its_bytes(shared_server: Server, payload: Any, received: bytes) -> None:
    """Bytes, text, buffers and objects with __bytes__ arrive as their bytes."""
    url = shared_server.url
    async with hearing(url, "a") as heard, Multiplexer(url) as mpx:
        assert await mpx.publish("a", payload) == 1
        await until(lambda: heard == [(b"a", received)])


async def test_a_buffer_is_copied_at_the_call(url: str) -> None:
    """A bytearray that changes after the call is published as it was at the call."""
    async with hearing(url, "a") as heard, Multiplexer(url) as mpx:
        buffer = bytearray(b"before")
        (call,) = start(mpx, buffer)
        await asyncio.sleep(0)
        buffer[:] = b"behind"
        await call
        await until(lambda: heard == [(b"a", b"before")])


class Struct(msgspec.Struct):
    """A payload of another library."""


class Model(pydantic.BaseModel):
    """A payload of another library."""


@dataclasses.dataclass
class Data:
    """A payload to encode."""


@pytest.mark.parametrize(
    ("payload", "call"),
    [
        *((payload, "str(data), json.dumps(data)") for payload in (1, 1.5, True, None, object())),
        (["a"], "json.dumps(data)"),
        ({"a": 1}, "json.dumps(data)"),
        (Data(), "json.dumps(dataclasses.asdict(data))"),
        (Struct(), "msgspec.json.encode(data)"),
        (Model(), "data.model_dump_json()"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
async def test_other_payload_types_raise_type_error(url: str, payload: Any, call: str) -> None:
    """Numbers, None, containers and models raise TypeError with the call that encodes them."""
    async with Multiplexer(url) as mpx:
        with pytest.raises(TypeError) as caught:
            await mpx.publish("a", payload)
        assert str(caught.value).endswith(f"not {type(payload).__name__}; encode it first: {call}")
        assert mpx.stats().published == 0


async def test_an_unencodable_text_is_not_shown(url: str) -> None:
    """Text that UTF-8 cannot encode raises ValueError without repeating the text."""
    async with Multiplexer(url) as mpx:
        with pytest.raises(ValueError, match="at index 6") as caught:
            await mpx.publish("a", "secret\ud800")
        assert "secret" not in str(caught.value)


async def test_a_channel_is_checked_like_any_other_name(url: str) -> None:
    """A channel that is too long or of a wrong type raises before anything is sent."""
    async with Multiplexer(url, max_name_bytes=5) as mpx:
        with pytest.raises(ValueError, match="a channel of 6 bytes"):
            await mpx.publish("longer", "x")
        with pytest.raises(TypeError, match="a channel must be str or bytes, not list"):
            await mpx.publish(["a"], "x")  # type: ignore[arg-type]
        assert await mpx.publish("short", "x") == 0


@pytest.mark.parametrize("channel", [b"", b"\r\nPUBLISH a b\r\n", b"*1\r\n$4\r\nQUIT\r\n", b"\0\xff", b"a b"])
async def test_a_channel_may_have_any_bytes(shared_server: Server, admin: Redis, channel: bytes) -> None:
    """Line ends, NUL and protocol bytes in a channel are data: one call sends one command."""
    url = shared_server.url
    async with hearing(url, channel) as heard, Multiplexer(url) as mpx, Monitor(admin) as monitor:
        assert await mpx.publish(channel, channel) == 1
        await until(lambda: heard == [(channel, channel)])
        await monitor.saw("end")
        assert monitor.count("PUBLISH") == 2  # with that of the marker


async def test_a_payload_over_max_payload_raises(url: str) -> None:
    """A payload longer than max_payload raises ValueError; None removes the limit."""
    async with Multiplexer(url) as mpx:
        with pytest.raises(ValueError, match="1048577 bytes is longer than max_payload=1048576"):
            await mpx.publish("a", b"x" * 1_048_577)
        assert await mpx.publish("a", b"x" * 1_048_576) == 0
    async with Multiplexer(url, max_payload=3) as mpx:
        with pytest.raises(ValueError, match="max_payload"):
            await mpx.publish("a", "tée")  # 4 bytes
        assert await mpx.publish("a", "tea") == 0
    async with Multiplexer(url, max_payload=None) as mpx:
        assert await mpx.publish("a", b"x" * 3_000_000) == 0


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"publish_timeout": 0}, ValueError),
        ({"publish_timeout": None}, ValueError),
        ({"publish_timeout": "5"}, TypeError),
        ({"max_payload": 0}, ValueError),
        ({"max_payload": 1.5}, TypeError),
    ],
)
def test_an_invalid_option_raises(options: dict[str, Any], error: type[Exception]) -> None:
    """publish_timeout and max_payload are checked when the multiplexer is made."""
    with pytest.raises(error, match=next(iter(options))):
        Multiplexer(**options)


# --- what Redis refuses


async def test_a_forbidden_channel_fails_its_own_call_alone(server: Server, admin: Redis) -> None:
    """A channel without permission fails its own call; the other calls of the batch succeed."""
    await set_user(admin, "publisher", "secret", PUBLISHER)
    async with Multiplexer(server.url, username="publisher", password="secret") as mpx:
        calls = [asyncio.ensure_future(mpx.publish(channel, "x")) for channel in ("chat:a", "other", "chat:b", "more")]
        first, second, third, fourth = await outcomes(calls)
        assert (first, third) == (0, 0)
        assert type(second) is type(fourth) is NoPermissionError
        assert second is not fourth
        assert mpx.stats().published == 2


async def test_without_the_publish_right_each_call_fails(server: Server, admin: Redis) -> None:
    """Each call raises NoPermissionError, and publishing works once the right is granted."""
    await set_user(admin, "subscriber", "secret", SUBSCRIBER)
    async with Multiplexer(server.url, username="subscriber", password="secret") as mpx:
        failures = await outcomes(start(mpx, *"123", channel="chat:a"))
        assert {type(failure) for failure in failures} == {NoPermissionError}
        await set_user(admin, "subscriber", "secret", SUBSCRIBER + " +publish")
        assert await mpx.publish("chat:a", "x") == 0


async def test_a_wrong_password_is_the_reason_of_connection_lost(server: Server, admin: Redis) -> None:
    """A wrong password raises ConnectionLost, caused by AuthenticationError, until it is fixed."""
    await set_user(admin, "publisher", "other", PUBLISHER)
    async with Multiplexer(server.url, username="publisher", password="secret", publish_timeout=0.3) as mpx:
        with pytest.raises(ConnectionLost, match="invalid username-password pair") as caught:
            await mpx.publish("chat:a", "x")
        assert isinstance(caught.value.__cause__, AuthenticationError)
        assert not caught.value.sent
        await set_user(admin, "publisher", "secret", PUBLISHER)
        while True:  # as soon as the publisher has tried again
            try:
                assert await mpx.publish("chat:a", "x") == 0
                break
            except ConnectionLost:
                continue


async def test_a_message_too_large_for_the_server_fails_alone(server: Server, admin: Redis) -> None:
    """A message beyond the server's limit fails; the next one goes over a new connection."""
    await admin.config_set("proto-max-bulk-len", "1mb")
    async with hearing(server.url, "a") as heard, Multiplexer(server.url, max_payload=None) as mpx:
        assert await mpx.publish("a", "1") == 1
        with pytest.raises((ResponseError, ConnectionLost)):  # its word, or the reset that comes first
            await mpx.publish("a", b"x" * 3_000_000)
        assert await mpx.publish("a", "2") == 1
        await until(lambda: heard == [(b"a", b"1"), (b"a", b"2")])


# --- when the server is away


async def test_calls_during_an_outage_are_sent_afterwards(server: Server) -> None:
    """Calls made while the server is down are published when it is up again."""
    async with Multiplexer(server.url, publish_timeout=30) as mpx:
        assert await mpx.publish("a", "x") == 0
        server.kill()
        await idle_connection_ended(mpx)
        calls = start(mpx, *"123")
        await until(lambda: mpx._hub.deployment.publisher._pipeline._failure is not None)
        server.start()
        assert await outcomes(calls) == [0, 0, 0]
        assert mpx.stats().published == 4


async def test_an_outage_fails_each_call_at_its_deadline(server: Server) -> None:
    """While the server stays down, each call raises ConnectionLost after publish_timeout."""
    async with Multiplexer(server.url, publish_timeout=0.3) as mpx:
        assert await mpx.publish("a", "x") == 0
        server.kill()
        await idle_connection_ended(mpx)
        for name in ("first", "second"):
            with pytest.raises(ConnectionLost, match=r"not sent within 0.3 s: cannot connect to 127.0.0.1") as caught:
                await mpx.publish(name, "x")
            assert isinstance(caught.value.__cause__, RedisConnectionError)
            assert caught.value.names == {name.encode()}
            assert not caught.value.sent


async def test_calls_that_expire_together_do_so_in_parts() -> None:
    """Very many calls may have one deadline: some of them fail in each iteration of the loop, and none is sent."""
    async with Multiplexer(f"redis://127.0.0.1:{free_port()}", publish_timeout=0.2) as mpx:
        failed: list[BaseException | None] = []
        calls = start(mpx, *map(str, range(5000)))
        for call in calls:
            call.add_done_callback(lambda call: failed.append(call.exception()))
        longest = 0
        while len(failed) < 5000:
            before = len(failed)
            await asyncio.sleep(0)
            longest = max(longest, len(failed) - before)
        assert 0 < longest <= 256
        assert all(isinstance(error, ConnectionLost) and not error.sent for error in failed)


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
async def test_publishing_is_back_when_a_session_is(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as a session has connected after an outage, publishing connects too, however long its pause is."""
    monkeypatch.setattr("redismpx._io.publishing.current.publish_backoff", lambda: ConstantBackoff(600))
    with Faults(server) as faults:
        async with Multiplexer(faults.url, publish_timeout=5, backoff=ConstantBackoff(0.1)) as mpx:
            await mpx.connect(timeout=5)
            with faults.refuse():
                [failed] = await outcomes(start(mpx, "0"))
                assert isinstance(failed, ConnectionLost)
            await mpx.connect(timeout=5)
            assert await mpx.publish("a", "1") == 0


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
async def test_a_session_of_the_past_shortens_no_pause(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Publishing pauses after each failed attempt to connect, also if a session had connected before."""
    monkeypatch.setattr("redismpx._io.publishing.current.publish_backoff", lambda: ConstantBackoff(600))
    caplog.set_level(logging.DEBUG, "redismpx")
    with Faults(server) as faults:
        async with Multiplexer(faults.url, publish_timeout=0.2) as mpx:
            await mpx.connect(timeout=5)
            faults.refuse()
            calls = start(mpx, "0")
            await until(lambda: "publishing fails for now" in caplog.text)
            await outcomes(calls)
    assert caplog.text.count("publishing fails for now") == 1


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
async def test_expiring_calls_do_not_stop_connecting(server: Server) -> None:
    """An attempt to connect may take longer than the calls that wait for it, of which one expires every moment."""
    with Proxy(server.port) as proxy:
        proxy.to_client.delay = 0.05  # a handshake of some round trips takes longer than a call may
        async with Multiplexer(proxy.url, publish_timeout=0.1) as mpx:
            loop = asyncio.get_running_loop()
            give_up = loop.time() + 10
            while not mpx.stats().published:
                assert loop.time() < give_up
                calls = start(mpx, "x")
                await asyncio.sleep(0.01)
            proxy.heal()
            await outcomes(calls)


async def test_a_frozen_server_leaves_only_sent_calls_open(server: Server) -> None:
    """Against a frozen server, `sent` of the error is true for calls that were sent and false for the others."""
    async with hearing(server.url, "a") as heard, Multiplexer(server.url, publish_timeout=0.5) as mpx:
        assert await mpx.publish("a", "0") == 1
        server.freeze()
        calls = start(mpx, "1")
        await until(lambda: len(mpx._hub.deployment.publisher._pipeline._sent) == 1)
        calls += start(mpx, "2")
        sent, waiting = await outcomes(calls)
        assert isinstance(sent, ConnectionLost)
        assert sent.sent
        assert "may or may not have been published: no answer within 0.5 s" in sent.reason
        assert isinstance(sent.__cause__, TimeoutError)
        assert isinstance(waiting, ConnectionLost)
        assert not waiting.sent
        assert "not sent within 0.5 s" in waiting.reason
        server.thaw()
        await until(lambda: len(heard) == 2)
        assert await mpx.publish("a", "3") == 1
        await until(lambda: heard == [(b"a", b"0"), (b"a", b"1"), (b"a", b"3")])


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
@pytest.mark.parametrize("retries", [None, 5])
async def test_a_sent_message_is_not_sent_again(server: Server, retries: int | None) -> None:
    """A lost connection repeats no message: redis-py's retries, which a client may have, are for connecting."""
    with Proxy(server.port) as proxy:
        retry = None if retries is None else Retry(NoBackoff(), retries)
        client = Redis.from_url(proxy.url, **({} if retry is None else {"retry": retry}))
        async with hearing(server.url, "a") as heard, Multiplexer(client) as mpx:
            assert await mpx.publish("a", "0") == 1
            proxy.to_client.hole = True
            calls = start(mpx, "1", "2")
            await until(lambda: len(heard) == 3)  # Redis has published them; its answers are swallowed
            proxy.reset()
            proxy.heal()
            for failure in await outcomes(calls):
                assert isinstance(failure, ConnectionLost)
                assert failure.sent
            assert await mpx.publish("a", "3") == 1
            await until(lambda: len(heard) == 4)
            assert [data for _, data in heard] == [b"0", b"1", b"2", b"3"]
        await client.aclose()


async def test_replies_before_the_end_count() -> None:
    """Replies that arrive before the server closes settle their calls; the other calls raise ConnectionLost."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await shake_hands(reader, writer)
        await read_command(reader)
        writer.write(b":7\r\n-ERR not you\r\n")

    async with FakeServer(script).run() as url, Multiplexer(url) as mpx:
        first, second, third = await outcomes(start(mpx, *"123"))
        assert first == 7
        assert isinstance(second, ResponseError)
        assert isinstance(third, ConnectionLost)
        assert third.sent
        assert "closed" in third.reason


async def test_a_late_reply_goes_to_no_other_call() -> None:
    """A reply after the timeout belongs to a call that has failed; the next call gets its own reply."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        command = await shake_hands(reader, writer)
        if command[2] == b"1":
            await read_command(reader)
            writer.write(b":1\r\n")
        writer.write(b":2\r\n")
        await reader.read()

    async with FakeServer(script).run() as url, Multiplexer(url, publish_timeout=0.3) as mpx:
        (first,) = await outcomes(start(mpx, "1"))
        assert isinstance(first, ConnectionLost)
        assert first.sent
        assert await mpx.publish("a", "2") == 2


@pytest.mark.parametrize(
    "word", [b"ERR unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'canary'", b"WRONGPASS no"]
)
async def test_failures_show_no_secret(word: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Neither errors nor log records repeat a payload or what the server quotes."""
    caplog.set_level(logging.DEBUG)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            command = await read_command(reader)
            writer.write(b"-" + word + b"\r\n" if command[0] in (b"HELLO", b"PUBLISH") else b"+OK\r\n")

    async with FakeServer(script).run() as url, Multiplexer(url.partition("?")[0], publish_timeout=0.2) as mpx:
        for failure in await outcomes(start(mpx, "canary", "canary")):
            assert isinstance(failure, (ConnectionLost, ResponseError))
            assert "canary" not in "".join(traceback.format_exception(failure)) + repr(failure)
    assert ("publishing fails for now" in caplog.text) == (word == b"WRONGPASS no")
    assert "canary" not in caplog.text


@pytest.mark.parametrize("answer", [b"+OK\r\n", b"$1\r\n1\r\n", b"*0\r\n", b"!!\r\n"])
async def test_a_reply_that_is_no_count_ends_the_connection(answer: bytes) -> None:
    """A reply that is no number belongs to another command, so the replies after it would reach the wrong calls."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        command = await shake_hands(reader, writer)
        while True:
            writer.write(answer + b":5\r\n" if command[2] == b"1" else b":3\r\n")
            command = await read_command(reader)

    async with FakeServer(script).run() as url, Multiplexer(url) as mpx:
        first, second = await outcomes(start(mpx, *"12"))
        assert isinstance(first, ConnectionLost)
        assert first.sent
        assert isinstance(second, ConnectionLost) or second == 3
        assert await mpx.publish("a", "3") == 3


async def test_a_closed_idle_connection_is_replaced_first(server: Server, admin: Redis) -> None:
    """A connection that the server closed while idle is replaced before the next call is sent, so no call fails."""
    async with Multiplexer(server.url) as mpx:
        for number in range(5):
            assert await mpx.publish("a", str(number)) == 0
            assert await admin.client_kill_filter(_type="normal", skipme=True)
            await idle_connection_ended(mpx)
        assert mpx.stats().published == 5


async def test_a_thousand_tasks_get_true_outcomes_despite_kills(server: Server, admin: Redis) -> None:
    """While connections are killed, each call's outcome agrees with what subscribers received.

    `python -m tools.measure_publish` does the same with five times as many calls.
    """
    result = await publish_while_killing(server, admin, tasks=1000, each=20, kills=10)
    assert not result.violations
    assert result.killed >= 10
    assert result.outcomes["1"]
    assert result.outcomes["lost after it was sent"]


# --- callers who go


async def test_cancelled_calls_leave_the_others_alone(server: Server) -> None:
    """A cancelled call is published if it was sent already, is skipped otherwise, and harms no other call."""
    async with hearing(server.url, "a") as heard, Multiplexer(server.url, publish_timeout=30) as mpx:
        await mpx.publish("b", "x")  # connects
        server.freeze()
        calls = start(mpx, "0", "1")
        await until(lambda: len(mpx._hub.deployment.publisher._pipeline._sent) > 0)
        await asyncio.sleep(0)
        calls += start(mpx, *map(str, range(2, 6)))
        await asyncio.sleep(0)
        on_their_way = len(mpx._hub.deployment.publisher._pipeline._sent)
        for number in (0, 3, 5):
            calls[number].cancel()
        server.thaw()
        got = await outcomes(calls)
        assert [type(outcome) for outcome in got] == [asyncio.CancelledError, int, int, asyncio.CancelledError, int,
                                                      asyncio.CancelledError]  # fmt: skip
        await mpx.publish("a", "end")
        await until(lambda: heard[-1:] == [(b"a", b"end")])
        assert on_their_way >= 1
        assert [data for _, data in heard] == [b"0", b"1", b"2", b"4", b"end"]


async def test_exceptions_are_freed_without_gc(server: Server) -> None:
    """An exception refers by its traceback to the frame that awaited it; that frame must not refer back."""
    server.kill()
    async with Multiplexer(server.url, publish_timeout=0.1) as mpx:
        gc.disable()
        try:
            failures = await outcomes(start(mpx, *"123"))
            kept = [weakref.ref(failure) for failure in failures]
            del failures
            await asyncio.sleep(0)
            assert [ref() for ref in kept] == [None] * 3
        finally:
            gc.enable()


async def test_cancelling_all_callers_leaves_nothing_to_do(server: Server) -> None:
    """When every caller is cancelled during an outage, nothing is published afterwards."""
    server.kill()
    async with Multiplexer(server.url, publish_timeout=30) as mpx:
        calls = start(mpx, *"123")
        await until(lambda: mpx._hub.deployment.publisher._pipeline._failure is not None)
        for call in calls:
            call.cancel()
        await outcomes(calls)
        assert mpx._hub.deployment.publisher.pending == 0
        server.start()
        await until(lambda: not mpx._hub.deployment.publisher._pipeline._waiting)
        assert mpx.stats().published == 0


# --- the end


async def test_a_closed_multiplexer_publishes_nothing(url: str) -> None:
    """publish() on a closed multiplexer raises MultiplexerIsClosed."""
    mpx = Multiplexer(url)
    await mpx.aclose()
    with pytest.raises(MultiplexerIsClosed):
        await mpx.publish("a", "x")


@pytest.mark.parametrize("how", ["close", "aclose", "cancelled"])
async def test_closing_fails_pending_calls(server: Server, how: str) -> None:
    """Closing fails sent calls with ConnectionLost, and calls not yet sent with MultiplexerIsClosed."""
    mpx = Multiplexer(server.url, publish_timeout=30)
    await mpx.publish("a", "0")
    server.freeze()
    calls = start(mpx, "1")
    await until(lambda: len(mpx._hub.deployment.publisher._pipeline._sent) == 1)
    calls += start(mpx, "2")
    await asyncio.sleep(0)
    if how == "close":
        mpx.close()
    elif how == "aclose":
        await asyncio.wait_for(mpx.aclose(), 4)
    else:  # as asyncio.run() does with all tasks
        for task in tuple(mpx._hub.tasks._tasks):
            task.cancel()
    sent, waiting = await outcomes(calls)
    assert isinstance(sent, ConnectionLost)
    assert sent.sent
    assert isinstance(waiting, MultiplexerIsClosed)
    assert mpx._hub.deployment.publisher._pipeline._deadlines._timer is None


async def test_closing_does_not_wait_for_a_frozen_server(server: Server) -> None:
    """aclose() does not wait until a frozen server reads what was written to it."""
    sockets = open_sockets()
    mpx = Multiplexer(server.url, max_payload=None)
    await mpx.publish("a", "0")
    server.freeze()
    calls = start(mpx, b"x" * 50_000_000)  # more than fits into the buffers of the system
    await until(lambda: len(mpx._hub.deployment.publisher._pipeline._sent) == 1)
    await asyncio.wait_for(mpx.aclose(), 4)
    assert isinstance((await outcomes(calls))[0], ConnectionLost)
    await asyncio.sleep(0)
    assert open_sockets() == sockets


@pytest.mark.parametrize("how", ["close", "aclose"])
async def test_closing_while_connecting_leaves_nothing(server: Server, how: str) -> None:
    """Closing during the handshake fails the calls and leaves no task or socket."""
    server.freeze()
    mpx = Multiplexer(server.url, publish_timeout=30)
    before = open_sockets()
    calls = start(mpx, "1", "2")
    await until(lambda: open_sockets() > before)
    if how == "close":
        mpx.close()
    else:
        await asyncio.wait_for(mpx.aclose(), 4)
    assert [type(outcome) for outcome in await outcomes(calls)] == [MultiplexerIsClosed] * 2


@pytest.mark.parametrize("how", ["close", "aclose"])
async def test_closing_closes_an_idle_connection_too(url: str, how: str) -> None:
    """Closing with an idle connection leaves no socket."""
    mpx = Multiplexer(url)
    await mpx.publish("a", "x")
    if how == "close":
        mpx.close()
    else:
        await mpx.aclose()


async def test_drain_waits_for_pending_calls(server: Server) -> None:
    """drain() returns after all pending calls have their replies."""
    async with hearing(server.url, "a") as heard:
        mpx = Multiplexer(server.url, publish_timeout=30)
        await mpx.publish("a", "0")
        server.freeze()
        calls = start(mpx, "1")
        await until(lambda: len(mpx._hub.deployment.publisher._pipeline._sent) == 1)
        calls += start(mpx, "2", "3")
        await asyncio.sleep(0)
        draining = asyncio.ensure_future(mpx.drain())
        await until(lambda: mpx._hub.draining)
        server.thaw()
        await asyncio.wait_for(draining, 20)
        assert await outcomes(calls) == [1, 1, 1]
        await until(lambda: len(heard) == 4)


@pytest.mark.parametrize("how", ["close", "aclose"])
async def test_closing_fails_very_many_calls_in_parts(how: str) -> None:
    """close() fails some calls at once, and as many in each iteration of the loop; aclose() waits for all."""
    mpx = Multiplexer(f"redis://127.0.0.1:{free_port()}", publish_timeout=30)
    calls = start(mpx, *map(str, range(5000)))
    failed: list[BaseException | None] = []
    for call in calls:
        call.add_done_callback(lambda call: failed.append(call.exception()))
    await until(lambda: mpx._hub.deployment.publisher.pending == 5000)
    if how == "close":
        mpx.close()
        longest = 0
        while len(failed) < 5000:
            before = len(failed)
            await asyncio.sleep(0)
            longest = max(longest, len(failed) - before)
        assert 0 < longest <= 256
    await mpx.aclose()
    assert len(failed) >= 5000 - 256  # the tasks of the last part run next
    assert {type(error) for error in await outcomes(calls)} == {MultiplexerIsClosed}


async def test_a_drain_timeout_fails_pending_calls(server: Server) -> None:
    """drain() raises TimeoutError that counts the calls not published, and fails them."""
    mpx = Multiplexer(server.url, publish_timeout=30)
    await mpx.publish("a", "0")
    server.freeze()
    calls = start(mpx, "1", "2")
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError, match=r"0 messages not consumed and 2 not published within 0.1 s"):
        await mpx.drain(0.1)
    assert all(isinstance(outcome, (ConnectionLost, MultiplexerIsClosed)) for outcome in await outcomes(calls))


async def test_callbacks_that_drain_waits_for_may_publish(url: str) -> None:
    """A callback that drain() waits for can still publish."""
    async with hearing(url, "answers") as heard:
        mpx = Multiplexer(url)
        go_on = asyncio.Event()

        async def serve(channel: bytes, data: bytes) -> None:
            await go_on.wait()
            assert await mpx.publish("answers", data) == 1

        sub = mpx.new_channel_subscription(serve)
        sub.add("questions")
        await sub.wait_for_activation(timeout=5)
        assert await outcomes(start(mpx, *"123", channel="questions")) == [1, 1, 1]
        await until(lambda: mpx.stats().messages == 3)
        draining = asyncio.ensure_future(mpx.drain())
        await until(lambda: mpx._hub.draining)
        go_on.set()
        await asyncio.wait_for(draining, 20)
        await until(lambda: [data for _, data in heard] == [b"1", b"2", b"3"])


# --- from where


async def test_a_callback_may_publish_and_await_the_reply(url: str) -> None:
    """A callback can publish and await the message that its publish leads to."""
    async with Multiplexer(url) as mpx:
        promises = mpx.new_promise_subscription("answer:")
        got: list[bytes] = []

        async def ask(channel: bytes, data: bytes) -> None:
            promise = await promises.wait_for_new_promise(timeout=10)
            assert await mpx.publish(promise.channel, data.upper()) == 1
            got.append(await promise)

        sub = mpx.new_channel_subscription(ask)
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        assert await outcomes(start(mpx, "x", "y", "z")) == [1, 1, 1]
        await until(lambda: got == [b"X", b"Y", b"Z"])


async def test_a_callback_may_close_while_it_publishes(url: str) -> None:
    """A callback can close the multiplexer while its publish() is pending."""
    mpx = Multiplexer(url)
    seen: list[object] = []

    async def end(channel: bytes, data: bytes) -> None:
        call = asyncio.ensure_future(mpx.publish("b", data))
        await asyncio.sleep(0)
        mpx.close()
        seen.append(await asyncio.gather(call, return_exceptions=True))

    sub = mpx.new_channel_subscription(end)
    sub.add("a")
    await sub.wait_for_activation(timeout=5)
    start(mpx, "x")
    await until(lambda: seen != [])
    await mpx.aclose()


async def test_the_first_publish_binds_the_loop(url: str) -> None:
    """A multiplexer whose first call is publish() belongs to that loop; other loops raise RuntimeError."""
    mpx = Multiplexer(url)
    assert await mpx.publish("a", "x") == 0
    failures: list[BaseException] = []

    def elsewhere() -> None:
        try:
            asyncio.run(mpx.publish("a", "y"))
        except RuntimeError as error:
            failures.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert "another event loop or thread" in str(failures[0])
    assert mpx.stats().published == 1
    await mpx.aclose()


def test_a_forked_child_cannot_publish_and_its_parent_can(url: str) -> None:
    """After a fork, publish() raises RuntimeError in the child and works in the parent."""
    program = """
import asyncio, os, sys, warnings
from redismpx import Multiplexer
warnings.simplefilter("ignore")  # what asyncio says of the loop that a child inherits
mpx = Multiplexer(sys.argv[1])
loop = asyncio.new_event_loop()
async def publish(): return await mpx.publish("a", "x")
assert loop.run_until_complete(publish()) == 0
child = os.fork()
if child == 0:
    sys.stderr = open(os.devnull, "w")
    try:
        asyncio.run(publish())
    except RuntimeError as error:
        os._exit(0 if "forked" in str(error) else 1)
    os._exit(2)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert loop.run_until_complete(publish()) == 0
loop.run_until_complete(mpx.aclose())
loop.close()
"""
    run_program(program, url)


@pytest.mark.parametrize("how", ["return", "raise"])
def test_a_loop_ending_without_aclose_prints_nothing(url: str, how: str) -> None:
    """A program that ends its loop without closing exits cleanly and prints nothing."""
    program = """
import asyncio, sys
from redismpx import Multiplexer
async def main():
    mpx = Multiplexer(sys.argv[1])
    await mpx.publish("a", "x")
    if sys.argv[2] == "raise":
        raise KeyError
try:
    asyncio.run(main())
except KeyError:
    pass
"""
    run_program(program, url, how)


# --- through other clients


async def works(mpx: Multiplexer, client: Redis, channel: str = "a") -> None:
    sub = mpx.new_channel_subscription()
    sub.add(channel)
    await sub.wait_for_activation(timeout=5)
    assert await outcomes(start(mpx, "1", b"2", "3", channel=channel)) == [1, 1, 1]
    assert [(await sub.get(5)).data for _ in range(3)] == [b"1", b"2", b"3"]
    assert await mpx.publish("b", "x") == 0


@pytest.mark.parametrize("options", [{"decode_responses": True}, {"protocol": 2}, {"health_check_interval": 1}])
async def test_a_clients_pool_stays_its_owners(url: str, options: dict[str, Any]) -> None:
    """Publishing takes the options of a client, and no connection from its pool."""
    client = Redis.from_url(url, client_name="mine", **options)
    async with Multiplexer(client) as mpx:
        await works(mpx, client)
        assert not client.connection_pool._available_connections
        names = [found["name"] for found in await client.client_list()]
        assert names.count("mine") == 3  # the link, the publisher and the client itself
    assert await client.ping()
    await client.aclose()


async def test_a_pool_without_a_free_connection_is_no_matter(url: str) -> None:
    """The connections of a multiplexer do not count against `max_connections`."""
    client = Redis.from_pool(BlockingConnectionPool.from_url(url, max_connections=1))
    async with Multiplexer(client) as mpx:
        connection = await client.connection_pool.get_connection()
        assert await outcomes(start(mpx, "1", "2")) == [0, 0]
        await client.connection_pool.release(connection)
    await client.aclose()


async def test_a_health_check_is_sent_before_a_batch(url: str, admin: Redis) -> None:
    """After `health_check_interval` without a check, a PING goes ahead of what is published."""
    async with Monitor(admin) as monitor, Multiplexer(url, health_check_interval=0.001) as mpx:
        for number in range(3):
            await asyncio.sleep(0.002)
            assert await mpx.publish("a", str(number)) == 0
        await monitor.saw("the end")
        assert monitor.count("PING") >= 2


async def test_a_client_from_sentinel_publishes(server: Server) -> None:
    """Publishing works over a client from Sentinel."""
    sentinel = SentinelServer(server.binary, server).start()
    try:
        manager = Sentinel([("127.0.0.1", sentinel.port)], socket_timeout=1)
        client = manager.master_for("main")
        async with Multiplexer(client, backoff=ConstantBackoff(0.01)) as mpx:
            await works(mpx, client)
        await client.aclose()
        await close(manager)
    finally:
        sentinel.remove()


@pytest.mark.fakeredis
@pytest.mark.parametrize("options", [{}, {"decode_responses": True}])
async def test_fakeredis_can_fail_and_recover(options: dict[str, Any]) -> None:
    """With fakeredis, publishing fails while it is disconnected and works afterwards."""
    server = fakeredis.FakeServer()
    client = fakeredis.FakeAsyncRedis(server=server, **options)
    async with Multiplexer(client, publish_timeout=0.3, backoff=ConstantBackoff(0.01)) as mpx:
        await works(mpx, client)
        server.connected = False
        with pytest.raises(ConnectionLost):
            await mpx.publish("a", "x")
        await until(lambda: not mpx.connected)
        server.connected = True
        await until(lambda: mpx.connected)
        await works(mpx, client, "c")  # fakeredis goes on counting the subscriptions of a lost connection
    await client.aclose()


async def test_an_envelope_can_be_published_and_decoded(url: str, admin: Redis) -> None:
    """publish() accepts an envelope, and decode=Envelope.from_bytes returns it."""
    errors: list[Exception] = []
    async with Multiplexer(url) as mpx:
        sub = mpx.new_channel_subscription(decode=Envelope.from_bytes, on_error=errors.append)
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        envelope = Envelope(bytes(range(256)), {"Trace": "1"}, reply_to=b"\0")
        assert await mpx.publish("a", envelope) == 1
        await admin.publish("a", "none")
        await admin.publish("a", bytes(envelope))
        assert [(await sub.get(5)).data for _ in range(2)] == [envelope, envelope]
    (error,) = errors
    assert isinstance(error, DecodeError)
    assert isinstance(error.__cause__, ValueError)
