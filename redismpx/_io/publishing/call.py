"""One call of `publish()`: its command, its deadline and its outcome."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from ..._core.wire import Redirection

# Length-prefixed arguments only, so both are data whatever bytes they have.
PUBLISH = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
SPUBLISH = b"*3\r\n$8\r\nSPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"


class PublishCall:
    """One call of `publish()`, from when it is made to its outcome."""

    __slots__ = ("channel", "command", "deadline", "must_be_heard", "outcome", "redirections", "slot")

    def __init__(self, channel: bytes, data: bytes, slot: int | None, timeout: float, *, must_be_heard: bool) -> None:
        loop = asyncio.get_running_loop()
        self.channel: bytes = channel
        self.slot: int | None = slot
        """The slot of the channel, if it is a shard channel."""
        self.command: bytes = (PUBLISH if slot is None else SPUBLISH) % (len(channel), channel, len(data), data)
        self.deadline: float = loop.time() + timeout
        self.must_be_heard: bool = must_be_heard
        """Whether the outcome is `NoResponders` when nobody can have received the message."""
        self.redirections: int = 0
        """How often a node redirected it to another one."""
        self.outcome: asyncio.Future[int] = loop.create_future()


class Moved(NamedTuple):
    """A call that a node of a cluster rejected, because another node owns the slot."""

    call: PublishCall
    redirection: Redirection
