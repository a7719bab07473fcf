"""Requests and replies with decode and encode: typed on both sides, and no failure repeats the data."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass

import pytest

from redismpx import DecodeError, Multiplexer, Request, RequestFailed
from redismpx.request import Handler

from ..helpers.waiting import until

pytestmark = [pytest.mark.one_flavour, pytest.mark.usefixtures("no_leaks")]


@dataclass(frozen=True)
class Order:
    item: str
    count: int

    @classmethod
    def parse(cls, data: bytes) -> Order:
        return cls(**json.loads(data))


@dataclass(frozen=True)
class Quote:
    cents: int

    @classmethod
    def parse(cls, data: bytes) -> Quote:
        return cls(**json.loads(data))


def dump(value: Order | Quote) -> str:
    return json.dumps(asdict(value))


def quote_now(request: Request[Order]) -> Quote:
    return Quote(250 * request.body.count)


async def quote_later(request: Request[Order]) -> Quote:
    return quote_now(request)


@pytest.fixture
async def mpx(url: str) -> AsyncIterator[Multiplexer]:
    async with Multiplexer(url) as mpx:
        yield mpx


@pytest.mark.parametrize("handler", [quote_now, quote_later])
async def test_requests_and_replies_are_typed_both_ways(mpx: Multiplexer, handler: Handler[Order]) -> None:
    """The handler gets a Request whose body is decoded; the requester sends and gets objects."""
    seen: list[Request[Order]] = []

    def note(request: Request[Order]) -> object:
        seen.append(request)
        return handler(request)

    service = mpx.serve("quote", note, decode=Order.parse, encode=dump)  # type: ignore[arg-type]
    await service.wait_for_activation(timeout=10)
    order = Order("tea", 3)
    assert await mpx.request("quote", order, timeout=10, encode=dump, decode=Quote.parse) == Quote(750)
    assert await mpx.request("quote", order, timeout=10, encode=dump, headers={"A": "b"}) == b'{"cents": 750}'
    many = mpx.request_many("quote", order, timeout=10, limit=1, encode=dump, decode=Quote.parse)
    assert [quote async for quote in many] == [Quote(750)]
    assert [request.body for request in seen] == [order] * 3
    assert (seen[1].channel, seen[1].headers) == (b"quote", {"A": "b"})
    assert repr(seen[0]).endswith(" on b'quote', Order>")


async def test_each_result_is_encoded(mpx: Multiplexer) -> None:
    """With encode, a result of None is encoded too; what is no payload then is an error of the service."""
    service = mpx.serve("echo", lambda request: request.body, decode=json.loads, encode=json.dumps)
    wrong = mpx.serve("wrong", lambda request: request.body, encode=len)  # type: ignore[arg-type]
    for each in service, wrong:
        await each.wait_for_activation(timeout=10)
    for value in (None, [1, "a"], ""):
        assert await mpx.request("echo", value, timeout=10, encode=json.dumps, decode=json.loads) == value
    with pytest.raises(RequestFailed, match="TypeError: data must be bytes"):
        await mpx.request("wrong", b"abc", timeout=10)
    plain = mpx.serve("plain", lambda request: Quote(1))  # type: ignore[arg-type,return-value]
    await plain.wait_for_activation(timeout=10)
    with pytest.raises(RequestFailed, match="not Quote; encode= converts"):
        await mpx.request("plain", b"", timeout=10)


async def test_an_undecodable_request_fails_without_its_data(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """The handler is not called; the requester is told at once, and nothing but on_error gets the data."""
    called: list[object] = []
    errors: list[Exception] = []
    async with Multiplexer(url, on_error=errors.append) as mpx:
        service = mpx.serve("quote", called.append, decode=Order.parse, encode=dump)
        await service.wait_for_activation(timeout=10)
        for number, body in enumerate((b'{"secret": 1}', b"secret", b"\xff secret"), 1):
            with pytest.raises(RequestFailed) as caught:
                await mpx.request("quote", body, timeout=10)
            await until(lambda: len(errors) == number)  # noqa: B023, awaited here
            kind = type(errors[-1].__cause__).__name__
            assert caught.value.reason == (
                f"DecodeError: a payload of {len(body)} bytes on b'quote' cannot be decoded ({kind})"
            )
            assert isinstance(errors[-1], DecodeError)
            assert errors[-1].data == body
    assert (called, len(errors), service.dropped) == ([], 3, 0)
    assert "cannot be decoded" in caplog.text
    assert "secret" not in caplog.text


class InvalidOrder(ValueError):
    """As libraries that validate data raise it: the lines after the first repeat the data."""


async def test_only_the_first_line_of_a_failure_is_sent(mpx: Multiplexer) -> None:
    """A text of many lines reaches the requester as its first line."""

    def validate(request: Request) -> bytes:
        raise InvalidOrder("1 validation error for Order\ncount\n  Field required [input_value='secret']")

    service = mpx.serve("quote", validate)
    await service.wait_for_activation(timeout=10)
    with pytest.raises(RequestFailed) as caught:
        await mpx.request("quote", b"secret", timeout=10)
    assert caught.value.reason == "InvalidOrder: 1 validation error for Order"


async def test_an_undecodable_reply_is_the_requesters_error(mpx: Multiplexer, url: str) -> None:
    """`request()` raises DecodeError with the cause; `request_many()` does so after all other replies."""
    async with Multiplexer(url) as other:
        for each, reply in (mpx, b"no JSON"), (other, b"[]"):
            service = each.serve("what", lambda request, reply=reply: reply)
            await service.wait_for_activation(timeout=10)
        got: list[object] = []
        with pytest.raises(DecodeError) as caught:
            async for value in mpx.request_many("what", b"", timeout=10, limit=2, decode=json.loads):
                got.append(value)  # noqa: PERF401, those before the error count
        assert got == [[]]
        assert (caught.value.channel, caught.value.data) == (b"what", b"no JSON")
        assert isinstance(caught.value.__cause__, json.JSONDecodeError)
    with pytest.raises(DecodeError):
        await mpx.request("what", b"", timeout=10, decode=json.loads)


async def test_a_codec_that_fails_is_found_at_the_call(mpx: Multiplexer, caplog: pytest.LogCaptureFixture) -> None:
    """An exception of encode reaches the caller, and nothing is sent; a codec that cannot be called is a TypeError."""
    caplog.set_level(logging.DEBUG, "redismpx")
    seen: list[object] = []
    service = mpx.serve("seen", seen.append)
    await service.wait_for_activation(timeout=10)
    with pytest.raises(TypeError, match="not JSON serializable"):
        await mpx.request("seen", {1, 2}, timeout=10, encode=json.dumps)
    for codec in ("encode", "decode"):
        with pytest.raises(TypeError, match=f"{codec} is called as"):
            await mpx.request("seen", b"", timeout=10, **{codec: lambda: b""})
        with pytest.raises(TypeError, match=f"{codec} must be callable"):
            mpx.serve("seen", print, **{codec: "json"})
    await mpx.request("seen", b"", timeout=10)
    await until(lambda: len(seen) == 1)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
