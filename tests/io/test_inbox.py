"""The inbox of one subscription, with a consumer and without a server."""

from __future__ import annotations

import asyncio

from redismpx._core.budget import Budget
from redismpx._core.event_list import MERGED_AT_ONCE
from redismpx._io.delivery.consumer import Consumer, DeliveryContext
from redismpx._io.delivery.inbox import Inbox
from redismpx._io.runtime.log import RecordLimit
from redismpx._io.runtime.tasks import Tasks
from redismpx.errors import ConnectionLost
from redismpx.stats import Counters

from ..helpers.waiting import until


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
