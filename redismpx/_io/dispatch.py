"""From replies to events: each complete reply is taken for what it is, and told to whom it concerns.

It sends nothing, and waits for nobody: neither for the network nor for a consumer.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple, Protocol

from .._core.registry import Entry, Registry, Standing
from .._core.wire import CONFIRMATIONS, MESSAGE, NOT_ENOUGH, PMESSAGE, PONG, Desync, Kind, Refusal, read_refusal
from ..errors import ConnectionLost, SubscriptionRefused, plain
from ..stats import Counters
from .log import logger
from .tasks import TURN

PORTION = 256  # subscribers that get a message before a look at the clock
LOOK_AFTER = 16  # messages and deliveries before a look at the clock
RETRY_REFUSED = 60.0  # seconds after which refused names are asked for again, so that a later grant heals
RETRY_PASSING = 1.0  # seconds after which names are asked for again when the server was only busy


class Subscriber(Protocol):
    """Whom events are told to. None of these calls may block or raise."""

    def deliver(self, channel: bytes, data: bytes) -> None:
        """Hand over a message."""

    def activate(self, name: bytes) -> None:
        """Tell that a name is active."""

    def disconnect(self, error: ConnectionLost) -> None:
        """Tell that a connection was lost, or one name on it."""

    def refuse(self, error: SubscriptionRefused) -> None:
        """Tell that the server refused a name."""


class FanOut(NamedTuple):
    """One message on its way to more subscribers than there is time for in one turn."""

    entry: Entry[Subscriber]
    subscribers: tuple[Subscriber, ...]
    channel: bytes
    data: bytes
    start: int = 0  # those before it have the message


class Dispatcher:
    """Takes the replies of one link after another; asks `retry_in` to retry what was refused, in so many seconds."""

    def __init__(self, registry: Registry[Subscriber], counters: Counters, retry_in: Callable[[float], None]) -> None:
        self._registry = registry
        self._counters = counters
        self._retry_in = retry_in
        self._fan_out: FanOut | None = None
        self._kept_names = False  # whether Redis refused to unsubscribe, which is warned of once

    def receive(self, gets: Callable[[], object], turn_ends: float) -> tuple[int, bool]:
        """Take complete replies, for one turn; return how many those were, and whether no more are there."""
        channels, patterns = self._registry.channels, self._registry.patterns
        messages = others = work = 0
        is_empty = False
        try:
            while self._fan_out is None or self._go_on(turn_ends):
                try:
                    reply = gets()
                except Exception as error:  # the parsers raise anything on garbage
                    raise Desync(str(error) or repr(error)) from error
                if reply is NOT_ENOUGH:
                    is_empty = True
                    break
                if not isinstance(reply, list):
                    others += 1
                    self._answer(reply)
                    continue
                if len(reply) == 3 and reply[0] == MESSAGE:
                    _, channel, data = reply
                    name, table = channel, channels
                elif len(reply) == 4 and reply[0] == PMESSAGE:
                    _, name, channel, data = reply
                    table = patterns
                else:
                    others += 1
                    self._confirm(reply)
                    continue
                messages += 1
                if not (type(name) is bytes is type(channel) is type(data)):
                    self._counters.ignored += 1
                    continue
                entry = table.get(name)
                if entry is None:
                    continue
                fanout = entry.fanout
                if fanout is None:
                    fanout = entry.build_fanout()
                if len(fanout) > PORTION:
                    self._fan_out = FanOut(entry, fanout, channel, data)
                    continue
                for subscriber in fanout:
                    # A callback may take anybody away: the tuple stays, the entry tells.
                    if entry.fanout is fanout or entry.subscribers.get(subscriber) is Standing.ACTIVE:
                        subscriber.deliver(channel, data)
                work += 1 + len(fanout)
                if work >= LOOK_AFTER:
                    work = 0
                    if monotonic() > turn_ends:
                        break
        finally:
            self._counters.messages += messages
        return messages + others, is_empty

    async def lose(self, error: ConnectionLost) -> None:
        """Take the loss of the link, and tell everybody who had something to lose, turn by turn."""
        if self._fan_out is not None:  # some have its last message; so must all, before they hear of its end
            self._go_on(math.inf)
        turn_ends = monotonic() + TURN
        for subscriber in self._registry.lost():
            if subscriber is not None:
                subscriber.disconnect(error)
            if monotonic() > turn_ends:
                await asyncio.sleep(0)
                turn_ends = monotonic() + TURN

    def _go_on(self, turn_ends: float) -> bool:
        """Hand one message to many, portion by portion, until all have it or the turn ends; return whether all have."""
        assert self._fan_out is not None
        entry, fanout, channel, data, start = self._fan_out
        while start < len(fanout):
            for subscriber in fanout[start : start + PORTION]:
                if entry.fanout is fanout or entry.subscribers.get(subscriber) is Standing.ACTIVE:
                    subscriber.deliver(channel, data)
            start += PORTION
            if monotonic() > turn_ends:
                self._fan_out = FanOut(entry, fanout, channel, data, start)
                return False
        self._fan_out = None
        return True

    def _confirm(self, reply: list[object]) -> None:
        """Take a confirmation, or the answer to PING on a RESP2 connection with subscriptions."""
        first = reply[0] if reply else None
        verb = CONFIRMATIONS.get(first) if isinstance(first, bytes) else None
        if first == PONG:
            self._registry.pong()
        elif verb is None or len(reply) != 3 or not isinstance(reply[1], bytes):
            self._counters.ignored += 1  # a push of some other kind
        else:
            name = reply[1]
            if verb.joins:
                for subscriber in self._registry.confirm(verb, name):
                    subscriber.activate(name)
            else:
                names = frozenset({name}) if verb.kind is Kind.CHANNEL else None
                error = ConnectionLost("the server unsubscribed it", names)
                for subscriber in self._registry.confirm(verb, name):
                    subscriber.disconnect(error)

    def _answer(self, reply: object) -> None:
        """Take a reply that is not a list: the answer to PING, or the refusal of a command."""
        if not isinstance(reply, Exception):
            self._registry.pong()
            return
        meaning, text = read_refusal(reply)
        if meaning is Refusal.FATAL or not self._registry.in_flight:
            raise Desync(text) from reply
        passing = meaning is Refusal.PASSING
        command, told = self._registry.refuse(passing=passing)
        if command.names:
            self._retry_in(RETRY_PASSING if passing else RETRY_REFUSED)
            if not (command.verb.joins or passing or self._kept_names):
                self._kept_names = True
                logger.warning("Redis refuses to unsubscribe (%s); what comes for such names is ignored", plain(text))
        for subscriber in told:
            subscriber.refuse(SubscriptionRefused(command.verb.kind.value, command.names[0], text))
