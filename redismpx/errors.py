"""Every exception of this library. The message says what, where and what to do; the facts are attributes."""

from __future__ import annotations

__all__ = [
    "ConnectionLost",
    "DecodeError",
    "InactiveSubscription",
    "LimitReached",
    "MultiplexerIsClosed",
    "NoResponders",
    "PromiseInterrupted",
    "PromiseTimeout",
    "RedisMPXError",
    "RequestFailed",
    "SlowConsumer",
    "SubscriptionIsClosed",
    "SubscriptionRefused",
    "TooManyChannels",
    "TooManyPatterns",
    "TooManyPromises",
    "plain",
    "quote",
]

import asyncio

_SHOWN = 64  # bytes of a name in a message or a log record
_SHOWN_TEXT = 500  # characters of what somebody else says, a server for example


def quote(name: bytes) -> str:
    """Show a name in one line, escaped and cut: names are hostile data."""
    return repr(name) if len(name) <= _SHOWN else f"{name[:_SHOWN]!r}... ({len(name)} bytes)"


def plain(text: str) -> str:
    """Show what somebody else says in one line, escaped and cut: a server may repeat names in its errors."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text[:_SHOWN_TEXT])


class RedisMPXError(Exception):
    """The base of all errors of this library."""


class MultiplexerIsClosed(RedisMPXError):
    """The multiplexer was closed, or drains, and takes nothing new. Make a new one."""

    def __init__(self) -> None:
        super().__init__("this multiplexer is closed or closing; make a new one")


class SubscriptionIsClosed(RedisMPXError):
    """The subscription, or its multiplexer, was closed. Make a new one."""

    def __init__(self) -> None:
        super().__init__("this subscription is closed; make a new one from the multiplexer")


class InactiveSubscription(RedisMPXError):
    """A promise was wanted of a subscription that is not active now, so its message could be missed."""

    def __init__(self, pattern: bytes) -> None:
        super().__init__(f"pattern {quote(pattern)} is not active; await wait_for_activation() first")
        self.pattern = pattern
        """The pattern that is not active."""


class LimitReached(RedisMPXError):
    """More was asked of a multiplexer than one of its limits allows. Nothing was changed."""

    def __init__(self, limit: str, value: int) -> None:
        super().__init__(f"{limit}={value} is reached; find out who asks for so many, or raise it")
        self.limit = limit
        """The option of the multiplexer that is in the way."""
        self.value = value
        """What it is."""


class TooManyChannels(LimitReached):
    """More channels were wanted than `max_channels`."""


class TooManyPatterns(LimitReached):
    """More patterns were wanted than `max_patterns`; the prefix of a promise subscription is one, too."""


class TooManyPromises(LimitReached):
    """More promises were outstanding than `max_promises`."""


class ConnectionLost(RedisMPXError, ConnectionError):
    """The connection to Redis is gone, or one name on it is; what was published meanwhile is missed.

    From `publish()`: there was no connection, or it was lost before Redis answered. The exception that caused it, if
    there was one, is its `__cause__`. It reconnects by itself.
    """

    def __init__(self, reason: str, names: frozenset[bytes] | None = None, *, sent: bool = False) -> None:
        reason = plain(reason)
        where = "" if names is None else f" for {', '.join(map(quote, sorted(names)[:10]))}"
        super().__init__(f"connection lost{where}: {reason}")
        self.reason = reason
        """Why, in words."""
        self.names = names
        """The names concerned; None stands for all of the subscription's."""
        self.sent = sent
        """From `publish()`: True if the message may have been published, False if it was not and never will be."""


class SubscriptionRefused(RedisMPXError):
    """Redis refused this one name, most often for lack of an ACL permission. It is asked for again once a minute.

    Redis compares the name of a pattern with the permitted patterns literally: `&ok:*` permits the pattern `ok:*`, and
    neither `ok:a*` nor `*` (https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl/).
    """

    def __init__(self, kind: str, name: bytes, reason: str) -> None:
        reason = plain(reason)
        super().__init__(f"Redis refused {kind} {quote(name)}: {reason} ({_advise(kind, reason)})")
        self.kind = kind
        """`"channel"`, `"pattern"` or `"shard channel"`."""
        self.name = name
        """The name that was refused."""
        self.reason = reason
        """What Redis answered."""


def _advise(kind: str, reason: str) -> str:
    """Say what to do about a refusal."""
    is_sharded = kind == "shard channel"
    if reason.startswith("MOVED "):
        return "this is one node of a cluster: give the multiplexer a redis.asyncio.RedisCluster client"
    if "unknown command" in reason:
        if is_sharded:
            return "sharded Pub/Sub needs Redis 7 or Valkey: use such a server, or leave out sharded=True"
        return "the server, or a proxy before it, lacks this command"
    if kind == "pattern":
        return "see ACL SETUSER ... &pattern; a permitted pattern must be the same, letter for letter"
    return f"see ACL SETUSER ... &channel{' +ssubscribe +sunsubscribe' if is_sharded else ''}"


class SlowConsumer(RedisMPXError):
    """The consumer of a subscription does not keep up with its messages, and `overflow` says what gives way.

    Reported once an episode, which ends when no more than half of `max_pending` waits; with `latest`, when nothing
    does.
    """

    def __init__(self, dropped: int, pending: int) -> None:
        super().__init__(
            f"the consumer does not keep up: {pending} messages wait, {dropped} were dropped so far; "
            "make it faster, raise max_pending, or choose another overflow"
        )
        self.dropped = dropped
        """Messages dropped by this subscription so far."""
        self.pending = pending
        """Messages waiting for its consumer."""


class PromiseTimeout(RedisMPXError, TimeoutError):
    """The message of a promise, or the answer to a request, did not come before its deadline."""

    def __init__(self, channel: bytes, timeout: float, missing: str = "message") -> None:
        super().__init__(f"no {missing} on {quote(channel)} within {timeout:g} s")
        self.channel = channel
        """The channel that was waited for, or asked."""
        self.timeout = timeout
        """Seconds that there were."""


class PromiseInterrupted(RedisMPXError, asyncio.CancelledError):
    """A promise can no longer be kept, or a request answered: what it waits for could be missed.

    It is an `asyncio.CancelledError` too, so code that catches that for a broken promise goes on working; left
    uncaught in a task, it therefore ends the task as cancelled. For a lost connection, `ConnectionLost` is its
    `__cause__`.
    """

    def __init__(self, channel: bytes, reason: str) -> None:
        super().__init__(f"the promise of {quote(channel)} is broken: {reason}")
        self.channel = channel
        """The channel that was waited for, or asked."""
        self.reason = reason
        """`"connection lost"`, `"cleared"` or `"closed"`."""


class NoResponders(RedisMPXError):
    """Nobody was subscribed to hear a request: no service runs, or none is connected now."""

    def __init__(self, channel: bytes) -> None:
        super().__init__(f"nobody is subscribed to {quote(channel)}, so nobody answers")
        self.channel = channel
        """The channel that was asked."""


class RequestFailed(RedisMPXError):
    """Who was asked could not answer. What went wrong is known there, and here only in words."""

    def __init__(self, channel: bytes, reason: str) -> None:
        reason = plain(reason)
        super().__init__(f"the request on {quote(channel)} failed: {reason}")
        self.channel = channel
        """The channel that was asked."""
        self.reason = reason
        """The exception of the handler, as `type: text`, escaped and cut. Data from outside."""


class DecodeError(RedisMPXError):
    """A payload could not be decoded, and is dropped. What `decode` raised is its `__cause__`."""

    def __init__(self, channel: bytes, data: bytes) -> None:
        super().__init__(f"a payload of {len(data)} bytes on {quote(channel)} cannot be decoded")
        self.channel = channel
        """The channel that it came on."""
        self.data = data
        """The payload as it came. Hostile data: mind where you show it."""
