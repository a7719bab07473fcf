"""A call that comes alone: sent when it is made, and resolved when its reply arrives, without a step of a task."""

from __future__ import annotations

from collections.abc import Callable

from ...stats import Counters
from ..redispy.connection import Connection
from .call import PublishCall

MOST_DIGITS = 19  # of a count: Redis has integers of 64 bits
LARGEST_AT_ONCE = 65_536  # bytes of a command; a larger one goes by the task, which waits while the socket is full


class SingleCall:
    """Sends at most one call at a time, over a connection that its owner does not use meanwhile.

    It resolves the call if the reply is a count. Whatever else happens is for the owner: this calls `on_trouble`, and
    the owner takes over, and reads the reply.
    """

    def __init__(self, counters: Counters, on_reply: Callable[[], object], on_trouble: Callable[[], object]) -> None:
        self._counters = counters
        self._on_reply = on_reply
        self._on_trouble = on_trouble
        self._idle: Connection | None = None  # for the next call
        self._busy: Connection | None = None  # of a call without a reply
        self._call: PublishCall | None = None  # whose reply comes next

    def allow(self, connection: Connection) -> None:
        """Let the next call go over a connection that is idle, and has nothing to read."""
        if connection.tap(self._take, self.leave):
            self._idle = connection

    def send(self, call: PublishCall) -> bool:
        """Send a call, and return whether it was sent."""
        connection = self._idle
        if (
            connection is None
            or type(call) is not PublishCall
            or len(call.command) > LARGEST_AT_ONCE
            or connection.is_check_due
            or not connection.write_now(call.command)
        ):
            return False
        self._idle, self._busy, self._call = None, connection, call
        return True

    def _take(self, data: bytes) -> bool:
        """Resolve the call if this is its reply, and nothing else: one count."""
        call, digits = self._call, data[1:-2]
        is_count = data[:1] == b":" and data[-2:] == b"\r\n" and digits.isdigit() and len(digits) <= MOST_DIGITS
        if call is None or not is_count:
            self.leave()
            return False
        count = int(digits)
        if not count and call.must_be_heard:
            self.leave()
            return False
        self._idle, self._busy, self._call = self._busy, None, None
        self._counters.published += 1
        self._on_reply()
        if not call.outcome.done():
            call.outcome.set_result(count)
        return True

    def leave(self) -> None:
        """Send and take nothing more until the owner allows it. If a call has no reply, the owner is to take over."""
        self._idle = self._call = None
        if self._busy is not None:
            self._on_trouble()

    def take_over(self) -> Connection | None:
        """Leave everything to the owner; return the connection of a call whose reply it is to read, if there is one."""
        connection, self._busy = self._busy, None
        self.leave()
        return connection
