"""The multiplexer for threads: subscriptions that are read or have callbacks, publishing, requests, promises."""

from __future__ import annotations

import asyncio
import json
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis import Redis

import redismpx
from redismpx import Activation, ConnectionLost, Disconnect, Message, MultiplexerIsClosed, SubscriptionIsClosed
from redismpx.blocking import ChannelSubscription, Multiplexer

from ..helpers.leaks import open_sockets

pytestmark = pytest.mark.one_flavour


@pytest.fixture(autouse=True)
def no_threads() -> Iterator[None]:
    """Check that the test leaves no thread and no socket."""
    threads, sockets = set(threading.enumerate()), open_sockets()
    yield
    until(lambda: set(threading.enumerate()) <= threads)
    assert open_sockets() <= sockets


@pytest.fixture
def mpx(url: str) -> Iterator[Multiplexer]:
    with Multiplexer(url) as mpx:
        yield mpx


def until(condition: Callable[[], object], timeout: float = 10.0) -> None:
    """Wait until a condition of another thread or of the server holds."""
    give_up = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < give_up, condition
        time.sleep(0.002)


def in_thread(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Start a thread; its result, or its exception, is put into the list."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(function())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


def active(mpx: Multiplexer, name: str, *callbacks: Any, **options: Any) -> ChannelSubscription[Any]:
    sub = mpx.new_channel_subscription(*callbacks, **options)
    sub.add(name)
    sub.wait_for_activation(timeout=5)
    return sub


# --- reading


def test_messages_are_read_in_order(mpx: Multiplexer) -> None:
    """listen() returns each message once, in the order of publishing, and ends after its timeout of silence."""
    with mpx.subscribe("a", "b") as sub:
        for number in range(1000):
            assert mpx.publish("ab"[number % 2], str(number)) == 1
        assert [int(message.data) for message in sub.listen(timeout=0.2)] == list(range(1000))
        assert (sub.pending, sub.dropped, sub.channels) == (0, 0, {b"a", b"b"})


def test_get_waits_for_a_message_and_its_timeout(mpx: Multiplexer) -> None:
    """get() returns a message that arrives during the wait, and raises `TimeoutError` otherwise."""
    sub = active(mpx, "a", decode=json.loads)
    thread, results = in_thread(lambda: sub.get(timeout=5))
    mpx.publish("a", "[1]")
    thread.join()
    assert results == [Message(b"a", [1])]
    for timeout in (0, 0.01):
        with pytest.raises(TimeoutError, match="no message within"):
            sub.get(timeout)
    mpx.publish("a", "2")
    until(lambda: sub.pending)
    assert sub.get(0).data == 2


def test_an_undecodable_payload_delays_no_message(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages around a payload that cannot be decoded are read at once, although the batch lacks one."""
    errors: list[Exception] = []
    monkeypatch.setattr("redismpx.blocking.hand_over.LONG", 60.0)  # a thread that waits does not look again by itself
    with Multiplexer(url, on_error=errors.append) as mpx:
        sub = active(mpx, "a", decode=json.loads)
        for text in ("1", "{", "{", "2"):
            mpx.publish("a", text)
        until(lambda: sub.pending == 4)
        readers = [in_thread(lambda: sub.get().data) for _ in range(3)]
        until(lambda: sum(len(results) for _, results in readers) == 2)
        mpx.publish("a", "3")  # the batch lacks two, and this is one
        until(lambda: sorted(results[0] for _, results in readers if results) == [1, 2, 3])
        assert len(errors) == 2


def test_get_nowait_returns_what_is_buffered(mpx: Multiplexer) -> None:
    """get_nowait() returns buffered messages, then raises `queue.Empty`."""
    sub = active(mpx, "a")
    for number in range(3):
        mpx.publish("a", str(number))
    until(lambda: sub.pending == 3)
    assert [sub.get_nowait().data for _ in range(3)] == [b"0", b"1", b"2"]
    with pytest.raises(queue.Empty):
        sub.get_nowait()


def test_run_counts_the_messages_it_handles(mpx: Multiplexer) -> None:
    """run() calls the handler in this thread, until the handler closes the subscription."""
    sub = active(mpx, "a")
    for text in ("1", "2", "exit", "3"):
        mpx.publish("a", text)
    threads: list[int] = []

    def handle(message: Message[bytes]) -> None:
        threads.append(threading.get_ident())
        if message.data == b"exit":
            sub.close()

    assert sub.run(handle, timeout=5) == 3
    assert {*threads} == {threading.get_ident()}


def test_several_threads_share_the_messages(mpx: Multiplexer) -> None:
    """Each message goes to one of the threads that read a subscription; the close ends all of them."""
    sub = active(mpx, "a")
    readers = [in_thread(lambda: [int(message.data) for message in sub]) for _ in range(4)]
    for number in range(2000):
        mpx.publish_soon("a", str(number))
    until(lambda: mpx.stats().messages == 2000 and sub.pending == 0)
    sub.close()
    for thread, _ in readers:
        thread.join(5)
    assert sorted(number for _, (numbers,) in readers for number in numbers) == list(range(2000))
    for _, (numbers,) in readers:
        assert numbers == sorted(numbers)


@pytest.mark.parametrize("close", ["subscription", "multiplexer"])
def test_a_close_ends_a_blocked_reader_at_once(url: str, close: str) -> None:
    """A thread that waits in listen() or get() goes on when another thread closes."""
    with Multiplexer(url) as mpx:
        subs = [active(mpx, name) for name in "abc"]
        listening, listened = in_thread(lambda: list(subs[0].listen()))
        getting, got = in_thread(lambda: subs[1].get())
        seen: list[object] = []
        events, _ = in_thread(lambda: seen.extend(subs[2].events()))
        until(lambda: seen == [Activation(b"c")] and all(sub._hand_over._readers for sub in subs))
        for each in subs if close == "subscription" else [mpx]:
            each.close()
        for thread in (listening, getting, events):
            thread.join(5)
            assert not thread.is_alive()
        assert listened == [[]]
        assert isinstance(got[0], SubscriptionIsClosed)
        assert seen == [Activation(b"c")]
        with pytest.raises(SubscriptionIsClosed):
            subs[0].get()
        assert list(subs[0]) == []
        assert subs[0].closed


@pytest.fixture
def interrupts() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where a shell has the tests run in the background, and ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_ends_a_wait(mpx: Multiplexer) -> None:
    """A signal interrupts each wait of the main thread; nothing is lost by it."""
    sub = active(mpx, "a")
    promise = mpx.new_promise_subscription("p-").wait_for_new_promise("1", 30)
    for wait in (sub.get, lambda: list(sub.listen()), promise.get, lambda: mpx.connect() or sub.get()):
        timer = threading.Timer(0.05, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            wait()
        timer.join()
    mpx.publish("a", "1")
    assert sub.get(5).data == b"1"
    mpx.publish("p-1", "2")
    assert promise.get(5) == b"2"


@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_takes_back_an_unsent_message() -> None:
    """An interrupted publish() that waits for a connection is not sent: no call is left in the queue."""
    with Multiplexer("redis://127.0.0.1:1", publish_timeout=30) as mpx:
        publisher = mpx._mpx._hub.deployment.publisher
        timer = threading.Timer(0.05, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            mpx.publish("a", "1")
        timer.join()
        until(lambda: publisher.pending == 0)


def test_events_show_the_gap_in_its_place(mpx: Multiplexer, url: str) -> None:
    """events() yields activations, messages and disconnects in order."""
    with Redis.from_url(url) as admin:
        sub = active(mpx, "gap")
        mpx.publish("gap", "1")
        until(lambda: sub.pending == 1)
        admin.client_kill_filter(_type="pubsub")
        until(lambda: mpx.stats().connections == 2)
        sub.wait_for_activation(timeout=5)
        mpx.publish("gap", "2")
        events = sub.events()
        found = [next(events) for _ in range(5)]
        assert [type(event) for event in found] == [Activation, Message, Disconnect, Activation, Message]
        assert list(sub.events(timeout=0.01)) == []
        mpx.publish("gap", "3")
        assert [event[1] for event in sub.events(timeout=0.1)] == [b"3"]  # it goes on, without the activation
        assert isinstance(found[2], Disconnect)
        assert isinstance(found[2].error, ConnectionLost)


def test_events_begin_with_all_activations(mpx: Multiplexer) -> None:
    """Names that are active already get their activations before all messages that are buffered."""
    sub = active(mpx, "a")
    sub.add("b")
    sub.wait_for_activation(timeout=5)
    for number in range(3):
        mpx.publish("ab"[number % 2], str(number))
    until(lambda: sub.pending == 3)
    events = list(sub.events(timeout=0.05))
    assert {*events[:2]} == {Activation(b"a"), Activation(b"b")}
    assert events[2:] == [Message(b"a", b"0"), Message(b"b", b"1"), Message(b"a", b"2")]


def test_a_subscription_is_read_in_one_way(mpx: Multiplexer) -> None:
    """Reading a subscription that has on_message or is read by events() raises, as it does in asyncio."""
    with pytest.raises(RuntimeError, match="has on_message"):
        active(mpx, "a", print).listen()
    sub = active(mpx, "b")
    sub.events()
    for read in (sub.get, sub.get_nowait, sub.listen, lambda: iter(sub)):
        with pytest.raises(RuntimeError, match=r"events\(\) reads"):
            read()


def test_an_unreferenced_subscription_is_closed(mpx: Multiplexer, url: str) -> None:
    """A subscription without callbacks that no thread refers to is closed; an iteration keeps it."""
    with Redis.from_url(url) as admin:
        messages = active(mpx, "kept").listen(timeout=5)
        gone = active(mpx, "gone")
        assert dict(admin.pubsub_numsub("gone", "kept")) == {b"gone": 1, b"kept": 1}
        del gone
        until(lambda: dict(admin.pubsub_numsub("gone", "kept")) == {b"gone": 0, b"kept": 1})
        mpx.publish("kept", "1")
        assert next(messages).data == b"1"


# --- bounds


def test_nothing_is_buffered_beyond_the_bounds(mpx: Multiplexer) -> None:
    """Received is delivered, dropped and pending; a reader holds at most a tenth of max_pending besides the buffer."""
    sub = active(mpx, "a", max_pending=100)
    assert mpx.publish("a", "0") == 1
    assert sub.get(5).data == b"0"
    for number in range(1, 1000):
        mpx.publish_soon("a", str(number))
    until(lambda: mpx.stats().messages == 1000)
    assert (sub.pending, sub.dropped) == (100, 899)
    assert sub.get(5).data == b"900"
    for _ in range(500):
        mpx.publish_soon("a", "x")
    until(lambda: mpx.stats().messages == 1500)
    assert 100 <= sub.pending <= 109
    assert 2 + sub.pending + sub.dropped == 1500
    stats = mpx.stats()
    assert (stats.pending, stats.dropped) == (sub.pending, sub.dropped)
    sub.close()
    assert (sub.pending, sub.dropped, mpx.stats().dropped) == (0, 1498, 1498)


def test_a_reader_gets_the_latest_message(mpx: Multiplexer) -> None:
    """With `latest`, no message waits for a thread while a newer one replaces it."""
    sub = active(mpx, "a", overflow="latest")
    sub.add("b")
    sub.wait_for_activation(timeout=5)
    for number in range(100):
        mpx.publish("ab"[number % 2], str(number))
    until(lambda: mpx.stats().messages == 100)
    assert sub.get(5).data == b"98"
    mpx.publish("b", "100")
    until(lambda: mpx.stats().messages == 101)
    assert sub.get(5).data == b"100"
    assert (sub.pending, sub.dropped) == (0, 99)


def test_a_batch_is_bounded_in_bytes(mpx: Multiplexer) -> None:
    """Large messages cross the border one by one."""
    sub = active(mpx, "a")
    for _ in range(10):
        mpx.publish("a", b"x" * 100_000)
    until(lambda: sub.pending == 10)
    sub.get(5)
    assert sub._hand_over.pending == 0
    assert sub.pending == 9


@pytest.mark.parametrize("read", ["get", "get_nowait"])
def test_a_batch_ends_with_the_message_that_fills_it(mpx: Multiplexer, read: str) -> None:
    """Messages cross the border together up to 64 KiB, and no more than fit are added to those on the way."""
    sub = active(mpx, "a")
    for _ in range(20):
        mpx.publish("a", b"x" * 10_000)
    until(lambda: sub.pending == 20)
    for _ in range(5):
        getattr(sub, read)()
        assert 1 <= sub._hand_over.pending <= 6
    assert sub.pending == 15


def test_get_nowait_moves_no_more_messages_than_are_taken(mpx: Multiplexer) -> None:
    """A thread that polls holds at most a tenth of max_pending besides the buffer, too."""
    sub = active(mpx, "a", max_pending=100)
    for sent in (100, 200):
        for _ in range(100):
            mpx.publish_soon("a", "x")
        until(lambda sent=sent: mpx.stats().messages == sent)
        for _ in range(5):
            sub.get_nowait()
            assert sub._hand_over.pending < 10
    assert 10 + sub.pending + sub.dropped == 200


def test_a_removed_channel_drops_what_is_on_the_way(mpx: Multiplexer) -> None:
    """After remove() and clear(), no message of the channels is read; those on the way count as dropped."""
    sub = active(mpx, "a")
    sub.add("b")
    sub.wait_for_activation(timeout=5)
    for number in range(30):
        mpx.publish("ab"[number % 2], str(number))
    until(lambda: sub.pending == 30)
    assert sub.get(5).data == b"0"
    assert sub._hand_over.pending == 29
    sub.remove("b")
    assert (sub.pending, sub.dropped) == (14, 15)
    assert [int(message.data) for message in sub.listen(0.05)] == list(range(2, 30, 2))
    mpx.publish("a", "x")
    mpx.publish("a", "y")
    until(lambda: sub.pending == 2)
    sub.get(5)
    sub.clear()
    assert (sub.pending, sub.dropped) == (0, 16)


def test_drain_leaves_received_messages_to_the_readers(url: str) -> None:
    """drain() waits until threads have read what was received, on the way too, and then ends them."""
    with Multiplexer(url) as mpx:
        sub = active(mpx, "a")
        for number in range(500):
            mpx.publish("a", str(number))
        seen: list[int] = []

        def read() -> None:
            for message in sub.listen():
                seen.append(int(message.data))
                time.sleep(0.0005)

        thread, results = in_thread(read)
        until(lambda: seen)
        mpx.drain(timeout=10)
        assert len(seen) >= 499  # the last one may be about to be noted
        thread.join(5)
        assert (results, seen, sub.dropped) == ([None], list(range(500)), 0)


def test_drain_gives_up_after_its_timeout(url: str) -> None:
    """Messages on the way that no thread reads are dropped at the timeout, and counted."""
    with Multiplexer(url) as mpx:
        sub = active(mpx, "a")
        for _ in range(10):
            mpx.publish("a", "x")
        until(lambda: sub.pending == 10)
        sub.get(5)
        with pytest.raises(TimeoutError, match="9 messages not consumed"):
            mpx.drain(timeout=0.1)
        assert (sub.pending, sub.dropped, mpx.stats().dropped) == (0, 9, 9)


# --- callbacks


def test_callbacks_run_in_workers_in_order(mpx: Multiplexer, url: str) -> None:
    """All callbacks of a subscription run one at a time, in order, and never in the thread of the loop."""
    mpx.connect(5)
    (loop_thread,) = [thread for thread in threading.enumerate() if thread.name == "redismpx"]
    events: list[object] = []
    running = threading.Lock()

    def note(event: object) -> None:
        assert running.acquire(blocking=False)
        assert threading.current_thread() not in (loop_thread, threading.main_thread())
        time.sleep(0.001)
        events.append(event)
        running.release()

    sub = active(mpx, "a", lambda _, data: note(data), note, note, on_close=note)
    for number in range(20):
        mpx.publish("a", str(number))
    until(lambda: len(events) == 21)
    with Redis.from_url(url) as admin:
        admin.client_kill_filter(_type="pubsub")
    until(lambda: len(events) == 23)
    assert events[:21] == [b"a", *(b"%d" % number for number in range(20))]
    assert isinstance(events[21], ConnectionLost)
    assert events[22] == b"a"
    assert (sub.pending, sub.dropped) == (0, 0)
    mpx.close()
    assert events[23:] == ["multiplexer closed"]


def test_callbacks_of_a_read_subscription_keep_the_order(mpx: Multiplexer, url: str) -> None:
    """on_disconnect is called when the messages before the gap have been read, also those on the way."""
    lost: list[ConnectionLost] = []
    sub = active(mpx, "a", None, lost.append)
    for number in range(5):
        mpx.publish("a", str(number))
    until(lambda: sub.pending == 5)
    assert sub.get(5).data == b"0"
    with Redis.from_url(url) as admin:
        admin.client_kill_filter(_type="pubsub")
    until(lambda: mpx.stats().connections == 2)
    sub.wait_for_activation(timeout=5)
    assert lost == []
    assert [sub.get(5).data for _ in range(4)] == [b"1", b"2", b"3", b"4"]
    until(lambda: lost)
    mpx.publish("a", "5")
    assert sub.get(5).data == b"5"


def test_a_failing_callback_is_reported(url: str) -> None:
    """Exceptions of callbacks and of decode go to on_error, in a worker; delivery goes on."""
    errors: list[Exception] = []
    messages: list[object] = []

    def fail(channel: bytes, data: object) -> None:
        messages.append(data)
        raise SystemExit if data == 2 else StopIteration

    with Multiplexer(url, on_error=errors.append) as mpx:
        active(mpx, "a", fail, decode=json.loads)
        for text in ("1", "{", "2", "3"):
            mpx.publish("a", text)
        until(lambda: len(errors) == 4)
        assert messages == [1, 2, 3]
        assert [type(error).__name__ for error in errors] == [
            "RuntimeError",
            "DecodeError",
            "RuntimeError",
            "RuntimeError",
        ]


def test_a_blocked_callback_delays_no_other(mpx: Multiplexer) -> None:
    """A callback that blocks changes nothing for other subscriptions, and its messages stay bounded."""
    free, seen = threading.Event(), queue.Queue[bytes]()
    blocked = active(mpx, "blocked", lambda *_: free.wait(10), max_pending=5)
    active(mpx, "other", lambda _, data: seen.put(data))
    for _ in range(20):
        mpx.publish("blocked", "x")
    mpx.publish("other", "y")
    assert seen.get(timeout=5) == b"y"
    assert (blocked.pending, blocked.dropped) == (5, 14)
    free.set()


@pytest.mark.parametrize("what", ["subscription", "multiplexer", "drain"])
def test_a_callback_may_end_everything(url: str, what: str) -> None:
    """A callback closes its own subscription or the multiplexer, or drains it, without waiting for itself."""
    mpx = Multiplexer(url)
    done = threading.Event()
    calls: list[bytes] = []

    def end(_: bytes, data: bytes) -> None:
        calls.append(data)
        if len(calls) > 1 or what == "drain":
            mpx.drain()
        elif what == "subscription":
            sub.close()
        else:
            mpx.close()
        done.set()

    sub = mpx.new_channel_subscription(end)
    sub.add("a")
    sub.wait_for_activation(timeout=5)
    mpx.publish("a", "1")
    assert done.wait(5)
    until(lambda: sub.closed)
    assert calls == [b"1"]
    mpx.close()


def test_a_coroutine_function_is_rejected(mpx: Multiplexer) -> None:
    """Callbacks and handlers are plain functions with the right parameters; anything else is found at the call."""

    async def callback(*_: object) -> None:
        """Do nothing."""

    for options in ({"on_message": callback}, {"on_error": callback}, {"on_message": lambda: None}):
        with pytest.raises(TypeError):
            mpx.new_channel_subscription(**options)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        mpx.serve("a", callback)  # type: ignore[arg-type]


# --- publishing, requests, promises


def test_requests_are_handled_by_several_threads(mpx: Multiplexer) -> None:
    """serve(threads=N) runs N handlers at a time; request() and request_many() get their replies and failures."""
    barrier = threading.Barrier(4)

    def handle(request: redismpx.Request[Any]) -> dict[str, int]:
        if request.body == 0:
            raise ValueError("no")
        barrier.wait(5)
        return {"n": request.body}

    service = mpx.serve("double", handle, threads=4, decode=json.loads, encode=json.dumps)
    service.wait_for_activation(timeout=5)

    def ask() -> Any:
        return mpx.request("double", 3, timeout=5, encode=json.dumps, decode=json.loads)

    threads = [in_thread(ask) for _ in range(4)]
    for thread, results in threads:
        thread.join()
        assert results == [{"n": 3}]
    with pytest.raises(redismpx.RequestFailed, match="ValueError: no"):
        mpx.request("double", "0", timeout=5)
    mpx.serve("who", lambda _: b"me")
    other = mpx.serve("wh*", lambda _: b"you")
    other.wait_for_activation(timeout=5)
    assert sorted(mpx.request_many("who", "", timeout=5, limit=2)) == [b"me", b"you"]
    service.close()
    until(lambda: mpx.publish("double", "") == 0)
    with pytest.raises(redismpx.NoResponders):
        mpx.request("double", "1", timeout=5)


def test_promises_are_waited_for_in_threads(mpx: Multiplexer) -> None:
    """Promise.get() returns the payload in every thread, times out, and raises at the end of the subscription."""
    promises = mpx.new_promise_subscription("p-")
    promise = promises.wait_for_new_promise("1", timeout=5)
    with pytest.raises(TimeoutError, match="no outcome"):
        promise.get(timeout=0.01)
    threads = [in_thread(lambda: promise.get(5)) for _ in range(3)]
    assert not promise.done()
    mpx.publish(promise.channel, "done")
    for thread, results in threads:
        thread.join()
        assert results == [b"done"]
    with pytest.raises(redismpx.PromiseTimeout):
        promises.new_promise(timeout=0.01).get()
    cancelled, cleared = promises.new_promise(), promises.new_promise()
    assert cancelled.cancel()
    assert promises.pending == 1
    promises.clear()
    for each in (cancelled, cleared):
        with pytest.raises(SubscriptionIsClosed):
            each.get(5)


def test_publish_soon_is_bounded_and_reports(url: str) -> None:
    """publish_soon() keeps the order, raises `queue.Full` beyond max_pending, and on_error gets its failures."""
    errors: queue.Queue[Exception] = queue.Queue()
    with Multiplexer(url, max_pending=100, on_error=errors.put) as mpx, mpx.subscribe("a") as sub:
        for number in range(100):
            mpx.publish_soon("a", str(number))
        assert [int(message.data) for message in sub.listen(0.2)] == list(range(100))
        mpx.publish_soon("a", 5)  # type: ignore[arg-type]
        assert isinstance(errors.get(timeout=5), TypeError)
    with Multiplexer("redis://127.0.0.1:1", max_pending=10, publish_timeout=30) as mpx:
        for _ in range(10):
            mpx.publish_soon("a", "x")
        with pytest.raises(queue.Full, match="max_pending=10"):
            mpx.publish_soon("a", "x")
    with pytest.raises(MultiplexerIsClosed):
        mpx.publish_soon("a", "x")


def test_failures_of_publish_soon_log_a_few_records(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """When each second message fails, not each failure has a record: 10 in 10 seconds."""
    with Multiplexer(url) as mpx:
        for _ in range(30):
            mpx.publish_soon("a", 5)  # type: ignore[arg-type]
            mpx.publish_soon("a", "x")
            mpx.publish("a", "y")  # the two before have their outcomes then
    assert caplog.text.count("publish_soon() failed") == 10


def test_a_waiting_publish_has_no_task() -> None:
    """Calls of publish(), apublish() and publish_soon() wait in the queue of the publisher; the close fails them."""
    with Multiplexer("redis://127.0.0.1:1", publish_timeout=30) as mpx:
        publisher = mpx._mpx._hub.deployment.publisher
        mpx.publish_soon("a", "0")
        until(lambda: publisher.pending == 1)
        assert mpx._border is not None
        portal = mpx._border.portal
        tasks = portal.call(lambda: len(asyncio.all_tasks()))
        calls = [
            *[in_thread(lambda: mpx.publish("a", "1")) for _ in range(5)],
            in_thread(lambda: asyncio.run(mpx.apublish("a", "2"))),
        ]
        until(lambda: publisher.pending == 7)
        assert portal.call(lambda: len(asyncio.all_tasks())) == tasks
        mpx.close()
        for thread, results in calls:
            thread.join(5)
            assert isinstance(results[0], MultiplexerIsClosed), results


def test_the_ways_to_publish_keep_their_order(mpx: Multiplexer) -> None:
    """Messages of one thread go out in the order of the calls, whether the calls wait or not."""
    with mpx.subscribe("a") as sub:

        async def main() -> None:
            await asyncio.gather(mpx.apublish("a", "2"), mpx.apublish("a", "3"))
            mpx.publish_soon("a", "4")

        for _ in range(20):
            mpx.publish_soon("a", "0")
            mpx.publish("a", "1")
            asyncio.run(main())
        assert [int(message.data) for message in sub.listen(0.2)] == [*range(5)] * 20


# --- event loops


def test_a_running_loop_is_never_blocked(mpx: Multiplexer, url: str) -> None:
    """In a thread with a loop, calls that wait raise and name the others; apublish() and arequest() are awaited."""
    with Redis.from_url(url) as admin, mpx.subscribe("a") as sub:
        mpx.serve("echo", lambda request: request.body).wait_for_activation(timeout=5)

        async def main() -> None:
            for wait in (lambda: mpx.publish("a", "x"), sub.get, sub.listen, sub.events, mpx.drain, mpx.connect):
                with pytest.raises(RuntimeError, match=r"await apublish\(\)"):
                    wait()
            assert await mpx.apublish("a", "1") == 1
            mpx.publish_soon("a", "2")
            assert await mpx.arequest("echo", "3", timeout=5) == b"3"
            with pytest.raises(TypeError):
                await mpx.apublish("a", 5)  # type: ignore[arg-type]
            other = mpx.new_channel_subscription()
            other.add("b")
            assert other.channels == {b"b"}
            other.close()

        for _ in range(3):
            asyncio.run(main())
        assert [message.data for message in sub.listen(0.1)] == [b"1", b"2"] * 3
        assert len(admin.client_list(_type="pubsub")) == 1


def test_a_coroutine_runs_in_the_loop_of_the_multiplexer(mpx: Multiplexer) -> None:
    """arun() runs it with the asyncio multiplexer, whose callbacks run in that thread, and cancels it with the call."""
    received: list[tuple[bytes, int]] = []
    cancelled = threading.Event()

    async def subscribe(asynchronous: redismpx.Multiplexer) -> int:
        sub = asynchronous.new_channel_subscription(lambda _, data: received.append((data, threading.get_ident())))
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        return threading.get_ident()

    async def hang(_: redismpx.Multiplexer) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    async def fail(_: redismpx.Multiplexer) -> None:
        raise KeyError("x")

    async def main() -> int:
        ident = await mpx.arun(subscribe)
        with pytest.raises(KeyError):
            await mpx.arun(fail)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await mpx.arun(hang)
        return ident

    ident = asyncio.run(main())
    assert ident != threading.get_ident()
    assert cancelled.wait(5)
    mpx.publish("a", "1")
    until(lambda: received)
    assert received == [(b"1", ident)]


def test_a_cancelled_call_from_a_loop_leaves_nothing(mpx: Multiplexer) -> None:
    """Cancelling arequest() cancels it in the thread of the multiplexer, too."""
    free = threading.Event()
    mpx.serve("slow", lambda _: free.wait(5) and None).wait_for_activation(timeout=5)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await mpx.arequest("slow", "", timeout=30)

    asyncio.run(main())
    until(lambda: mpx.stats().promises == 0)
    free.set()


def test_close_fails_the_calls_in_flight(url: str) -> None:
    """Calls of other threads and loops raise when the multiplexer is closed; it can be opened again."""
    mpx = Multiplexer(url)
    with mpx:
        free = threading.Event()
        mpx.serve("slow", lambda _: free.wait(5) and None).wait_for_activation(timeout=5)
        promise = mpx.new_promise_subscription("p-").wait_for_new_promise()
        calls = [
            in_thread(lambda: mpx.request("slow", "", timeout=30)),
            in_thread(lambda: asyncio.run(mpx.arequest("slow", "", timeout=30))),
            in_thread(promise.get),
        ]
        until(lambda: mpx.stats().promises == 3)
        free.set()
        mpx.close()
        for thread, results in calls:
            thread.join(5)
            assert isinstance(results[0], (MultiplexerIsClosed, SubscriptionIsClosed)), results
        assert mpx.stats().state == "closed"
        for call in (lambda: mpx.publish("a", "b"), mpx.connect, lambda: mpx.new_promise_subscription("p")):
            with pytest.raises(MultiplexerIsClosed):
                call()
    with mpx:
        assert mpx.publish("a", "b") == 0


def test_key_events_are_read_in_threads(mpx: Multiplexer, url: str) -> None:
    """A key subscription is read, and its events are in order with its gaps."""
    with Redis.from_url(url) as admin:
        before = admin.config_get("notify-keyspace-events")["notify-keyspace-events"]
        admin.config_set("notify-keyspace-events", "KA")
        keys = mpx.new_key_subscription("blocking:*")
        keys.wait_for_activation(timeout=5)
        assert keys.active
        for number in range(50):
            admin.set(f"blocking:{number}", "x")
        assert [event.key for event in keys.listen(0.3)] == [b"blocking:%d" % number for number in range(50)]
        keys.close()
        assert keys.closed
        admin.config_set("notify-keyspace-events", before)
        admin.flushall()
