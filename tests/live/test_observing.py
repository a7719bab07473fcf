"""Observers: told of what happens, in order; they cost nothing where they are not asked for, and can do no harm."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest
from redis.asyncio import Redis

import redismpx.blocking
from redismpx import Envelope, MessageGap, Multiplexer, Request, SubscriptionRefused
from redismpx._core.registry import Registry
from redismpx._io.delivery.inbox import Inbox
from redismpx.observing import (
    Connected,
    ConnectFailed,
    Dropped,
    Fact,
    Handled,
    Handling,
    Lost,
    MessageObserver,
    Missed,
    Observer,
    Operation,
    Published,
    Publishing,
    Refused,
    Subscribed,
)
from redismpx.testing import Proxy
from redismpx.topics import Topics

from ..helpers.backoffs import QUICK
from ..helpers.servers import Server
from ..helpers.waiting import until

pytestmark = pytest.mark.usefixtures("no_leaks")

CURRENT: ContextVar[str] = ContextVar("current", default="outside")


class Notes(Observer):
    """Notes each fact."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []

    def observe(self, fact: Fact, /) -> None:
        self.facts.append(fact)

    def of(self, *kinds: type[Any]) -> list[Any]:
        return [fact for fact in self.facts if isinstance(fact, kinds)]


class Step(Operation):
    """Sets a context variable while the callback runs, and adds a header."""

    def __init__(self, fact: Publishing | Handling, steps: list[str]) -> None:
        self.name = fact.channel.decode()
        self.steps = steps
        self.headers = {"Trace": "t1"}

    def enter(self) -> None:
        self.steps.append("enter")
        self.token = CURRENT.set(self.name)

    def leave(self) -> None:
        CURRENT.reset(self.token)
        self.steps.append("leave")

    def end(self, fact: Published | Handled) -> None:
        self.steps.append("end")


class MessageNotes(Notes, MessageObserver):
    """Notes each fact of messages, too."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[str] = []

    def begin(self, fact: Publishing | Handling, /) -> Operation:
        return Step(fact, self.steps)


async def kill(admin: Redis) -> None:
    await admin.client_kill_filter(_type="pubsub")


# --- facts


async def test_facts_come_in_order_through_a_cut(server: Server, admin: Redis) -> None:
    """Connected, subscribed, lost with what was interrupted, connected after an outage, subscribed again."""
    notes = Notes()
    async with Multiplexer(server.url, backoff=QUICK, observers=[notes]) as mpx:
        sub = mpx.new_channel_subscription(lambda channel, data: None)
        sub.add("a", "b")
        await sub.wait_for_activation(timeout=5)
        await kill(admin)
        await until(lambda: mpx.stats().reconnects == 1)
        await sub.wait_for_activation(timeout=5)
        assert (mpx.stats().gaps, mpx.stats().connections) == (1, 2)
    first, one, two, lost, again, three, four = notes.facts
    assert isinstance(first, Connected)
    assert first.outage is None
    assert {one, two} == {three, four} == {Subscribed("channel", b"a"), Subscribed("channel", b"b")}
    assert isinstance(lost, Lost)
    assert (lost.server, lost.subscriptions, lost.names) == (first.server, 1, 2)
    assert isinstance(again, Connected)
    assert again.outage is not None
    assert 0 <= again.outage < 5


async def test_each_failed_attempt_to_connect_is_told(service: Proxy) -> None:
    """While there is no server, each attempt is a fact; a connection that was never there has no outage."""
    notes = Notes()
    service.stop_listening()
    async with Multiplexer(service.url, backoff=QUICK, observers=[notes]) as mpx:
        mpx.new_channel_subscription(lambda channel, data: None).add("a")
        await until(lambda: len(notes.facts) >= 3)
        assert not notes.of(Connected, Lost)
        service.listen_again()
        await until(lambda: notes.of(Subscribed))
        (connected,) = notes.of(Connected)
        assert connected.outage is None
        assert mpx.stats().reconnects == 0
    assert {type(fact) for fact in notes.facts} == {ConnectFailed, Connected, Subscribed}


async def test_a_lost_connection_without_names_is_told(server: Server, admin: Redis) -> None:
    """It is no outage for the log, but a fact."""
    notes = Notes()
    async with Multiplexer(server.url, backoff=QUICK, observers=[notes]) as mpx:
        await mpx.connect(timeout=5)
        await admin.client_kill_filter(_type="normal", skipme=True)
        await until(lambda: mpx.stats().reconnects == 1)
    assert [type(fact) for fact in notes.facts] == [Connected, Lost, Connected]
    assert notes.of(Lost)[0].names == 0


async def test_a_rejected_name_is_told(server: Server, admin: Redis) -> None:
    """With its kind, its name and the words of the server."""
    await admin.execute_command("ACL", "SETUSER", "timid", "on", ">pw", "+@all", "&allowed")
    notes = Notes()
    async with Multiplexer(server.admin_url, username="timid", password="pw", observers=[notes]) as mpx:
        sub = mpx.new_channel_subscription(on_error=lambda error: None)
        sub.add("allowed", "forbidden")
        with pytest.raises(SubscriptionRefused):
            await sub.wait_for_activation("forbidden", timeout=5)
        await sub.wait_for_activation("allowed", timeout=5)
    (refused,) = notes.of(Refused)
    assert (refused.kind, refused.name) == ("channel", b"forbidden")
    assert "NOPERM" in refused.reason


async def test_dropped_messages_are_told_and_add_up(url: str) -> None:
    """The counts of all facts together are the counter of the statistics."""
    notes = Notes()
    async with Multiplexer(url, observers=[notes], max_pending=10) as mpx:
        async with mpx.subscribe("a") as sub:
            for number in range(50):
                await mpx.publish("a", b"%d" % number)
            await until(lambda: mpx.stats().messages == 50)
            assert sub.dropped == 40
        undecodable = mpx.new_channel_subscription(lambda channel, data: None, decode=int)
        undecodable.add("b")
        await undecodable.wait_for_activation(timeout=5)
        await mpx.publish("b", "no number")
        await until(lambda: mpx.stats().dropped == 51)
        assert sum(fact.count for fact in notes.of(Dropped)) == 51
    assert {fact.subscription for fact in notes.of(Dropped)} == {"a channel subscription"}


async def test_a_gap_of_a_stream_is_told_and_counted(server: Server, admin: Redis) -> None:
    """With the ids around it; a stream subscription that misses nothing has none."""
    notes, gaps = Notes(), list[MessageGap]()
    async with Multiplexer(server.admin_url, backoff=QUICK, observers=[notes], tail_interval=None) as mpx:
        first = await mpx.append("s", "1")
        await mpx.append("s", "2")
        third = await mpx.append("s", "3")
        await admin.xtrim("s", maxlen=1, approximate=False)
        sub = mpx.new_stream_subscription(lambda message: None, gaps.append)
        sub.add("s", after=first)
        await until(lambda: gaps != [])
        assert mpx.stats().stream_gaps == 1
    assert notes.of(Missed) == [Missed(b"s", first, third, "trimmed")]
    assert not notes.of(Dropped)


# --- messages


@pytest.mark.parametrize("kind", ["plain", "coroutine function", "awaitable", "pattern", "stream", "decoded"])
async def test_a_callback_runs_inside_its_operation(url: str, kind: str) -> None:
    """The operation is entered in the context of the callback, left again, and ended once, with the outcome."""
    notes, inside = MessageNotes(), list[str]()

    def note(*_: object) -> None:
        inside.append(CURRENT.get())

    async def note_later(*_: object) -> None:
        await asyncio.sleep(0)
        inside.append(CURRENT.get())

    callback: Any = {"coroutine function": note_later, "awaitable": lambda *args: note_later(*args)}.get(kind, note)
    async with Multiplexer(url, observers=[notes]) as mpx:
        sub: Any
        if kind == "pattern":
            sub = mpx.new_pattern_subscription("observed:*", callback)
        elif kind == "stream":
            sub = mpx.new_stream_subscription(callback)
        else:
            sub = mpx.new_channel_subscription(callback, decode=bytes.decode if kind == "decoded" else None)
        if kind != "pattern":
            sub.add("observed:1")
        await sub.wait_for_activation(timeout=5)
        for _ in range(3):
            await (mpx.append if kind == "stream" else mpx.publish)("observed:1", "x")
        await until(lambda: len(notes.of(Handled)) == 3)
    assert inside == ["observed:1"] * 3
    assert CURRENT.get() == "outside"
    assert Counter(notes.steps)["enter"] == Counter(notes.steps)["leave"]
    assert Counter(notes.steps)["end"] == 6
    for fact in notes.of(Handled):
        assert (fact.handling.channel, fact.handling.headers, fact.error) == (b"observed:1", None, None)
        assert fact.seconds >= 0
    names = {fact.publishing.name for fact in notes.of(Published)}
    assert names == {"append" if kind == "stream" else "publish"}


async def test_a_failing_callback_is_told_with_its_error(url: str) -> None:
    """The error goes on to on_error; an operation that was entered is left."""
    notes, errors = MessageNotes(), list[Exception]()

    async def fail(channel: bytes, data: bytes) -> None:
        await asyncio.sleep(0)
        raise KeyError(data)

    def fail_at_once(channel: bytes, data: bytes) -> None:
        raise KeyError(data)

    async with Multiplexer(url, observers=[notes], on_error=errors.append) as mpx:
        for callback in (fail, fail_at_once):
            sub = mpx.new_channel_subscription(callback)
            sub.add("a")
            await sub.wait_for_activation(timeout=5)
        await mpx.publish("a", "x")
        await until(lambda: len(errors) == 2)
        await until(lambda: len(notes.of(Handled)) == 2)
    assert [type(fact.error) for fact in notes.of(Handled)] == [KeyError, KeyError]
    assert Counter(notes.steps)["enter"] == Counter(notes.steps)["leave"]


async def test_headers_of_operations_travel_in_envelopes(url: str) -> None:
    """With publish(headers=), an envelope and a request, but not in a payload that has no place for them."""
    notes, requests = MessageNotes(), list[Request]()

    async def handle(request: Request) -> bytes:
        await asyncio.sleep(0)
        requests.append(request)
        return CURRENT.get().encode()

    async with Multiplexer(url, observers=[notes]) as mpx, mpx.subscribe("a", decode=Envelope.from_bytes) as sub:
        await mpx.publish("a", "x", headers={"Own": "1"})
        await mpx.publish("a", Envelope(b"y"))
        assert [(m.data.body, dict(m.data.headers)) for m in [await sub.get(5), await sub.get(5)]] == [
            (b"x", {"Own": "1", "Trace": "t1"}),
            (b"y", {"Trace": "t1"}),
        ]
        async with mpx.serve("service", handle):
            assert await mpx.request("service", b"z", timeout=5) == b"service"
            assert dict(requests[0].headers) == {"Trace": "t1"}
        (handled,) = notes.of(Handled)
        assert (handled.handling.headers, handled.handling.id) == (requests[0].headers, requests[0].id)
        await mpx.publish("a", "plain")
        with pytest.raises(TimeoutError):
            await sub.get(0.05)  # it is no envelope: on_error got it
    assert [fact.publishing.name for fact in notes.of(Published)] == ["publish", "publish", "request", "publish"]


async def test_headers_that_do_not_fit_are_left_out(url: str) -> None:
    """What an observer adds never makes a message too long that is not too long without it."""
    envelope = Envelope(b"x")
    length = len(bytes(envelope))
    async with (
        Multiplexer(url, observers=[MessageNotes()], max_payload=length + 5) as mpx,
        mpx.subscribe("a", decode=Envelope.from_bytes) as sub,
    ):
        await mpx.publish("a", envelope)
        assert (await sub.get(5)).data == envelope


async def test_publish_with_headers_needs_no_observer(url: str) -> None:
    """A subscription that decodes gets an envelope, and one that does not gets its wire form."""
    async with Multiplexer(url) as mpx, mpx.subscribe("a") as raw:
        async with mpx.subscribe("a", decode=Envelope.from_bytes) as decoded:
            await mpx.publish("a", "x", headers={"Name": "value"})
            envelope = (await decoded.get(5)).data
            assert (envelope.body, dict(envelope.headers)) == (b"x", {"Name": "value"})
            assert (await raw.get(5)).data == bytes(envelope)
        with pytest.raises(ValueError, match="colon"):
            await mpx.publish("a", "x", headers={"a:b": "c"})


async def test_a_failed_publish_is_told_with_its_error(url: str) -> None:
    """Also when it cannot be converted, or the multiplexer is closed."""
    notes = MessageNotes()
    async with Multiplexer(url, observers=[notes], max_payload=10) as mpx:
        with pytest.raises(ValueError, match="max_payload"):
            await mpx.publish("a", "x" * 11)
        task = asyncio.create_task(mpx.publish("a", "x"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    with pytest.raises(redismpx.MultiplexerIsClosed):
        await mpx.publish("a", "x")
    errors = [type(fact.error) for fact in notes.of(Published)]
    assert errors == [ValueError, asyncio.CancelledError, redismpx.MultiplexerIsClosed]


def test_blocking_observers_follow_messages_across_threads(url: str) -> None:
    """A message belongs to the context of the thread that publishes it, and its callback runs inside its operation."""
    notes, inside, outside = MessageNotes(), list[str](), list[str]()

    class Seen(MessageNotes):
        def begin(self, fact: Publishing | Handling, /) -> Operation:
            outside.append(CURRENT.get())
            return super().begin(fact)

    with redismpx.blocking.Multiplexer(url, observers=[notes, Seen()]) as mpx:
        sub = mpx.new_channel_subscription(lambda channel, data: inside.append(CURRENT.get()))
        sub.add("a")
        sub.wait_for_activation(timeout=5)
        token = CURRENT.set("caller")
        mpx.publish("a", "x", headers={})
        mpx.publish_soon("a", "y", headers={})
        mpx.append("s", "z")
        CURRENT.reset(token)
        give_up = time.monotonic() + 5
        while len(notes.of(Handled)) < 2 and time.monotonic() < give_up:
            time.sleep(0.01)
    assert inside == ["a", "a"]
    assert sorted(outside) == ["caller"] * 3 + ["outside"] * 2
    assert {fact.handling.headers["Trace"] for fact in notes.of(Handled)} == {"t1"}


@pytest.mark.parametrize("stream", [False, True])
async def test_subscribers_of_topics_run_in_operations(server: Server, stream: bool) -> None:
    """Each subscriber of another process has one operation for a message, whatever names it came by."""
    notes, inside = MessageNotes(), list[Any]()

    def note(topic: object, **message: object) -> None:
        inside.append((CURRENT.get(), topic, message))

    async def note_later(topic: object, **message: object) -> None:
        await asyncio.sleep(0)
        inside.append((CURRENT.get(), topic, message))

    def fail(topic: object) -> None:
        raise KeyError(topic)

    async with (
        Multiplexer(server.admin_url, observers=[notes]) as mpx,
        Multiplexer(server.admin_url, observers=[MessageNotes()]) as other,
        Topics(mpx, stream=stream, on_error=lambda error: None) as topics,
        Topics(other, stream=stream) as publisher,
    ):
        topics.subscribe("a", note)
        topics.subscribe("a.b", note_later)
        topics.subscribe("", fail)
        await topics.wait_for_activation(timeout=10)
        for number in range(2):
            publisher.publish("a.b", n=number)
        topics.publish("a.b", n=9)  # in this process: no message is handled for another one
        await until(lambda: len(inside) == 6 and len(notes.of(Handled)) == 6)
        assert not mpx.stats().dropped
    followed = [("topics:a.b", ("a", "b"), {"n": number}) for number in (0, 0, 1, 1)]
    assert sorted([entry for entry in inside if entry[2] != {"n": 9}], key=str) == followed
    assert sorted(type(fact.error).__name__ for fact in notes.of(Handled)) == ["KeyError"] * 2 + ["NoneType"] * 4
    assert {fact.handling.headers["Trace"] for fact in notes.of(Handled)} == {"t1"}


# --- what they cannot do


def test_without_observers_nothing_is_in_the_way(url: str) -> None:
    """The classes and functions on the way of a message are those of a multiplexer that knows no observers."""

    def on_message(channel: bytes, data: bytes) -> None: ...

    async def look() -> None:
        async with Multiplexer(url) as mpx:
            hub = mpx._hub
            assert type(hub.deployment.main.registry) is Registry
            assert hub.publish == hub.deployment.publisher.publish
            sub = mpx.new_channel_subscription(on_message)
            assert type(sub._inbox) is Inbox
            assert sub._inbox.deliver is on_message
        async with Multiplexer(url, observers=[Notes()]) as mpx:
            assert mpx._hub.publish == mpx._hub.deployment.publisher.publish
            assert mpx.new_channel_subscription(on_message)._inbox.deliver is on_message

    asyncio.run(look())


class Hostile(MessageObserver):
    """Does harm in each call."""

    def __init__(self, harm: Callable[[], Any]) -> None:
        self.harm = harm

    def observe(self, fact: Fact, /) -> None:
        self.harm()

    def begin(self, fact: Publishing | Handling, /) -> Operation | None:
        self.harm()
        return HostileOperation(self.harm)


class HostileOperation(Operation):
    def __init__(self, harm: Callable[[], Any]) -> None:
        self.harm = harm

    @property
    def headers(self) -> Any:  # type: ignore[override]
        return self.harm()

    def enter(self) -> None:
        self.harm()

    def leave(self) -> None:
        self.harm()

    def end(self, fact: Published | Handled) -> None:
        self.harm()


def raise_error() -> None:
    raise RuntimeError("hostile")


def raise_cancelled() -> None:
    raise asyncio.CancelledError


def block() -> None:
    time.sleep(0.01)


def return_rubbish() -> Any:
    return {"a\r\n": object()}


@pytest.mark.parametrize("harm", [raise_error, raise_cancelled, block, return_rubbish])
async def test_a_hostile_observer_changes_nothing(server: Server, admin: Redis, harm: Callable[[], Any]) -> None:
    """It raises, blocks or returns rubbish: messages arrive, in order, and the connection comes back after a cut."""
    got: list[bytes] = []
    notes = MessageNotes()
    async with Multiplexer(server.url, backoff=QUICK, observers=[Hostile(harm), notes]) as mpx:
        sub = mpx.new_channel_subscription(lambda channel, data: got.append(data))
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        await mpx.publish("a", "1", headers={})
        await until(lambda: len(got) == 1)
        await kill(admin)
        await until(lambda: mpx.stats().reconnects == 1)
        await sub.wait_for_activation(timeout=5)
        await mpx.publish("a", "2")
        await until(lambda: len(got) == 2)
    assert Envelope.from_bytes(got[0]).headers == {"Trace": "t1"}
    assert got[1] == b"2"
    assert len(notes.of(Handled)) == 2


@pytest.mark.parametrize("kind", [Connected, Lost, Subscribed, Dropped, Handled, Published, ConnectFailed])
async def test_an_observer_may_close_the_multiplexer(server: Server, admin: Redis, kind: type[Any]) -> None:
    """At any fact: it ends cleanly, and no further callback is called."""
    got: list[bytes] = []
    after: list[bytes] = []

    class Closing(MessageNotes):
        def observe(self, fact: Fact, /) -> None:
            super().observe(fact)
            if isinstance(fact, kind):
                mpx.close()

    notes = Closing()
    mpx = Multiplexer(server.url, backoff=QUICK, observers=[notes], max_pending=1)
    if kind is ConnectFailed:
        mpx = Multiplexer("redis://127.0.0.1:1", backoff=QUICK, observers=[notes])
    sub = mpx.new_channel_subscription(
        lambda channel, data: (after if mpx.stats().state == "closed" else got).append(data)
    )
    sub.add("a")
    read = mpx.new_channel_subscription()
    read.add("a")
    for step in (
        lambda: admin.publish("a", "1"),
        lambda: admin.publish("a", "2"),
        lambda: mpx.publish("a", "3"),
        lambda: kill(admin),
    ):
        if mpx.stats().state != "closed":
            try:
                await sub.wait_for_activation(timeout=1)
            except (TimeoutError, redismpx.SubscriptionIsClosed):
                break
            await step()
    await until(lambda: mpx.stats().state == "closed")
    assert notes.of(kind)
    await mpx.aclose()
    assert after == []


async def test_no_fact_is_told_in_the_middle_of_a_change(server: Server, admin: Redis) -> None:
    """What an observer calls takes effect at once, and finds everything consistent."""
    are_open: list[bool] = []

    class Looking(Notes):
        def observe(self, fact: Fact, /) -> None:
            super().observe(fact)
            are_open.append(mpx._hub.budget.critical.is_open)

    notes = Looking()
    async with Multiplexer(server.url, backoff=QUICK, observers=[notes], max_pending=1) as mpx:
        async with mpx.subscribe("a") as sub:
            for _ in range(3):
                await mpx.publish("a", "x")
            await until(lambda: sub.dropped == 2)
            await kill(admin)
            await until(lambda: mpx.stats().reconnects == 1)
            await sub.wait_for_activation(timeout=5)
        await until(lambda: sum(fact.count for fact in notes.of(Dropped)) == 3)  # the last one with its subscription
    assert {type(fact) for fact in notes.facts} == {Connected, Subscribed, Dropped, Lost}
    assert not any(are_open)


def test_an_observer_must_be_one() -> None:
    """Something else, or a coroutine function where a plain function must be, is rejected at once."""
    with pytest.raises(TypeError, match="derive a class"):
        Multiplexer(observers=[print])  # type: ignore[list-item]

    class Slow(Observer):
        async def observe(self, fact: Fact, /) -> None:  # type: ignore[override]
            pass

    with pytest.raises(TypeError, match="plain function"):
        Multiplexer(observers=[Slow()])


# --- figures


async def test_stats_tell_of_time_and_of_the_largest_queues(server: Server) -> None:
    """Seconds since the last message and of the last PING, and the queue that has the most, by its name."""
    async with Multiplexer(server.url, ping_interval=0.05, max_total_pending_bytes=1_000_000) as mpx:
        assert (mpx.stats().last_message, mpx.stats().round_trip, mpx.stats().largest_queues) == (None, None, ())
        async with mpx.subscribe("big"), mpx.subscribe("small"):
            for _ in range(20):
                await mpx.publish("big", b"x" * 1000)
            await mpx.publish("small", b"x")
            await until(lambda: mpx.stats().messages == 21)
            stats = mpx.stats()
            assert stats.largest_queues == (("a channel subscription, next on b'big'", 20),)
            assert stats.last_message is not None
            await until(lambda: (mpx.stats().last_message or 0) > 0.2)  # pings have replies meanwhile
            assert 0 < (mpx.stats().round_trip or 0) < 1


async def test_the_lag_of_a_stream_is_told(server: Server) -> None:
    """It is the time between the newest message and the one that the slowest subscription has."""
    gate = asyncio.Event()

    async def wait(message: object) -> None:
        await gate.wait()

    async with Multiplexer(server.admin_url) as mpx:
        for callback in (wait, lambda message: None):
            sub = mpx.new_stream_subscription(callback)
            sub.add("s")
            await sub.wait_for_activation(timeout=5)
        await mpx.append("s", "1")
        assert mpx.stats().lag == 0
        await asyncio.sleep(0.2)
        await mpx.append("s", "2")
        await until(lambda: mpx.stats().messages == 4 or mpx.stats().lag > 0)
        assert 0.1 < mpx.stats().lag < 5
        gate.set()
        await until(lambda: mpx.stats().lag == 0)
