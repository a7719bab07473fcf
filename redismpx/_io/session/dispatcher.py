"""From replies to events: takes each complete reply, and notifies the subscribers that it concerns.

It sends nothing, and waits neither for the network nor for a consumer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from itertools import islice
from operator import methodcaller
from time import monotonic
from typing import Any, TypeAlias

from ..._core.buffer import DEFERRED
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
from ...errors import ConnectionLost, SubscriptionRefused, narrow, plain
from ...observing import Refused
from ..runtime.log import logger
from ..runtime.tasks import LOOK_AFTER, TIME_SLICE
from .fan_out import FANOUT_CHUNK, FanOut, Notices, in_chunks
from .listener import Listener
from .options import SessionOptions
from .outage import Gap
from .subscriber import Subscriber, Subscribers

RETRY_REFUSED = 60.0  # seconds until rejected names are subscribed again: the right may be granted meanwhile
RETRY_TRANSIENT = 1.0  # seconds until names are subscribed again when the server was only busy

NOT_A_MESSAGE: tuple[None, bytes, bytes] = (None, b"", b"")  # entry, channel and payload of a reply that is none

Evict: TypeAlias = Callable[[tuple[bytes, ...], Redirection | None], None]
"""Moves shard channels away from a node that does not have their slot any more: to the node that the redirection names,
if there is one."""


class Dispatcher:
    """Takes the replies of one link after another.

    It calls `retry_in` with the seconds after which rejected names are to be retried, and `hide_secrets_in` with each
    error reply. `evict` is for a node of a cluster.
    """

    def __init__(
        self,
        registry: Registry[Subscriber],
        options: SessionOptions,
        retry_in: Callable[[float], None],
        hide_secrets_in: Callable[[Exception], None],
        evict: Evict | None = None,
    ) -> None:
        self._registry = registry
        self._tell = options.tell
        self._counters = options.counters
        self._critical = options.critical
        self._retry_in = retry_in
        self._hide_secrets_in = hide_secrets_in
        self._evict = evict
        self._interrupted: FanOut | Notices | None = None  # by the end of a time slice
        self._deferred: list[Subscriber] = []  # subscribers whose `deliver` returned DEFERRED
        self._warned = False  # that Redis rejects an unsubscribe; one warning is enough
        self._login_failed = False  # whether Redis rejected the last login, of which one warning is enough, too

    @property
    def is_interrupted(self) -> bool:
        """Whether some subscribers wait for an event that others have already."""
        return self._interrupted is not None

    def receive(self, gets: Callable[[], object], deadline: float) -> tuple[int, bool]:
        """Take complete replies from `gets` until there are no more, or until `deadline` on the monotonic clock.

        Return how many replies were taken, and whether there are no more. The loop is one function for speed, with four
        cases.
        """
        if self._interrupted is not None and not self._continue(deadline):
            return 0, False
        registry = self._registry
        channels, patterns, shard_channels = registry.channels, registry.patterns, registry.shard_channels
        replies = others = 0
        check_clock_at = LOOK_AFTER
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
                try:  # no check of the form before this: any exception means that the reply is case 1
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
                        entry, channel, data = NOT_A_MESSAGE
                except (TypeError, ValueError, IndexError, KeyError):
                    entry, channel, data = NOT_A_MESSAGE
                if entry is None or type(data) is not bytes:
                    # Case 1: not a message, or a message without subscribers.
                    others += self._take_other(reply)
                    if self._interrupted is not None and not self._continue(deadline):
                        return replies, False
                elif (only := entry.only_active) is not None:
                    # Case 2: a message for one subscriber, as most are.
                    try:
                        result = only.deliver(channel, data)
                    except BaseException as error:  # noqa: BLE001, users' code
                        only.failed(error)
                    else:
                        if result is not None:
                            self._take_result(only, result)
                else:
                    snapshot = entry.take_snapshot() if entry.active_snapshot is None else entry.active_snapshot
                    check_clock_at -= len(snapshot)
                    if len(snapshot) <= FANOUT_CHUNK:
                        # Case 3: a message for a few subscribers.
                        self._deliver_to(snapshot, entry, snapshot, channel, data)
                    else:
                        # Case 4: a message for many subscribers. The fan-out may outlast the time slice.
                        self._interrupted = FanOut(entry, snapshot, channel, data, in_chunks(snapshot))
                        if not self._continue(deadline):
                            return replies, False
                if replies >= check_clock_at:
                    check_clock_at = replies + LOOK_AFTER
                    if monotonic() > deadline:
                        return replies, False
        finally:
            if replies > others:
                self._counters.messages += replies - others
                self._counters.receiving_until = deadline
            self._flush_deferred()

    async def lose(self, error: ConnectionLost) -> Gap:
        """Take the loss of the link: notify each subscriber that had an active name, in time slices."""
        if isinstance(self._interrupted, FanOut):  # each of its subscribers gets the last message before the disconnect
            while not self._continue(monotonic() + TIME_SLICE):  # noqa: ASYNC110, there is work to do
                await asyncio.sleep(0)
        self._interrupted = None
        subscriptions = listeners = 0
        deadline = monotonic() + TIME_SLICE
        for loss in self._critical.each(self._registry.connection_lost()):
            steps: Iterable[None] | None = None
            if loss is not None:
                subscriber, active = loss
                if isinstance(subscriber, Listener):
                    listeners += 1
                else:
                    subscriptions += 1
                if self._evict is None:
                    steps = subscriber.disconnect(error, active)
                else:  # its other names may be on links to other nodes
                    steps = subscriber.disconnect(narrow(error, frozenset(active)))
            for _ in steps or (None,):  # one look at the clock at least
                if monotonic() > deadline:
                    await asyncio.sleep(0)
                    deadline = monotonic() + TIME_SLICE
        self._counters.gaps += subscriptions
        return Gap(subscriptions, self._registry.lost_names - listeners)  # a listener has one name

    # --- messages

    def _continue(self, deadline: float) -> bool:
        """Deliver one event in chunks, until all subscribers have it; return whether there is time left."""
        while self._interrupted is not None:
            if not self._deliver_chunk(self._interrupted):
                self._interrupted = None
            if monotonic() > deadline:  # also after the last chunk: one subscriber may have much to do
                return False
        return True

    def _deliver_chunk(self, event: FanOut | Notices) -> bool:
        """Deliver an event to some more subscribers; return whether there may be others."""
        if isinstance(event, Notices):
            count = 0
            for count, subscriber in enumerate(islice(event.rest, LOOK_AFTER), 1):  # noqa: B007
                event.notify(subscriber)
            return count == LOOK_AFTER
        chunk = next(event.chunks, ())
        self._deliver_to(chunk, event.entry, event.snapshot, event.channel, event.data)
        self._flush_deferred()
        return bool(chunk)

    def _deliver_to(
        self, chunk: Subscribers, entry: Entry[Subscriber], snapshot: Subscribers, channel: bytes, data: bytes
    ) -> None:
        """Deliver a message to a chunk of the snapshot of its entry."""
        for subscriber in chunk:
            # A callback may remove any subscriber. The snapshot does not change then, but the entry gets another one.
            if entry.active_snapshot is snapshot or entry.state_of(subscriber) is SubscriberState.ACTIVE:
                try:
                    result = subscriber.deliver(channel, data)
                except BaseException as error:  # noqa: BLE001, users' code
                    subscriber.failed(error)
                else:
                    if result is not None:
                        self._take_result(subscriber, result)

    def _take_result(self, subscriber: Subscriber, result: object) -> None:
        if result is DEFERRED:
            self._deferred.append(subscriber)
        else:
            subscriber.accept(result)

    def _flush_deferred(self) -> None:
        """Flush each subscriber that deferred work: to count many messages at once costs far less than one by one."""
        for subscriber in self._deferred:
            subscriber.flush()
        self._deferred.clear()

    # --- other replies

    def _take_other(self, reply: Any) -> bool:
        """Take a reply that is no message for a subscriber; return whether it is no message at all."""
        verb: Verb | None
        try:  # the short way of a confirmation
            kind, name, _ = reply
            verb = CONFIRMATIONS[kind]
        except (TypeError, ValueError, KeyError):
            verb, name = None, None
        if verb is not None and type(name) is bytes:
            if verb.subscribes:
                critical = self._critical
                critical.is_entered = True  # `with` would take too much time: there may be 100,000 confirmations
                try:
                    subscribers = self._registry.confirm(verb, name)
                finally:
                    critical.is_entered = False
                    if critical.postponed:
                        critical.catch_up()
                if type(subscribers) is tuple:  # one, as most names have
                    for subscriber in subscribers:
                        subscriber.activate(name)
                else:
                    self._notify(methodcaller("activate", name), subscribers)  # a lambda would cost each name a cell
            else:
                self._take_unsubscribe(verb, name)
        elif not isinstance(reply, list):
            if isinstance(reply, Exception):
                self._take_error(reply)
            elif self._registry.pong() is Verb.AUTH:
                self._login_failed = False
                logger.debug("logged in again with new credentials")
        elif (reply[:1], len(reply)) in (([MESSAGE], 3), ([PMESSAGE], 4), ([SMESSAGE], 3)):
            if not all(type(part) is bytes for part in reply):
                self._counters.ignored += 1
            return False
        elif reply[:1] == [PONG]:  # on a RESP2 connection with subscriptions
            self._registry.pong()
        else:
            self._counters.ignored += 1  # a push of some other kind
        return True

    def _take_unsubscribe(self, verb: Verb, name: bytes) -> None:
        """Take the confirmation that a name is unsubscribed, by a command or by the server on its own."""
        oldest = self._registry.oldest_command
        confirmed = 0 if oldest is None else oldest.confirmed
        with self._critical:
            subscribers = self._registry.confirm(verb, name)
        if subscribers != ():
            names = None if verb.kind is Kind.PATTERN else frozenset({name})
            reason = "its slot has left the node" if self._evict else "the server unsubscribed it"
            error = ConnectionLost(reason, names)
            self._notify(lambda subscriber: subscriber.disconnect(error), subscribers)
        if self._evict is not None and (oldest is None or oldest.confirmed == confirmed):  # no command asked for it
            self._evict((name,), None)

    def _take_error(self, error: Exception) -> None:
        """Take an error reply."""
        self._hide_secrets_in(error)
        kind, text = classify_error(error)
        if self._registry.oldest_command is not None and self._registry.oldest_command.verb is Verb.AUTH:
            self._take_failed_login(text)
            return
        if kind is ErrorKind.MOVED and self._evict is not None and (redirection := parse_redirection(text)):
            # No command need be in flight: the server may have unsubscribed its names on its own just before, and that
            # was taken for the reply.
            with self._critical:
                names = self._registry.redirect(redirection.slot)
            self._evict(names, redirection)
            return
        if kind is ErrorKind.FATAL or not self._registry.oldest_command:
            raise ProtocolViolation(text or "an error without a text") from error
        is_transient = kind is ErrorKind.TRANSIENT
        with self._critical:
            command, rejected = self._registry.refuse(transient=is_transient)
        if command.names:
            self._retry_in(RETRY_TRANSIENT if is_transient else RETRY_REFUSED)
            if not (command.verb.subscribes or is_transient or self._warned):
                self._warned = True
                logger.warning("Redis rejects an unsubscribe (%s); messages for such names are ignored", plain(text))
            refusal = SubscriptionRefused(command.verb.kind.value, command.names[0], text)
            if rejected and self._tell is not None:
                self._tell(Refused(refusal.kind, refusal.name, text))
            self._notify(lambda subscriber: subscriber.refuse(refusal), rejected)

    def _take_failed_login(self, text: str) -> None:
        """Take the rejection of new credentials: the connection stays logged in with the earlier ones."""
        self._registry.refuse()
        if not self._login_failed:
            self._login_failed = True
            logger.warning(
                "Redis rejects new credentials (%s); the connection goes on with the earlier ones until the server "
                "closes it: check what the credential provider returns, and the user in the ACL",
                plain(text),
            )

    def _notify(self, notify: Callable[[Subscriber], object], subscribers: Iterable[Subscriber]) -> None:
        """Notify subscribers of an event; receive() does it in time slices, before it takes the next reply."""
        self._interrupted = Notices(notify, self._critical.each(iter(subscribers)))
