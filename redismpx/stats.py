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
    last_error: ConnectionLost | None
    """The reason why the last connection, or the last attempt to connect, failed. None: there was no failure."""


@dataclass(slots=True)
class Counters:
    """The counters behind `Stats`."""

    connections: int = 0
    messages: int = 0
    ignored: int = 0
    dropped: int = 0
    promises: int = 0  # outstanding
    published: int = 0
    scripts: int = 0  # calls that run a script: append(), and the pages of streams
