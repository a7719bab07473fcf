"""The subscribers of each name, and what the server has confirmed. No I/O, no clock.

`add()` and `remove()` record which names are desired. `next_commands()` returns the commands that bring the server
closer to that. `confirm()`, `refuse()`, `redirect()` and `pong()` take the replies, in wire order; `connection_lost()`
takes the end of the connection. They return the subscribers to notify. One command at most is in flight for a name.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain
from typing import Generic

from .bisection import Bisection, NextStep, Probe
from .entry import NEXT_IF_SENT, NEXT_STATE, NOT_ON_SERVER, Entry, NameEvent, NameState, S, SubscriberState
from .in_flight import InFlight
from .loss import CHUNK, Loss
from .sync_queue import SyncQueue
from .wire import NAMELESS, Command, Kind, ProtocolViolation, Verb

NEXT_IF_CONFIRMED = NEXT_STATE[NameEvent.CONFIRMED]


class Registry(Generic[S]):
    """The names of one connection at a time, and their subscribers `S`. A subscriber has names of one kind."""

    def __init__(self, slot_of: Callable[[bytes], int] = lambda name: 0) -> None:
        self._slot_of = slot_of  # returns the slot of a shard channel
        self._tables: dict[Kind, dict[bytes, Entry[S]]] = {Kind.CHANNEL: {}, Kind.PATTERN: {}, Kind.SHARD_CHANNEL: {}}
        self.channels: dict[bytes, Entry[S]]
        self.patterns: dict[bytes, Entry[S]]
        self.shard_channels: dict[bytes, Entry[S]]
        self.channels, self.patterns, self.shard_channels = self._tables.values()
        self._unwanted: dict[Kind, set[bytes]] = {kind: set() for kind in self._tables}  # without subscribers
        self.draining: bool = False
        """Whether drain() was called. No name is desired from then on, with or without subscribers."""
        self._queue: SyncQueue[S] = SyncQueue(slot_of)
        self._probes: deque[tuple[Verb, Probe]] = deque()  # each is to be sent in a command of its own
        self._bisection = Bisection()
        self._in_flight: InFlight[S] = InFlight()
        self._late: deque[tuple[Entry[S], S]] = deque()  # subscribers that were added to a name that was joined already
        self._refused: dict[Entry[S], None] = {}  # names that the server rejected; retry_refused() retries them
        self.lost_names: int = 0  # names that were active when the last connection was lost
        self.loss: Loss[S] = Loss()
        """The loss of the last connection."""

    # --- what is desired

    def add(self, kind: Kind, names: Collection[bytes], subscriber: S) -> None:
        """Add a subscriber to `names`. It must not subscribe to any of them already, and each is there once."""
        table, marked = self._tables[kind], self._queue.marked
        for name in names:
            entry = table.get(name)
            if entry is None:
                entry = table[name] = Entry(kind, name, subscriber)
                marked[entry] = None
            else:
                self._add_to(entry, subscriber)
        if self.draining:
            self._reconcile_names(kind, names)

    def _add_to(self, entry: Entry[S], subscriber: S) -> None:
        """Add a subscriber to a name that has an entry."""
        is_first = not entry.has_subscribers
        entry.add(subscriber)
        if is_first:
            self._unwanted[entry.kind].discard(entry.name)
        if entry.state is NameState.JOINED:
            self._late.append((entry, subscriber))
        elif entry.state is NameState.REFUSED:
            self._move(entry, NameEvent.RETRIED)
            self._reconcile(entry)
        elif is_first:
            self._reconcile(entry)

    def remove(self, kind: Kind, name: bytes, subscriber: S) -> bool:
        """Remove a subscriber from a name; return whether the name was active for it."""
        entry = self._tables[kind].get(name)
        state = None if entry is None else entry.remove(subscriber)
        if entry is None or state is None:  # drain() deleted it, or a finalizer has closed in the middle of close()
            return False
        was_notified = self.loss.remove(entry, subscriber)
        if not entry.has_subscribers:
            self._unwanted[kind].add(name)
            self._reconcile(entry)
        return state is SubscriberState.ACTIVE and not was_notified

    def subscriber_state(self, kind: Kind, name: bytes, subscriber: S) -> SubscriberState | None:
        """Return what a subscriber was last notified of, for a name; None if it does not subscribe to it."""
        entry = self._tables[kind].get(name)
        state = None if entry is None else entry.state_of(subscriber)
        if state is SubscriberState.ACTIVE and self.loss.has_notified(subscriber):
            return SubscriberState.WAITING  # the next steps of the loss change it
        return state

    def name_count(self, kind: Kind) -> int:
        """Return how many names have subscribers."""
        return len(self._tables[kind]) - len(self._unwanted[kind])

    def count_new(self, kind: Kind, names: Iterable[bytes]) -> int:
        """Return how many of `names` have no subscriber yet."""
        return sum([name not in self._tables[kind] or name in self._unwanted[kind] for name in names])

    def clear(self) -> list[Entry[S]]:
        """Remove all names and subscribers. A fan-out that is going on reaches nobody any more.

        Return the entries of the names, so that the caller can free them little by little.
        """
        entries = [*self._entries()]
        for entry in entries:
            if entry.states is not None:  # a fan-out to a single subscriber is over
                entry.clear()
        for table, unwanted in zip(self._tables.values(), self._unwanted.values(), strict=True):
            table.clear()
            unwanted.clear()
        self._refused.clear()
        self._forget_connection()
        return entries

    def drain(self) -> Iterator[None]:
        """Unsubscribe all names, and yield now and then: with very many names this takes a while.

        Active subscribers get messages until the server has confirmed that.
        """
        self.draining = True
        for number, entry in enumerate(self._entries(), 1):
            self._reconcile(entry)
            if number % CHUNK == 0:
                yield

    # --- what to send, and which subscribers to notify at the same time

    @property
    def has_work(self) -> bool:
        """Whether there is a whole command to send and room for it, or a late subscriber to activate."""
        queue = self._queue
        return bool(self._late or self._probes or ((queue.marked or queue.earlier) and self._in_flight.has_room))

    @property
    def is_empty(self) -> bool:
        """Whether no name has subscribers, and none is to be unsubscribed."""
        return not any(self._tables.values())

    @property
    def oldest_command(self) -> Command | None:
        """The oldest command without a complete reply."""
        return self._in_flight.oldest

    def next_commands(self) -> list[Command]:
        """Return the commands to send next, in order: a batch, if there is room. From here on they count as sent."""
        commands: list[Command] = []
        while self._probes:
            verb, probe = self._probes.popleft()
            entries: list[Entry[S]] = []
            for entry in map(self._tables[verb.kind].get, probe.names):
                if entry is not None and entry.needed_verb(self.draining) is verb:
                    entry.state = NEXT_IF_SENT[entry.state]
                    entries.append(entry)
                    self._queue.marked.pop(entry, None)
            if entries:
                commands.append(self._sent(Command(verb, probe=probe), entries))
            else:  # no name of the probe is desired any more
                self._continue_search(verb, self._bisection.accepted(0, probe))
        if self._in_flight.has_room:
            for verb, entries in self._queue.take_batches(self._in_flight.room, self.draining):
                commands.append(self._sent(Command(verb), entries))
        return commands

    def activate_late(self) -> Iterator[tuple[S, bytes]]:
        """Yield the subscribers that were added to a name that was joined already; each is active from then on."""
        while self._late:
            entry, subscriber = self._late.popleft()
            if entry.state is NameState.JOINED and entry.state_of(subscriber) is SubscriberState.WAITING:
                entry.set_state(subscriber, SubscriberState.ACTIVE)
                yield subscriber, entry.name

    def nameless(self, verb: Verb) -> Command:
        """Return a PING or AUTH, which is sent now. Its reply comes in the order of all replies."""
        self._in_flight.push(command := Command(verb), [])
        return command

    def retry_refused(self) -> bool:
        """Subscribe again to the names that were rejected; return whether there were any."""
        refused, self._refused = self._refused, {}
        for entry in refused:
            if entry.state is NameState.REFUSED:
                self._move(entry, NameEvent.RETRIED)
            self._reconcile(entry)
        return bool(refused)

    # --- replies

    def confirm(self, verb: Verb, name: bytes) -> Iterable[S]:
        """Take the confirmation of one name; yield the subscribers to activate.

        If the server unsubscribed the name on its own, these are the subscribers to disconnect.
        """
        commands, unconfirmed = self._in_flight.commands, self._in_flight.unconfirmed
        if not commands or commands[0].verb is not verb or unconfirmed[0].name != name:
            return self._take_unrequested(verb, name)
        command, entry = commands[0], unconfirmed.popleft()
        entry.state = NEXT_IF_CONFIRMED[entry.state]
        command.confirmed += 1
        if command.confirmed == len(command.names):
            self._in_flight.pop()
            if verb.subscribes:
                self._continue_search(verb, self._bisection.accepted(len(command.names), command.probe))
        only = entry.only_subscriber
        if verb.subscribes and only is not None and not self.draining:
            entry.activate(only)  # most names take this short way
            return (only,)
        self._reconcile(entry)
        return entry.change_all(SubscriberState.ACTIVE) if verb.subscribes else ()

    def _take_unrequested(self, verb: Verb, name: bytes) -> Iterable[S]:
        """Take a confirmation that is not the next one expected; yield the subscribers to disconnect."""
        if verb.subscribes:
            raise ProtocolViolation(f"{verb.name} {name[:64]!r} was confirmed, but no command in flight expects that")
        entry = self._tables[verb.kind].get(name)
        if entry is None or entry.state is not NameState.JOINED:
            return ()  # unknown; or the server did it as our own command arrived, and one of the two changes nothing
        self._move(entry, NameEvent.UNSUBSCRIBED_BY_SERVER)
        self._reconcile(entry)
        return entry.change_all(SubscriberState.WAITING)

    def pong(self) -> Verb:
        """Take the reply to a PING or AUTH; return to which."""
        if self.oldest_command is None or self.oldest_command.verb not in NAMELESS:
            raise ProtocolViolation("a reply to PING, while another command must get its reply first")
        return self._in_flight.pop()[0].verb

    def refuse(self, *, transient: bool = False) -> tuple[Command, Iterable[S]]:
        """Take an error reply to the whole of the oldest command; return the command, and the subscribers to notify.

        Redis does not say which of the names it rejects: the bisection finds the forbidden ones. `transient` says that
        the error is not about the names: retry_refused() sends them again.
        """
        if self._in_flight.oldest is None:
            raise ProtocolViolation("an error, while no command is in flight")
        command, entries = self._in_flight.pop()
        rejected: Iterable[S] = ()
        if transient or not command.verb.subscribes:
            self._refused.update(dict.fromkeys(entries))  # not out of sync: no command can help now
            self._revert(entries)
            self._reconcile_names(command.verb.kind, command.held_back)
        elif len(entries) > 1:
            self._revert(entries)
            self._continue_search(command.verb, self._bisection.rejected(command.as_probe()))
        else:
            (entry,) = entries
            self._move(entry, NameEvent.REFUSED)
            self._refused[entry] = None
            self._continue_search(command.verb, self._bisection.rejected(command.as_probe()))
            self._reconcile(entry)
            rejected = entry.change_all(SubscriberState.REFUSED)
        if not command.verb.subscribes:  # the names are joined, also for subscribers that were added meanwhile
            self._late.extend((entry, subscriber) for entry in entries for subscriber in entry.subscribers)
        return command, rejected

    def redirect(self, slot: int) -> tuple[bytes, ...]:
        """Take an error reply that says that another node has `slot`; return the names of the command that failed.

        These names are absent here, and would be subscribed again. The reply belongs to the oldest command if that has
        names of this slot. Otherwise the server unsubscribed all names of the command on its own before the command
        arrived, and confirm() took that for the reply.
        """
        command = self.oldest_command
        if command is None or command.verb.kind is not Kind.SHARD_CHANNEL or self._slot_of(command.names[0]) != slot:
            return ()
        command, entries = self._in_flight.pop()
        for entry in entries:
            self._move(entry, NameEvent.REVERTED if command.verb.subscribes else NameEvent.CONFIRMED)
            self._reconcile(entry)
        self._reconcile_names(command.verb.kind, command.held_back)
        return tuple([entry.name for entry in entries])

    def connection_lost(self) -> Iterator[tuple[S, Collection[bytes]] | None]:
        """Take the loss of the connection; yield, once each, the subscribers with active names, and these names.

        With very many names this takes a while. None is yielded now and then, so that the caller can do other things.
        The names must be iterated at once, or not at all.
        """
        self._forget_connection()
        loss = self.loss
        steps = self.lost_names = 0
        for entry in self._entries():
            if not entry.has_subscribers and self._tables[entry.kind].get(entry.name) is not entry:
                continue  # deleted since this began
            self._move(entry, NameEvent.CONNECTION_LOST)
            self._reconcile(entry)
            subscribers = entry.active_subscribers
            self.lost_names += bool(subscribers)
            for subscriber in subscribers or (None,):  # None: a name without subscribers is a step too
                if subscriber is not None:
                    loss.add(entry, subscriber)
                steps += 1
                if steps % CHUNK == 0:
                    yield None
        self._refused.clear()
        yield from loss.each()

    # --- one step

    def _move(self, entry: Entry[S], event: NameEvent) -> None:
        entry.state = NEXT_STATE[event][entry.state]

    def _reconcile(self, entry: Entry[S]) -> None:
        """Mark a name that needs a command, or delete one that is neither desired nor on the server."""
        if entry.needed_verb(self.draining) is not None:
            self._queue.marked[entry] = None
        elif entry.state in NOT_ON_SERVER and (self.draining or not entry.has_subscribers):
            self._tables[entry.kind].pop(entry.name, None)
            self._unwanted[entry.kind].discard(entry.name)
            self._queue.marked.pop(entry, None)
            self._refused.pop(entry, None)

    def _reconcile_names(self, kind: Kind, names: Iterable[bytes]) -> None:
        for entry in map(self._tables[kind].get, names):
            if entry is not None:
                self._reconcile(entry)

    def _sent(self, command: Command, entries: list[Entry[S]]) -> Command:
        """Complete a command with the names of these entries, and note that it is sent."""
        command.names = tuple([entry.name for entry in entries])
        self._in_flight.push(command, entries)
        return command

    def _revert(self, entries: list[Entry[S]]) -> None:
        """Take these names back to the states before their command, which failed."""
        for entry in entries:
            self._move(entry, NameEvent.REVERTED)
            if entry.state is NameState.ABSENT and not entry.has_subscribers:
                self._reconcile(entry)

    def _continue_search(self, verb: Verb, step: NextStep) -> None:
        self._probes += [(verb, probe) for probe in step.probes]
        self._reconcile_names(verb.kind, step.released)

    def _forget_connection(self) -> None:
        self._queue.clear()
        self.loss = Loss()
        self._late.clear()
        self._in_flight.clear()
        self._probes.clear()

    def _entries(self) -> Iterator[Entry[S]]:
        # Copies: the garbage collector may remove a name at any moment.
        return chain(*[tuple(table.values()) for table in self._tables.values()])
