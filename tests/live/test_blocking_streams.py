"""Streams without an event loop: appended, read and called in threads."""

from __future__ import annotations

import queue

import pytest

from redismpx import Activation, MessageGap, StreamMessage
from redismpx.blocking import Multiplexer

from ..helpers.servers import Server


def test_streams_are_read_in_threads(server: Server) -> None:
    """append(), history() and a subscription that is read do what those of asyncio do."""
    with Multiplexer(server.admin_url) as mpx:
        ids = [mpx.append("s", str(number), key=f"k{number}") for number in range(5)]
        assert mpx.append("s", "again", key="k4") == ids[4]
        assert [message.id for message in mpx.history("s", after=ids[0], limit=2)] == ids[1:3]
        with mpx.new_stream_subscription(decode=int) as sub:
            sub.add("s", after=ids[0])
            sub.wait_for_activation(timeout=5)
            assert [message.data for message in sub.listen(timeout=0.5)] == [1, 2, 3, 4]
            assert (sub.position("s"), sub.lagging, sub.dropped) == (ids[4], False, 0)
        with mpx.new_stream_subscription() as sub:
            events = sub.events()
            sub.add("s", after="1-1")
            assert [type(next(events)) for _ in range(3)] == [Activation, MessageGap, StreamMessage]


def test_stream_callbacks_run_in_workers(server: Server) -> None:
    """Messages and gaps are passed to plain functions, in order."""
    got: queue.Queue[StreamMessage[bytes] | MessageGap] = queue.Queue()
    with Multiplexer(server.admin_url) as mpx:
        sub = mpx.new_stream_subscription(got.put, got.put)
        sub.add("s", after="1-1")
        assert isinstance(got.get(timeout=5), MessageGap)
        for number in range(100):
            mpx.append("s", str(number))
        messages = [got.get(timeout=5) for _ in range(100)]
        assert [m.data for m in messages if isinstance(m, StreamMessage)] == [b"%d" % number for number in range(100)]


@pytest.mark.parametrize("reads", [True, False])
def test_a_durable_position_follows_the_thread(server: Server, reads: bool) -> None:
    """A message that a thread has not got, or a callback has not handled, is not counted as handled."""
    with Multiplexer(server.admin_url) as mpx:
        for number in range(10):
            mpx.append("s", str(number))
        got: queue.Queue[StreamMessage[bytes]] = queue.Queue()
        with mpx.new_stream_subscription(None if reads else got.put, durable="d") as sub:
            sub.add("s", after="0")
            for _ in range(3 if reads else 10):
                sub.get(timeout=5) if reads else got.get(timeout=5)
            sub.commit()
        with mpx.new_stream_subscription(durable="d") as sub:
            sub.add("s", after="0")
            assert [message.data for message in sub.listen(timeout=0.5)] == [
                b"%d" % n for n in range(3 if reads else 10, 10)
            ]
        assert mpx.delete_position("s", "d")
