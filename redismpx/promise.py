"""Networked promises: waiting, with a deadline, for one message on one channel."""

from __future__ import annotations

__all__ = ["Promise", "PromiseSubscription"]

import asyncio
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress

from ._core.wire import Kind, escape_glob
from ._io.delivery.consumer import Consumer
from ._io.hub import Hub
from ._io.runtime.timers import Deadlines
from .arguments import check_seconds, to_bytes
from .errors import (
    ConnectionLost,
    InactiveSubscription,
    PromiseInterrupted,
    PromiseTimeout,
    SubscriptionIsClosed,
    TooManyPromises,
    quote,
)
from .stats import Counters
from .subscription import Subscription
from .typing import OnError


class _Outstanding:
    """The promises of one subscription that have no outcome yet: all of them, or those that are failing together."""

    __slots__ = ("check_loop", "count", "counters", "deadlines", "failure", "promises")

    def __init__(self, counters: Counters, check_loop: Callable[[], object]) -> None:
        self.promises: dict[bytes, dict[Promise, None]] = {}  # by channel
        self.deadlines: Deadlines[Promise] = Deadlines(Promise._expire)
        self.count: int = 0
        self.counters: Counters = counters
        self.check_loop: Callable[[], object] = check_loop
        """Raises `RuntimeError` outside the loop of the multiplexer."""
        self.failure: tuple[str, Exception | None] | None = None
        """The reason and the cause, if they are failing. Then none gets a message or a timeout any more."""

    def fail(self, reason: str, cause: Exception | None) -> Iterator[Callable[[], None]]:
        """Begin to fail all; return, for each of them, a function that does it."""
        self.failure = (reason, cause)
        return (promise._interrupt for peers in list(self.promises.values()) for promise in list(peers))


class Promise(asyncio.Future[bytes]):
    """The next message on one channel. Made by a `PromiseSubscription`; may be awaited any number of times.

    A promise has exactly one outcome: the payload of the message, `PromiseTimeout`, `PromiseInterrupted`, or
    `asyncio.CancelledError` after its own `cancel()`. The first message after the promise was made counts, even if
    nobody awaits the promise yet.
    """

    __slots__ = ("_channel", "_outstanding", "_seconds", "_timeout")

    def __init__(self, outstanding: _Outstanding, channel: bytes, timeout: float | None, seconds: float | None) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self._outstanding = outstanding
        self._channel = channel
        self._timeout = timeout
        self._seconds = seconds  # from now to the deadline: less than the timeout if waiting for activation took time
        if seconds is not None:
            outstanding.deadlines.add(self, seconds)
        outstanding.promises.setdefault(channel, {})[self] = None
        outstanding.count += 1
        outstanding.counters.promises += 1

    @property
    def channel(self) -> bytes:
        """The channel whose next message resolves the promise."""
        return self._channel

    async def get(self) -> bytes:
        """Wait for the message, as `await promise` does, with ordinary exceptions only.

        `PromiseInterrupted` is an `asyncio.CancelledError`, which asyncio takes for the end of a task. Here, its place
        is taken by an exception that a `TaskGroup` reports. A cancelled `get()` cancels the promise.

        Returns:
            The payload of the message.

        Raises:
            PromiseTimeout: the deadline has passed.
            ConnectionLost: the connection was lost, so the message may have been missed.
            SubscriptionIsClosed: the subscription was cleared, or it or its multiplexer was closed.
        """
        self._outstanding.check_loop()
        try:
            return await self
        except PromiseInterrupted as error:
            cause = error.__cause__
            if isinstance(cause, ConnectionLost):
                raise ConnectionLost(cause.reason, cause.names) from cause.__cause__
            raise SubscriptionIsClosed(str(error)) from None

    def cancel(self, msg: object = None) -> bool:
        """Give up the promise. Cancelling a task that awaits the promise does the same.

        Args:
            msg: a message for the `asyncio.CancelledError`.

        Returns:
            False if the promise had an outcome already, which does not change; otherwise True.

        Raises:
            RuntimeError: it is called in another loop or thread than that of the multiplexer.
        """
        if self.done():
            return False
        self._outstanding.check_loop()
        if is_cancelled := super().cancel(msg):  # otherwise a finalizer has just cancelled it
            self._discard()
        return is_cancelled

    def set_result(self, result: bytes) -> None:
        """Resolve the promise without a message.

        Args:
            result: what awaiting the promise returns.

        Raises:
            asyncio.InvalidStateError: the promise has an outcome already.
        """
        self._outstanding.check_loop()
        super().set_result(result)
        self._discard()

    def set_exception(self, exception: type[BaseException] | BaseException) -> None:
        """Fail the promise.

        Args:
            exception: what awaiting the promise raises.

        Raises:
            asyncio.InvalidStateError: the promise has an outcome already.
        """
        self._outstanding.check_loop()
        super().set_exception(exception)
        self._discard()

    def _resolve(self, data: bytes) -> None:
        """Set the payload as the outcome, if there is none. The caller has removed the promise from its channel."""
        try:
            super().set_result(data)
        except asyncio.InvalidStateError:  # a finalizer has cancelled it since then
            return
        self._stop_counting()

    def _fail(self, error: BaseException) -> None:
        """Set an error as the outcome, if there is none. The caller has removed the promise from its channel."""
        with suppress(asyncio.InvalidStateError):  # a finalizer may have cancelled it since then
            super().set_exception(error)
            self.exception()  # marks it as retrieved: asyncio logs nothing if nobody awaits this promise
            self._stop_counting()

    def _expire(self) -> None:
        if self._outstanding.failure is None:
            self._remove_from_channel()
            self._fail(PromiseTimeout(self._channel, self._timeout or 0.0))
        else:
            self._interrupt()

    def _interrupt(self) -> None:
        """Fail as all outstanding promises do, unless the promise has an outcome since that began."""
        assert self._outstanding.failure is not None
        reason, cause = self._outstanding.failure
        error = PromiseInterrupted(self._channel, reason)
        error.__cause__ = cause
        self._fail(error)

    def _discard(self) -> None:
        """Remove the promise from the outstanding ones."""
        self._stop_counting()
        self._remove_from_channel()

    def _remove_from_channel(self) -> None:
        promises = self._outstanding.promises
        peers = promises.get(self._channel, {})
        peers.pop(self, None)
        if not peers:
            promises.pop(self._channel, None)

    def _stop_counting(self) -> None:
        self._outstanding.count -= 1
        self._outstanding.counters.promises -= 1
        if self._seconds is not None:
            self._outstanding.deadlines.remove(self, self._seconds)

    def __repr__(self) -> str:
        return f"<Promise {quote(self._channel)} {'done' if self.done() else 'pending'}>"


class PromiseSubscription(Subscription):
    """Promises on all channels that begin with one prefix. Made by `Multiplexer.new_promise_subscription()`.

    All promises of one subscription share one pattern on the server, so making a promise costs no round trip. When the
    connection is lost, all outstanding promises fail with `PromiseInterrupted`, because their messages may be missed.
    """

    __slots__ = ("_failing", "_outstanding", "_pattern", "_prefix")

    _kind = Kind.PATTERN

    def __init__(self, hub: Hub, on_error: OnError | None, prefix: bytes) -> None:
        self._prefix = prefix
        self._pattern = escape_glob(prefix) + b"*"
        self._outstanding = _Outstanding(hub.counters, hub.check)
        self._failing: list[_Outstanding] = []  # each since one loss of the connection, or one clear()
        hub.admit(self._kind, (self._pattern,))
        consumer = Consumer(self._resolve, self._disconnected, on_error=on_error, is_own=True)
        super().__init__(hub, consumer, f"promise subscription {quote(prefix)}")
        hub.add(self._kind, (self._pattern,), self._inbox)

    @property
    def prefix(self) -> bytes:
        """The prefix of the channels of all promises of this subscription."""
        return self._prefix

    @property
    def pending(self) -> int:
        """The number of promises that have no outcome yet."""
        return self._outstanding.count + sum([failing.count for failing in self._failing])

    def new_promise(self, suffix: str | bytes | None = None, timeout: float | None = None) -> Promise:
        """Make a promise for the next message on the channel `prefix + suffix`.

        Returns at once. Any number of promises may wait for one channel; the message resolves all of them.

        Args:
            suffix: the rest of the channel; `str` is encoded as UTF-8. None: an unguessable suffix is generated;
                `promise.channel` is the channel to publish to.
            timeout: seconds from now to the deadline of the promise. None: it has no deadline.

        Returns:
            The promise. Await it for the payload.

        Raises:
            InactiveSubscription: the subscription is not active now, for example offline: it could miss the message.
            TooManyPromises: `max_promises` is reached.
            SubscriptionIsClosed: the subscription or its multiplexer is closed.
            TypeError, ValueError: the suffix or the timeout is invalid.

        Example:
            ::

                promise = promises.new_promise("17", timeout=10)
                await mpx.publish("order-17", "paid")  # usually, another process does this
                print(await promise)  # b'paid'
        """
        self._check_open()
        self._hub.enter()
        if self._inbox.active == 0:
            raise InactiveSubscription(self._pattern)
        return self._make_promise(self._channel_of(suffix), timeout, check_seconds(timeout, "timeout"))

    async def wait_for_new_promise(self, suffix: str | bytes | None = None, timeout: float | None = None) -> Promise:
        """Wait until the subscription is active, then make a promise as `new_promise()` does.

        Offline, it waits for the connection. Cancelling it leaves nothing behind.

        Args:
            suffix: as for `new_promise()`.
            timeout: seconds from now to the deadline of the promise; the wait for activation is part of them. None:
                no deadline.

        Returns:
            The promise.

        Raises:
            PromiseTimeout: the subscription did not become active within `timeout`.
            SubscriptionRefused: the server rejects the pattern.
            SubscriptionIsClosed: the subscription or its multiplexer is closed, or was closed during the wait.
            TooManyPromises: `max_promises` is reached.
            TypeError, ValueError: the suffix or the timeout is invalid.
        """
        channel = self._channel_of(suffix)
        seconds = check_seconds(timeout, "timeout")
        self._hub.enter()
        if not self._is_active():
            since = asyncio.get_running_loop().time()
            try:
                await self.wait_for_activation(timeout=timeout)
            except TimeoutError as error:
                raise PromiseTimeout(channel, timeout or 0.0, why=self._hub.progress(self._kind)) from error
            if timeout is not None:
                seconds = max(0.0, since + timeout - asyncio.get_running_loop().time())
        return self._make_promise(channel, timeout, seconds)

    def clear(self) -> None:
        """Fail all outstanding promises with `PromiseInterrupted`. The subscription stays open. Works offline.

        Thousands of promises fail in the next iterations of the loop, some in each. None gets a message any more.

        Raises:
            SubscriptionIsClosed: the subscription or its multiplexer is closed.
        """
        self._check_open()
        self._hub.enter()
        self._fail_all("cleared")

    def close(self) -> None:
        """Unsubscribe, at once and for good, and fail all outstanding promises as `clear()` does.

        Works offline. Without effect when the subscription is closed already.
        """
        super().close()

    def _end(self, reason: str | None) -> None:
        super()._end(reason)
        self._fail_all("closed")

    def _make_promise(self, channel: bytes, timeout: float | None, seconds: float | None) -> Promise:
        limit, counters = self._hub.limits.max_promises, self._outstanding.counters
        if limit is not None and counters.promises >= limit:
            self._hub.slices.finish()  # many promises may be about to fail
            if counters.promises >= limit:
                raise TooManyPromises("max_promises", limit)
        return Promise(self._outstanding, channel, timeout, seconds)

    def _channel_of(self, suffix: str | bytes | None) -> bytes:
        suffix = secrets.token_urlsafe(16) if suffix is None else suffix
        channel = self._prefix + to_bytes(suffix, "a suffix", self._hub.limits.max_name_bytes)
        if not channel:
            raise ValueError("no pattern matches the empty channel, so no promise can wait for it; give a suffix")
        return channel

    def _resolve(self, channel: bytes, data: bytes) -> None:
        for promise in self._outstanding.promises.pop(channel, ()):
            promise._resolve(data)

    def _disconnected(self, error: ConnectionLost) -> None:
        self._fail_all("connection lost", error)

    def _fail_all(self, reason: str, cause: Exception | None = None) -> None:
        failing, self._outstanding = self._outstanding, _Outstanding(self._outstanding.counters, self._hub.check)
        self._failing = [each for each in (*self._failing, failing) if each.count]
        self._hub.slices.begin(failing.fail(reason, cause))

    @property
    def _names(self) -> tuple[bytes]:
        return (self._pattern,)

    def __repr__(self) -> str:
        return self._describe(f"{quote(self._prefix)} promises={self.pending}")
