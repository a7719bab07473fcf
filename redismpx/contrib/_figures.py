"""The figures of multiplexers, for the systems that collect such. Knows none of these systems."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

from .. import Multiplexer, Stats, blocking

AnyMultiplexer: TypeAlias = Multiplexer | blocking.Multiplexer

_COLLECT_TIMEOUT = 5.0  # seconds that a collection waits for the loop of the multiplexer


class Figure(NamedTuple):
    """One figure, and where its value comes from."""

    name: str
    is_counter: bool
    help: str
    value: Callable[[Stats], float | None]
    """None: there is no value yet."""


def _counter(name: str, text: str, value: Callable[[Stats], float]) -> Figure:
    return Figure(name, True, text, value)


def _gauge(name: str, text: str, value: Callable[[Stats], float | None]) -> Figure:
    return Figure(name, False, text, value)


FIGURES: tuple[Figure, ...] = (
    _gauge("connected", "1 while there is a connection, else 0.", lambda stats: stats.state == "connected"),
    _counter("connections", "Connections made.", lambda stats: stats.connections),
    _counter("reconnects", "Connections that took the place of a lost one.", lambda stats: stats.reconnects),
    _counter("gaps", "Active subscriptions that a lost connection has interrupted.", lambda stats: stats.gaps),
    _counter("stream_gaps", "Gaps that stream subscriptions got.", lambda stats: stats.stream_gaps),
    _counter("received_messages", "Messages received.", lambda stats: stats.messages),
    _counter("published_messages", "Messages that Redis has accepted.", lambda stats: stats.published),
    _counter("dropped_messages", "Messages dropped.", lambda stats: stats.dropped),
    _counter("ignored_replies", "Replies that were ignored.", lambda stats: stats.ignored),
    _gauge("pending_messages", "Messages that subscriptions buffer.", lambda stats: stats.pending),
    _gauge("pending_bytes", "Bytes that subscriptions buffer.", lambda stats: stats.pending_bytes),
    _gauge("largest_queue_messages", "Messages of the subscription that buffers most.", lambda stats: max(
        [count for _, count in stats.largest_queues], default=0)),
    _gauge("stream_lag_seconds", "Seconds that the slowest stream subscription is behind.", lambda stats: stats.lag),
    _gauge("last_message_seconds", "Seconds since the last message arrived.", lambda stats: stats.last_message),
    _gauge("round_trip_seconds", "Seconds from the last PING to the reply.", lambda stats: stats.round_trip),
    _gauge("channels", "Channels that are subscribed to.", lambda stats: stats.channels),
    _gauge("patterns", "Patterns that are subscribed to.", lambda stats: stats.patterns),
    _gauge("subscriptions", "Open subscription objects.", lambda stats: stats.subscriptions),
    _gauge("shards", "Primaries with a connection for sharded channels.", lambda stats: stats.shards),
    _gauge("promises", "Promises that have no outcome yet.", lambda stats: stats.promises),
)  # fmt: skip
"""All figures."""


class FigureSource:
    """Multiplexers by name, whose figures any thread may read.

    A multiplexer for asyncio is asked in its loop, if that runs in another thread, and if this was made in the loop.
    """

    def __init__(self, multiplexers: Mapping[str, AnyMultiplexer]) -> None:
        self._multiplexers = dict(multiplexers)
        self._loop = _running_loop()

    def read(self) -> dict[str, Stats]:
        """Return the figures now, by the names of the multiplexers."""
        return {name: self._stats_of(each) for name, each in self._multiplexers.items()}

    def _stats_of(self, multiplexer: AnyMultiplexer) -> Stats:
        loop = self._loop
        if loop is None or loop is _running_loop() or not loop.is_running():
            return multiplexer.stats()
        if isinstance(multiplexer, blocking.Multiplexer):
            return multiplexer.stats()

        async def ask() -> Stats:
            return multiplexer.stats()

        return asyncio.run_coroutine_threadsafe(ask(), loop).result(_COLLECT_TIMEOUT)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
