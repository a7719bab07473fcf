"""Networked promises for threads."""

from __future__ import annotations

__all__ = ["Promise", "PromiseSubscription"]

import asyncio

from ..arguments import check_seconds
from ..errors import MultiplexerIsClosed, SubscriptionIsClosed
from ..promise import Promise as AsyncPromise
from ..promise import PromiseSubscription as AsyncPromiseSubscription
from .described import described_by
from .hand_over import Border
from .portal import Portal
from .subscription import Subscription


@described_by(AsyncPromise)
class Promise:
    """The next message on one channel. Made by a `PromiseSubscription`; any thread may wait for it, several times.

    A promise has exactly one outcome: the payload of the message, `PromiseTimeout`, the loss of the connection, or the
    end of its subscription. The first message after the promise was made counts, even if no thread waits for it yet.
    """

    __slots__ = ("__weakref__", "_portal", "_promise")

    def __init__(self, promise: AsyncPromise, portal: Portal) -> None:
        self._promise = promise
        self._portal = portal

    @property
    def channel(self) -> bytes:
        return self._promise.channel

    def get(self, timeout: float | None = None) -> bytes:
        """Wait for the message, and return its payload. Ctrl-C in the main thread ends the wait, not the promise.

        Args:
            timeout: seconds to wait in this call. None: until the promise has an outcome.

        Returns:
            The payload of the message.

        Raises:
            TimeoutError: the promise has no outcome within `timeout`, and keeps on waiting.
            PromiseTimeout: the deadline of the promise has passed.
            ConnectionLost: the connection was lost, so the message may have been missed.
            SubscriptionIsClosed: the subscription was cleared, or it or its multiplexer was closed; or the promise was
                cancelled.
            RuntimeError: an event loop runs in this thread.
        """
        check_seconds(timeout, "timeout")
        try:
            return self._portal.wait(lambda: self._get(timeout))
        except MultiplexerIsClosed:
            raise SubscriptionIsClosed from None

    async def _get(self, timeout: float | None) -> bytes:
        await asyncio.wait([self._promise], timeout=timeout)  # cancelled, it does not cancel the promise
        if not self._promise.done():
            raise TimeoutError(f"no outcome within {timeout} s: {self._promise!r}")
        if self._promise.cancelled():
            raise SubscriptionIsClosed("this promise was cancelled")
        return await self._promise.get()

    def done(self) -> bool:
        """Tell whether the promise has an outcome.

        Returns:
            True if it has.
        """
        return self._portal.call(self._promise.done)

    def cancel(self, msg: object = None) -> bool:
        """Give up the promise. Threads that wait for it get `SubscriptionIsClosed`.

        Args:
            msg: not used; it is there for the sake of `asyncio.Future.cancel()`.

        Returns:
            False if the promise had an outcome already, which does not change; otherwise True.
        """
        return self._portal.call(lambda: self._promise.cancel(msg))

    def set_result(self, result: bytes) -> None:
        """Resolve the promise without a message.

        Args:
            result: what `get()` returns.

        Raises:
            asyncio.InvalidStateError: the promise has an outcome already.
        """
        self._portal.call(lambda: self._promise.set_result(result))

    def set_exception(self, exception: type[BaseException] | BaseException) -> None:
        """Fail the promise.

        Args:
            exception: what `get()` raises.

        Raises:
            asyncio.InvalidStateError: the promise has an outcome already.
        """
        self._portal.call(lambda: self._promise.set_exception(exception))

    def __repr__(self) -> str:
        return repr(self._promise)


@described_by(AsyncPromiseSubscription)
class PromiseSubscription(Subscription[AsyncPromiseSubscription]):
    """Promises on all channels that begin with one prefix. Made by `Multiplexer.new_promise_subscription()`.

    All promises of one subscription share one pattern on the server, so making a promise costs no round trip. When the
    connection is lost, all outstanding promises fail, because their messages may be missed.
    """

    __slots__ = ("_prefix",)

    def __init__(self, subscription: AsyncPromiseSubscription, border: Border) -> None:
        super().__init__(subscription, border)
        self._prefix = subscription.prefix

    @property
    def prefix(self) -> bytes:
        return self._prefix

    @property
    def pending(self) -> int:
        return self._border.portal.call(lambda: self._subscription.pending)

    def new_promise(self, suffix: str | bytes | None = None, timeout: float | None = None) -> Promise:
        """Make a promise for the next message on the channel `prefix + suffix`.

        Returns at once. Any number of promises may wait for one channel; the message resolves all of them.

        Args:
            suffix: the rest of the channel; `str` is encoded as UTF-8. None: an unguessable suffix is generated;
                `promise.channel` is the channel to publish to.
            timeout: seconds from now to the deadline of the promise. None: it has no deadline.

        Returns:
            The promise. `Promise.get()` waits for the payload.

        Raises:
            InactiveSubscription: the subscription is not active now, for example offline: it could miss the message.
            TooManyPromises: `max_promises` is reached.
            SubscriptionIsClosed: the subscription or its multiplexer is closed.
            TypeError, ValueError: the suffix or the timeout is invalid.

        Example:
            ::

                promise = promises.new_promise("17", timeout=10)
                mpx.publish("order-17", "paid")  # usually, another process does this
                payload = promise.get()  # or PromiseTimeout after 10 seconds
                print(payload)  # b'paid'
        """
        portal = self._border.portal
        return Promise(portal.call(lambda: self._subscription.new_promise(suffix, timeout)), portal)

    def wait_for_new_promise(self, suffix: str | bytes | None = None, timeout: float | None = None) -> Promise:
        portal = self._border.portal
        try:
            return Promise(portal.wait(lambda: self._subscription.wait_for_new_promise(suffix, timeout)), portal)
        except MultiplexerIsClosed:
            raise SubscriptionIsClosed from None

    def clear(self) -> None:
        """Fail all outstanding promises: `Promise.get()` raises `SubscriptionIsClosed`. The subscription stays open.

        Works offline. Thousands of promises fail soon, some in each millisecond. None gets a message any more.

        Raises:
            SubscriptionIsClosed: the subscription or its multiplexer is closed.
        """
        self._border.portal.release(self._subscription.clear)

    def close(self) -> None:
        super().close()
