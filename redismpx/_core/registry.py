"""Who wants which name, and what the server has confirmed. No I/O, no clock.

A wish is written down first and answered by `next_commands()`, which says what to send. Replies are told to
`confirm()`, `refuse()` and `pong()`, in wire order; a lost connection to `connection_lost()`. Each returns whom to
tell, and the caller tells them. At most one command is in flight for a name.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Generic

from .bisection import Bisection, NextStep, Probe
from .entry import NEXT, NOTHING, Entry, NameEvent, NameState, S, SubscriberState
from .wire import JOIN, LEAVE, Command, Kind, ProtocolViolation, Verb

CONFIRMED = NEXT[NameEvent.CONFIRMED]
BATCH = 512  # names in one command: one giant SUBSCRIBE makes the server cut the connection
PORTION = 512  # names of a lost connection that are dealt with in one go
WINDOW = 16 * BATCH  # names asked for and not yet answered; bounds what waits in the socket and one flush


class Registry(Generic[S]):
    """The names of one connection at a time, and the subscribers `S` that want them."""

    def __init__(self, slot_of: Callable[[bytes], int] = lambda name: 0) -> None:
        self._slot_of = slot_of
        """The slot of a shard channel. A node of a cluster takes names of one slot only in a command."""
        self.channels: dict[bytes, Entry[S]] = {}
        self.patterns: dict[bytes, Entry[S]] = {}
        self.shard_channels: dict[bytes, Entry[S]] = {}
        self._tables = {
            Kind.CHANNEL: self.channels,
            Kind.PATTERN: self.patterns,
            Kind.SHARD_CHANNEL: self.shard_channels,
        }
        self._dirty: dict[Entry[S], None] = {}  # where wish and fact may differ
        self._queue: deque[Entry[S]] = deque()  # those that come before them; some may not be dirty any more
        self._late: list[tuple[Entry[S], S]] = []  # wanted by somebody new while joined already
        self._in_flight: deque[Command] = deque()  # sent and not wholly answered, oldest first
        self._unanswered: deque[Entry[S]] = deque()  # their names, without those that are answered
        self._bisection = Bisection()
        self._probes: deque[tuple[Verb, Probe]] = deque()  # to be sent, each in a command of its own
        self._draining = False  # nothing is wanted any more
        self.wanted: dict[Kind, int] = dict.fromkeys(Kind, 0)  # how many names somebody wants
        self._told: S | None = None  # of a loss, while what is noted as active for it is not so any more
        self._refused: dict[Entry[S], None] = {}  # not granted by the server; looked at again by retry_refused()

    # --- wishes

    def add(self, kind: Kind, names: Collection[bytes], subscriber: S) -> None:
        """Want `names`, each once, for `subscriber`, which must not want any of them already."""
        table, dirty = self._tables[kind], self._dirty
        known = len(table)
        for name in names:
            entry = table.get(name)
            if entry is None:
                entry = table[name] = Entry(kind, name, subscriber)
                dirty[entry] = None
            else:
                self._join(entry, subscriber)
        self.wanted[kind] += len(table) - known
        if self._draining:
            self.drain()  # of these too

    def _join(self, entry: Entry[S], subscriber: S) -> None:
        """Want a name that is known already, for one more."""
        first = not entry.has_subscribers
        entry.add(subscriber)
        if first:
            self.wanted[entry.kind] += 1
        if entry.state is NameState.JOINED:
            self._late.append((entry, subscriber))
        elif entry.state is NameState.REFUSED:
            self._move(entry, NameEvent.RETRIED)
            self._look(entry)
        elif first:
            self._look(entry)

    def remove(self, kind: Kind, name: bytes, subscriber: S) -> bool:
        """Stop wanting `name` for `subscriber`; tell whether it was active for it."""
        entry = self._tables[kind].get(name)
        if entry is None:  # given up by drain()
            return False
        standing = entry.pop(subscriber)
        if not entry.has_subscribers:
            self.wanted[kind] -= 1
            self._look(entry)
        return standing is SubscriberState.ACTIVE and subscriber != self._told

    def subscriber_state(self, kind: Kind, name: bytes, subscriber: S) -> SubscriberState | None:
        """Tell what `subscriber` was last told of `name`; None if it does not want it."""
        entry = self._tables[kind].get(name)
        return None if entry is None else entry.get(subscriber)

    def count_new(self, kind: Kind, names: Iterable[bytes]) -> int:
        """Tell how many of `names` nobody wants yet."""
        entries = map(self._tables[kind].get, names)
        return sum([entry is None or not entry.has_subscribers for entry in entries])

    def clear(self) -> None:
        """Forget everything and everybody, also in the middle of a fan-out."""
        for entry in self._entries():
            entry.clear()
        self.wanted = dict.fromkeys(Kind, 0)
        for table in self._tables.values():
            table.clear()
        self._refused.clear()
        self._forget_link()

    def drain(self) -> None:
        """Want nothing any more; who is active goes on getting messages until the server has confirmed it."""
        self._draining = True
        for entry in self._entries():
            self._look(entry)

    # --- what to send, and whom to tell at the same time

    @property
    def has_work(self) -> bool:
        """Whether there is anything to send, and room for a whole command of it, or somebody to welcome."""
        has_room = len(self._unanswered) <= WINDOW - BATCH
        return bool(self._late or self._probes or ((self._dirty or self._queue) and has_room))

    @property
    def draining(self) -> bool:
        """Whether drain() was called."""
        return self._draining

    @property
    def is_empty(self) -> bool:
        """Whether nobody wants anything, and nothing is left to give up."""
        return not any(self._tables.values())

    @property
    def oldest_command(self) -> Command | None:
        """The oldest command that is not wholly answered yet."""
        return self._in_flight[0] if self._in_flight else None

    def next_commands(self) -> list[Command]:
        """Return the commands to send now, in order. They count as sent from here on."""
        commands: list[Command] = []
        while self._probes:
            verb, probe = self._probes.popleft()
            known = map(self._tables[verb.kind].get, probe.names)
            due = [entry for entry in known if entry is not None and self._due(entry) is verb]
            for entry in due:
                self._dirty.pop(entry, None)
            if due:
                commands.append(self._sent(Command(verb, probe=probe), due))
            else:  # nobody wants these names any more
                self._search_on(verb, self._bisection.accepted(0, probe))
        batches: dict[tuple[Verb, int], list[Entry[S]]] = defaultdict(list)
        room = WINDOW - len(self._unanswered)
        while room > 0 and (self._queue or self._dirty):
            if not self._queue:  # which can be taken from in order, as a dictionary cannot
                self._queue.extend(self._dirty)
                self._dirty.clear()
            entry = self._queue.popleft()
            due_verb = self._due(entry)
            if due_verb is not None:
                slot = self._slot_of(entry.name) if entry.kind is Kind.SHARD_CHANNEL else 0
                batches[due_verb, slot].append(entry)
                room -= 1
        for (verb, _), entries in batches.items():
            starts = range(0, len(entries), BATCH)
            commands += [self._sent(Command(verb), entries[start : start + BATCH]) for start in starts]
        return commands

    def activate_late(self) -> Iterator[tuple[S, bytes]]:
        """Activate those who came to a name that was joined already; yield each as it is."""
        late, self._late = self._late, []
        for entry, subscriber in late:
            if entry.state is NameState.JOINED and entry.get(subscriber) is SubscriberState.WAITING:
                entry.put(subscriber, SubscriberState.ACTIVE)
                yield subscriber, entry.name

    def ping(self) -> Command:
        """Return a PING to send; its answer has its place among the others."""
        command = Command(Verb.PING)
        self._in_flight.append(command)
        return command

    def retry_refused(self) -> bool:
        """Ask again for what was refused; tell whether there was anything."""
        refused, self._refused = self._refused, {}
        for entry in refused:
            if entry.state is NameState.REFUSED:
                self._move(entry, NameEvent.RETRIED)
            self._look(entry)
        return bool(refused)

    # --- what the server said

    def confirm(self, verb: Verb, name: bytes) -> Iterable[S]:
        """Take a confirmation; yield whom to activate, or, for an unasked unsubscribe, whom to disconnect."""
        head = self._in_flight[0] if self._in_flight else None
        if head is not None and head.verb is verb and self._unanswered[0].name == name:
            entry = self._unanswered.popleft()
            entry.state = CONFIRMED[entry.state]
            head.answered += 1
            if head.answered == len(head.names):
                self._in_flight.popleft()
                if verb.joins:
                    self._search_on(verb, self._bisection.accepted(len(head.names), head.probe))
            if verb.joins and entry.only is not None and not self._draining:
                entry.put(entry.only, SubscriberState.ACTIVE)  # as most are: it waited for this, and wants it still
                return (entry.only,)
            self._look(entry)
            return self._tell(entry, SubscriberState.ACTIVE) if verb.joins else ()
        if verb.joins:
            raise ProtocolViolation(f"a confirmation of {verb.name} {name[:64]!r} that answers no command in flight")
        known = self._tables[verb.kind].get(name)
        if known is None or known.state is not NameState.JOINED:
            return ()  # not ours at all; or our own command crossed an unasked one, and one of the two says nothing new
        self._move(known, NameEvent.DROPPED)
        self._look(known)
        return self._tell(known, SubscriberState.WAITING)

    def pong(self) -> None:
        """Take the answer to a PING."""
        if not self._in_flight or self._in_flight[0].verb is not Verb.PING:
            raise ProtocolViolation("an answer to PING, while another command is to be answered first")
        self._in_flight.popleft()

    def refuse(self, *, transient: bool = False) -> tuple[Command, Iterable[S]]:
        """Take an error reply: it answers the whole of the oldest command. Return that, and whom to tell.

        Redis does not say which of the names it refused: a bisection finds the forbidden ones. `transient` says that
        the error is not about the names at all: retry_refused() asks for them again.
        """
        if not self._in_flight:
            raise ProtocolViolation("an error that answers no command in flight")
        command = self._in_flight.popleft()
        entries = [self._unanswered.popleft() for _ in command.names[command.answered :]]
        told: Iterable[S] = ()
        if transient or not command.verb.joins:
            self._refused.update(dict.fromkeys(entries))  # not dirty: nothing can be done about them now
            self._revert(entries)
            self._release(command)
        elif len(entries) > 1:
            self._revert(entries)
            self._search_on(command.verb, self._bisection.rejected(command.as_probe()))
        else:
            (entry,) = entries
            self._move(entry, NameEvent.REFUSED)
            self._refused[entry] = None
            self._search_on(command.verb, self._bisection.rejected(command.as_probe()))
            self._look(entry)
            told = self._tell(entry, SubscriberState.REFUSED)
        if not command.verb.joins:  # whoever came while the names were leaving finds them joined
            self._late.extend((entry, subscriber) for entry in entries for subscriber in entry.subscribers)
        return command, told

    def redirect(self, slot: int) -> tuple[bytes, ...]:
        """Take an error reply that says that another node has `slot`; return the names whose command was in vain.

        They are subscribed no more, and would be asked for again. It answers the oldest command in flight, if that has
        names of this slot. Otherwise the server had unsubscribed all of them before the command came, unasked, and that
        was taken for its answer.
        """
        command = self.oldest_command
        if command is None or command.verb.kind is not Kind.SHARD_CHANNEL or self._slot_of(command.names[0]) != slot:
            return ()
        self._in_flight.popleft()
        names = command.names[command.answered :]
        for entry in [self._unanswered.popleft() for _ in names]:
            self._move(entry, NameEvent.HELD if command.verb.joins else NameEvent.CONFIRMED)
            self._look(entry)
        self._release(command)
        return names

    def connection_lost(self) -> Iterator[tuple[S, Iterator[Entry[S]]] | None]:
        """Take the loss of the connection; yield, once each, those who had anything active, and what that was.

        With very many names that takes a while: None is yielded now and then, so that other things can be done between.
        """
        self._forget_link()
        active: dict[S, list[Entry[S]]] = defaultdict(list)
        for number, entry in enumerate(self._entries(), 1):
            if not entry.has_subscribers and self._tables[entry.kind].get(entry.name) is not entry:
                continue  # given up in between
            for subscriber in entry.active:
                active[subscriber].append(entry)
            self._move(entry, NameEvent.LOST)
            self._look(entry)
            if number % PORTION == 0:
                yield None
        self._refused.clear()
        yield from self._tell_lost(active)

    # --- one at a time

    def _move(self, entry: Entry[S], event: NameEvent) -> None:
        entry.state = NEXT[event][entry.state]

    def _due(self, entry: Entry[S]) -> Verb | None:
        """Return the command that brings the server nearer to what is wanted, if one may be sent."""
        if entry.has_subscribers and not self._draining:
            return JOIN[entry.kind] if entry.state is NameState.ABSENT else None
        return LEAVE[entry.kind] if entry.state is NameState.JOINED else None

    def _look(self, entry: Entry[S]) -> None:
        """Note an entry that is due, or drop one that nobody needs any more."""
        if self._due(entry) is not None:
            self._dirty[entry] = None
        elif entry.state in NOTHING and (self._draining or not entry.has_subscribers):
            if self._tables[entry.kind].pop(entry.name, None) is not None and entry.has_subscribers:
                self.wanted[entry.kind] -= 1
            self._dirty.pop(entry, None)
            self._refused.pop(entry, None)

    def _sent(self, command: Command, entries: list[Entry[S]]) -> Command:
        """Count a command with the names of these entries as sent."""
        following = NEXT[NameEvent.ASKED if command.verb.joins else NameEvent.GIVEN_UP]
        for entry in entries:
            entry.state = following[entry.state]
        command.names = tuple([entry.name for entry in entries])
        self._in_flight.append(command)
        self._unanswered += entries
        return command

    def _revert(self, entries: list[Entry[S]]) -> None:
        """Note that a command failed, and that these names are as they were before it."""
        for entry in entries:
            self._move(entry, NameEvent.HELD)
            if entry.state is NameState.ABSENT and not entry.has_subscribers:
                self._look(entry)

    def _search_on(self, verb: Verb, step: NextStep) -> None:
        """Do what the bisection says: send its probes, and let released names be sent again."""
        self._probes += [(verb, probe) for probe in step.probes]
        self._look_at(verb, step.released)

    def _release(self, command: Command) -> None:
        """Let the names that waited for the reply to a probe be sent again."""
        if command.probe is not None:
            self._look_at(command.verb, command.probe.held_back)

    def _look_at(self, verb: Verb, names: Iterable[bytes]) -> None:
        table = self._tables[verb.kind]
        for name in names:
            entry = table.get(name)
            if entry is not None:
                self._look(entry)

    def _tell(self, entry: Entry[S], standing: SubscriberState) -> Iterable[S]:
        """Yield each subscriber as its standing changes; whoever was taken away meanwhile is passed over."""
        if entry.only is None:
            return self._tell_each(entry, standing)
        if entry.standing is standing:
            return ()
        entry.put(entry.only, standing)
        return (entry.only,)

    def _tell_each(self, entry: Entry[S], standing: SubscriberState) -> Iterator[S]:
        for subscriber in tuple(entry.subscribers):
            known = entry.get(subscriber)
            if known is not None and known is not standing:
                entry.put(subscriber, standing)
                yield subscriber

    def _tell_lost(self, active: dict[S, list[Entry[S]]]) -> Iterator[tuple[S, Iterator[Entry[S]]] | None]:
        for subscriber, entries in active.items():
            if not any(entry.get(subscriber) is SubscriberState.ACTIVE for entry in entries):
                continue
            # It may have a hundred thousand names: it is told at once, and noted for each of them in portions.
            self._told = subscriber
            yield subscriber, (entry for entry in entries if entry.get(subscriber) is SubscriberState.ACTIVE)
            for number, entry in enumerate(entries, 1):
                if entry.get(subscriber) is SubscriberState.ACTIVE:
                    entry.put(subscriber, SubscriberState.WAITING)
                if number % PORTION == 0:
                    yield None
        self._told = None

    def _forget_link(self) -> None:
        self._dirty.clear()
        self._queue.clear()
        self._told = None
        self._late.clear()
        self._in_flight.clear()
        self._unanswered.clear()
        self._probes.clear()

    def _entries(self) -> list[Entry[S]]:
        return [entry for table in self._tables.values() for entry in table.values()]
