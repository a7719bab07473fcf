"""One call of `publish()`, or of a script: its command, its deadline and its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any, NamedTuple

from ..._core.scripts import Evaluation
from ..._core.wire import Redirection
from ...errors import ConnectionLost, MultiplexerIsClosed, NoResponders
from ..redispy.connection import Connection

# Length-prefixed arguments only, so both are data whatever bytes they have.
PUBLISH = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
SPUBLISH = b"*3\r\n$8\r\nSPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"


class PublishCall:
    """One command, from when it is made to its outcome. Most often it is a PUBLISH."""

    __slots__ = ("channel", "command", "deadline", "must_be_heard", "outcome", "redirections", "slot", "timeout")

    def __init__(
        self,
        channel: bytes,
        data: bytes,
        slot: int | None,
        timeout: float,
        *,
        must_be_heard: bool = False,
        outcome: asyncio.Future[Any] | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.channel: bytes = channel
        self.slot: int | None = slot
        """The slot of the channel, if it is a shard channel or a stream of a cluster."""
        self.command: bytes = (PUBLISH if slot is None else SPUBLISH) % (len(channel), channel, len(data), data)
        self.timeout: float = timeout
        self.deadline: float = loop.time() + timeout
        self.must_be_heard: bool = must_be_heard
        """Whether the outcome is `NoResponders` when nobody can have received the message."""
        self.redirections: int = 0
        """How often a node redirected it to another one."""
        self.outcome: asyncio.Future[Any] = loop.create_future() if outcome is None else outcome

    def cancel(self) -> None:
        """Give up the call: it is not sent any more. It stays in the queue until its turn, so free its payload now."""
        self.outcome.cancel()
        self.command = b""

    def expire(self, why: str, cause: BaseException | None) -> None:
        """Fail the call at its deadline, unless it has an outcome: it was not sent."""
        self._fail(f"not sent within {self.timeout:g} s: {why}", cause, sent=False)

    def resolve(self, count: int) -> None:
        """Let the call return a count, unless it has an outcome."""
        if self._has_caller():
            self.outcome.set_result(count)

    def lose(self, why: str, cause: BaseException | None) -> None:
        """Fail the call, unless it has an outcome: it was sent, and no reply can come any more."""
        self._fail(f"sent, and may or may not have been published: {why}", cause, sent=True)

    def close(self) -> None:
        """Fail the call because the multiplexer is closed, unless it has an outcome: it was not sent."""
        if self._has_caller():
            self.outcome.set_exception(MultiplexerIsClosed())

    def _fail(self, reason: str, cause: BaseException | None, *, sent: bool) -> None:
        if self._has_caller():
            error = ConnectionLost(reason, frozenset({self.channel}), sent=sent)
            error.__cause__ = cause
            self.outcome.set_exception(error)

    def _has_caller(self) -> bool:
        return not self.outcome.done() and not self.outcome.get_loop().is_closed()


class ScriptCall(PublishCall):
    """A script, from when it is to run to its outcome. The server has most scripts already, and gets a digest only."""

    __slots__ = ("evaluation",)

    def __init__(self, name: bytes, evaluation: Evaluation, slot: int | None, timeout: float) -> None:
        super().__init__(name, b"", slot, timeout)
        self.evaluation: Evaluation = evaluation
        self.command = evaluation.by_digest

    def prepare(self, known: set[bytes]) -> None:
        """Choose the command for a connection; `known` has the scripts that were sent over it."""
        digest = self.evaluation.script.digest
        if digest not in known:
            known.add(digest)
            self.command = self.evaluation.by_text


class Moved(NamedTuple):
    """A call that a node of a cluster rejected, because another node owns the slot, or for now."""

    call: PublishCall
    redirection: Redirection | None
    """To the owner. None: the node moves the key just now, or does not know the script any more."""


async def reject_unheard(calls: Collection[PublishCall], connection: Connection) -> None:
    """Fail the calls that must be heard and were not, if it is certain that nobody gets their messages."""
    for sharded in {call.slot is not None for call in calls}:
        if await connection.counts_all(sharded=sharded):
            for call in calls:
                if (call.slot is not None) is sharded and not call.outcome.done():
                    call.outcome.set_exception(NoResponders(call.channel))
