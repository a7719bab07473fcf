"""All exceptions of this library. A text says what happened, where, and what to do; the facts are attributes."""

from __future__ import annotations

__all__ = [
    "ConnectionLost",
    "DecodeError",
    "InactiveSubscription",
    "KeyEventsDisabled",
    "LimitReached",
    "MessageGap",
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
    "narrow",
    "plain",
    "quote",
    "widen",
]

import asyncio
import traceback
from heapq import nsmallest
from itertools import islice

_SHOWN = 64  # bytes of a name in a message or a log record
_SHOWN_TEXT = 500  # characters of a text from outside, such as the error of a server
_DEPTH = 10  # causes of a cause that are pickled: there may be many of them, and they may form a loop


def quote(name: bytes) -> str:
    """Return a name for a message or a log record: in one line, escaped and cut, because names are hostile data."""
    return repr(name) if len(name) <= _SHOWN else f"{name[:_SHOWN]!r}... ({len(name)} bytes)"


def plain(text: str) -> str:
    """Return a text from outside in one line, escaped and cut: the errors of a server may repeat names."""
    text = text[:_SHOWN_TEXT]
    if text.isprintable():  # most texts; very many calls may fail with the same one
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


class RedisMPXError(Exception):
    """The base class of all exceptions of this library.

    All of them can be pickled and copied, with their attributes and causes. A cause that belongs to another library is
    replaced by a `RedisMPXError` with its type and text, so that any process can unpickle it.
    """

    def __reduce__(self) -> tuple[object, ...]:  # Exception's own calls the class with the text, and forgets the cause
        state = self.__dict__
        if self.__cause__ is not None:
            state = {**state, "__cause__": _portable(self.__cause__)}
        return _unpickle, (type(self), self.args), state


def _unpickle(kind: type[RedisMPXError], args: tuple[object, ...]) -> RedisMPXError:
    """Make an exception without a call to its `__init__`, which has other arguments than `args`."""
    error = kind.__new__(kind)
    error.args = args
    return error


def _portable(cause: BaseException, depth: int = _DEPTH) -> RedisMPXError:
    """Return a cause, and the causes of it, as exceptions that can be pickled."""
    if isinstance(cause, RedisMPXError):
        return cause
    portable = RedisMPXError(plain("".join(traceback.format_exception_only(cause)).rstrip()))
    earlier = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    if earlier is not None and depth:
        portable.__cause__ = _portable(earlier, depth - 1)
    return portable


class MultiplexerIsClosed(RedisMPXError):
    """The multiplexer is closed or drains, and accepts no new calls. `async with` opens it again after its end."""

    def __init__(self) -> None:
        super().__init__("this multiplexer is closed or drains; async with (in threads: with) opens a closed one again")


class SubscriptionIsClosed(RedisMPXError):
    """The subscription, or its multiplexer, is closed. Make a new subscription.

    From `Promise.get()`, also: the promises of the subscription were cleared.
    """

    def __init__(self, text: str = "this subscription is closed; make a new one from the multiplexer") -> None:
        super().__init__(text)


class InactiveSubscription(RedisMPXError):
    """A promise subscription is not active now, so the message of a new promise could be missed."""

    def __init__(self, pattern: bytes) -> None:
        super().__init__(f"pattern {quote(pattern)} is not active; await wait_for_activation() first")
        self.pattern = pattern
        """The pattern that is not active."""


class LimitReached(RedisMPXError):
    """A call would exceed a limit of the multiplexer. The call had no effect."""

    def __init__(self, limit: str, value: int) -> None:
        super().__init__(f"{limit}={value} is reached; find out which code needs so many, or raise {limit}")
        self.limit = limit
        """The name of the option of the multiplexer that sets the limit."""
        self.value = value
        """The value of this option."""


class TooManyChannels(LimitReached):
    """More than `max_channels` different channels would be subscribed to."""


class TooManyPatterns(LimitReached):
    """More than `max_patterns` different patterns would be subscribed to. A promise subscription is one pattern."""


class TooManyPromises(LimitReached):
    """More than `max_promises` promises would be outstanding."""


class ConnectionLost(RedisMPXError, ConnectionError):
    """The connection to Redis was lost, or some names on it. Messages published before the reconnect are missed.

    The multiplexer reconnects by itself. From `publish()` and requests: there was no connection, or it was lost before
    the reply. The `__cause__` is the exception that caused the loss, if there is one.
    """

    def __init__(
        self, reason: str, names: frozenset[bytes] | None = None, *, sent: bool = False, node: str | None = None
    ) -> None:
        reason = plain(reason)
        some = nsmallest(10, islice(names or (), 1000))  # not of a hundred thousand: that takes 10 ms
        where = "" if names is None else f" for {', '.join(map(quote, some))}"
        super().__init__(f"connection lost{where}: {reason}")
        self.reason = reason
        """The reason, as a text."""
        self.names = names
        """The channels or patterns concerned; None: all of the subscription."""
        self.sent = sent
        """From `publish()` and requests: whether the message may have been published. If not, it will not be."""
        self.node = node
        """From a key subscription in a cluster: the primary concerned, as `host:port`. None if it may be any of them:
        the consumer was late, and several gaps became one. None otherwise, too."""


def narrow(error: ConnectionLost, names: frozenset[bytes]) -> ConnectionLost:
    """Return the same error about these names only."""
    narrowed = ConnectionLost(error.reason, names, sent=error.sent, node=error.node)
    narrowed.__cause__ = error.__cause__
    return narrowed


def widen(error: ConnectionLost) -> ConnectionLost:
    """Return an error about all primaries, the first of which has this error."""
    widened = ConnectionLost(f"several gaps, the first at {error.reason}", error.names, sent=error.sent)
    widened.__cause__ = error.__cause__
    return widened


class SubscriptionRefused(RedisMPXError):
    """Redis rejected one name, most often because an ACL permission is missing. It is tried again once a minute.

    Redis compares a pattern with the permitted patterns literally: `&ok:*` permits the pattern `ok:*`, but neither
    `ok:a*` nor `*` (https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl/).
    """

    def __init__(self, kind: str, name: bytes, reason: str) -> None:
        reason = plain(reason)
        super().__init__(f"Redis rejected {kind} {quote(name)}: {reason} ({_advise(kind, reason)})")
        self.kind = kind
        """`"channel"`, `"pattern"`, `"shard channel"` or `"stream"`."""
        self.name = name
        """The rejected name."""
        self.reason = reason
        """The error that Redis replied with."""


def _advise(kind: str, reason: str) -> str:
    """Say what to do about a rejected name."""
    is_sharded = kind == "shard channel"
    if kind == "stream":
        if "WRONGTYPE" in reason:
            return "its key holds another type: streams need names that no other key has"
        return "see ACL SETUSER ... ~key +eval +evalsha +xrange +xinfo|stream +exists"
    if reason.startswith("MOVED "):
        return "this is one node of a cluster: give the multiplexer a redis.asyncio.RedisCluster client"
    if "unknown command" in reason:
        if is_sharded:
            return "sharded Pub/Sub needs Redis 7 or Valkey: use such a server, or leave out sharded=True"
        return "the server, or a proxy in front of it, lacks this command"
    if kind == "pattern":
        return "see ACL SETUSER ... &pattern; a permitted pattern must be the same, letter for letter"
    return f"see ACL SETUSER ... &channel{' +ssubscribe +sunsubscribe' if is_sharded else ''}"


class KeyEventsDisabled(RedisMPXError):
    """A server does not publish the events that a key subscription needs. The subscription stays as it is.

    `on_error` gets it when the subscription is active, if the server tells its setting. By default, a server publishes
    no key events (https://redis.io/docs/latest/develop/pubsub/keyspace-notifications/).
    """

    def __init__(self, pattern: bytes, flags: str, missing: str, node: str | None = None) -> None:
        where = "" if node is None else f" at {node}"
        super().__init__(
            f"no such events of the keys {quote(pattern)} are published: notify-keyspace-events is "
            f"{plain(flags)!r}{where}, and {missing} is missing; set it on every server: CONFIG SET "
            f"notify-keyspace-events {plain(flags)}{missing}, and in its configuration file"
        )
        self.pattern = pattern
        """The pattern of the subscription."""
        self.flags = flags
        """The value of `notify-keyspace-events`."""
        self.missing = missing
        """The letters that it lacks."""
        self.node = node
        """The node of the cluster, as `host:port`; None without a cluster."""


class SlowConsumer(RedisMPXError):
    """The consumer of a subscription does not keep up, and its messages are dropped as `overflow` says.

    It is reported once per episode. An episode ends when at most half of each limit is used; with the overflow
    `latest`, when no message is buffered.
    """

    def __init__(self, dropped: int, pending: int, limit: str = "max_pending", *, is_lagging: bool = False) -> None:
        state = f"{pending} messages pending, {dropped} dropped so far"
        if is_lagging:
            state = f"more than {pending} messages behind; none is lost, they are read from the stream later"
        super().__init__(f"the consumer is too slow: {state}; {_ADVICE[limit]}")
        self.dropped = dropped
        """The number of messages that this subscription has dropped so far. A stream subscription drops none."""
        self.pending = pending
        """The number of messages that are buffered for the consumer."""
        self.limit = limit
        """The option whose limit was reached: `"max_pending"`, `"max_pending_bytes"` or `"max_total_pending_bytes"`.
        `"overflow"`: none was reached, but `latest` has replaced a message by a newer one of the same channel."""


_ADVICE = {
    "max_pending": "make the consumer faster, raise max_pending, or choose another overflow",
    "max_pending_bytes": "make the consumer faster, raise max_pending_bytes, or choose another overflow",
    "max_total_pending_bytes": (
        "all subscriptions together have reached max_total_pending_bytes, and this one is among the largest: "
        "make its consumer faster, lower its max_pending, or raise max_total_pending_bytes"
    ),
    "overflow": "newer messages of the same channels have replaced them, as overflow='latest' says",
}
"""What to do about a slow consumer, by the option whose limit was reached."""


class MessageGap(RedisMPXError):
    """Messages of a stream are missing here: Redis does not have them any more. Delivery goes on behind them."""

    def __init__(self, channel: bytes, after: bytes, before: bytes | None, reason: str) -> None:
        end = "the next message" if before is None else repr(before)
        super().__init__(
            f"messages of stream {quote(channel)} after {after!r} and before {end} are lost: {_GAP_REASONS[reason]}"
        )
        self.channel = channel
        """The name of the stream."""
        self.after = after
        """The id of the last message before the gap."""
        self.before = before
        """The id of the first message behind the gap. None: there is no message yet."""
        self.reason = reason
        """`"trimmed"`: Redis has removed the messages. `"expired"`: the whole stream is gone. `"restarted"`: it has
        another history now, after a failover or a flush."""


_GAP_REASONS = {
    "trimmed": "they were trimmed or deleted; keep more of them, with a larger max_length or max_age of append()",
    "expired": "the stream expired or was deleted; raise max_age of append() to keep it for longer",
    "restarted": "the stream has another history now, after a failover, a flush or a deletion",
}


class PromiseTimeout(RedisMPXError, TimeoutError):
    """The message of a promise, or the reply to a request, did not arrive before the deadline."""

    def __init__(self, channel: bytes, timeout: float, missing: str = "message", why: str = "") -> None:
        super().__init__(f"no {missing} on {quote(channel)} within {timeout:g} s{why and f': {why}'}")
        self.channel = channel
        """The channel of the promise, or of the request."""
        self.timeout = timeout
        """The timeout, in seconds."""


class PromiseInterrupted(RedisMPXError, asyncio.CancelledError):
    """The message of a promise can no longer be received: the wait for it was interrupted.

    It is an `asyncio.CancelledError` too, so that code which catches that for an interrupted promise works. Uncaught in
    a task, it therefore ends the task as cancelled; `Promise.get()` raises an ordinary exception instead. After a lost
    connection, the `ConnectionLost` is its `__cause__`.
    """

    def __init__(self, channel: bytes, reason: str) -> None:
        super().__init__(f"the wait for a message on {quote(channel)} was interrupted: {reason}")
        self.channel = channel
        """The channel of the promise."""
        self.reason = reason
        """`"connection lost"`, `"cleared"` or `"closed"`."""


class NoResponders(RedisMPXError):
    """It is certain that nobody received a request: no service for its channel runs, or none is connected now."""

    def __init__(self, channel: bytes) -> None:
        super().__init__(
            f"no subscriber on {quote(channel)}; check that a service for this channel runs and is connected"
        )
        self.channel = channel
        """The channel of the request."""


class RequestFailed(RedisMPXError):
    """The service could not handle a request. The exception itself stays there; its text is here."""

    def __init__(self, channel: bytes, reason: str) -> None:
        reason = plain(reason)
        super().__init__(f"the request on {quote(channel)} failed: {reason}")
        self.channel = channel
        """The channel of the request."""
        self.reason = reason
        """The exception of the handler as `type: text`, escaped and cut. This is data from outside."""


class DecodeError(RedisMPXError):
    """A payload could not be decoded, and its message is dropped. The `__cause__` is what `decode` raised."""

    def __init__(self, channel: bytes, data: bytes) -> None:
        super().__init__(f"a payload of {len(data)} bytes on {quote(channel)} cannot be decoded")
        self.channel = channel
        """The channel of the message."""
        self.data = data
        """The payload as received. This is hostile data: escape it before you show it."""
