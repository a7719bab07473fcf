"""Topics in one process: who is called, in which order, with what, and when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from redismpx import SlowConsumer
from redismpx.topics import Topics

from ..helpers.odd_exceptions import odd_exceptions
from ..helpers.strike import Session, struck


class Record(list[Any]):
    """Subscribers that note their calls."""

    def named(self, name: str) -> Callable[..., None]:
        return lambda topic, **message: self.append((name, topic, message))


def test_subscribers_are_called_in_the_documented_order() -> None:
    """The topic itself, prefixes from long to short, wildcards, everything; and the earlier one first."""
    topics, calls = Topics(), Record()
    for topic in ("", "a.=", "a", "+.b", "a.b", ("a", "b", "c"), "a.b", "x", "a.b.c.d"):
        topics.subscribe(topic, calls.named(str(topic)))
    assert topics.publish("a.b.c", n=1) == 7
    assert [name for name, *_ in calls] == ["('a', 'b', 'c')", "a.b", "a.b", "a", "a.=", "+.b", ""]
    assert all(
        rest == (("a", "b", "c"), {"n": 1}) for _, *rest in [(n, *r) for n, *r in calls] for rest in [tuple(rest)]
    )


def test_a_broadcast_reaches_every_subscriber() -> None:
    """The earlier subscription is called first."""
    topics, calls = Topics(), Record()
    for topic in ("a.b", "", "=.c"):
        topics.subscribe(topic, calls.named(topic))
    for broadcast in ("", (), None):
        calls.clear()
        assert topics.publish(broadcast) == 3
        assert calls == [("a.b", (), {}), ("", (), {}), ("=.c", (), {})]


def test_a_callback_is_called_once_for_a_message() -> None:
    """Also when several of its subscriptions cover the topic; methods of one object are one callback."""
    topics, calls = Topics(), Record()
    for topic in ("a", "a.b", "+", ""):
        topics.subscribe(topic, calls.append)
    assert topics.publish("a.b") == 1
    assert calls == [("a", "b")]
    assert topics.subscribe("a", calls.append) is topics.subscribe("a", calls.append)
    assert topics.unsubscribe("a.b", calls.append)
    assert not topics.unsubscribe("a.b", calls.append)
    assert topics.publish("a.b") == 1


def test_an_exception_stops_nobody_else() -> None:
    """It reaches on_error, with a note that names the topic."""
    errors: list[Exception] = []
    topics, calls = Topics(on_error=errors.append), Record()

    def fail(topic: object, **message: object) -> None:
        raise ZeroDivisionError

    topics.subscribe("a.b", fail)
    topics.subscribe("a", calls.named("a"))
    assert topics.publish("a.b") == 2
    assert [name for name, *_ in calls] == ["a"]
    assert isinstance(errors[0], ZeroDivisionError)
    assert "was called for topic 'a.b'" in errors[0].__notes__[0]


def test_a_keyboard_interrupt_leaves_publish() -> None:
    """So does each exception that is no `Exception`."""
    topics = Topics()

    def interrupt(topic: object) -> None:
        raise KeyboardInterrupt

    topics.subscribe("a", interrupt)
    with pytest.raises(KeyboardInterrupt):
        topics.publish("a")


def test_errors_are_logged_without_on_error(caplog: pytest.LogCaptureFixture) -> None:
    """And also when on_error itself fails."""

    def fail(_: object) -> None:
        raise OSError("broken")

    for topics in (Topics(), Topics(on_error=fail)):
        topics.subscribe("", fail)
        topics.publish("a")
    records = [record.getMessage() for record in caplog.records]
    assert records == ["topics: broken", "on_error raised an exception", records[0]]


@odd_exceptions
def test_an_odd_exception_is_reported(monkeypatch: pytest.MonkeyPatch, odd: type[Exception]) -> None:
    """An exception that raises when it is asked for its text, its class or its name is one of its subscriber only."""

    def fail(_: object) -> None:
        raise odd

    monkeypatch.setattr(logging, "raiseExceptions", False)  # a handler cannot write such an exception
    topics, calls = Topics(), Record()
    topics.subscribe("a", fail)
    topics.subscribe("a", calls.named("other"))
    called = None
    with contextlib.suppress(Exception):  # pytest cannot show such an exception
        called = topics.publish("a", n=1)
    assert called == 2
    assert calls == [("other", ("a",), {"n": 1})]


def test_a_subscriber_gets_the_keywords_that_it_takes(caplog: pytest.LogCaptureFixture) -> None:
    """For each that it lacks there is one warning; a required one that is missing is its own error."""
    errors: list[Exception] = []
    topics, calls = Topics(on_error=errors.append), Record()

    def some(topic: object, a: object, *, b: object = 0) -> None:
        calls.append((a, b))

    def every(topic: object, **message: object) -> None:
        calls.append(message)

    topics.subscribe("x", some)
    topics.subscribe("x", every)
    for _ in range(3):
        topics.publish("x", a=1, b=2, c=3, topic=4)
    assert calls == [(1, 2), {"a": 1, "b": 2, "c": 3}] * 3
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 3  # c and topic for `some`, topic for `every`
    assert "takes no keyword 'c', and is called without it, for topic x" in warnings[0]
    calls.clear()
    topics.publish("x", b=2)
    assert calls == [{"b": 2}]
    assert "missing 1 required positional argument: 'a'" in str(errors[0])


def test_warnings_of_keywords_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """A publisher may invent keywords without end."""
    topics = Topics()
    topics.subscribe("x", lambda topic: None)
    for number in range(1_000):
        topics.publish("x", **{f"k{number}": 0})
    assert len(caplog.records) == 100


@pytest.mark.parametrize(
    "callback", [print, dict, functools.partial(lambda topic, x: None, x=1), lambda *_, **__: None]
)
def test_any_callable_subscribes(callback: Callable[..., object]) -> None:
    """Built-in functions, classes and partial functions, too."""
    errors: list[Exception] = []
    topics = Topics(on_error=errors.append)
    topics.subscribe("a", callback)
    assert topics.publish("a") == 1
    assert [type(error) for error in errors] == ([ValueError] if callback is dict else [])


def test_invalid_callbacks_are_rejected() -> None:
    """One that cannot be called, or takes no topic."""
    topics = Topics()
    with pytest.raises(TypeError, match="the callback must be callable, not int"):
        topics.subscribe("a", 1)  # type: ignore[arg-type]
    for callback in (lambda: None, lambda **_: None, lambda *, topic: None):
        with pytest.raises(TypeError, match="but it takes no topic"):
            topics.subscribe("a", callback)
    assert topics.publish("a") == 0


def test_a_subscription_ends_in_each_way() -> None:
    """close(), `with`, unsubscribe(), clear(): its callback is not called any more."""
    topics, calls = Topics(), Record()
    callback = calls.named("a")
    with topics.subscribe("a", callback) as sub:
        assert not sub.closed
        assert sub.topic == ("a",)
    assert sub.closed
    assert "'a' of Record.named.<locals>.<lambda> closed" in repr(sub)
    topics.subscribe("a", callback).close()
    topics.subscribe("a", callback)
    topics.unsubscribe("a", callback)
    again = topics.subscribe("a", callback)
    topics.clear()
    again.close()
    assert topics.publish("a") == 0
    assert topics.subscribe("a", callback) is not again
    assert topics.publish("a") == 1


def test_a_callback_may_change_everything() -> None:
    """Who is closed during a publish is not called any more; who joins is called from the next one on."""
    topics, calls = Topics(), Record()

    def first(topic: object) -> None:
        later.close()
        topics.subscribe("a", calls.named("new"))
        topics.publish("b")

    topics.subscribe("a", first)
    later = topics.subscribe("a", calls.named("later"))
    topics.subscribe("b", calls.named("b"))
    assert topics.publish("a") == 1
    assert [name for name, *_ in calls] == ["b"]
    topics.unsubscribe("a", first)
    topics.publish("a")
    assert [name for name, *_ in calls] == ["b", "new"]


def test_a_weak_subscription_ends_with_its_object() -> None:
    """A method's object, or the function itself; otherwise the subscription keeps it alive."""
    topics, calls = Topics(), Record()

    class Listener:
        def hear(self, topic: object) -> None:
            calls.append(topic)

    weak, strong = Listener(), Listener()
    subs = [topics.subscribe("a", weak.hear, weak=True), topics.subscribe("a", strong.hear)]
    function = calls.named("function")
    subs.append(topics.subscribe("a", function, weak=True))
    assert topics.publish("a") == 3
    del weak, strong, function
    gc.collect()
    assert topics.publish("a") == 1
    topics.publish("b")  # which looks for those that are gone
    assert [sub.closed for sub in subs] == [True, False, True]


@pytest.mark.parametrize("moment", range(1, 8))
def test_a_finalizer_inside_a_change_is_safe(moment: int) -> None:
    """The object of a weak subscription may end while this thread changes the tree, at any moment of it."""
    topics, moments = Topics(), []

    class Listener:
        def hear(self, topic: object) -> None: ...

    class Word(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            return str.__eq__(self, other)

        def __hash__(self) -> int:
            moments.append(1)
            if len(moments) == moment:
                listeners.clear()
            return str.__hash__(self)

    listeners = [Listener()]
    topics.subscribe("a.b", listeners[0].hear, weak=True)
    topics.subscribe(("a", Word("c")), lambda topic: None)  # it shares the first word with the one that ends
    assert topics.publish("a.c") == 1
    topics.clear()
    assert not topics._directory._tree._root.children


def test_a_finalizer_waits_for_no_other_thread() -> None:
    """The object of a weak subscription may end in a thread that holds a lock for which another thread waits."""
    topics, is_busy, is_over = Topics(), threading.Event(), threading.Event()

    class Listener:
        def hear(self, topic: object) -> None: ...

    listeners = [Listener()]
    topics.subscribe("a", listeners[0].hear, weak=True)

    def be_busy() -> None:
        with topics._directory.lock:
            is_busy.set()
            is_over.wait(10)

    busy = threading.Thread(target=be_busy)
    busy.start()
    assert is_busy.wait(5)
    ending = threading.Thread(target=listeners.clear)
    ending.start()
    ending.join(5)
    assert not ending.is_alive()
    is_over.set()
    busy.join()
    assert topics.publish("a") == 0


def test_threads_may_do_anything_at_once() -> None:
    """Each subscriber gets each message that is published while it is subscribed, and those of one thread in order."""
    topics, errors = Topics(), []
    got: list[int] = []

    def work(own: int) -> None:
        try:
            mine: list[int] = []
            for number in range(300):
                with topics.subscribe(f"t.{own}", lambda topic, n: mine.append(n)):
                    topics.publish(f"t.{own}", n=number)
            assert mine == list(range(300))
            got.append(own)
        except BaseException as error:
            errors.append(error)

    everything: list[int] = []
    topics.subscribe("t", lambda topic, n: everything.append(n))
    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(got) == list(range(8))
    assert len(everything) == 8 * 300


def test_two_threads_send_with_one_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if they send their first messages at the same moment."""
    both = threading.Barrier(2)
    tokens = iter("ab")

    def make_token(size: int) -> str:
        with contextlib.suppress(threading.BrokenBarrierError):  # Python 3.11 lets one thread make it
            both.wait(1)
        return next(tokens)

    monkeypatch.setattr("redismpx.topics.bus.secrets.token_hex", make_token)
    topics, origins = Topics(), []
    threads = [threading.Thread(target=lambda: origins.append(topics._origin)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert origins == [topics._origin] * 2


# --- coroutine functions


async def test_a_coroutine_function_gets_one_message_at_a_time() -> None:
    """In their order, and publish() does not wait for it; also from another thread."""
    topics, calls, done = Topics(), Record(), asyncio.Event()

    async def slow(topic: object, n: int) -> None:
        calls.append(("begin", n))
        await asyncio.sleep(0)
        calls.append(("end", n))
        if n == 3:
            done.set()

    topics.subscribe("a", slow)
    assert topics.publish("a", n=0) == topics.publish("a", n=1) == 1
    assert calls == []
    await asyncio.to_thread(lambda: [topics.publish("a", n=n) for n in (2, 3)])
    await done.wait()
    assert calls == [(what, n) for n in range(4) for what in ("begin", "end")]


async def test_coroutine_functions_in_all_their_forms() -> None:
    """Methods, partial functions, and objects with a coroutine function as `__call__`."""
    topics, calls, done = Topics(), Record(), asyncio.Event()

    class Called:
        async def __call__(self, topic: object, n: int) -> None:
            await self.method(topic, n)

        async def method(self, topic: object, n: int) -> None:
            calls.append(n)
            if len(calls) == 3:
                done.set()

    one = Called()
    for callback in (one, one.method, functools.partial(one.method, n=3)):
        topics.subscribe("a", callback)
    assert topics.publish("a", n=3) == 3
    await done.wait()


def test_a_coroutine_function_needs_a_loop() -> None:
    """Without a running loop, subscribe() raises; a plain function that returns a coroutine is an error."""
    errors: list[Exception] = []
    topics = Topics(on_error=errors.append)

    async def callback(topic: object) -> None: ...

    with pytest.raises(RuntimeError, match="no event loop runs here to await it"):
        topics.subscribe("a", callback)
    topics.subscribe("a", lambda topic: callback(topic))
    assert topics.publish("a") == 1
    assert "nobody awaits it; subscribe a coroutine function" in str(errors[0])


async def test_a_failing_coroutine_function_goes_on() -> None:
    """Its errors reach on_error, and so does a cancellation that is its own."""
    errors: list[Exception] = []
    topics, done = Topics(on_error=errors.append), asyncio.Event()

    async def fail(topic: object, n: int) -> None:
        if n == 0:
            raise OSError
        if n == 1:
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future
        done.set()

    topics.subscribe("a", fail)
    for n in range(3):
        topics.publish("a", n=n)
    await done.wait()
    assert [type(error) for error in errors] == [OSError, RuntimeError]
    assert "a task or future that it awaits was cancelled" in str(errors[1])
    assert isinstance(errors[1].__cause__, asyncio.CancelledError)


async def test_a_slow_coroutine_function_drops_the_oldest() -> None:
    """Beyond max_pending; on_error gets one SlowConsumer for an episode."""
    errors: list[Exception] = []
    topics, got, go = Topics(on_error=errors.append, max_pending=3), [], asyncio.Event()

    async def slow(topic: object, n: int) -> None:
        await go.wait()
        got.append(n)

    topics.subscribe("a", slow)
    for n in range(10):
        topics.publish("a", n=n)
    (error,) = errors
    assert isinstance(error, SlowConsumer)
    assert (error.dropped, error.pending) == (1, 3)
    go.set()
    while len(got) < 3:
        await asyncio.sleep(0)
    assert got == [7, 8, 9]


async def test_a_closed_subscription_calls_no_coroutine_function() -> None:
    """Messages that wait are dropped."""
    topics, calls = Topics(), Record()

    async def callback(topic: object) -> None:
        calls.append(topic)

    sub = topics.subscribe("a", callback)
    topics.publish("a")
    sub.close()
    for _ in range(5):
        await asyncio.sleep(0)
    assert calls == []


def test_a_closed_loop_ends_the_subscription() -> None:
    """The next message is an error, and later ones find nobody."""
    errors: list[Exception] = []
    topics = Topics(on_error=errors.append)

    async def callback(topic: object) -> None: ...

    async def subscribe() -> None:
        topics.subscribe("a", callback)

    asyncio.run(subscribe())
    topics.publish("a")
    assert "Event loop is closed" in str(errors[0])
    assert topics.publish("a") == 0


def is_struck_in(step: str, line: int) -> bool:
    """Let a finalizer end subscriptions, readers and a service in a call; return whether that has so many lines."""
    topics, calls = Topics(), Record()
    subs: list[Any] = [topics.subscribe(topic, calls.named("doomed")) for topic in ("a.b", "a.c")]
    subs += [topics.open(topic) for topic in ("a.c", "+.c")]
    service = topics.serve("s.t", lambda topic: None)
    topics.subscribe("a.=", calls.named("wildcard"))
    steps: dict[str, Callable[[], object]] = {
        "subscribe": lambda: topics.subscribe("a.c", calls.named("new")),
        "publish": lambda: topics.publish("a.c", n=1),
        "read": lambda: topics.open("a.c"),
        "serve": lambda: topics.serve("s.u", lambda topic: None),
    }
    was_struck = struck(line, "redismpx/", [Session(each.close) for each in (*subs, service)], steps[step])
    assert all(each.closed for each in (*subs, service))
    calls.clear()
    topics.publish("a.c", n=2)
    assert [name for name, *_ in calls] == (["new"] if step == "subscribe" else []) + ["wildcard"]
    return was_struck


@pytest.mark.parametrize("step", ["subscribe", "publish", "read", "serve"])
def test_a_finalizer_may_close_in_any_line(step: str) -> None:
    """The collector may run in any line of a call, and a finalizer ends another subscription, reader and service."""
    line = 1
    while is_struck_in(step, line):
        line += 1
    assert line > 10
