"""No secret and no payload is shown, whatever happens."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import traceback
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import pytest
from fakeredis import FakeAsyncRedis
from redis import CredentialProvider
from redis.asyncio import Redis

from redismpx import (
    DecodeError,
    Message,
    Multiplexer,
    PromiseInterrupted,
    PromiseTimeout,
    SlowConsumer,
    SubscriptionRefused,
)

from ..helpers.backoffs import QUICK
from ..helpers.fake_server import FakeServer, read_command
from ..helpers.servers import Server
from ..helpers.waiting import eventually, until

pytestmark = [pytest.mark.one_flavour, pytest.mark.usefixtures("no_leaks")]

PASSWORD, OTHER_PASSWORD = "canary-password", "canary-other-password"
PAYLOAD = b"canary-payload \xff\n\x1b[31m"
CANARY = re.compile("canary-(other-)?(password|payload)")
RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]|x{80}")  # control characters but \t and \n, and names that are not cut
HOSTILE = b"news\nERROR all is lost\x1b[31m\xff\x00" + b"x" * 900


class Vault(CredentialProvider):
    def get_credentials(self) -> tuple[str, str]:
        return "someone", PASSWORD


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and those that led to it."""
    while error is not None:
        yield error
        if error.__cause__ is not None and error.__context__ is not None:
            yield from chain(error.__context__)
        error = error.__cause__ or error.__context__


def show(*things: object) -> str:
    """All that may be seen of things that a user holds, in one line each."""
    lines = []
    for thing in things:
        lines += [repr(thing), str(thing), f"{thing}", ascii(thing)]
        if isinstance(thing, BaseException) and not isinstance(thing, DecodeError):
            lines += [f"{each!r} {each} {each.args}" for each in chain(thing)]
        if isinstance(thing, BaseException):
            lines += "".join(traceback.format_exception(thing)).splitlines()
    assert not [line for line in lines if "\n" in line]
    return "\n".join(lines)


async def break_everything(url: str, admin: Redis, server: Server, **options: Any) -> list[object]:
    """Live through all that a multiplexer can live through; return all that a user gets to hold."""
    shown: list[object] = []
    async with Multiplexer(url, backoff=QUICK, on_error=shown.append, **options) as mpx:

        def fail(*_: object) -> None:
            raise ValueError("a callback")

        async def fail_later(*_: object) -> None:
            await asyncio.sleep(0)
            raise KeyError("an async callback")

        def fail_to_decode(data: bytes) -> object:
            return json.loads(data)

        stuck = asyncio.Event()

        async def hang(channel: bytes, data: bytes) -> None:
            await stuck.wait()

        failing = mpx.new_channel_subscription(fail, shown.append, fail)
        later = mpx.new_channel_subscription(fail_later, fail_later, fail_later)
        decoding = mpx.new_channel_subscription(fail, decode=fail_to_decode)
        untold = mpx.new_channel_subscription(lambda *_: None, decode=fail_to_decode, on_error=fail)
        slow = mpx.new_channel_subscription(hang, max_pending=1)
        read = mpx.new_channel_subscription()
        pattern = mpx.new_pattern_subscription(HOSTILE[:20] + b"*")
        promises = mpx.new_promise_subscription(HOSTILE + b"p")
        subs = [failing, later, decoding, untold, slow, read]
        for sub in subs:
            sub.add(HOSTILE, b"plain")
        for sub in (*subs, pattern):
            await sub.wait_for_activation(timeout=5)
        async with Multiplexer(server.admin_url, username="limited", password=PASSWORD) as limited:
            refused = limited.new_channel_subscription(print)
            refused.add(HOSTILE)
            with pytest.raises(SubscriptionRefused) as caught:
                await refused.wait_for_activation(timeout=5)
            shown += [caught.value, refused, limited]

        kept = await promises.wait_for_new_promise("kept", 5)
        late = promises.new_promise(HOSTILE, 0.01)
        given_up, broken, cleared = (promises.new_promise() for _ in range(3))
        shown += [kept, late, given_up, broken, cleared, *subs, pattern, promises, mpx, mpx.stats()]
        given_up.cancel()
        with pytest.raises(PromiseTimeout) as timed_out:
            await late
        shown.append(timed_out.value)
        for _ in range(5):
            await admin.publish(HOSTILE, PAYLOAD)
        await admin.publish(kept.channel, PAYLOAD)
        assert await kept == PAYLOAD
        message = await read.get(5)
        assert message.data == PAYLOAD
        shown += [message, read.get_nowait(), await pattern.get(5), message.channel[:4]]
        await until(lambda: any(isinstance(each, SlowConsumer) for each in shown))
        await until(lambda: any(isinstance(each, DecodeError) for each in shown))
        shown += [mpx, mpx.stats(), *subs, kept, *asyncio.all_tasks()]

        await admin.execute_command("ACL", "SETUSER", "someone", "resetpass", f">{OTHER_PASSWORD}")
        await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        with pytest.raises(PromiseInterrupted) as interrupted:
            await broken
        await until(lambda: "username-password" in str(mpx.stats().last_error))
        for waiting in (
            mpx.connect(0.02),
            read.wait_for_activation(timeout=0.02),
            promises.wait_for_new_promise("x", 0.02),
        ):
            with pytest.raises(Exception) as caught:
                await waiting
            shown.append(caught.value)
        shown += [interrupted.value, mpx, mpx.stats(), mpx.stats().last_error, *subs, *asyncio.all_tasks()]
        await admin.execute_command("ACL", "SETUSER", "someone", "resetpass", f">{PASSWORD}")
        await read.wait_for_activation(timeout=5)
        before = mpx.stats().last_error
        server.kill()
        await until(lambda: (e := mpx.stats().last_error) is not before and "cannot connect" in str(e))
        shown += [mpx.stats(), mpx._hub, mpx._client, mpx._client.connection_pool]
    shown += [mpx, mpx.stats(), *subs, pattern, promises, cleared, cleared.exception()]
    with pytest.raises(Exception) as caught:
        read.add("x")
    return [*shown, caught.value]


@pytest.mark.parametrize("way", ["url", "options", "provider"])
async def test_no_secret_and_no_payload_is_shown_anywhere(
    server: Server, admin: Redis, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    """After all kinds of events, no password or payload is in a log record, error, repr or traceback."""
    caplog.set_level(logging.DEBUG)  # the root: redis-py and asyncio too
    for user, channels in (("someone", "allchannels"), ("limited", "resetchannels")):
        await admin.execute_command("ACL", "SETUSER", user, "on", f">{PASSWORD}", channels, "+@all")
    ways: dict[str, dict[str, Any]] = {
        "url": {"url": f"redis://someone:{PASSWORD}@127.0.0.1:{server.port}"},
        "options": {"url": server.admin_url, "username": "someone", "password": PASSWORD},
        "provider": {"url": server.admin_url, "credential_provider": Vault()},
    }
    shown = await break_everything(ways[way].pop("url"), admin, server, **ways[way])
    text = show(*shown)
    kinds = {type(each).__name__ for each in shown}
    assert kinds >= {"ConnectionLost", "DecodeError", "Message", "Multiplexer", "Promise", "PromiseInterrupted",
                     "PromiseTimeout", "SlowConsumer", "Stats", "SubscriptionIsClosed", "SubscriptionRefused",
                     "TimeoutError", "ValueError"}  # fmt: skip
    for each in (text, caplog.text):
        assert not CANARY.search(each)
        assert not RAW.search(each)
    assert not re.search("^ERROR all is lost", caplog.text, re.MULTILINE)
    ours = [r.getMessage() for r in caplog.records if r.name == "redismpx"]
    assert [m for m in ours if "on_activation of" in m]
    assert [m for m in ours if "until this is fixed" in m]
    assert not [m for m in ours if "\n" in m or len(m) > 1000]


REPEATED = "hunter p@ss/w%rd 'é'"


class Repeating(CredentialProvider):
    def get_credentials(self) -> tuple[str, str]:
        return "user", REPEATED


WAYS: dict[str, dict[str, Any]] = {
    "option": {"username": "user", "password": REPEATED},
    "provider": {"credential_provider": Repeating()},
    "url": {},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("at", [b"HELLO", b"AUTH", b"SUBSCRIBE", b"PUBLISH", b"PING"], ids=bytes.decode)
async def test_a_password_that_the_server_repeats_is_hidden(
    caplog: pytest.LogCaptureFixture, at: bytes, way: str
) -> None:
    """Whichever command a server or proxy rejects, and in whatever words, no password is shown."""
    caplog.set_level(logging.DEBUG)
    shown: list[object] = []
    for words in (
        "ERR unknown command 'X', with args beginning with: 'AUTH' 'user' '{}'",
        "ERR unknown command 'X' with arguments 'AUTH' 'user' '{}'",
        "ERR Protocol error near {}",
        "NOAUTH {}",
        "WRONGPASS {}",
    ):
        error = words.format(REPEATED)
        asked: set[bytes] = set()

        async def script(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, error: str = error, asked: set[bytes] = asked
        ) -> None:
            while True:
                command, *_ = await read_command(reader)
                asked.add(command)
                replies = {
                    b"HELLO": "-ERR unknown command 'HELLO'",
                    b"SUBSCRIBE": "*3\r\n+subscribe\r\n$1\r\na\r\n:1",
                    b"PUBLISH": ":0",
                    at: f"-{error}",
                }
                writer.write(replies.get(command, "+OK").encode() + b"\r\n")

        async with FakeServer(script).run() as url:
            url = url.partition("?")[0]
            if way == "url":
                url = url.replace("//", f"//user:{quote(REPEATED, '')}@")
            async with Multiplexer(url, backoff=QUICK, ping_interval=0.01, publish_timeout=0.05, **WAYS[way]) as mpx:
                sub = mpx.new_channel_subscription(lambda *_: None, on_error=shown.append)
                sub.add("a")
                for waiting in (sub.wait_for_activation(timeout=0.05), mpx.publish("a", "x"), mpx.connect(0.05)):
                    try:  # which of these fail depends on the rejected command
                        await waiting
                    except Exception as failure:
                        shown.append(failure)

                async def not_asked(asked: set[bytes] = asked) -> str:
                    with suppress(Exception):
                        await mpx.publish("a", "x")
                    return "" if at in asked else f"{at!r} was not sent"

                await eventually(not_asked)
                shown += [mpx, mpx.stats(), mpx.stats().last_error]
    assert "hunter" not in show(*shown) + caplog.text


async def test_an_undecodable_payload_is_kept_and_not_shown(url: str, admin: Redis) -> None:
    """DecodeError has the payload as an attribute, and does not show it."""
    errors: list[Exception] = []
    async with Multiplexer(url) as mpx:
        sub = mpx.new_channel_subscription(print, decode=bytes.decode, on_error=errors.append)
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        await admin.publish("a", PAYLOAD)
        await until(lambda: bool(errors))
    (error,) = errors
    assert isinstance(error, DecodeError)
    assert error.data == PAYLOAD
    assert not CANARY.search(show(error))


async def test_server_errors_are_escaped_and_shortened(caplog: pytest.LogCaptureFixture) -> None:
    """A server's error may repeat hostile names: log records and errors escape and shorten it."""
    caplog.set_level(logging.DEBUG)
    shown: list[object] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            command = await read_command(reader)
            hostile = b"\x1b[31m \x85 \xff" + b"x" * 5000
            writer.write(b"+OK\r\n" if command[0] == b"CLIENT" else b"-ERR unknown command, args: %b\r\n" % hostile)

    async with FakeServer(script).run() as url:
        for each in (url, url.partition("?")[0]):  # there, HELLO is refused as well
            mpx = Multiplexer(each, backoff=QUICK)
            sub = mpx.new_channel_subscription(print)
            sub.add("a")
            with pytest.raises(Exception) as caught:
                await sub.wait_for_activation(timeout=5)
            sub.close()
            shown += [str(caught.value), repr(caught.value), mpx.stats(), mpx]
            await mpx.aclose()
        assert [r for r in caplog.records if "falling back" in r.getMessage()]
    messages = [record.getMessage() for record in caplog.records if record.name == "redismpx"] + list(map(str, shown))
    assert [m for m in messages if r"\x1b[31m " in m]
    assert not [m for m in messages if "\n" in m or "\x1b" in m or len(m) > 1000]


@pytest.mark.fakeredis
async def test_no_payload_is_shown_when_redis_py_reads(caplog: pytest.LogCaptureFixture) -> None:
    """Where redis-py reads the connection, as with fakeredis, no payload is shown either."""
    caplog.set_level(logging.DEBUG)
    async with FakeAsyncRedis() as client, Multiplexer(client) as mpx:
        sub = mpx.new_channel_subscription()
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        await client.publish("a", PAYLOAD)
        message = await sub.get(5)
        assert message.data == PAYLOAD
    assert not CANARY.search(caplog.text + show(message))


def test_the_repr_of_a_message_shortens_its_names() -> None:
    """repr() of a message shows no payload, and shortens channel and pattern."""
    assert repr(Message(b"a", b"canary-payload")) == "Message(channel=b'a', data=<14 bytes>)"
    assert repr(Message(b"ab", b"canary-payload", b"a*")) == "Message(channel=b'ab', data=<14 bytes>, pattern=b'a*')"
    assert len(repr(Message(HOSTILE, b"", HOSTILE))) < 700
