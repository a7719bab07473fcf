"""From replies to events: each complete reply is taken for what it is, and told to whom it concerns.

It sends nothing, and waits for nobody: neither for the network nor for a consumer.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from time import monotonic
from typing import Any, NamedTuple, Protocol, TypeAlias

from ..._core.buffer import LATER
from ..._core.entry import Entry, SubscriberState
from ..._core.registry import Registry
from ..._core.wire import (
    CONFIRMATIONS,
    MESSAGE,
    NOT_ENOUGH,
    PMESSAGE,
    PONG,
    SMESSAGE,
    ErrorKind,
    Kind,
    ProtocolViolation,
    Redirection,
    Verb,
    classify_error,
    parse_redirection,
)
from ...errors import ConnectionLost, SubscriptionRefused, plain
from ...stats import Counters
from ..runtime.log import logger
from ..runtime.tasks import LOOK_AFTER, TIME_SLICE

PORTION = 256  # subscribers that get a message before a look at the clock
RETRY_REFUSED = 60.0  # seconds after which refused names are asked for again, so that a later grant heals
RETRY_PASSING = 1.0  # seconds after which names are asked for again when the server was only busy


class Deliver(Protocol):
    """Takes the channel and the payload of a message."""

    def __call__(self, channel: bytes, data: bytes, /) -> object: ...


class Subscriber(Protocol):
    """Whom events are told to. None of these calls may block, and none but `deliver` may raise."""

    deliver: Deliver
    """Takes a message: often the very function that a user gave. LATER has `flush` called, when all that was parsed at
    once is handed out."""

    def accept(self, result: object) -> None:
        """Take what `deliver` returned, if that is neither None nor LATER."""

    def flush(self) -> None:
        """Do what `deliver` put off when it returned LATER."""

    def failed(self, error: BaseException) -> None:
        """Take what `deliver` raised."""

    def activate(self, name: bytes) -> None:
        """Tell that a name is active."""

    def disconnect(self, error: ConnectionLost) -> None:
        """Tell that a connection was lost, or one name on it."""

    def refuse(self, error: SubscriptionRefused) -> None:
        """Tell that the server refused a name."""


Subscribers: TypeAlias = tuple[Subscriber, ...]

NOBODY: tuple[None, bytes, bytes] = (None, b"", b"")  # whom a reply concerns that is no message to anybody


class FanOut(NamedTuple):
    """One message on its way to more subscribers than there is time for in one turn."""

    entry: Entry[Subscriber]
    subscribers: Subscribers
    channel: bytes
    data: bytes
    start: int = 0  # those before it have the message


Evict: TypeAlias = Callable[[tuple[bytes, ...], Redirection | None], None]
"""Takes away shard channels whose slot has left the node, to wherever it is now, if that is known."""


class Dispatcher:
    """Takes the replies of one link after another; asks `retry_in` to retry what was refused, in so many seconds.

    `evict` is for the node of a cluster.
    """

    def __init__(
        self,
        registry: Registry[Subscriber],
        counters: Counters,
        retry_in: Callable[[float], None],
        evict: Evict | None = None,
    ) -> None:
        self._registry = registry
        self._counters = counters
        self._retry_in = retry_in
        self._evict = evict
        self._fan_out: FanOut | None = None
        self._unsettled: list[Subscriber] = []  # those who returned LATER
        self._kept_names = False  # whether Redis refused to unsubscribe, which is warned of once

    def receive(self, gets: Callable[[], object], turn_ends: float) -> tuple[int, bool]:
        """Take complete replies, for one turn; return how many those were, and whether no more are there."""
        if self._fan_out is not None and not self._go_on(turn_ends):
            return 0, False
        registry = self._registry
        channels, patterns, shard_channels = registry.channels, registry.patterns, registry.shard_channels
        replies = others = 0
        look_at = LOOK_AFTER
        entry: Entry[Subscriber] | None
        try:
            while True:
                try:
                    reply: Any = gets()
                except Exception as error:  # the parsers raise anything on garbage
                    raise ProtocolViolation(str(error) or repr(error)) from error
                if reply is NOT_ENOUGH:
                    return replies, True
                replies += 1
                try:  # the shortest way for a message: whatever is not one, and wanted by somebody, is no matter here
                    kind = reply[0]
                    if kind == MESSAGE:
                        _, channel, data = reply
                        entry = channels[channel]
                    elif kind == PMESSAGE:
                        _, name, channel, data = reply
                        entry = patterns[name] if type(channel) is bytes else None
                    elif kind == SMESSAGE:
                        _, channel, data = reply
                        entry = shard_channels[channel]
                    else:
                        entry, channel, data = NOBODY
                except (TypeError, ValueError, IndexError, KeyError):
                    entry, channel, data = NOBODY
                if entry is None or type(data) is not bytes:
                    others += self._take_other(reply)
                elif (
                    sole := entry.only_active
                ) is not None:  # most names have one subscriber, which is spared the loop
                    try:
                        result = sole.deliver(channel, data)
                    except BaseException as error:  # noqa: BLE001, users' code
                        sole.failed(error)
                    else:
                        if result is not None:
                            self._take(sole, result)
                else:
                    fanout = entry.take_snapshot() if entry.active_snapshot is None else entry.active_snapshot
                    look_at -= len(fanout)
                    if len(fanout) <= PORTION:
                        self._hand_out(entry, fanout, fanout, channel, data)
                    else:
                        self._fan_out = FanOut(entry, fanout, channel, data)
                        if not self._go_on(turn_ends):
                            return replies, False
                if replies >= look_at:
                    look_at = replies + LOOK_AFTER
                    if monotonic() > turn_ends:
                        return replies, False
        finally:
            self._counters.messages += replies - others
            self._settle()

    async def lose(self, error: ConnectionLost) -> None:
        """Take the loss of the link, and tell everybody who had something to lose, turn by turn."""
        if self._fan_out is not None:  # some have its last message; so must all, before they hear of its end
            self._go_on(math.inf)
        turn_ends = monotonic() + TIME_SLICE
        for loser in self._registry.connection_lost():
            if loser is not None:
                subscriber, entries = loser
                names = None
                if self._evict is not None:  # its others may be on links to other nodes
                    names = frozenset([entry.name for entry in entries])
                subscriber.disconnect(error if names is None else _narrowed(error, names))
            if monotonic() > turn_ends:
                await asyncio.sleep(0)
                turn_ends = monotonic() + TIME_SLICE

    def _go_on(self, turn_ends: float) -> bool:
        """Hand one message to many, portion by portion, until all have it or the turn ends; return whether all have."""
        assert self._fan_out is not None
        entry, fanout, channel, data, start = self._fan_out
        while start < len(fanout):
            self._hand_out(entry, fanout, fanout[start : start + PORTION], channel, data)
            self._settle()
            start += PORTION
            if monotonic() > turn_ends:
                self._fan_out = FanOut(entry, fanout, channel, data, start)
                return False
        self._fan_out = None
        return True

    def _hand_out(
        self, entry: Entry[Subscriber], fanout: Subscribers, portion: Subscribers, channel: bytes, data: bytes
    ) -> None:
        """Hand a message to a portion of the fan-out of its name."""
        for subscriber in portion:
            # A callback may take anybody away: the tuple stays, the entry tells.
            if entry.active_snapshot is fanout or entry.state_of(subscriber) is SubscriberState.ACTIVE:
                try:
                    result = subscriber.deliver(channel, data)
                except BaseException as error:  # noqa: BLE001, users' code
                    subscriber.failed(error)
                else:
                    if result is not None:
                        self._take(subscriber, result)

    def _take(self, subscriber: Subscriber, result: object) -> None:
        if result is LATER:
            self._unsettled.append(subscriber)
        else:
            subscriber.accept(result)

    def _settle(self) -> None:
        """Deliver those who put something off: to count many messages in one go costs them far less than one by one."""
        for subscriber in self._unsettled:
            subscriber.flush()
        self._unsettled.clear()

    def _take_other(self, reply: Any) -> bool:
        """Take a reply that is no message to anybody; return whether it is something else altogether."""
        verb: Verb | None
        try:  # the shortest way for a confirmation
            kind, name, _ = reply
            verb = CONFIRMATIONS[kind]
        except (TypeError, ValueError, KeyError):
            verb, name = None, None
        if not isinstance(reply, list):
            self._answer(reply)
        elif verb is not None and type(name) is bytes:
            self._confirm(verb, name)
        elif (reply[:1], len(reply)) in (([MESSAGE], 3), ([PMESSAGE], 4), ([SMESSAGE], 3)):
            if not all(type(part) is bytes for part in reply):
                self._counters.ignored += 1
            return False
        elif reply[:1] == [PONG]:  # on a RESP2 connection with subscriptions
            self._registry.pong()
        else:
            self._counters.ignored += 1  # a push of some other kind
        return True

    def _confirm(self, verb: Verb, name: bytes) -> None:
        """Take a confirmation."""
        registry = self._registry
        if verb.subscribes:
            for subscriber in registry.confirm(verb, name):
                subscriber.activate(name)
            return
        oldest = registry.oldest_command
        answered = 0 if oldest is None else oldest.confirmed
        names = None if verb.kind is Kind.PATTERN else frozenset({name})
        reason = "its slot has left the node" if self._evict else "the server unsubscribed it"
        for subscriber in registry.confirm(verb, name):
            subscriber.disconnect(ConnectionLost(reason, names))
        if self._evict is not None and (oldest is None or oldest.confirmed == answered):  # nobody asked for it
            self._evict((name,), None)

    def _answer(self, reply: object) -> None:
        """Take a reply that is not a list: the answer to PING, or the refusal of a command."""
        if not isinstance(reply, Exception):
            self._registry.pong()
            return
        meaning, text = classify_error(reply)
        if meaning is ErrorKind.MOVED and self._evict is not None and (redirection := parse_redirection(text)):
            # Nothing need be in flight: an unasked unsubscribe may have been taken for the answer to the command.
            self._evict(self._registry.redirect(redirection.slot), redirection)
            return
        if meaning is ErrorKind.FATAL or not self._registry.oldest_command:
            raise ProtocolViolation(text or "an error without a text") from reply
        passing = meaning is ErrorKind.TRANSIENT
        command, told = self._registry.refuse(transient=passing)
        if command.names:
            self._retry_in(RETRY_PASSING if passing else RETRY_REFUSED)
            if not (command.verb.subscribes or passing or self._kept_names):
                self._kept_names = True
                logger.warning("Redis refuses to unsubscribe (%s); what comes for such names is ignored", plain(text))
        for subscriber in told:
            subscriber.refuse(SubscriptionRefused(command.verb.kind.value, command.names[0], text))


def _narrowed(error: ConnectionLost, names: frozenset[bytes]) -> ConnectionLost:
    """Say the same of some names only."""
    narrowed = ConnectionLost(error.reason, names)
    narrowed.__cause__ = error.__cause__
    return narrowed
