"""The state and the counters of a multiplexer."""

from __future__ import annotations

__all__ = ["Counters", "Stats"]

from dataclasses import dataclass

from .errors import ConnectionLost


@dataclass(frozen=True, slots=True)
class Stats:
    """A snapshot of the state and the counters of a multiplexer, from `Multiplexer.stats()`."""

    state: str
    """`"idle"`, `"dialling"`, `"connected"`, `"backing off"` or `"closed"`."""
    connections: int
    """The number of connections made so far. Each connection after the first is a reconnect."""
    channels: int
    """The number of different channels that are subscribed to, sharded channels included. On the server, each is
    subscribed once, for any number of subscribers.

    The channel of a delivery probe counts, and so does the channel on which Sentinels announce a new master."""
    patterns: int
    """The number of different patterns that are subscribed to, those of promise subscriptions included."""
    shards: int
    """The number of primaries of a cluster that have a connection of their own, for sharded channels."""
    subscriptions: int
    """The number of open subscription objects."""
    messages: int
    """The number of messages that Redis has sent on the connection."""
    ignored: int
    """The number of ignored replies: pushes of other kinds, and payloads that are not bytes."""
    pending: int
    """The number of buffered messages of all subscriptions."""
    pending_bytes: int
    """The bytes of their channels and payloads. A message counts for each subscription that buffers it."""
    dropped: int
    """The number of messages dropped so far; see `ChannelSubscription.dropped`."""
    promises: int
    """The number of promises that have no outcome yet."""
    published: int
    """The number of messages that Redis has accepted from `publish()`."""
    reconnects: int
    """The number of connections that took the place of a lost one."""
    gaps: int
    """The number of times that a lost connection has interrupted an active subscription. What is published until the
    activation is missed, but not by a stream subscription."""
    stream_gaps: int
    """The number of `MessageGap` that stream subscriptions got: Redis did not have some messages any more."""
    lag: float
    """Seconds between the newest message of a stream and the last one that its slowest subscription has got. Other
    messages carry no time: see `largest_queues`."""
    largest_queues: tuple[tuple[str, int], ...]
    """The subscriptions that buffer the most bytes, at most five, the largest first: each with its next channel, and
    the number of its messages. Those with less than a 4096th of `max_total_pending_bytes` are left out."""
    last_message: float | None
    """Seconds since the last message arrived. None: there was none."""
    round_trip: float | None
    """Seconds from the last PING to the first reply. Pings are sent in silence only. None: no PING has a reply yet."""
    last_error: ConnectionLost | None
    """The reason why the last connection, or the last attempt to connect, failed. None: there was no failure."""


@dataclass(slots=True)
class Counters:
    """The counters behind `Stats`."""

    connections: int = 0
    reconnects: int = 0
    gaps: int = 0
    stream_gaps: int = 0
    round_trip: float | None = None  # of the last PING that has a reply, in seconds
    receiving_until: float | None = None  # the end of the time slice in which the last message was received
    messages: int = 0
    ignored: int = 0
    dropped: int = 0
    promises: int = 0  # outstanding
    published: int = 0
    scripts: int = 0  # calls that run a script: append(), and the pages of streams
