"""Batches that are sent as soon as they are there, and resolved when their replies arrive, without a step of a task."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from operator import attrgetter

import hiredis

from ..._core.wire import NOT_ENOUGH, new_parser
from ...stats import Counters
from ..redispy.connection import Connection
from .call import PublishCall, ScriptCall

COUNTS = re.compile(rb"(?::[0-9]{1,19}\r\n)+")  # Redis has integers of 64 bits
ONE_COUNT = {b":%d\r\n" % count: [count] for count in range(100)}  # most often one arrives, and a small one
LARGEST_AT_ONCE = 65_536  # bytes of commands; larger ones go by the task, which waits while the socket is full
LARGEST_REPLY = 1 << 20  # bytes of the reply to a script; the task reads a larger one, because its bytes are kept here
SCRIPT_REPLIES = (list, bytes, type(None))

must_be_heard = attrgetter("must_be_heard")  # of a call


class Shortcut:
    """Sends one batch at a time, over a connection that its owner does not use meanwhile.

    It resolves messages if all that arrives is counts, and a script, which goes alone, if the reply is a list, text or
    nothing. Whatever else happens is for the owner: this calls `on_trouble`, and the owner takes over, and reads the
    replies. It calls `on_idle` when a batch has all its replies.
    """

    def __init__(self, counters: Counters, on_idle: Callable[[], object], on_trouble: Callable[[], object]) -> None:
        self._counters = counters
        self._on_idle = on_idle
        self._on_trouble = on_trouble
        self._idle: Connection | None = None  # for the next batch
        self._busy: Connection | None = None  # of a batch that lacks replies
        self._calls: deque[PublishCall] = deque()  # of this batch, without a reply
        self._parser: hiredis.Reader | None = None  # of the reply, if the call is a script
        self._parts: list[bytes] = []  # what the parser has of it; the owner, if it takes over, reads all of it again
        self._size = 0  # of these parts

    @property
    def is_open(self) -> bool:
        """Whether it takes the next batch, now or when that in flight has its replies."""
        return self._idle is not None or bool(self._calls)

    def allow(self, connection: Connection | None) -> None:
        """Let batches go over a connection that is idle, and has nothing to read; over none if it is None."""
        if connection is not None and connection.tap(self._take, self.leave):
            self._idle = connection

    def send(self, calls: deque[PublishCall]) -> bool:
        """Send a batch, and return whether it was sent. A call leaves the batch when it has its reply."""
        connection = self._idle
        if connection is None or not is_fit(calls) or connection.is_check_due:
            return False
        first = calls[0]
        if type(first) is ScriptCall:
            first.prepare(connection.scripts)
        if not connection.write_now(first.command if len(calls) == 1 else b"".join([call.command for call in calls])):
            return False
        self._idle, self._busy, self._calls = None, connection, calls
        if type(first) is ScriptCall:
            self._parser = new_parser()
        return True

    def _take(self, data: bytes) -> bool:
        """Resolve the calls if these are their replies, and nothing else: counts, or the end of a script's reply."""
        if self._parser is not None:
            return self._take_part(data, self._parser)
        calls = self._calls
        counts = ONE_COUNT.get(data)
        if counts is None:
            counts = list(map(int, data[1:-2].split(b"\r\n:"))) if COUNTS.fullmatch(data) else []
        if not 0 < len(counts) <= len(calls) or (0 in counts and any(map(must_be_heard, calls))):
            self.leave()
            return False
        self._counters.published += len(counts)
        self._resolve(counts)
        return True

    def _take_part(self, data: bytes, parser: hiredis.Reader) -> bool:
        """Take a part of a script's reply; if nothing is missing then, resolve the call."""
        try:
            parser.feed(data)
            reply = parser.gets()
        except Exception:  # noqa: BLE001, the parsers raise anything on garbage
            reply = ...
        if reply is NOT_ENOUGH and self._size < LARGEST_REPLY:
            self._parts.append(data)
            self._size += len(data)
            return True
        if type(reply) not in SCRIPT_REPLIES or parser.has_data():
            self.leave()
            return False
        self._parts, self._size = [], 0
        self._resolve([reply])
        return True

    def _resolve(self, replies: Sequence[object]) -> None:
        """Resolve the first calls of the batch."""
        calls = self._calls
        if len(calls) == len(replies):
            self._idle, self._busy, self._parser = self._busy, None, None
        for reply in replies:
            outcome = calls.popleft().outcome
            if not outcome.done():
                outcome.set_result(reply)
        if not calls:
            self._on_idle()

    def leave(self) -> None:
        """Send and take nothing more until the owner allows it. If calls have no reply, the owner is to take over."""
        self._give_back()
        if self._busy is not None:
            self._on_trouble()

    def take_over(self) -> Connection | None:
        """Leave everything to the owner; return the connection of the calls whose replies it is to read, if any."""
        self._give_back()
        connection, self._busy = self._busy, None
        return connection

    def _give_back(self) -> None:
        """Let the owner read a reply from its beginning."""
        self._idle = self._parser = None
        self._calls = deque()
        if self._parts and self._busy is not None:
            part, self._parts, self._size = b"".join(self._parts), [], 0
            self._busy.pass_on(part)


def is_fit(calls: deque[PublishCall]) -> bool:
    """Tell whether a batch has messages only, or one script, and not too much data."""
    if len(calls) == 1:
        return len(calls[0].command) <= LARGEST_AT_ONCE
    size = sum([len(call.command) for call in calls])
    return 0 < size <= LARGEST_AT_ONCE and ScriptCall not in map(type, calls)
