"""What a multiplexer tells of itself."""

from __future__ import annotations

__all__ = ["Counters", "Stats"]

from dataclasses import dataclass

from .errors import ConnectionLost


@dataclass(frozen=True, slots=True)
class Stats:
    """A snapshot of a multiplexer."""

    state: str
    """`"idle"`, `"dialling"`, `"connected"`, `"backing off"` or `"closed"`."""
    connections: int
    """Connections made so far; each after the first is a reconnect."""
    channels: int
    """Channels that somebody wants; each is subscribed once on the server, whatever the number of its subscribers.
    Sharded ones are counted, too.

    That of a delivery probe is one of them, and that over which Sentinels tell of another master."""
    patterns: int
    """Patterns that somebody wants, those of promises among them."""
    shards: int
    """Primaries of a cluster to which there are links of their own, for sharded channels."""
    subscriptions: int
    """Subscription objects that are open."""
    messages: int
    """Messages that Redis put on the connection."""
    ignored: int
    """Replies that were no use to anybody: pushes of other kinds, payloads that are no bytes."""
    pending: int
    """Messages that wait for their consumers."""
    pending_bytes: int
    """The bytes of their channels and payloads. Those of up to 32 messages that a consumer has just had may still
    count: they are taken off together."""
    dropped: int
    """Messages dropped so far; see the `dropped` of a subscription."""
    promises: int
    """Promises without an outcome."""
    published: int
    """Messages that Redis took from `publish()`."""
    last_error: ConnectionLost | None
    """Why the last connection, or attempt at one, failed."""


@dataclass(slots=True)
class Counters:
    """What happened so far; the running part of `Stats`."""

    connections: int = 0
    messages: int = 0
    ignored: int = 0
    dropped: int = 0
    promises: int = 0  # outstanding now
    published: int = 0
