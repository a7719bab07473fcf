"""A call that comes alone: sent when it is made, and resolved when its reply arrives, without a step of a task."""

from __future__ import annotations

from collections.abc import Callable

import hiredis

from ..._core.wire import NOT_ENOUGH, new_parser
from ...stats import Counters
from ..redispy.connection import Connection
from .call import PublishCall, ScriptCall

MOST_DIGITS = 19  # of a count: Redis has integers of 64 bits
LARGEST_AT_ONCE = 65_536  # bytes of a command; a larger one goes by the task, which waits while the socket is full
LARGEST_REPLY = 1 << 20  # bytes of the reply to a script; the task reads a larger one, because its bytes are kept here
SCRIPT_REPLIES = (list, bytes, type(None))


class SingleCall:
    """Sends at most one call at a time, over a connection that its owner does not use meanwhile.

    It resolves a message if the reply is a count, and a script if the reply is a list, text or nothing. Whatever else
    happens is for the owner: this calls `on_trouble`, and the owner takes over, and reads the reply.
    """

    def __init__(self, counters: Counters, on_reply: Callable[[], object], on_trouble: Callable[[], object]) -> None:
        self._counters = counters
        self._on_reply = on_reply
        self._on_trouble = on_trouble
        self._idle: Connection | None = None  # for the next call
        self._busy: Connection | None = None  # of a call without a reply
        self._call: PublishCall | None = None  # whose reply comes next
        self._parser: hiredis.Reader | None = None  # of this reply, if the call is a script
        self._parts: list[bytes] = []  # what the parser has of it; the owner, if it takes over, reads all of it again
        self._size = 0  # of these parts

    def allow(self, connection: Connection) -> None:
        """Let the next call go over a connection that is idle, and has nothing to read."""
        if connection.tap(self._take, self.leave):
            self._idle = connection

    def send(self, call: PublishCall) -> bool:
        """Send a call, and return whether it was sent."""
        connection = self._idle
        if connection is None or len(call.command) > LARGEST_AT_ONCE or connection.is_check_due:
            return False
        if type(call) is ScriptCall:
            call.prepare(connection.scripts)
        if not connection.write_now(call.command):
            return False
        self._idle, self._busy, self._call = None, connection, call
        if type(call) is ScriptCall:
            self._parser = new_parser()
        return True

    def _take(self, data: bytes) -> bool:
        """Resolve the call if this is its reply, and nothing else: one count, or the end of a script's reply."""
        if self._parser is not None:
            return self._take_part(data, self._parser)
        call, digits = self._call, data[1:-2]
        is_count = data[:1] == b":" and data[-2:] == b"\r\n" and digits.isdigit() and len(digits) <= MOST_DIGITS
        if call is None or not is_count:
            self.leave()
            return False
        count = int(digits)
        if not count and call.must_be_heard:
            self.leave()
            return False
        self._counters.published += 1
        self._resolve(count)
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
        self._resolve(reply)
        return True

    def _resolve(self, reply: object) -> None:
        call = self._call
        self._idle, self._busy, self._call, self._parser = self._busy, None, None, None
        self._on_reply()
        if call is not None and not call.outcome.done():
            call.outcome.set_result(reply)

    def leave(self) -> None:
        """Send and take nothing more until the owner allows it. If a call has no reply, the owner is to take over."""
        self._give_back()
        if self._busy is not None:
            self._on_trouble()

    def take_over(self) -> Connection | None:
        """Leave everything to the owner; return the connection of a call whose reply it is to read, if there is one."""
        self._give_back()
        connection, self._busy = self._busy, None
        return connection

    def _give_back(self) -> None:
        """Let the owner read a reply from its beginning."""
        self._idle = self._call = self._parser = None
        if self._parts and self._busy is not None:
            part, self._parts, self._size = b"".join(self._parts), [], 0
            self._busy.pass_on(part)
