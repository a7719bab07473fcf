"""The snapshot of a multiplexer: its counters, and what can be told without counting anything. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic

from .._core.budget import Budget
from .._core.recovery import Stream, id_key
from ..stats import Stats
from .delivery.event_queue import EventQueue
from .hub import Hub
from .runtime.tasks import TIME_SLICE
from .streams.cursor import StreamCursor

LARGEST = 5  # queues that are named


def snapshot_of(hub: Hub) -> Stats:
    """Return the state and the counters of a multiplexer."""
    counters, main = hub.counters, hub.deployment.main
    pending, pending_bytes = hub.budget.totals
    return Stats(
        state=main.state.value,
        connections=counters.connections,
        channels=hub.channels,
        patterns=hub.patterns,
        shards=hub.deployment.shard_count,
        subscriptions=hub.subscription_count,
        messages=counters.messages,
        ignored=counters.ignored,
        pending=pending,
        pending_bytes=pending_bytes,
        dropped=counters.dropped,
        promises=counters.promises,
        published=counters.published,
        reconnects=counters.reconnects,
        gaps=counters.gaps,
        stream_gaps=counters.stream_gaps,
        lag=_lag_of(hub._streams.streams.values()),
        largest_queues=_largest(hub.budget),
        last_message=_seconds_since(counters.receiving_until),
        round_trip=counters.round_trip,
        last_error=main.last_error,
    )


def _lag_of(streams: Iterable[Stream]) -> float:
    """Return the seconds between the newest message of a stream and the last one that its slowest consumer has."""
    lag = 0
    for stream in streams:
        for cursor in stream.cursors if stream.id else ():
            assert isinstance(cursor, StreamCursor)
            if cursor.handed and cursor.handed != stream.id:
                lag = max(lag, id_key(stream.id)[0] - id_key(cursor.handed)[0])
    return lag / 1_000


def _largest(budget: Budget) -> tuple[tuple[str, int], ...]:
    """Return the subscriptions that buffer the most bytes, each with the number of its messages."""
    queues = [holder.owner for holder in budget.holders(LARGEST)]
    return tuple([(queue.title, queue.pending) for queue in queues if isinstance(queue, EventQueue)])


def _seconds_since(slice_end: float | None) -> float | None:
    """Return the seconds since the beginning of a time slice."""
    return None if slice_end is None else max(0.0, monotonic() - slice_end + TIME_SLICE)
