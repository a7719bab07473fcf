"""Invalid arguments raise at once, say what to do, and change nothing."""

from __future__ import annotations

import asyncio
import functools
from typing import Any
from unittest.mock import Mock
from urllib.parse import quote

import pytest
import redis
import redis.asyncio
from redis.backoff import ConstantBackoff

from redismpx import Multiplexer

PASSWORD = "canary-password"
FOREIGN = type("Valkey", (), {"__module__": "valkey.client"})()  # a client of another library


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ((None,), {}, TypeError, "redis must be a URL"),
        ((b"redis://localhost",), {}, TypeError, "not builtins.bytes"),
        ((redis.Redis(),), {}, TypeError, "redis.client.Redis: from redis.asyncio import Redis"),
        ((FOREIGN,), {}, TypeError, "valkey.client.Valkey: from redis.asyncio import Redis, which connects to Valkey"),
        (("http://localhost",), {}, ValueError, r"redis://, rediss:// .*valkey://.*unix://.*redis\+sentinel://"),
        (("localhost:6379",), {}, ValueError, "schemes"),
        ((f"redis://:{PASSWORD}@localhost:99999",), {}, ValueError, "cannot be used"),
        ((f"redis://:{PASSWORD}#x@localhost",), {}, ValueError, "percent-encode"),
        ((f"redis://localhost?db={PASSWORD}",), {}, ValueError, "cannot be used"),
        ((), {"decode_responses": True}, ValueError, "decode=bytes.decode"),
        (("redis://localhost?decode_responses=1",), {}, ValueError, "decode_responses"),
        ((), {"bogus": 1}, TypeError, "bogus"),
        (("redis://localhost?bogus=1",), {}, TypeError, "bogus"),
        ((redis.asyncio.Redis(),), {"db": 1}, TypeError, "db.*URL only"),
        ((), {"backoff": 1.0}, TypeError, "backoff"),
        ((), {"ping_interval": 0}, ValueError, "ping_interval=None disables"),
        ((), {"ping_interval": -1}, ValueError, "ping_interval"),
        ((), {"ping_interval": "1"}, TypeError, "ping_interval"),
        ((), {"ping_timeout": 0}, ValueError, "ping_timeout"),
        ((), {"ping_timeout": None}, ValueError, "ping_timeout"),
        ((), {"ping_timeout": float("nan")}, ValueError, "ping_timeout"),
        ((), {"max_pending": 0}, ValueError, "max_pending"),
        ((), {"max_pending": 1.5}, TypeError, "max_pending"),
        ((), {"max_pending": True}, TypeError, "max_pending"),
        ((), {"on_error": "print"}, TypeError, "on_error"),
        ((), {"overflow": "block"}, ValueError, "one of drop_oldest"),
        (("redis://localhost", "surplus"), {}, TypeError, "positional"),
    ],
)
def test_an_invalid_multiplexer_option_raises(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], text: str
) -> None:
    """An unusable URL, client or option raises with a text that says what to do, and repeats no password."""
    with pytest.raises(error, match=text) as caught:
        Multiplexer(*arguments, **options)
    assert PASSWORD not in f"{caught.value!r} {caught.value.__cause__!r}"


@pytest.mark.parametrize("special", "@:/?#")
@pytest.mark.parametrize("piece", ["1{}2", "hunter{}2", "{}hunter", "hunter{}", "a{0}b{0}c", "a{}b=c", "12{}db=hunter"])
@pytest.mark.parametrize(
    "form",
    [
        "redis://user:{}@host:6379/0",
        "rediss://:{}@host",
        "redis://{}:x@host",
        "unix://user:{}@/run/redis.sock?db=1",
        "redis+sentinel://user:{}@host:1,other:2/main/0",
    ],
)
def test_a_password_that_is_not_encoded_is_refused(form: str, piece: str, special: str) -> None:
    """A special character in a user or password raises, instead of a piece of it being dialled, and none is shown."""
    password = piece.format(special)
    if form == "redis://{}:x@host" and special == ":":
        password = f"{password}:"  # one colon ends the user
    with pytest.raises(ValueError, match="%40") as caught:
        Multiplexer(form.format(password))
    assert "hunter" not in repr(caught.value)
    assert caught.value.__context__ is None
    quoted = form.format(quote(password, ""))
    if "{}:x" not in form:
        client = Multiplexer(quoted)._client
        assert client.connection_pool.connection_kwargs["password"] == password


@pytest.mark.parametrize(
    "address",
    [
        "redis://localhost:6379/0/?client_name=me%40box&db=1",
        "redis://localhost?password=p%40ss:w/rd&username=me",
        "redis://user:p%40ss@[::1]:6379",
        "redis://a-b_c.d~!$&'()*+,;=%25:e-f_g.h~!$&'()*+,;=%25@localhost",
        "redis://user@localhost",
        "redis://localhost:6379?",
        "unix:///run/a@b:c.sock",
        "unix://user@/run/a@b.sock?db=1",
        "unix://localhost/run/redis.sock",
    ],
)
def test_a_url_without_doubt_is_accepted(address: str) -> None:
    """Special characters where they cannot belong to a password are accepted."""
    Multiplexer(address)


@pytest.mark.parametrize(
    ("method", "arguments", "options", "error", "text"),
    [
        ("new_channel_subscription", ("print",), {}, TypeError, "on_message must be callable"),
        ("new_channel_subscription", (print, 1), {}, TypeError, "on_disconnect"),
        ("new_channel_subscription", (print, None, 1), {}, TypeError, "on_activation"),
        ("new_channel_subscription", (print,), {"on_error": 1}, TypeError, "on_error"),
        ("new_channel_subscription", (print,), {"max_pending": -1}, ValueError, "max_pending"),
        ("new_channel_subscription", (print,), {"overflow": "block"}, ValueError, "one of drop_oldest, drop_newest"),
        ("new_channel_subscription", (print,), {"overflow": 1}, TypeError, "overflow"),
        ("new_channel_subscription", (print,), {"decode": "utf-8"}, TypeError, "decode must be callable"),
        ("new_channel_subscription", (print,), {"bogus": 1}, TypeError, "bogus"),
        ("new_pattern_subscription", ("", print), {}, ValueError, "empty"),
        ("new_pattern_subscription", (b"", print), {}, ValueError, "empty"),
        ("new_pattern_subscription", (None, print), {}, TypeError, "a pattern must be str or bytes"),
        ("new_pattern_subscription", (print, "a"), {}, TypeError, "on_message"),
        ("new_promise_subscription", (1,), {}, TypeError, "a prefix must be str or bytes"),
        ("new_promise_subscription", ("\ud800",), {}, ValueError, "UTF-8"),
    ],
)
def test_an_invalid_subscription_option_raises(
    method: str, arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], text: str
) -> None:
    """An unusable callback, name or option raises, and no subscription is made."""
    mpx = Multiplexer()
    with pytest.raises(error, match=text):
        getattr(mpx, method)(*arguments, **options)
    assert mpx.stats() == Multiplexer().stats()


@pytest.mark.parametrize(
    ("channel", "error", "text"),
    [
        (1, TypeError, "a channel must be str or bytes, not int"),
        (None, TypeError, "NoneType"),
        (["a"], TypeError, r"unpack it"),
        (bytearray(b"a"), TypeError, "bytearray"),
        (memoryview(b"a"), TypeError, "memoryview"),
        ("a\ud800", ValueError, "at index 1"),
    ],
)
def test_a_bad_channel_changes_nothing(channel: Any, error: type[Exception], text: str) -> None:
    """add() and remove() with one invalid channel raise and change nothing."""
    mpx = Multiplexer()
    sub = mpx.new_channel_subscription(print)
    sub.add("kept")
    for call in (sub.add, sub.remove):
        with pytest.raises(error, match=text):
            call("kept", "new", channel)
        assert sub.channels == {b"kept"}


def test_text_and_its_utf8_are_the_same_name() -> None:
    """A name given as text and as its UTF-8 bytes is one name."""
    sub = Multiplexer().new_channel_subscription(print)
    sub.add("ž", "ž".encode(), "ž")
    assert sub.channels == {"ž".encode()}
    sub.remove("ž", "not there")
    assert sub.channels == frozenset()
    sub.add()
    sub.clear()


def test_channels_is_read_only() -> None:
    """`channels` is a frozenset that cannot be assigned, and an unknown attribute raises."""
    sub = Multiplexer().new_channel_subscription(print)
    assert isinstance(sub.channels, frozenset)
    with pytest.raises(AttributeError):
        sub.channels = frozenset()  # type: ignore[misc]
    with pytest.raises(AttributeError):
        sub.chanels = 1  # type: ignore[attr-defined]  # codespell:ignore chanels


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1", True])
async def test_an_invalid_timeout_raises(timeout: Any) -> None:
    """Every call with a timeout rejects negative numbers, NaN and other types."""
    mpx = Multiplexer("redis://127.0.0.1:1", backoff=ConstantBackoff(1))
    sub = mpx.new_channel_subscription(print)
    promises = mpx.new_promise_subscription("p-")
    for wait in (mpx.connect, sub.wait_for_activation, promises.wait_for_activation):
        with pytest.raises((TypeError, ValueError), match="timeout"):
            await wait(timeout=timeout)
    with pytest.raises((TypeError, ValueError), match="timeout"):
        await promises.wait_for_new_promise("x", timeout)
    await mpx.aclose()


async def test_wait_for_activation_without_names_returns_at_once() -> None:
    """wait_for_activation() of an empty subscription returns at once, also while offline."""
    mpx = Multiplexer("redis://127.0.0.1:1", backoff=ConstantBackoff(1))
    await asyncio.wait_for(mpx.new_channel_subscription(print).wait_for_activation(), 1)
    await mpx.aclose()


class Callable2:
    def __call__(self, channel: bytes, message: bytes) -> None: ...

    def method(self, channel: bytes, message: bytes, more: object = None) -> None: ...

    async def one(self, message: bytes) -> None: ...


def injected(function: Any) -> Any:
    """A decorator that adds an argument."""

    @functools.wraps(function)
    def wrapper(channel: bytes, message: bytes) -> Any:
        return function("added", channel, message)

    return wrapper


@injected
def with_added_argument(added: str, channel: bytes, message: bytes) -> None: ...


def too_many(channel: bytes, message: bytes, more: object) -> None: ...


def keyword_only(channel: bytes, message: bytes, *, more: object) -> None: ...


@pytest.mark.parametrize(
    "on_message",
    [
        print,
        Callable2(),
        Callable2().method,
        with_added_argument,
        lambda *arguments: None,
        lambda channel, message, more=1: None,
        functools.partial(too_many, more=1),
        Mock(),
        dict,
        max,
    ],
)
def test_a_callback_that_takes_its_arguments_is_accepted(on_message: Any) -> None:
    """Whatever can be called with two arguments, or does not tell its parameters, is accepted."""
    Multiplexer().new_channel_subscription(on_message)


@pytest.mark.parametrize(
    ("option", "callback", "text"),
    [
        (
            "on_message",
            lambda message: None,
            r"called as on_message\(channel, message\), but its parameters are \(message\)",
        ),
        ("on_message", Callable2().one, r"on_message\(channel, message\)"),
        ("on_message", too_many, "missing a required argument: 'more'"),
        ("on_message", keyword_only, "missing a required"),
        ("on_message", [].append, "on_message"),
        ("on_disconnect", lambda: None, r"on_disconnect\(error\)"),
        ("on_activation", Callable2(), r"on_activation\(name\)"),
        ("on_error", lambda error, more: None, r"on_error\(error\)"),
        ("decode", lambda: None, r"decode\(payload\)"),
    ],
)
def test_a_callback_with_other_parameters_raises_at_once(option: str, callback: Any, text: str) -> None:
    """The error shows how the callback is called, and which parameters it has."""
    with pytest.raises(TypeError, match=text):
        Multiplexer().new_channel_subscription(**{"on_message": print, option: callback})
    with pytest.raises(TypeError, match=r"handler\(request\)"):
        Multiplexer().serve("a", lambda: b"")
    if option == "on_error":
        with pytest.raises(TypeError, match=text):
            Multiplexer(on_error=callback)


@pytest.mark.parametrize(
    ("headers", "error", "text"),
    [
        ([("name", "value")], TypeError, "headers must be a mapping of str to str, not list"),
        ("name: value", TypeError, "not str"),
        (0, TypeError, "not int"),
        ({b"name": "value"}, TypeError, "the names and values of headers must be str, not bytes"),
        ({"name": b"value"}, TypeError, "not bytes"),
        ({"name": None}, TypeError, "not NoneType"),
        ({"": "value"}, ValueError, "must not be empty"),
        ({"na:me": "value"}, ValueError, "a colon"),
        ({"name": "secret\nvalue"}, ValueError, "CR, LF or NUL"),
        ({str(number): "" for number in range(101)}, ValueError, "101 headers are more than the 100"),
        ({"name": "secret" * 11_000}, ValueError, "65536 are allowed"),
        ({"Mpx-Reply": "ok"}, ValueError, "are for replies"),
        ({"Mpx-Error": "secret"}, ValueError, "are for replies"),
    ],
)
async def test_invalid_headers_raise_at_the_call(headers: Any, error: type[Exception], text: str) -> None:
    """Headers are checked by the call itself, also offline, and the error says what is wrong."""
    async with Multiplexer("redis://127.0.0.1:1") as mpx:
        with pytest.raises(error, match=text) as caught:
            mpx.request_many("channel", b"", timeout=60, headers=headers)
        assert "secret" not in str(caught.value)
        async with asyncio.timeout(1):
            with pytest.raises(error, match=text):
                await mpx.request("channel", b"", timeout=60, headers=headers)
        assert mpx.stats().subscriptions == 0
