"""Networked promises: waiting, with a deadline, for one message on one channel."""

from __future__ import annotations

__all__ = ["Promise", "PromiseSubscription"]

import asyncio
import secrets
from typing import NamedTuple

from ._core.wire import Kind, escape_glob
from ._io.delivery.inbox import Consumer
from ._io.hub import Hub
from ._io.runtime.timers import Deadlines
from .arguments import check_seconds, to_bytes
from .errors import ConnectionLost, InactiveSubscription, PromiseInterrupted, PromiseTimeout, TooManyPromises, quote
from .stats import Counters
from .subscription import Subscription
from .typing import OnError


class _Home(NamedTuple):
    """What the promises of one subscription have in common."""

    promises: dict[bytes, dict[Promise, None]]  # outstanding, by their channels
    deadlines: Deadlines[Promise]
    counters: Counters


class Promise(asyncio.Future[bytes]):
    """One message on one channel. Await it, as often as you like; made by a `PromiseSubscription`.

    It has exactly one outcome: the payload, `PromiseTimeout`, `PromiseInterrupted`, or `asyncio.CancelledError` after
    its own `cancel()`. The message counts from when the promise was made, awaited or not.
    """

    __slots__ = ("_channel", "_home", "_left", "_timeout")

    def __init__(self, home: _Home, channel: bytes, timeout: float | None, left: float | None) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self._home = home
        self._channel = channel
        self._timeout = timeout
        self._left = left  # of the timeout, when it was made
        if left is not None:
            home.deadlines.add(self, left)
        home.promises.setdefault(channel, {})[self] = None
        home.counters.promises += 1

    @property
    def channel(self) -> bytes:
        """The channel whose next message keeps the promise."""
        return self._channel

    def cancel(self, msg: object = None) -> bool:
        """Give it up; return False if it has its outcome already. Cancelling a task that awaits it does the same."""
        if not super().cancel(msg):
            return False
        self._leave()
        return True

    def set_result(self, result: bytes) -> None:
        """Keep it by hand. Raises `asyncio.InvalidStateError` if it has its outcome."""
        super().set_result(result)
        self._leave()

    def set_exception(self, exception: type[BaseException] | BaseException) -> None:
        """Break it by hand. Raises `asyncio.InvalidStateError` if it has its outcome."""
        super().set_exception(exception)
        self._leave()

    def _keep(self, data: bytes) -> None:
        """Keep it; whoever calls this has taken it out of its home."""
        self._finish()
        super().set_result(data)

    def _break(self, error: BaseException) -> None:
        """Break it; whoever calls this has taken it out of its home."""
        self._finish()
        super().set_exception(error)
        self.exception()  # seen: one that nobody awaits is no fault to be logged

    def _expire(self) -> None:
        self._go()
        self._break(PromiseTimeout(self._channel, self._timeout or 0.0))

    def _leave(self) -> None:
        self._finish()
        self._go()

    def _go(self) -> None:
        promises = self._home.promises
        peers = promises.get(self._channel, {})
        peers.pop(self, None)
        if not peers:
            promises.pop(self._channel, None)

    def _finish(self) -> None:
        """Note that it has its outcome, or gets it now."""
        self._home.counters.promises -= 1
        if self._left is not None:
            self._home.deadlines.remove(self, self._left)

    def __repr__(self) -> str:
        return f"<Promise {quote(self._channel)} {'done' if self.done() else 'pending'}>"


class PromiseSubscription(Subscription):
    """Promises on all channels that begin with one prefix. Made by `Multiplexer.new_promise_subscription()`.

    However many promises there are, Redis sees one pattern, so making one costs no round trip. When the connection is
    lost, all outstanding promises fail with `PromiseInterrupted`: their messages could be missed.
    """

    __slots__ = ("_home", "_pattern", "_prefix")

    _kind = Kind.PATTERN

    def __init__(self, hub: Hub, on_error: OnError | None, prefix: bytes) -> None:
        self._prefix = prefix
        self._pattern = escape_glob(prefix) + b"*"
        self._home = _Home({}, Deadlines(Promise._expire), hub.counters)
        hub.admit(self._kind, (self._pattern,))
        consumer = Consumer(self._keep, self._interrupt, on_error=on_error, is_own=True)
        super().__init__(hub, consumer, f"promise subscription {quote(prefix)}")
        hub.add(self._kind, (self._pattern,), self._inbox)

    @property
    def prefix(self) -> bytes:
        """What the channels of its promises begin with."""
        return self._prefix

    @property
    def pending(self) -> int:
        """Promises that have no outcome yet."""
        return sum(map(len, self._home.promises.values()))

    def new_promise(self, suffix: str | bytes | None = None, timeout: float | None = None) -> Promise:
        """Promise the next message on the channel `prefix + suffix`.

        The deadline is `timeout` seconds from now; None: there is none.

        Without a suffix, an unguessable one is made up: publish to `promise.channel`. Any number of promises may wait
        for one channel; all get the message. Raises `InactiveSubscription` if the subscription is not active now, for
        then the message could be missed; `TooManyPromises`; `SubscriptionIsClosed`; `TypeError` or `ValueError` for
        a bad suffix or timeout.
        """
        self._check_open()
        self._hub.enter()
        if self._inbox.active == 0:
            raise InactiveSubscription(self._pattern)
        return self._promise(self._channel(suffix), timeout, check_seconds(timeout, "timeout"))

    async def wait_for_new_promise(self, suffix: str | bytes | None = None, timeout: float | None = None) -> Promise:
        """Wait until the subscription is active, then promise as `new_promise()` does.

        `timeout` seconds are for both together: `PromiseTimeout` is raised if the subscription does not become active
        in time. Raises `SubscriptionRefused` and `SubscriptionIsClosed` as `wait_for_activation()` does, and
        `TooManyPromises`.
        """
        channel = self._channel(suffix)
        left = check_seconds(timeout, "timeout")
        self._hub.enter()
        if not self._is_active():
            loop = asyncio.get_running_loop()
            since = loop.time()
            try:
                await self.wait_for_activation(timeout)
            except TimeoutError as error:
                raise PromiseTimeout(channel, timeout or 0.0) from error
            if timeout is not None:
                left = max(0.0, since + timeout - loop.time())
        return self._promise(channel, timeout, left)

    def clear(self) -> None:
        """Break all outstanding promises: each fails with `PromiseInterrupted`. The subscription stays open."""
        self._check_open()
        self._hub.enter()
        self._break_all("cleared")

    def close(self) -> None:
        """Break all outstanding promises and leave, at once and for good. Closing twice, or offline, is fine."""
        super().close()
        self._break_all("closed")

    def _promise(self, channel: bytes, timeout: float | None, left: float | None) -> Promise:
        limit = self._hub.limits.max_promises
        if limit is not None and self._home.counters.promises >= limit:
            raise TooManyPromises("max_promises", limit)
        return Promise(self._home, channel, timeout, left)

    def _channel(self, suffix: str | bytes | None) -> bytes:
        if suffix is None:
            suffix = secrets.token_urlsafe(16)
        channel = self._prefix + to_bytes(suffix, "a suffix", self._hub.limits.max_name_bytes)
        if not channel:
            raise ValueError("the empty channel matches no prefix; give a suffix")
        return channel

    def _keep(self, channel: bytes, data: bytes) -> None:
        for promise in self._home.promises.pop(channel, ()):
            promise._keep(data)

    def _interrupt(self, error: ConnectionLost) -> None:
        self._break_all("connection lost", error)

    def _break_all(self, reason: str, cause: Exception | None = None) -> None:
        promises = list(self._home.promises.items())
        self._home.promises.clear()
        for channel, peers in promises:
            for promise in peers:
                error = PromiseInterrupted(channel, reason)
                error.__cause__ = cause
                promise._break(error)

    @property
    def _names(self) -> tuple[bytes]:
        return (self._pattern,)

    def __repr__(self) -> str:
        return self._describe(f"{quote(self._prefix)} promises={self.pending}")
