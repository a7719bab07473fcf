"""The commands without a complete reply, and how many more may be sent. No I/O, no clock."""

from __future__ import annotations

from collections import deque
from typing import Generic

from .entry import Entry, S
from .sync_queue import SUBSCRIBE_BATCH, SUBSCRIBE_BATCH_BYTES
from .wire import Command

SUBSCRIBE_WINDOW = 16 * SUBSCRIBE_BATCH  # names in flight


class InFlight(Generic[S]):
    """A FIFO of commands: the server replies to them in order, and confirms their names one by one."""

    __slots__ = ("_size", "commands", "unconfirmed")

    def __init__(self) -> None:
        self.commands: deque[Command] = deque()
        """The commands, oldest first."""
        self.unconfirmed: deque[Entry[S]] = deque()
        """The names of these commands that are not confirmed yet."""
        self._size = 0  # bytes of all their names

    @property
    def oldest(self) -> Command | None:
        """The oldest command; None if there is none."""
        return self.commands[0] if self.commands else None

    @property
    def has_room(self) -> bool:
        """Whether another batch may be sent."""
        return len(self.unconfirmed) <= SUBSCRIBE_WINDOW - SUBSCRIBE_BATCH and self.room > 0

    @property
    def room(self) -> int:
        """The bytes of names that may be sent now."""
        return SUBSCRIBE_BATCH_BYTES - self._size

    def push(self, command: Command, entries: list[Entry[S]]) -> None:
        """Add a command that is sent now; `entries` are those of its names."""
        self.commands.append(command)
        self.unconfirmed += entries
        self._size += command.name_bytes

    def pop(self) -> tuple[Command, list[Entry[S]]]:
        """Remove the oldest command, which has its complete reply; return it with the names that were not confirmed."""
        command = self.commands.popleft()
        self._size -= command.name_bytes
        return command, [self.unconfirmed.popleft() for _ in command.names[command.confirmed :]]

    def clear(self) -> None:
        """Forget all commands, which get no reply any more."""
        self.commands.clear()
        self.unconfirmed.clear()
        self._size = 0
