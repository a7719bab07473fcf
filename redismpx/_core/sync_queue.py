"""The names that may need a command, in the order in which they are to be sent. No I/O, no clock."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Generic

from .entry import NEXT_IF_SENT, Entry, S
from .wire import Kind, Verb

SUBSCRIBE_BATCH = 512  # names in one command: the server closes the connection at one giant SUBSCRIBE
SUBSCRIBE_BATCH_BYTES = 256 * 1024  # of names in flight: the server closes a connection with too many unread replies


class SyncQueue(Generic[S]):
    """A queue of names without duplicates.

    A name may need no command any more when its turn comes, and is skipped then. So a name can be marked at any time.
    """

    __slots__ = ("_slot_of", "earlier", "marked")

    def __init__(self, slot_of: Callable[[bytes], int]) -> None:
        self._slot_of = slot_of
        self.marked: dict[Entry[S], None] = {}
        """The newest names in the queue."""
        self.earlier: deque[Entry[S]] = deque()
        """The other names in the queue. A deque gives them in order, as no dictionary can fast."""

    def clear(self) -> None:
        """Remove all names."""
        self.marked.clear()
        self.earlier.clear()

    def take_batches(self, room: int, draining: bool) -> Iterator[tuple[Verb, list[Entry[S]]]]:
        """Look at the next SUBSCRIBE_BATCH names; yield the verb and the names of each command that they need.

        The names in the commands have `room` bytes at most, but for the last one. From the look on, the command of a
        name counts as sent: the name may be in the queue twice.
        """
        batches: dict[tuple[Verb, int], list[Entry[S]]] = defaultdict(list)
        for _ in range(SUBSCRIBE_BATCH):
            if not self.earlier:
                marked, self.marked = self.marked, {}
                self.earlier.extend(marked)
                if not marked:
                    break
            entry = self.earlier.popleft()
            verb = entry.needed_verb(draining)
            if verb is not None:
                entry.state = NEXT_IF_SENT[entry.state]
                # A node of a cluster accepts names of one slot only in a command.
                slot = self._slot_of(entry.name) if entry.kind is Kind.SHARD_CHANNEL else 0
                batches[verb, slot].append(entry)
                room -= len(entry.name)
                if room <= 0:
                    break
        for (verb, _), batch in batches.items():
            yield verb, batch
