"""The inbox of one subscription, with a consumer and without a server."""

from __future__ import annotations

import asyncio

import pytest

from redismpx._core.budget import Budget
from redismpx._core.event_list import MERGED_AT_ONCE
from redismpx._io.delivery.bulk import read_many
from redismpx._io.delivery.consumer import Consumer, DeliveryContext
from redismpx._io.delivery.inbox import Inbox
from redismpx._io.runtime.log import RecordLimit
from redismpx._io.runtime.tasks import Tasks
from redismpx.errors import ConnectionLost
from redismpx.stats import Counters

from ..helpers.waiting import until


def new_inbox(consumer: Consumer) -> Inbox:
    call_soon = asyncio.get_running_loop().call_soon
    context = DeliveryContext(Tasks(), Counters(), Budget(), call_soon, RecordLimit())  # type: ignore[arg-type]
    return Inbox(consumer, "a subscription", context, None)


async def test_many_messages_are_read_at_once() -> None:
    """read_many() returns queued messages in order, as many as it may, and no more than fit; all are counted."""
    inbox = new_inbox(Consumer())
    for number in range(500):
        inbox.deliver(b"a", b"%03d" % number)
    inbox.flush()
    budget = inbox.context.budget
    read = [b"000", b"001"]
    assert inbox.read_nowait() == (b"a", b"000")  # 31 other messages are lent to the reader
    assert inbox.read_nowait() == (b"a", b"001")
    for most, size, count in ((200, 10_000, 200), (10_000, 40, 10), (10_000, 41, 11), (5, 10_000, 5), (0, 9, 0)):
        items = read_many(inbox, most, size)
        assert items[::2] == [b"a"] * count
        read += items[1::2]
        assert (inbox.pending, budget.pending) == (500 - len(read), 500 - len(read))
        assert budget.size == 4 * inbox.pending
    read += read_many(inbox, 10_000, 10_000)[1::2]
    assert read == [b"%03d" % number for number in range(500)]
    assert inbox.idle
    assert read_many(inbox, 1, 1) == []


async def test_many_messages_take_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends it, read_many() looks at the inbox for a few messages only."""
    inbox = new_inbox(Consumer())
    for _ in range(1_000):
        inbox.deliver(b"a", b"123")
    inbox.flush()
    looks = 0
    read_nowait = Inbox.read_nowait

    def count(inbox: Inbox, most: int = 0) -> object:
        nonlocal looks
        looks += 1
        return read_nowait(inbox, most)

    monkeypatch.setattr(Inbox, "read_nowait", count)
    assert len(read_many(inbox, 300, 10_000)) == 600
    assert len(read_many(inbox, 10_000, 1_200)) == 600
    assert len(read_many(inbox, 10_000, 10_000)) == 800
    assert looks <= 6


async def test_many_messages_end_before_a_signal() -> None:
    """read_many() leaves the messages behind a signal, whose callback is called first."""
    activated: list[bytes] = []
    inbox = new_inbox(Consumer(on_activation=activated.append))
    for name in (b"a", b"b"):
        inbox.deliver(b"a", name)
        inbox.deliver(b"a", name)
        inbox.activate(name)
    assert read_many(inbox, 100, 1_000) == [b"a", b"a"] * 2
    assert read_many(inbox, 100, 1_000) == []
    await until(lambda: activated == [b"a"])
    assert read_many(inbox, 100, 1_000) == [b"a", b"b"] * 2
    await until(lambda: activated == [b"a", b"b"])
    assert inbox.idle


async def test_messages_to_decode_are_not_read_at_once() -> None:
    """read_many() leaves messages that a function of the user is to decode: it may take any time."""
    inbox = new_inbox(Consumer(decode=bytes.decode))
    inbox.deliver(b"a", b"1")
    inbox.deliver(b"a", b"2")
    inbox.flush()
    assert read_many(inbox, 100, 1_000) == []
    assert inbox.pending == 2


async def test_two_losses_of_many_names_merge_in_several_iterations() -> None:
    """A busy consumer loses very many names twice: later there is one disconnect, without a name that was removed."""
    free = asyncio.Event()
    lost: list[ConnectionLost] = []

    async def on_message(channel: bytes, data: bytes) -> None:
        await free.wait()

    tasks = Tasks()
    context = DeliveryContext(
        tasks,
        Counters(),
        Budget(),
        asyncio.get_running_loop().call_soon,
        RecordLimit(),  # type: ignore[arg-type]
    )
    inbox = Inbox(Consumer(on_message, lost.append, lambda _: None), "a subscription", context, None)
    names = frozenset([b"%d" % number for number in range(3 * MERGED_AT_ONCE)])
    for reason in ("first", "second"):
        for name in names:
            inbox.activate(name)
        inbox.accept(inbox.deliver(b"1", b"x"))
        inbox.disconnect(ConnectionLost(reason, names))
    buffer = inbox.buffer
    assert buffer is not None
    assert buffer.signals == len(names) + 2
    await asyncio.sleep(0)
    assert buffer.is_merging
    inbox.forget(frozenset({b"7"}), 0, rest=True)
    await until(lambda: not buffer.is_merging)
    assert (buffer.signals, len(buffer), context.counters.dropped) == (1, 0, 1)
    free.set()
    await until(lambda: inbox.idle)
    assert [(error.reason, error.names) for error in lost] == [("first", names - {b"7"})]
    assert tasks.count == 0
