"""Closing from inside users' code: by way of another task, in a handler, in a backoff, in a log handler."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.backoff import AbstractBackoff

from redismpx import (
    ChannelSubscription,
    ConnectionLost,
    Envelope,
    Multiplexer,
    MultiplexerIsClosed,
    Request,
    SubscriptionIsClosed,
)
from redismpx._io.runtime.slices import SLICE_STEPS
from redismpx._io.session import reconnect

from ..helpers.backoffs import QUICK
from ..helpers.servers import Server, free_port
from ..helpers.waiting import until

pytestmark = [pytest.mark.one_flavour, pytest.mark.usefixtures("no_leaks")]

Ending = Callable[[], Coroutine[Any, Any, object]]


async def by_group(end: Ending) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(end())


async def by_waiting(end: Ending) -> None:
    await asyncio.wait([asyncio.create_task(end())])


WAYS: dict[str, Callable[[Ending], Awaitable[object]]] = {
    "gather": lambda end: asyncio.gather(end()),
    "group": by_group,
    "shield": lambda end: asyncio.shield(end()),
    "wait": by_waiting,
    "wait_for": lambda end: asyncio.wait_for(end(), 30),
    "task in a task": lambda end: asyncio.create_task(by_waiting(end)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("place", ["on_message", "on_error", "handler"])
@pytest.mark.parametrize("ending", ["drain", "aclose"])
async def test_a_callback_may_end_it_by_another_task(url: str, admin: Redis, ending: str, place: str, way: str) -> None:
    """A callback that awaits a task which awaits drain() or aclose() ends normally, and the multiplexer closes."""
    ended: list[str] = []

    async def end(*_: object) -> None:
        try:
            async with asyncio.timeout(3):  # less than closing waits for a task that does not end
                await WAYS[way](getattr(mpx, ending))
            ended.append("normally")
        except BaseException as error:
            ended.append(repr(error))
            raise

    def fail(*_: object) -> None:
        raise ValueError

    mpx = Multiplexer(url)
    if place == "handler":
        sub = mpx.serve("a", end)
    else:
        sub = mpx.new_channel_subscription(
            end if place == "on_message" else fail, on_error=end if place == "on_error" else None
        )
        sub.add("a")
    await sub.wait_for_activation(timeout=5)
    await admin.publish("a", bytes(Envelope(b"")))
    await until(lambda: bool(ended))
    assert ended == ["normally"]
    await until(lambda: mpx.stats().state == "closed")
    await mpx.aclose()


if sys.version_info >= (3, 12):  # before, a task does not tell its context

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("ending", ["drain", "aclose"])
    async def test_a_task_that_a_callback_returns_may_end_it(url: str, admin: Redis, ending: str, way: str) -> None:
        """A plain callback returns a task that awaits drain() or aclose(): the task ends normally."""
        ended: list[str] = []

        async def end() -> None:
            async with asyncio.timeout(3):
                await WAYS[way](getattr(mpx, ending))
            ended.append("normally")

        mpx = Multiplexer(url)
        sub = mpx.new_channel_subscription(lambda *_: asyncio.create_task(end()))
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        await admin.publish("a", "x")
        await until(lambda: bool(ended))
        await until(lambda: mpx.stats().state == "closed")
        await mpx.aclose()


async def test_a_task_that_outlives_its_callback_waits(url: str, admin: Redis) -> None:
    """drain() in a task that a callback started and did not wait for waits until the messages are handled."""
    gate, handled, drained = asyncio.Event(), asyncio.Event(), []
    tasks: list[asyncio.Task[None]] = []

    async def start(channel: bytes, data: bytes) -> None:
        tasks.append(asyncio.create_task(drain()))

    async def drain() -> None:
        await gate.wait()
        await mpx.drain(5)
        drained.append(handled.is_set())

    async def handle(channel: bytes, data: bytes) -> None:
        gate.set()
        await asyncio.sleep(0.05)  # work
        handled.set()

    mpx = Multiplexer(url)
    starting, handling = mpx.new_channel_subscription(start), mpx.new_channel_subscription(handle)
    starting.add("start")
    handling.add("handle")
    for sub in (starting, handling):
        await sub.wait_for_activation(timeout=5)
    await admin.publish("start", "x")
    await until(lambda: bool(tasks))
    await admin.publish("handle", "x")
    await until(lambda: tasks[0].done())
    assert drained == [True]
    assert mpx.stats().state == "closed"
    await mpx.aclose()


async def test_a_callback_that_hangs_after_drain_is_cancelled(url: str, admin: Redis) -> None:
    """A callback that calls drain() and then hangs is cancelled at the timeout of drain()."""
    cancelled: list[bool] = []

    async def drain_and_hang(channel: bytes, data: bytes) -> None:
        await asyncio.gather(mpx.drain(0.05))
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    mpx = Multiplexer(url)
    sub = mpx.new_channel_subscription(drain_and_hang)
    sub.add("a")
    await sub.wait_for_activation(timeout=5)
    await admin.publish("a", "x")
    await until(lambda: bool(cancelled))
    await until(lambda: mpx.stats().state == "closed")
    await mpx.aclose()


@pytest.mark.parametrize("way", ["close", "multiplexer", "task"])
async def test_a_handler_that_closes_its_service_sends_no_reply(url: str, admin: Redis, way: str) -> None:
    """After close() a service publishes no reply, not even that of the handler which called close()."""
    finished: list[bool] = []
    failures: list[Exception] = []

    async def close_later() -> None:
        service.close()

    async def handle(request: Request) -> bytes:
        if way == "task":
            await asyncio.gather(close_later())
        elif way == "close":
            service.close()
        else:
            mpx.close()
        finished.append(True)
        return b"reply"

    async with Multiplexer(url) as beside, Multiplexer(url, on_error=failures.append) as mpx:
        replies = beside.new_channel_subscription()
        replies.add("replies", "end")
        await replies.wait_for_activation(timeout=5)
        service = mpx.serve("a", handle)
        await service.wait_for_activation(timeout=5)
        await admin.publish("a", bytes(Envelope(b"", reply_to=b"replies")))
        await until(lambda: bool(finished) and service.in_flight == 0)
        if way != "multiplexer":
            await mpx.publish("end", "")  # after a reply, if there was one: messages keep their order
        else:
            await mpx.aclose()
            await admin.publish("end", "")
        assert (await replies.get(5)).channel == b"end"
    assert failures == []


# --- in a log handler, and in a backoff


class ClosingHandler(logging.Handler):
    """Closes a multiplexer at the record with a number."""

    def __init__(self, number: int, events: list[object]) -> None:
        super().__init__(logging.DEBUG)
        self.number = number
        self.events = events
        self.before: int | None = None  # events before it closed
        self.mpx: Multiplexer | None = None
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        if len(self.records) == self.number and self.mpx is not None:
            self.mpx.close()
            self.before = len(self.events)


async def live(mpx: Multiplexer, admin: Redis, events: list[object]) -> None:
    """Connect, get messages, lose the connection, get it back, publish, drain."""

    async def on_message(channel: bytes, data: bytes) -> None:
        events.append(data)

    sub = mpx.new_channel_subscription(on_message, events.append, events.append)
    sub.add("a")
    await sub.wait_for_activation(timeout=5)
    await mpx.publish("a", "1")
    failing = mpx.new_channel_subscription(lambda *_: 1 / 0, on_error=events.append)
    failing.add("a")
    await failing.wait_for_activation(timeout=5)
    await mpx.publish("a", "2")
    await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    await until(lambda: mpx.stats().connections == 2 or mpx.stats().state == "closed")
    await sub.wait_for_activation(timeout=5)
    await mpx.drain(5)


async def library_tasks_ended() -> None:
    await until(lambda: not [task for task in asyncio.all_tasks() if "redismpx" in task.get_name()])


async def test_a_log_handler_may_close_it_at_any_record(
    url: str, admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Whichever record a log handler closes it at: no error is logged, nothing is called later, and all tasks end."""
    caplog.set_level(logging.DEBUG, "redismpx")
    logger = logging.getLogger("redismpx")
    number, total = 0, 1
    while number < total:
        number += 1
        events = list[object]()
        handler = ClosingHandler(number, events)
        logger.addHandler(handler)
        try:
            mpx = handler.mpx = Multiplexer(url, backoff=QUICK)
            with contextlib.suppress(MultiplexerIsClosed, SubscriptionIsClosed, ConnectionLost):
                await live(mpx, admin, events)
            assert mpx.stats().state == "closed", number
            await library_tasks_ended()
            await mpx.aclose()
        finally:
            logger.removeHandler(handler)
        total = max(total, len(handler.records))
        assert handler.before in (None, len(events)), (number, events)
        worst = [record.getMessage() for record in handler.records if record.levelno > logging.WARNING]
        assert not [text for text in worst if "on_message of" not in text], (number, worst)
    assert total > 10


@pytest.mark.parametrize("calls", [1, 2, 3])
async def test_a_backoff_may_close_it(calls: int, caplog: pytest.LogCaptureFixture) -> None:
    """A backoff that closes the multiplexer ends it: no error is logged, no further attempt is made."""

    class Closing(AbstractBackoff):
        def __init__(self) -> None:
            self.calls = 0

        def compute(self, failures: int) -> float:
            self.calls += 1
            if self.calls == calls:
                mpx.close()
            return 0.0

    backoff = Closing()
    mpx = Multiplexer(f"redis://127.0.0.1:{free_port()}", backoff=backoff)
    sub = mpx.new_channel_subscription(print)
    sub.add("a")
    with pytest.raises(SubscriptionIsClosed):
        await sub.wait_for_activation(timeout=10)
    await library_tasks_ended()
    assert backoff.calls == calls
    assert mpx.stats().state == "closed"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    await mpx.aclose()


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_a_backoff_that_raises_does_not_end_it(
    server: Server, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exceptions of compute() and reset() cost neither the multiplexer nor a connection."""
    monkeypatch.setattr(reconnect, "FALLBACK_DELAY", 0.01)
    monkeypatch.setattr(reconnect, "STABLE_AFTER", 0.0)

    class Raising(AbstractBackoff):
        resets = computed = 0

        def reset(self) -> None:
            self.resets += 1
            raise error

        def compute(self, failures: int) -> float:
            self.computed += 1
            raise error

    backoff = Raising()
    lost: list[ConnectionLost] = []
    async with Multiplexer(server.url, backoff=backoff) as mpx:
        sub = mpx.new_channel_subscription(print, lost.append)
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        server.kill()
        await until(lambda: backoff.computed > 1)
        server.start()
        await sub.wait_for_activation(timeout=10)
    assert backoff.resets == 1
    assert len(lost) == 1
    assert "internal error" not in lost[0].reason


@pytest.mark.parametrize("kind", ["plain", "async", "reader"])
async def test_very_many_subscriptions_close_in_time_slices(url: str, admin: Redis, kind: str) -> None:
    """After close(), all are closed and none gets an event, though most of them end in the next iterations."""
    total = 2000
    calls = 0
    waiting: list[asyncio.Future[None]] = []
    tasks: list[asyncio.Task[None]] = []

    def plain(*_: bytes) -> None:
        nonlocal calls
        calls += 1
        mpx.close()

    def wait(*_: bytes) -> asyncio.Future[None]:
        nonlocal calls
        calls += 1
        waiting.append(asyncio.get_running_loop().create_future())
        return waiting[-1]

    async def read(sub: ChannelSubscription[bytes]) -> None:
        async for _ in sub:
            await wait()

    def go_on() -> None:
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async with Multiplexer(url) as mpx:
        callback = {"plain": plain, "async": wait}.get(kind)
        subs = [mpx.new_channel_subscription(callback) for _ in range(total)]
        for sub in subs:
            sub.add("a")
        for sub in subs:
            await sub.wait_for_activation(timeout=5)
        if kind == "reader":
            tasks = [asyncio.create_task(read(sub)) for sub in subs]
            await asyncio.sleep(0)
        pipe = admin.pipeline(transaction=False)
        for number in range(6):
            pipe.publish("a", number)
        await pipe.execute()
        if kind != "plain":
            await until(lambda: all(sub.pending == 5 for sub in subs))
            go_on()
            await until(lambda: all(sub.pending == 4 for sub in subs))
            assert mpx._hub.budget.lenders
            mpx.close()
            assert sum(sub.pending for sub in subs) == 4 * (total - SLICE_STEPS)
        await until(lambda: all(sub.closed for sub in subs))
        go_on()  # most consumers go on before they are cancelled, or end
    await asyncio.gather(*tasks)
    assert calls == (1 if kind == "plain" else 2 * total)
    stats = mpx.stats()
    assert (stats.pending, stats.pending_bytes, stats.subscriptions) == (0, 0, 0)
    if kind != "plain":
        assert stats.dropped == 4 * total
