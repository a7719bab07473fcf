"""The consumers of a run: subscriptions of all kinds, each with its checker, and makers of promises."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from redismpx import PromiseInterrupted, PromiseTimeout, SlowConsumer, SubscriptionRefused
from redismpx.testing import Checker

from .load import GROUPS, decode_number, encode_payload, pattern_of, retry_until_reached

if TYPE_CHECKING:
    from .run import Run

MAX_CALL_TIME = 1.0  # seconds; a call that does not wait for anything takes microseconds
GIVE_UP_AFTER = 20.0  # seconds after which an expected event counts as missing


class Consumer:
    """One subscription, its kind of consumer, and its checker."""

    def __init__(self, run: Run, kind: str, pattern: bytes | None) -> None:
        self._run = run
        self.kind = kind
        self.pattern = pattern
        self.checker = Checker(
            (lambda channel: channel) if pattern is None else pattern_of,
            lambda name: {channel: run.load.numbers[channel] + 1 for channel in GROUPS.get(name, (name,))},
            may_skip=kind == "slow",
        )
        record, (_, on_disconnect, on_activation) = self.record, self.checker.callbacks

        def raise_error(channel: bytes, message: bytes) -> None:
            record(channel, message)
            raise ValueError("a callback that raises on purpose")

        # These functions record the message when they are called and return an awaitable. On Python 3.11 the body of an
        # `async def` would start in the next tick of the loop, when its channel may already be removed.
        def record_and_wait(channel: bytes, message: bytes) -> Awaitable[None]:
            record(channel, message)
            return asyncio.sleep(run.rng.uniform(0, 0.003) if run.rng.random() < 0.05 else 0)

        def hang(channel: bytes, message: bytes) -> Awaitable[object]:
            record(channel, message)
            return asyncio.Event().wait()

        def be_slow(channel: bytes, message: bytes) -> Awaitable[None]:
            record(channel, message)
            return asyncio.sleep(0.02)

        def on_disconnect_slowly(error: Any) -> Awaitable[None]:
            on_disconnect(error)
            return asyncio.sleep(run.rng.uniform(0, 0.01))

        def on_activation_slowly(name: Any) -> Awaitable[None]:
            on_activation(name)
            return asyncio.sleep(0)

        callbacks: dict[str, tuple[Any, Any, Any]] = {
            "sync": (record, on_disconnect, on_activation),
            "async": (record_and_wait, on_disconnect_slowly, on_activation_slowly),
            "read": (None, on_disconnect, on_activation),
            "raising": (raise_error, on_disconnect, on_activation),
            "hanging": (hang, on_disconnect, on_activation),
            "slow": (be_slow, on_disconnect_slowly, on_activation_slowly),
        }
        options: dict[str, Any] = {"on_error": self.checker.on_error, "max_pending": 5 if kind == "slow" else None}
        self.sub: Any = (
            run.mpx.new_channel_subscription(*callbacks[kind], **options)
            if pattern is None
            else run.mpx.new_pattern_subscription(pattern, *callbacks[kind], **options)
        )
        self._reading = asyncio.create_task(self._read()) if kind == "read" else None

    def record(self, channel: bytes, message: bytes) -> None:
        self._run.delivered += 1
        number = decode_number(channel, message)
        if number is not None:
            self.checker.on_message(channel, number)
        elif self._run.corrupted:
            self.checker.on_spoilt(channel)
        else:
            self.checker.faults.append(f"payload {message!r} on {channel!r} was not published")
        if self._run.rng.random() < 0.03:
            self._run.change_something(channel)  # inside the callback

    async def _read(self) -> None:
        async for message in self.sub:
            self.record(message.channel, message.data)

    def add(self, *channels: bytes) -> None:
        self.checker.added(*channels)
        with self._without_blocking("add"):
            self.sub.add(*channels)

    def remove(self, *channels: bytes) -> None:
        with self._without_blocking("remove"):
            self.sub.remove(*channels)
        self.checker.removed(*channels)

    async def close(self) -> None:
        self.end()
        if self._reading is not None:
            await asyncio.wait([self._reading], timeout=GIVE_UP_AFTER)
            if not self._reading.done():
                self.checker.faults.append("the reader does not end after close()")

    def end(self) -> None:
        with self._without_blocking("close"):
            self.sub.close()
        self.checker.closed = True

    @contextmanager
    def _without_blocking(self, call: str) -> Iterator[None]:
        """Report a call that takes so long that it must have waited for the network."""
        began = time.monotonic()
        yield
        if (taken := time.monotonic() - began) > MAX_CALL_TIME:
            self._run.add_violation(f"{call}() took {taken:.1f} s: {self.sub!r}")

    @property
    def channels(self) -> list[bytes]:
        """The channels whose messages the consumer gets."""
        return GROUPS[self.pattern] if self.pattern is not None else list(self.sub.channels)

    @property
    def is_active(self) -> bool:
        return bool(self.sub._inbox.active == len(self.sub._names))

    @property
    def missing(self) -> dict[bytes, tuple[int | None, int]]:
        """The channels whose last published message did not arrive: the last received and the last published number."""
        last, numbers = self.checker.last, self._run.load.numbers
        return {n: (last.get(n), numbers[n]) for n in self.channels if last.get(n) != numbers[n]}

    def violations(self) -> list[str]:
        label = f"{self.kind} {self.pattern or 'channels'}"
        last = self.checker.events[-6:]
        found = [f"{label}: {fault}; its last events: {last}" for fault in self.checker.faults]
        expected = {"raising": ValueError, "slow": SlowConsumer}.get(self.kind, SubscriptionRefused)
        errors = [e for e in self.checker.errors if not isinstance(e, (expected, SubscriptionRefused))]
        found += [f"{label}: {error!r}" for error in errors]
        if self.checker.skipped > self.sub.dropped:
            found.append(f"{label}: {self.checker.skipped} skipped, but {self.sub.dropped} dropped")
        for seen in (self.checker.events, self.checker.faults, self.checker.errors):
            seen.clear()
        return found


class PromiseMaker:
    """Makes promises on one prefix, one after another. Each must be kept, unless the connection is lost."""

    def __init__(self, run: Run, prefix: str) -> None:
        self._run = run
        self.sub = run.mpx.new_promise_subscription(prefix)
        self.name = f"{prefix}*".encode()
        self._task = asyncio.create_task(self._make_promises())

    async def _make_promises(self) -> None:
        outcomes = self._run.promises
        while not self.sub.closed:
            try:
                promise = await self.sub.wait_for_new_promise(None, GIVE_UP_AFTER)
                payload = encode_payload(promise.channel, 1)
                await retry_until_reached(lambda: self._run.publisher.publish(promise.channel, payload))  # noqa: B023
                if await promise != payload and not self._run.corrupted:
                    self._run.add_violation("a promise got a payload that was not published")
                outcomes["kept"] += 1
            except PromiseInterrupted as error:
                outcomes[f"interrupted: {error.reason}"] += 1
            except SubscriptionRefused:
                await asyncio.sleep(0.1)
            except PromiseTimeout as error:
                self._run.add_violation(f"{error!r}: {self.sub!r}")
                return
            await asyncio.sleep(0.005)

    @property
    def is_active(self) -> bool:
        return self.sub._inbox.active == 1

    async def close(self) -> None:
        self.sub.close()
        self._task.cancel()
        await asyncio.wait([self._task], timeout=GIVE_UP_AFTER)
