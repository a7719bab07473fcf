"""Topics that are read, asked and published periodically, in one process."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redismpx import NoResponders, PromiseTimeout, RequestFailed, SlowConsumer, SubscriptionIsClosed
from redismpx import blocking as threads
from redismpx.topics import TopicMessage, Topics
from redismpx.topics.periodic import next_number

from ..helpers.waiting import until


def contents(messages: list[TopicMessage]) -> list[Any]:
    return [message.content["n"] for message in messages]


# --- readers


def test_a_message_is_kept_until_it_is_read() -> None:
    """All readers get the same object, with an id, a time and the topic."""
    topics = Topics()
    reader, other = topics.open("a"), topics.open("")
    assert topics.publish("a.b", n=1) == 2
    message = reader.fetch()
    assert message is not None
    assert message is other.fetch()
    assert (message.topic, message.content, dict(message.headers)) == (("a", "b"), {"n": 1}, {})
    assert abs(message.timestamp.timestamp() - time.time()) < 60
    assert "n" not in repr(message).replace("TopicMessage", "").replace("keywords", "")
    assert reader.fetch() is None
    assert topics.publish("b", n=2) == 1
    assert (reader.pending, other.pending) == (0, 1)


def test_a_full_reader_drops_the_oldest() -> None:
    """They are counted, and one SlowConsumer is reported until half of them are read."""
    errors: list[Exception] = []
    topics = Topics(on_error=errors.append)
    reader = topics.open("a", max_pending=4)
    for number in range(7):
        topics.publish("a", n=number)
    assert (reader.pending, reader.dropped) == (4, 3)
    assert [type(error) for error in errors] == [SlowConsumer]
    messages = [reader.fetch() for _ in range(4)]
    assert contents([message for message in messages if message]) == [3, 4, 5, 6]
    for number in range(5):
        topics.publish("a", n=number)
    assert len(errors) == 2


@pytest.mark.parametrize("module", [Topics, threads.Topics])
def test_a_closed_reader_can_be_read_to_its_end(module: Any) -> None:
    """Then it raises."""
    topics = module()
    with topics.open("a") as reader:
        topics.publish("a", n=1)
    assert topics.publish("a", n=2) == 0
    assert reader.closed
    assert reader.fetch().content == {"n": 1}
    with pytest.raises(SubscriptionIsClosed):
        reader.fetch()


async def test_a_task_waits_for_the_next_message() -> None:
    """With a timeout; a thread may publish; each message goes to one task; a cancelled wait loses none."""
    topics = Topics()
    reader = topics.open("a")
    with pytest.raises(TimeoutError):
        await reader.get(0.01)
    readers = [asyncio.create_task(reader.get(10)) for _ in range(3)]
    await asyncio.sleep(0)
    readers[0].cancel()
    thread = threading.Thread(target=lambda: [topics.publish("a", n=number) for number in range(3)])
    thread.start()
    thread.join()
    got = [await readers[1], await readers[2], await reader.get()]
    assert sorted(contents(got)) == [0, 1, 2]
    assert not reader._queue._wakers


async def test_iteration_ends_with_the_reader() -> None:
    """After the messages that it has. Other tasks get a turn meanwhile."""
    topics, turns = Topics(), 0
    reader = topics.open("a")

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(take_turns())
    for number in range(1_000):
        topics.publish("a", n=number)
    reader.close()
    assert contents([message async for message in reader]) == list(range(1_000))
    assert turns >= 10
    task.cancel()


async def test_run_counts_the_messages() -> None:
    """It calls a plain function or a coroutine function, until none comes for a while, or the reader closes."""
    topics, got = Topics(), []
    reader = topics.open("a")

    async def note(message: TopicMessage) -> None:
        await asyncio.sleep(0)
        got.append(message)

    for number in range(3):
        topics.publish("a", n=number)
    assert await reader.run(got.append, timeout=0.01) == 3
    topics.publish("a", n=3)
    reader.close()
    assert await reader.run(note) == 1
    assert contents(got) == [0, 1, 2, 3]


def test_threads_read() -> None:
    """get() waits, with a timeout; `for` and run() end with the reader."""
    topics = threads.Topics()
    reader = topics.open("a")
    with pytest.raises(TimeoutError):
        reader.get(0.01)
    timer = threading.Timer(0.05, lambda: topics.publish("a", n=0))
    timer.start()
    assert reader.get(10).content == {"n": 0}
    timer.join()
    for number in range(4):
        topics.publish("a", n=number)
    got: list[TopicMessage] = []
    assert reader.run(got.append, timeout=0.01) == 4
    topics.publish("a", n=4)
    timer = threading.Timer(0.05, reader.close)
    timer.start()
    assert contents(list(reader)) == [4]
    timer.join()
    assert contents(got) == [0, 1, 2, 3]
    assert not reader._queue._wakers


async def test_a_thread_of_a_loop_must_not_wait() -> None:
    """What there is can be read all the same."""
    topics = threads.Topics()
    reader = topics.open("a")
    topics.publish("a", n=1)
    assert reader.get().content == {"n": 1}
    with pytest.raises(RuntimeError, match="would block the event loop"):
        reader.get(1)


# --- requests


async def test_requests_in_one_process() -> None:
    """The handler of the longest prefix answers, with the keywords that it takes; values are passed as they are."""
    topics = Topics()
    value = object()

    async def answer(topic: tuple[str, ...], value: object) -> object:
        await asyncio.sleep(0)
        return topic, value

    topics.serve("", lambda topic: "everything")
    with topics.serve("a", lambda topic, value: value), topics.serve("a.b", answer):
        assert await topics.request("a.x", timeout=1, value=value, more=1) is value
        assert await topics.request("a.b.c", timeout=1, value=value) == (("a", "b", "c"), value)
    assert await topics.request("a.b", timeout=1, value=value) == "everything"
    topics.clear()
    with pytest.raises(NoResponders):
        await topics.request("a", timeout=1)


async def test_a_request_has_a_limit() -> None:
    """A handler that takes longer is a PromiseTimeout; a TimeoutError of its own is its failure."""
    topics = Topics()

    async def sleep(topic: object) -> None:
        await asyncio.sleep(100)

    async def fail(topic: object) -> None:
        raise TimeoutError("the database")

    topics.serve("sleep", sleep)
    topics.serve("fail", fail)
    with pytest.raises(PromiseTimeout):
        await topics.request("sleep", timeout=0.01)
    with pytest.raises(RequestFailed, match="TimeoutError: the database"):
        await topics.request("fail", timeout=1)
    with pytest.raises(TypeError, match="timeout"):
        await topics.request("fail", timeout=None)  # type: ignore[arg-type]


def test_threads_ask_in_one_process() -> None:
    """The handler is called in the thread of the requester."""
    topics = threads.Topics()
    topics.serve("a", lambda topic: threading.current_thread())
    topics.serve("b", lambda topic: 1 / 0)
    assert topics.request("a", timeout=1) is threading.current_thread()
    with pytest.raises(RequestFailed, match="ZeroDivisionError"):
        topics.request("b", timeout=1)
    with pytest.raises(NoResponders):
        topics.request("c", timeout=1)

    async def answer(topic: object) -> None: ...

    with pytest.raises(TypeError, match=r"redismpx\.topics\.Topics takes coroutine functions"):
        topics.serve("c", answer)
    with pytest.raises(TypeError, match=r"redismpx\.topics\.Topics takes coroutine functions"):
        topics.subscribe("c", answer)


# --- periodic publishers


@given(st.lists(st.floats(0, 1_000, allow_nan=False), min_size=1, max_size=20).map(sorted), st.floats(0.001, 100))
def test_deadlines_are_multiples_of_the_interval(times: list[float], interval: float) -> None:
    """Each is behind the one before, none is more than one interval ahead, and what is late is left out."""
    number = 0
    for elapsed in times:
        following = next_number(number, elapsed, interval)
        assert following > number
        assert following * interval > elapsed * (1 - 1e-9)
        assert following == number + 1 or (following - 1) * interval <= elapsed * (1 + 1e-9)
        number = following


class JumpingLoop(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to the next timer instead of waiting for it."""

    now = 1_000.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        loop: Any = self
        if not loop._ready and loop._scheduled:
            self.now = max(self.now, loop._scheduled[0]._when)
        super()._run_once()  # type: ignore[misc]


def test_periodic_functions_do_not_drift() -> None:
    """Calls that take time do not move the later ones; one that takes too long leaves out what it misses."""
    times: list[float] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with Topics() as topics:
            start = loop.time()

            @topics.every(1)
            async def work() -> None:
                times.append(loop.time() - start)
                await asyncio.sleep(2.5 if len(times) == 3 else 0.75)

            await asyncio.sleep(9.5)

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(main())
    assert times == [1, 2, 3, 6, 7, 8, 9]


async def test_a_failing_periodic_function_goes_on() -> None:
    """Each exception is reported, with the function; also that of a future that somebody cancelled."""
    errors: list[Exception] = []
    async with Topics(on_error=errors.append) as topics:

        @topics.every(0.001)
        def fail() -> None:
            raise OSError("no sensor")

        @topics.every(0.001)
        async def cancelled() -> None:
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future

        await until(lambda: {type(error) for error in errors} == {OSError, RuntimeError} and len(errors) > 5)
    assert "is called every 0.001 s" in errors[0].__notes__[0]
    count = len(errors)
    await asyncio.sleep(0.01)
    assert len(errors) == count


def test_a_periodic_function_waits_for_the_loop() -> None:
    """Without a running loop it begins with `async with`, each time."""
    topics, calls = Topics(), []

    @topics.every(0.001)
    def work() -> None:
        calls.append(1)

    async def main() -> None:
        async with topics:
            await until(lambda: bool(calls))

    asyncio.run(main())
    calls.clear()
    with pytest.raises(RuntimeError, match="closed"):
        topics.every(1)(work)


async def test_aclose_lets_everybody_finish() -> None:
    """A periodic function that runs returns, and coroutine functions handle what waits; a second call is safe."""
    topics, got, ticks = Topics(), [], []
    started = asyncio.Event()

    async def slow(topic: object, n: int) -> None:
        await asyncio.sleep(0.001)
        got.append(n)

    @topics.every(0.001)
    async def tick() -> None:
        ticks.append("begin")
        started.set()
        await asyncio.sleep(0.02)
        topics.publish("a", n=100)
        ticks.append("end")

    topics.subscribe("a", slow)
    for number in range(10):
        topics.publish("a", n=number)
    await started.wait()
    await topics.aclose()
    assert got == [*range(10), 100]
    assert ticks == ["begin", "end"]
    await topics.aclose()
    assert topics.publish("a", n=1) == 0


async def test_aclose_inside_a_callback_does_not_wait_for_it() -> None:
    """Nor inside a periodic function."""
    topics, done = Topics(), []

    async def stop(topic: object) -> None:
        await topics.aclose()
        done.append(1)

    topics.subscribe("a", stop)
    topics.publish("a")
    await until(lambda: bool(done))
    other = Topics()

    @other.every(0.001)
    async def end() -> None:
        await other.aclose()
        done.append(2)

    await until(lambda: len(done) == 2)


async def test_close_ends_at_once() -> None:
    """A periodic function that runs is cancelled."""
    topics, ended = Topics(), []
    started = asyncio.Event()

    @topics.every(0.001)
    async def work() -> None:
        started.set()
        try:
            await asyncio.sleep(100)
        finally:
            ended.append(1)

    await started.wait()
    topics.close()
    await until(lambda: bool(ended))


def test_threads_publish_periodically() -> None:
    """In a thread, until close(), which waits for a call that runs."""
    errors: list[Exception] = []
    with threads.Topics(on_error=errors.append) as topics:
        reader, ended = topics.open("a"), []
        began = threading.Event()

        @topics.every(0.005)
        def tick() -> None:
            topics.publish("a", n=1)

        @topics.every(0.005)
        def work() -> None:
            began.set()
            time.sleep(0.05)
            ended.append(1)
            raise OSError

        assert len([reader.get(10) for _ in range(3)]) == 3
        assert began.wait(10)
    assert ended
    assert isinstance(errors[0], OSError)
    count = len(errors)
    time.sleep(0.02)
    assert len(errors) == count


@pytest.mark.parametrize("module", [Topics, threads.Topics])
def test_bad_arguments_are_found_at_the_call(module: Any) -> None:
    """What is wrong is named."""
    for options, text in (
        ({"prefix": ""}, "prefix"),
        ({"prefix": "a b"}, "prefix"),
        ({"prefix": 5}, "prefix"),
        ({"prefix": "a:b"}, "prefix"),
        ({"max_pending": 0}, "max_pending"),
        ({"encode": 5}, "encode"),
        ({"on_gap": 5}, "on_gap"),
    ):
        with pytest.raises((TypeError, ValueError), match=text):
            module(**options)
    topics = module()
    for seconds in (0, -1, None, "x"):
        with pytest.raises((TypeError, ValueError)):
            topics.every(seconds)
    with pytest.raises((TypeError, ValueError)):
        topics.open("a", max_pending=0)
    with pytest.raises(ValueError, match="wildcard"):
        topics.serve("a.=", print)
    with pytest.raises(TypeError, match="callable"):
        topics.subscribe("a", 5)
