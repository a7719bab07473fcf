"""Reading a subscription: get(), get_nowait(), async for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.backoff import ConstantBackoff

from redismpx import ConnectionLost, DecodeError, Message, Multiplexer, SubscriptionIsClosed
from redismpx._io.delivery import reader as reader_module

from ..helpers.monitor import settled
from ..helpers.waiting import until

pytestmark = [pytest.mark.one_flavour, pytest.mark.usefixtures("no_leaks")]


@pytest.fixture
async def mpx(url: str) -> AsyncIterator[Multiplexer]:
    async with Multiplexer(url, backoff=ConstantBackoff(0.01)) as multiplexer:
        yield multiplexer


async def publish(admin: Redis, channel: str, count: int) -> None:
    pipe = admin.pipeline(transaction=False)
    for number in range(count):
        pipe.publish(channel, number)
    await pipe.execute()


async def test_a_subscription_without_on_message_can_be_read(mpx: Multiplexer, admin: Redis) -> None:
    """get() and get_nowait() return messages in order; get() waits up to its timeout."""
    sub = mpx.new_channel_subscription()
    sub.add("a")
    await sub.wait_for_activation(timeout=5)
    with pytest.raises(asyncio.QueueEmpty):
        sub.get_nowait()
    with pytest.raises(TimeoutError):
        await sub.get(0.01)
    await publish(admin, "a", 3)
    await until(lambda: sub.pending == 3)
    assert await sub.get(0) == Message(b"a", b"0", None)
    assert await sub.get(5) == Message(b"a", b"1")
    await until(lambda: sub.pending == 1)
    assert sub.get_nowait().data == b"2"
    assert sub.pending == sub.dropped == 0
    reading = asyncio.ensure_future(sub.get())
    await asyncio.sleep(0)
    await admin.publish("a", "woken")
    assert (await reading).data == b"woken"


async def test_messages_of_a_pattern_name_the_pattern(mpx: Multiplexer, admin: Redis) -> None:
    """A message of a pattern subscription has the pattern."""
    sub = mpx.new_pattern_subscription("n*")
    await sub.wait_for_activation(timeout=5)
    await admin.publish("news", "x")
    message = await sub.get(5)
    assert message == Message(b"news", b"x", b"n*")
    assert "x" not in repr(message).replace("pattern", "")


async def test_iteration_ends_when_the_subscription_closes(mpx: Multiplexer, admin: Redis) -> None:
    """close() ends the iteration, and drops and counts what is unread."""
    sub = mpx.new_channel_subscription()
    sub.add("a")
    await sub.wait_for_activation(timeout=5)
    seen: list[bytes] = []

    async def read() -> None:
        async for message in sub:
            seen.append(message.data)
            if message.data == b"99":
                sub.close()

    await publish(admin, "a", 200)
    await until(lambda: sub.pending == 200)
    await asyncio.wait_for(read(), 5)
    assert seen == [b"%d" % number for number in range(100)]
    assert sub.dropped == 100
    with pytest.raises(SubscriptionIsClosed):
        await sub.get()
    with pytest.raises(SubscriptionIsClosed):
        sub.get_nowait()
    async for _ in sub:
        raise AssertionError


async def test_close_wakes_the_reader(mpx: Multiplexer) -> None:
    """close() and aclose() wake a waiting reader."""
    one, two, three = (mpx.new_channel_subscription() for _ in range(3))
    waiting = [asyncio.ensure_future(each.get()) for each in (one, two)]
    iterating = asyncio.ensure_future(anext(aiter(three)))
    await asyncio.sleep(0)
    one.close()
    await mpx.aclose()
    for task in waiting:
        with pytest.raises(SubscriptionIsClosed):
            await task
    with pytest.raises(StopAsyncIteration):
        await iterating


async def test_a_cancelled_get_loses_no_message(mpx: Multiplexer, admin: Redis) -> None:
    """A get() that is cancelled or times out at any moment loses no message."""
    sub = mpx.new_channel_subscription()
    sub.add("a")
    await sub.wait_for_activation(timeout=5)
    seen: list[int] = []
    total = 300
    sending = asyncio.ensure_future(publish(admin, "a", total))
    while len(seen) < total:
        task = asyncio.ensure_future(sub.get(0.001 if len(seen) % 2 else None))
        for _ in range(len(seen) % 5):
            await asyncio.sleep(0)
        task.cancel()
        result = (await asyncio.gather(task, return_exceptions=True))[0]
        if isinstance(result, Message):
            seen.append(int(result.data))
        else:
            assert isinstance(result, (asyncio.CancelledError, TimeoutError))
            if sub.pending:
                seen.append(int(sub.get_nowait().data))
    await sending
    assert seen == list(range(total))


async def test_a_get_cancelled_as_a_message_arrives_keeps_it(mpx: Multiplexer) -> None:
    """A get() that is cancelled in the tick of a message leaves the message in the buffer."""
    sub = mpx.new_channel_subscription()
    reading = asyncio.ensure_future(sub.get())
    await asyncio.sleep(0)
    sub._inbox.deliver(b"a", b"x")
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert sub.get_nowait().data == b"x"


async def test_a_second_reader_raises(mpx: Multiplexer) -> None:
    """A second reader, or reading a subscription that has on_message, raises RuntimeError."""
    sub = mpx.new_channel_subscription()
    first = asyncio.ensure_future(sub.get())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="one reader"):
        await sub.get()
    with pytest.raises(RuntimeError, match="one reader"):
        async for _ in sub:
            pass
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    with pytest.raises(TimeoutError):
        await sub.get(0.01)
    called = mpx.new_channel_subscription(print)
    with pytest.raises(RuntimeError, match="has on_message"):
        await called.get()
    with pytest.raises(RuntimeError, match="has on_message"):
        called.get_nowait()
    with pytest.raises(RuntimeError, match="has on_message"):
        aiter(called)


async def test_a_second_reader_raises_while_the_first_yields(
    mpx: Multiplexer, admin: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second reader raises also while the first one only yields to the loop."""
    monkeypatch.setattr(reader_module, "TIME_SLICE", 0.0)  # after each message
    sub = mpx.new_channel_subscription()
    sub.add("a")
    await sub.wait_for_activation(timeout=5)
    await publish(admin, "a", 100)
    await until(lambda: sub.pending == 100)
    assert sub.get_nowait().data == b"0"
    reading = asyncio.ensure_future(sub.get())
    another = asyncio.ensure_future(sub.__anext__())  # begins right after it
    with pytest.raises(RuntimeError, match="one reader"):
        await another
    assert (await reading).data == b"1"


@pytest.mark.parametrize("decode", [None, int])
async def test_get_and_iteration_can_be_mixed(mpx: Multiplexer, admin: Redis, decode: Any) -> None:
    """get(), get_nowait() and iteration share one order of messages."""
    sub = mpx.new_channel_subscription(decode=decode)
    sub.add("a", "b")
    await sub.wait_for_activation(timeout=5)
    await publish(admin, "a", 100)
    await publish(admin, "b", 100)
    await until(lambda: sub.pending == 200)
    numbers = []
    async for message in sub:
        three = [message, sub.get_nowait(), await sub.get()]
        assert all(isinstance(each.data, decode or bytes) for each in three)
        numbers += [int(each.data) for each in three]
        assert sub.pending == 200 - len(numbers)
        if len(numbers) == 60:
            break
    sub.remove("a")
    assert (sub.pending, sub.dropped) == (100, 40)
    numbers += [int((await sub.get(5)).data) for _ in range(100)]
    assert numbers == [*range(60), *range(100)]


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_callbacks_wait_until_earlier_messages_are_read(mpx: Multiplexer, admin: Redis, is_async: bool) -> None:
    """on_disconnect and on_activation are called once the messages before them are read."""
    events: list[Any] = []

    def note(what: object) -> None:
        events.append(type(what).__name__)

    async def note_later(what: object) -> None:
        await asyncio.sleep(0)
        note(what)

    callback = note_later if is_async else note
    sub = mpx.new_channel_subscription(None, callback, callback)
    sub.add("a")
    await sub.wait_for_activation(timeout=5)
    await until(lambda: events == ["bytes"])  # nothing is before it
    await publish(admin, "a", 2)
    await until(lambda: sub.pending == 2)
    await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    await until(lambda: mpx.stats().connections == 2)
    await sub.wait_for_activation(timeout=5)
    await admin.publish("a", "new")
    await until(lambda: sub.pending == 3)
    assert events == ["bytes"]
    events.append((await sub.get(5)).data)
    events.append((await sub.get(5)).data)
    events.append((await sub.get(5)).data)
    assert events == ["bytes", b"0", b"1", "ConnectionLost", "bytes", b"new"]
    assert sub._inbox.idle


async def test_decode_converts_for_reader_and_callback(mpx: Multiplexer, admin: Redis) -> None:
    """decode converts payloads for readers and callbacks; a bad payload goes to on_error."""
    errors: list[Exception] = []
    read = mpx.new_channel_subscription(decode=json.loads, on_error=errors.append)
    seen: list[object] = []
    called = mpx.new_pattern_subscription(
        "a*", lambda _, data: seen.append(data), decode=json.loads, on_error=errors.append
    )
    read.add("a")
    await read.wait_for_activation(timeout=5)
    await called.wait_for_activation(timeout=5)
    for payload in ('{"n": 1}', "not json", b"\xff\xfe", "[2]"):
        await admin.publish("a", payload)
    assert (await read.get(5)).data == {"n": 1}
    assert (await read.get(5)).data == [2]
    await until(lambda: seen == [{"n": 1}, [2]])
    assert read.dropped == called.dropped == 2
    assert len(errors) == 4
    for error in errors:
        assert isinstance(error, DecodeError)
        assert error.channel == b"a"
        assert error.data in (b"not json", b"\xff\xfe")
        assert isinstance(error.__cause__, ValueError)
        assert "not json" not in str(error)
    assert not read.closed


async def test_bad_payloads_with_a_slow_on_error_need_few_tasks(mpx: Multiplexer, admin: Redis) -> None:
    """Fifty bad payloads with a slow async on_error need one task for each subscription."""
    gate = asyncio.Event()
    errors: list[Exception] = []

    async def on_error(error: Exception) -> None:
        await gate.wait()
        errors.append(error)

    subs = [
        mpx.new_channel_subscription(decode=json.loads, on_error=on_error),
        mpx.new_channel_subscription(print, decode=json.loads, on_error=on_error),
    ]
    for sub in subs:
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
    before = len(asyncio.all_tasks())
    for _ in range(50):
        await admin.publish("a", "bad")
    await admin.publish("a", "1")
    reading = asyncio.ensure_future(subs[0].get())
    await until(lambda: subs[1].pending == 50)
    assert len(asyncio.all_tasks()) <= before + 3
    gate.set()
    assert (await reading).data == 1
    await until(lambda: len(errors) == 100)


async def test_a_removed_channel_is_no_longer_read(mpx: Multiplexer, admin: Redis) -> None:
    """remove() drops and counts the channel's unread messages."""
    sub = mpx.new_channel_subscription()
    sub.add("a", "b")
    await sub.wait_for_activation(timeout=5)
    await publish(admin, "a", 3)
    await publish(admin, "b", 1)
    await until(lambda: sub.pending == 4)
    sub.remove("a")
    assert (sub.pending, sub.dropped) == (1, 3)
    assert (await sub.get(5)).channel == b"b"
    await settled(admin, {b"b"})


@pytest.mark.parametrize("how", ["remove", "drop_oldest", "latest"])
async def test_an_event_follows_when_its_last_message_is_dropped(mpx: Multiplexer, admin: Redis, how: str) -> None:
    """An event that waits for a message is delivered when that message is dropped; otherwise it would wait for ever."""
    active: list[bytes] = []
    options: dict[str, Any] = {} if how == "remove" else {"max_pending": 1, "overflow": how}
    sub = mpx.new_channel_subscription(on_activation=active.append, on_error=lambda _: None, **options)
    sub.add("x")
    await sub.wait_for_activation(timeout=5)
    await admin.publish("x", "1")
    await until(lambda: sub.pending == 1)
    sub.add("y")
    await sub.wait_for_activation(timeout=5)
    assert active == [b"x"]
    if how == "remove":
        sub.remove("x")
    else:
        await admin.publish("x", "2")
    await until(lambda: active == [b"x", b"y"])
    await admin.publish("y", "3")
    await until(lambda: (sub.pending, sub.dropped) == (1, 1 if how == "remove" else 2))
    assert (await sub.get(5)).data == b"3"


@pytest.mark.parametrize("how", ["cancel", "remove", "close", "disconnect"])
async def test_a_message_may_meet_the_end_of_its_reader(mpx: Multiplexer, admin: Redis, how: str) -> None:
    """A message for a waiting reader is pending if the reader is cancelled, and dropped if its channel is removed."""
    lost: list[object] = []
    early: list[object] = []
    sub = mpx.new_channel_subscription(on_disconnect=lost.append)
    sub.add("a")
    await sub.wait_for_activation(timeout=5)
    reading = asyncio.ensure_future(sub.get())
    strikes: dict[str, Callable[[], object]] = {
        "cancel": reading.cancel,
        "remove": lambda: sub.remove("a"),
        "close": sub.close,
        "disconnect": lambda: (sub._inbox.disconnect(ConnectionLost("a test")), early.extend(lost)),
    }
    striker = mpx.new_channel_subscription(lambda *_: strikes[how]())  # in the same burst, after the message
    striker.add("a")
    await striker.wait_for_activation(timeout=5)
    assert await admin.publish("a", "x") == 1
    await until(lambda: mpx.stats().messages == 1)
    if how == "disconnect":
        assert (await reading).data == b"x"
        await until(lambda: len(lost) == 1)
        assert not early  # it comes after the message
        sub._inbox.active = 1  # as it is
    elif how == "cancel":
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert (sub.pending, sub.dropped, mpx.stats().pending) == (1, 0, 1)
        assert (await sub.get(0)).data == b"x"
    else:
        assert (sub.pending, sub.dropped) == (0, 1)
        if how == "close":
            with pytest.raises(SubscriptionIsClosed):
                await reading
        else:
            await asyncio.sleep(0)
            sub.add("b")
            await sub.wait_for_activation(timeout=5)
            await admin.publish("b", "y")
            assert (await reading).data == b"y"
    assert sub.pending == 0
