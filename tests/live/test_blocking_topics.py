"""Topics of several processes, for threads: each of two multiplexers stands for a process of its own."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis import Redis

from redismpx import Multiplexer as Asyncio
from redismpx import MultiplexerIsClosed, RequestFailed, SlowConsumer
from redismpx.blocking import Multiplexer, Topics

from ..helpers.backoffs import QUICK
from ..helpers.servers import Server

pytestmark = pytest.mark.one_flavour


@pytest.fixture
def mpx(server: Server) -> Iterator[Multiplexer]:
    with Multiplexer(server.url, backoff=QUICK) as mpx:
        yield mpx


@pytest.fixture
def other(server: Server) -> Iterator[Multiplexer]:
    with Multiplexer(server.url, backoff=QUICK) as mpx:
        yield mpx


def wait(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.002)


def test_threads_share_topics(mpx: Multiplexer, other: Multiplexer) -> None:
    """Messages of other processes are delivered in a worker, once and in order; requests are answered."""
    calls: list[Any] = []
    with Topics(mpx) as here, Topics(other) as there:
        for topic in ("a", "a.b", ""):
            here.subscribe(topic, lambda topic, n: calls.append((n, threading.current_thread().name)))
        reader = here.open("a")
        there.serve("sum", lambda topic, numbers: sum(numbers))
        here.wait_for_activation(10)
        there.wait_for_activation(10)
        for number in range(200):
            assert there.publish("a.b", n=number) == 0
        there.flush()
        assert [reader.get(10).content["n"] for _ in range(200)] == list(range(200))
        assert here.request("sum", timeout=10, numbers=[1, 2, 3]) == 6
    assert [n for n, _ in calls[::3]] == list(range(200))
    assert {name for _, name in calls} == {"redismpx callbacks"}


def test_errors_of_a_handler_reach_on_error(mpx: Multiplexer, other: Multiplexer) -> None:
    """That of the topics, in a worker."""
    calls: list[tuple[type[Exception], str]] = []
    with (
        Topics(mpx) as here,
        Topics(other, on_error=lambda error: calls.append((type(error), threading.current_thread().name))) as there,
    ):
        there.serve("fail", lambda topic: {}["no such order"])
        there.wait_for_activation(10)
        with pytest.raises(RequestFailed):
            here.request("fail", timeout=10)
        wait(lambda: len(calls) == 1)
    assert calls == [(KeyError, "redismpx callbacks")]


def test_publishing_waits_for_no_other_thread(mpx: Multiplexer) -> None:
    """A subscription in another thread, which looks at the parameters of its callback, does not delay a message."""
    begun, go_on, calls = threading.Event(), threading.Event(), []

    class Slow:
        def __call__(self, topic: object) -> None:
            pass

        @property
        def __signature__(self) -> inspect.Signature:
            begun.set()
            assert go_on.wait(10)
            return inspect.signature(lambda topic: None)

    with Topics(mpx) as topics:
        topics.subscribe("a", lambda topic: calls.append(topic))
        topics.publish("a")
        subscribing = threading.Thread(target=topics.subscribe, args=("b", Slow()))
        subscribing.start()
        try:
            assert begun.wait(10)
            publishing = threading.Thread(target=topics.publish, args=("a",))
            publishing.start()
            publishing.join(5)
            assert len(calls) == 2
        finally:
            go_on.set()
            subscribing.join()
            publishing.join()


def test_a_callback_that_is_slow_is_told(mpx: Multiplexer, other: Multiplexer) -> None:
    """The oldest messages are dropped, and one SlowConsumer is reported; the loop goes on."""
    errors: list[Exception] = []
    go_on = threading.Event()
    got: list[int] = []

    def slow(topic: object, n: int) -> None:
        got.append(n)
        go_on.wait(10)

    with Topics(mpx, max_pending=10, on_error=errors.append) as here, Topics(other) as there:
        here.subscribe("a", slow)
        here.wait_for_activation(10)
        there.publish("a", n=0)
        wait(lambda: got == [0])
        for number in range(1, 100):
            there.publish("a", n=number)
        there.flush()
        mpx.publish("any", "the loop answers")
        go_on.set()
        wait(lambda: got[-1] == 99)
        assert got == [0, *range(90, 100)]
        assert [type(error) for error in errors] == [SlowConsumer]


def test_a_gap_is_told_in_order(mpx: Multiplexer, other: Multiplexer, server: Server) -> None:
    """Between the messages before and those behind it."""
    events: list[Any] = []
    with (
        Redis.from_url(server.admin_url) as admin,
        Topics(
            mpx,
            on_disconnect=lambda error: events.append("gap"),
            on_activation=lambda topic: events.append("active"),
        ) as here,
        Topics(other) as there,
    ):
        here.subscribe("a", lambda topic, n: events.append(n))
        here.wait_for_activation(10)
        there.publish("a", n=1)
        wait(lambda: 1 in events)
        admin.client_kill_filter(_type="pubsub")
        wait(lambda: events.count("active") == 2)
        there.publish("a", n=2)
        wait(lambda: 2 in events)
    assert events == ["active", 1, "gap", "active", 2]


def test_close_waits_for_the_callbacks(mpx: Multiplexer, other: Multiplexer) -> None:
    """What has been received is handled, and what was published has reached Redis; not inside a callback."""
    got: list[int] = []
    here, there = Topics(mpx), Topics(other)

    def slow(topic: object, n: int) -> None:
        time.sleep(0.001)
        got.append(n)
        if n == 49:
            here.close()

    here.subscribe("a", slow)
    here.wait_for_activation(10)
    reader = here.open("a")
    for number in range(50):
        there.publish("a", n=number)
    there.close()
    assert [reader.get(10).content["n"] for _ in range(49)] == list(range(49))
    wait(lambda: reader.closed)  # the callback for the last message has closed it
    here.close()
    assert got == list(range(50))
    with pytest.raises(RuntimeError, match="closed"):
        here.subscribe("a", slow)
    here.close()


def test_close_waits_for_what_was_received(mpx: Multiplexer, other: Multiplexer) -> None:
    """Each callback is called before close() returns."""
    got: list[int] = []
    go_on = threading.Event()

    def slow(topic: object, n: int) -> None:
        go_on.wait(10)
        got.append(n)

    here, there = Topics(mpx), Topics(other)
    here.subscribe("a", slow)
    here.wait_for_activation(10)
    with mpx.subscribe("fence") as fence:
        for number in range(20):
            there.publish("a", n=number)
        there.flush()
        other.publish("fence", "all of them are received before this")
        fence.get(10)
    threading.Timer(0.05, go_on.set).start()
    here.close()
    assert got == list(range(20))
    there.close()


def test_a_closed_multiplexer_ends_topics(server: Server) -> None:
    """publish() raises, and close() does not."""
    with Multiplexer(server.url) as mpx:
        topics = Topics(mpx)
        subscription = topics.subscribe("a", print)
    with pytest.raises(MultiplexerIsClosed):
        topics.publish("a", n=1)
    subscription.close()
    topics.close()


def test_each_kind_of_multiplexer_has_its_twin(server: Server) -> None:
    """The error names the right class."""
    with pytest.raises(TypeError, match=r"redismpx\.topics\.Topics"):
        Topics(Asyncio(server.url))  # type: ignore[arg-type]
