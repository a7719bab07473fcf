"""Topics of several processes: each of two multiplexers stands for a process of its own."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from redismpx import (
    ConnectionLost,
    DecodeError,
    Envelope,
    MultiplexerIsClosed,
    NoResponders,
    PromiseTimeout,
    RequestFailed,
    SubscriptionRefused,
    TooManyPatterns,
)
from redismpx import Multiplexer as Asyncio
from redismpx.blocking import Multiplexer as Blocking
from redismpx.topics import Topics

from ..helpers.acl import limited, set_limited_user
from ..helpers.backoffs import QUICK
from ..helpers.servers import Server
from ..helpers.waiting import until

pytestmark = [pytest.mark.usefixtures("no_leaks"), pytest.mark.one_flavour]

PREFIX = "app"


class Calls(list[Any]):
    """A subscriber that notes its calls."""

    def note(self, topic: tuple[str, ...], **message: Any) -> None:
        self.append((".".join(topic), *message.values()))


@pytest.fixture
async def here(server: Server) -> AsyncIterator[Topics]:
    async with Asyncio(server.url, backoff=QUICK) as mpx, Topics(mpx, prefix=PREFIX) as topics:
        yield topics


@pytest.fixture
async def there(server: Server) -> AsyncIterator[Topics]:
    async with Asyncio(server.url, backoff=QUICK) as mpx, Topics(mpx, prefix=PREFIX) as topics:
        yield topics


# --- messages


async def test_a_message_reaches_each_process_once(here: Topics, there: Topics) -> None:
    """A callback with overlapping subscriptions gets it once, in order, and so does the process that published it."""
    calls, own = Calls(), Calls()
    for topic in ("a.b", "a", "a.=", "+", "a.+.d", ""):
        here.subscribe(topic, calls.note)
    there.subscribe("", own.note)
    await here.wait_for_activation(10)
    await there.wait_for_activation(10)
    sent = ["a", "a.b", "a.b.c", "a.x.y.d", "b", "", "a.b"]
    for number, topic in enumerate(sent):
        assert there.publish(topic, number=number) == 1
    await until(lambda: len(calls) == len(sent))
    assert calls == own == [(topic, number) for number, topic in enumerate(sent)]
    here.publish("end")
    await until(lambda: len(own) == len(sent) + 1)
    assert calls[len(sent) :] == [("end",)]


async def test_a_process_asks_for_what_it_covers_only(here: Topics, admin: Redis) -> None:
    """A channel and a pattern for each topic, one for the broadcast; and nothing any more when they are closed."""

    async def names() -> tuple[set[Any], int]:
        return set(await admin.pubsub_channels()), await admin.pubsub_numpat()

    first = here.subscribe("a.b", print)
    again = here.subscribe("a.b", repr)
    wild = here.subscribe("a.=", print)
    await here.wait_for_activation(10)
    assert await names() == ({b"app:", b"app:a.b"}, 2)
    first.close()
    assert await names() == ({b"app:", b"app:a.b"}, 2)
    again.close()
    while await names() != ({b"app:"}, 1):
        await asyncio.sleep(0.002)
    wild.close()
    while await names() != (set(), 0):
        await asyncio.sleep(0.002)


async def test_what_a_pattern_has_too_much_is_not_delivered(here: Topics, there: Topics) -> None:
    """The pattern for one word also matches several."""
    calls = Calls()
    here.subscribe("a.=.c", calls.note)
    await here.wait_for_activation(10)
    for topic in ("a.x.y.c", "a.x.c", "a.x.c.d", "a.c"):
        there.publish(topic)
    await until(lambda: len(calls) == 2)
    assert calls == [("a.x.c",), ("a.x.c.d",)]


async def test_publish_locally_stays_here(here: Topics, there: Topics) -> None:
    """It takes values of any kind."""
    calls, own = Calls(), Calls()
    here.subscribe("", calls.note)
    there.subscribe("", own.note)
    await here.wait_for_activation(10)
    value = object()
    assert there.publish_locally("a", value=value) == 1
    there.publish("b")
    await until(lambda: bool(calls))
    assert (calls, own) == ([("b",)], [("a", value), ("b",)])


@pytest.mark.parametrize("value", [object(), float("nan"), {1, 2}, "\ud800"])
async def test_what_cannot_be_encoded_is_delivered_nowhere(here: Topics, value: object) -> None:
    """The error is raised by the call."""
    calls = Calls()
    here.subscribe("", calls.note)
    with pytest.raises((TypeError, ValueError)):
        here.publish("a", value=value)
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValueError, match=r"Circular|too deep"):
        here.publish("a", value=endless)
    assert not calls


async def test_encode_and_decode_can_be_replaced(server: Server) -> None:
    """They get the keywords of a message, and what arrived."""
    async with Asyncio(server.url) as one, Asyncio(server.url) as two:
        options: dict[str, Any] = {"encode": repr, "decode": lambda body: {"text": body.decode()}}
        async with Topics(one, **options) as here, Topics(two, **options) as there:
            calls = Calls()
            here.subscribe("a", calls.note)
            await here.wait_for_activation(10)
            there.publish("a", n=1)
            await until(lambda: bool(calls))
            assert calls == [("a", "{'n': 1}")]


HOSTILE = {
    "no envelope": b"hello",
    "an empty payload": b"",
    "a body that is no JSON": bytes(Envelope(b"{")),
    "a list": bytes(Envelope(b"[1]")),
    "a text": bytes(Envelope(b'"a"')),
    "deep JSON": bytes(Envelope(b'{"a":' * 200_000)),
    "a number with many digits": bytes(Envelope(b'{"a":' + b"1" * 5_000 + b"}")),
    "no number": bytes(Envelope(b'{"a":NaN}')),
    "bytes that are no text": bytes(Envelope(b'{"a":"\xff"}')),
}


@pytest.mark.parametrize("payload", HOSTILE.values(), ids=HOSTILE.keys())
async def test_what_is_no_message_is_counted(server: Server, admin: Redis, payload: bytes) -> None:
    """It is reported once, without the payload, and delivered to nobody; the next message is."""
    errors: list[Exception] = []
    async with Asyncio(server.url) as mpx, Topics(mpx, prefix=PREFIX, on_error=errors.append) as topics:
        calls = Calls()
        for topic in ("a", ""):
            topics.subscribe(topic, calls.note)
        await topics.wait_for_activation(10)
        await admin.publish("app:a", payload)
        await admin.publish("app:a", bytes(Envelope(b'{"n":1}')))
        await until(lambda: bool(calls))
        assert (calls, topics.undecodable) == ([("a", 1)], 1)
        assert [type(error) for error in errors] == [DecodeError]
        assert "app:a" in str(errors[0])


@pytest.mark.parametrize("name", [b"\xff", b"a..b", b"=", b"a b", b"x" * 300, b"a.+"])
async def test_foreign_topics_may_have_any_bytes(server: Server, admin: Redis, name: bytes) -> None:
    """What is no topic is delivered to nobody."""
    errors: list[Exception] = []
    async with Asyncio(server.url) as mpx, Topics(mpx, prefix=PREFIX, on_error=errors.append) as topics:
        calls = Calls()
        topics.subscribe("", calls.note)
        await topics.wait_for_activation(10)
        await admin.publish(b"app:" + name, bytes(Envelope(b'{"n":1}')))
        await admin.publish(b"app:ok", bytes(Envelope(b'{"n":1}')))
        await until(lambda: bool(calls))
        assert (calls, topics.undecodable, len(errors)) == ([("ok", 1)], 1, 1)


async def test_any_keywords_may_arrive(here: Topics, admin: Redis) -> None:
    """Very many, very long ones, and one that is called like the parameter for the topic."""
    calls: list[Any] = []

    def on_message(topic: tuple[str, ...], **message: Any) -> None:
        calls.append((topic, message))

    here.subscribe("a", on_message)
    await here.wait_for_activation(10)
    message = {"topic": 1, "": 2, "x" * 100_000: 3, "self": 4} | {str(number): number for number in range(10_000)}
    await admin.publish("app:a", bytes(Envelope(json.dumps(message).encode())))
    await until(lambda: bool(calls))
    del message["topic"]
    assert calls == [(("a",), message)]


# --- gaps


async def test_a_gap_is_told_once(server: Server, there: Topics, admin: Redis) -> None:
    """on_disconnect once for a lost connection, then on_activation for each subscription; then messages arrive."""
    events: list[Any] = []
    async with (
        Asyncio(server.url, backoff=QUICK) as mpx,
        Topics(
            mpx,
            prefix=PREFIX,
            on_disconnect=lambda error: events.append(type(error)),
            on_activation=lambda topic: events.append(topic),
        ) as topics,
    ):
        topics.subscribe("a", lambda topic, n: events.append(n))
        topics.subscribe("b.=", print)
        await until(lambda: len(events) == 2)
        topics.subscribe("a", repr)  # it is active already, and nothing is said
        there.publish("a", n=1)
        await until(lambda: len(events) == 3)
        await admin.client_kill_filter(_type="pubsub")
        await until(lambda: len(events) == 6)
        there.publish("a", n=2)
        await until(lambda: len(events) == 7)
        assert sorted(events[:2]) == [("a",), ("b", "=")]
        assert events[2:4] == [1, ConnectionLost]
        assert sorted(events[4:6]) == [("a",), ("b", "=")]
        assert events[6:] == [2]


async def test_an_active_filter_is_active_at_once(server: Server) -> None:
    """Another subscription that needs nothing new is told so, but not inside `subscribe()`."""
    events: list[Any] = []
    async with Asyncio(server.url) as mpx, Topics(mpx, on_activation=events.append) as topics:
        topics.subscribe("a.=", print)
        await until(lambda: len(events) == 1)
        topics.subscribe("a.+", print)
        assert len(events) == 1
        await until(lambda: len(events) == 2)
    assert events == [("a", "="), ("a", "+")]


async def test_a_stream_survives_a_gap(server: Server, admin: Redis) -> None:
    """With `stream`, what is published while the connection is lost arrives, too."""
    gaps: list[Exception] = []
    async with (
        Asyncio(server.admin_url, backoff=QUICK) as one,
        Asyncio(server.admin_url, backoff=QUICK) as two,
        Topics(one, stream=True, on_gap=gaps.append) as here,
        Topics(two, stream=True) as there,
    ):
        calls = Calls()
        here.subscribe("a", calls.note)
        await here.wait_for_activation(10)
        for number in range(300):
            there.publish("a.b" if number % 2 else "a", n=number)
            here.publish("c", n=number)
            if number % 100 == 50:
                await there.flush()
                await admin.client_kill_filter(_type="pubsub")
        await until(lambda: len(calls) == 300)
        assert [number for _, number in calls] == list(range(300))
        await admin.delete("topics:")
        await admin.client_kill_filter(_type="pubsub")
        await until(lambda: bool(gaps))


async def test_a_refused_topic_is_told(server: Server, admin: Redis) -> None:
    """on_error gets it, and it ends a wait."""
    errors: list[Exception] = []
    await set_limited_user(admin, "&app:")
    async with limited(server) as mpx, Topics(mpx, prefix=PREFIX, on_error=errors.append) as topics:
        topics.subscribe("a", print)
        with pytest.raises(SubscriptionRefused):
            await topics.wait_for_activation(10)
        await until(lambda: bool(errors))
        assert all(isinstance(error, SubscriptionRefused) for error in errors)


async def test_a_limit_leaves_nothing_behind(server: Server) -> None:
    """A subscription that a limit forbids is not there, and another one can take its place."""
    async with Asyncio(server.url, max_patterns=2) as mpx, Topics(mpx) as topics:
        topics.subscribe("a", print)
        for _ in range(2):
            with pytest.raises(TooManyPatterns):
                topics.subscribe("=.b", print)  # needs two
        assert topics.publish_locally("x.b") == 0
        topics.subscribe("c", print)
        assert topics.publish_locally("c") == 1


# --- sending


async def test_flush_waits_for_redis(here: Topics, server: Server) -> None:
    """Every message published before it is on the server, in order, those of other threads included."""
    async with Redis.from_url(server.url).pubsub() as reader:
        await reader.psubscribe("app:*")
        await reader.get_message(timeout=10)
        here.publish("a", n=0)
        thread = threading.Thread(target=lambda: [here.publish("a", n=number) for number in range(1, 100)])
        thread.start()
        thread.join()
        await here.flush()
        for number in range(100):
            message = await reader.get_message(ignore_subscribe_messages=True, timeout=0)
            assert message is not None
            assert json.loads(Envelope.from_bytes(message["data"]).body) == {"n": number}
        await reader.connection_pool.aclose()


async def test_a_message_that_is_not_sent_is_told(server: Server) -> None:
    """on_error gets the error with a note, flush() raises it, and local subscribers got the message all the same."""
    errors: list[Exception] = []
    calls = Calls()
    mpx = Asyncio(server.url, backoff=QUICK, publish_timeout=0.1)
    async with mpx, Topics(mpx, prefix=PREFIX, on_error=errors.append, max_pending=3) as topics:
        topics.subscribe("a", calls.note)
        server.kill()
        for number in range(3):
            topics.publish("a", n=number)
        with pytest.raises(Exception, match="max_pending=3 messages have not reached Redis"):
            topics.publish("a", n=3)
        with pytest.raises(ConnectionLost):
            await topics.flush()
        assert len(calls) == len(errors) == 3
        assert errors[0].__notes__ == ["a message on b'app:a' did not reach the other processes"]


async def test_a_closed_multiplexer_is_told(server: Server) -> None:
    """publish() and subscribe() raise, and nothing is delivered."""
    calls = Calls()
    mpx = Asyncio(server.url)
    topics = Topics(mpx)
    topics.subscribe("a", calls.note)
    await mpx.aclose()
    with pytest.raises(MultiplexerIsClosed):
        topics.publish("a")
    with pytest.raises(MultiplexerIsClosed):
        topics.subscribe("b", calls.note)
    topics.close()
    assert not calls


def test_a_loop_is_needed_to_publish(server: Server) -> None:
    """Subscriptions may be made before the loop; a message needs it."""
    mpx = Asyncio(server.url)
    topics = Topics(mpx)
    calls = Calls()
    topics.subscribe("a", calls.note)
    with pytest.raises(RuntimeError, match="no running event loop"):
        topics.publish("a")
    assert not calls

    async def main() -> None:
        async with mpx, topics, Asyncio(server.url) as other, Topics(other) as there:
            await topics.wait_for_activation(10)
            there.publish("a", n=1)
            await until(lambda: bool(calls))

    asyncio.run(main())


def test_topics_open_again(server: Server) -> None:
    """In another loop, too, and without the subscriptions of before."""
    mpx = Asyncio(server.url)
    topics = Topics(mpx)

    async def main() -> None:
        calls = Calls()
        async with mpx, topics, Asyncio(server.url) as other, Topics(other) as there:
            topics.subscribe("a", calls.note)
            await topics.wait_for_activation(10)
            there.publish("a", n=1)
            await until(lambda: bool(calls))
        with pytest.raises(RuntimeError, match="closed"):
            topics.subscribe("a", calls.note)
        assert topics.publish_locally("a") == 0

    for _ in range(2):
        asyncio.run(main())


async def test_each_kind_of_multiplexer_has_its_topics(server: Server) -> None:
    """The error names the right class."""
    mpx = Blocking(server.url)
    with pytest.raises(TypeError, match=r"redismpx\.blocking\.Topics"):
        Topics(mpx)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"must be a redismpx\.Multiplexer"):
        Topics(server.url)  # type: ignore[arg-type]
    mpx.close()


# --- requests


async def test_a_request_is_answered_by_another_process(here: Topics, there: Topics) -> None:
    """By a plain function or a coroutine function, on the topic and below it; subscribers get no requests."""
    calls = Calls()
    there.subscribe("", calls.note)

    async def slow(topic: tuple[str, ...], x: int) -> list[Any]:
        await asyncio.sleep(0)
        return [*topic, x]

    there.serve("add", lambda topic, x, y=1: x + y)
    service = there.serve("slow", slow, concurrency=2)
    await there.wait_for_activation(10)
    assert await here.request("add", timeout=10, x=1, y=2) == 3
    assert await here.request("add.more", timeout=10, x=1, z=5) == 2
    assert await asyncio.gather(*[here.request("slow.a", timeout=10, x=n) for n in range(5)]) == [
        ["slow", "a", n] for n in range(5)
    ]
    service.close()
    with pytest.raises((NoResponders, PromiseTimeout)):
        await here.request("slow", timeout=0.2, x=1)
    assert not calls


async def test_errors_of_a_handler_reach_the_requester(here: Topics, there: Topics) -> None:
    """Their type and text, whether the handler is in this process or in another one."""

    def fail(topic: object) -> None:
        raise KeyError("no such order")

    there.serve("fail", fail)
    await there.wait_for_activation(10)
    for topics in (here, there):
        with pytest.raises(RequestFailed, match="KeyError: 'no such order'"):
            await topics.request("fail", timeout=10)


async def test_errors_of_a_handler_reach_on_error(here: Topics, server: Server) -> None:
    """That of the topics; without one, that of the multiplexer."""
    own: list[Exception] = []
    others: list[Exception] = []

    def fail(topic: object) -> None:
        raise KeyError("no such order")

    async with (
        Asyncio(server.url, backoff=QUICK, on_error=others.append) as mpx,
        Topics(mpx, prefix=PREFIX, on_error=own.append) as there,
        Topics(mpx, prefix=PREFIX) as silent,
    ):
        there.serve("own", fail)
        silent.serve("others", fail)
        await there.wait_for_activation(10)
        await silent.wait_for_activation(10)
        for topic in ("own", "others"):
            with pytest.raises(RequestFailed):
                await here.request(topic, timeout=10)
        await until(lambda: own and others)
    assert [*map(type, own), *map(type, others)] == [KeyError, KeyError]


async def test_a_request_of_foreign_bytes_fails_alone(there: Topics, server: Server) -> None:
    """What is no message of a topic gets an error as its reply."""
    there.serve("a", lambda topic: 1)
    await there.wait_for_activation(10)
    async with Asyncio(server.url) as mpx:
        for body in (b"[]", b"{", b'{"a":' * 200_000):
            with pytest.raises(RequestFailed):
                await mpx.request("app!a", body, timeout=10)
        assert await mpx.request("app!a", b"{}", timeout=10) == b"1"
