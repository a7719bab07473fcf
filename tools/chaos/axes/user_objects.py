"""Objects of users that raise, lie, or close things while the library calls them."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable, Generator
from contextlib import suppress
from random import Random
from typing import Any, NoReturn

from redis.backoff import AbstractBackoff

from redismpx import ConnectionLost, Multiplexer, SubscriptionIsClosed
from redismpx._io.session import reconnect

from ..scenes import Scene, Witness, admin_of, arrived, require

CHANNELS = (b"a", b"b")
ERRORS = (ValueError, asyncio.CancelledError, GeneratorExit, StopIteration, MemoryError, TimeoutError)


class OddError(BaseException):
    """An error that no `except Exception` catches, and that cannot be shown."""

    def __str__(self) -> str:
        raise ValueError

    __repr__ = __str__


class Nothing: ...


class Unaskable:
    """An object that raises whatever it is asked, also for its class."""

    def __getattribute__(self, name: str) -> NoReturn:
        raise ReferenceError(name)


class OddAwaitable:
    """An awaitable that is none: `__await__` raises, or returns what no loop understands."""

    def __init__(self, rng: Random) -> None:
        self._kind = rng.randrange(4)

    def __await__(self) -> Generator[Any, Any, object]:
        if self._kind == 0:
            raise ValueError("in __await__")
        if self._kind == 1:
            return 5  # type: ignore[return-value]
        return self._steps()

    def _steps(self) -> Generator[Any, Any, object]:
        if self._kind == 2:
            yield 5
        else:
            yield None
            raise asyncio.CancelledError
        return None


class LyingBytes(bytes):
    """Bytes that claim to be other bytes."""

    def __len__(self) -> int:
        return 1

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return True


class LyingText(str):
    """Text that claims to be other text."""

    __slots__ = ()

    def encode(self, encoding: str = "", errors: str = "") -> bytes:
        return b"a lie"

    def __len__(self) -> int:
        return 1

    def __str__(self) -> str:
        raise ValueError


class WithBytes:
    """A payload that does something when it is converted."""

    def __init__(self, data: bytes, act: Callable[[], object]) -> None:
        self._data = data
        self._act = act

    def __bytes__(self) -> bytes:
        self._act()
        return self._data


class OddBackoff(AbstractBackoff):
    """A backoff that raises, and that closes a subscription."""

    def __init__(self, scene: UserObjects) -> None:
        self._scene = scene

    def compute(self, failures: int) -> float:
        self._scene.maybe_close()
        if self._scene.rng.random() < 0.3:
            raise self._scene.rng.choice((ValueError, asyncio.CancelledError))
        return self._scene.rng.choice((-1.0, 0.0, 0.01))

    def reset(self) -> None:
        raise ValueError


class OddHandler(logging.Handler):
    """A log handler that raises, and that closes a subscription."""

    def __init__(self, scene: UserObjects) -> None:
        super().__init__()
        self._scene = scene

    def handle(self, record: logging.LogRecord) -> bool:
        if self._scene.rng.random() < 0.2:
            self._scene.maybe_close()
            raise ValueError("in a log handler")
        return True


class Odd:
    """A subscription whose callbacks and `decode` return, raise and do anything."""

    def __init__(self, scene: UserObjects, mpx: Multiplexer) -> None:
        self._scene = scene
        self._rng = scene.rng
        self.delivered = self.late = 0
        self.is_read = scene.rng.random() < 0.2
        self.decodes = scene.rng.random() < 0.5
        self.sub: Any = mpx.new_channel_subscription(
            None if self.is_read else self.on_message,
            self.on_disconnect,
            self.on_activation,
            decode=self.decode if self.decodes else None,
            on_error=self.on_error,
        )
        self.sub.add(*(scene.rng.choice((LyingBytes, bytes))(name) for name in CHANNELS))

    def on_message(self, channel: bytes, data: object) -> object:
        self.delivered += 1
        return self._called()

    def on_disconnect(self, error: ConnectionLost) -> object:
        return self._called()

    def on_activation(self, name: bytes) -> object:
        return self._called()

    def on_error(self, error: Exception) -> object:
        return self._called()

    def decode(self, data: bytes) -> object:
        if self._rng.random() < 0.01 and self.sub in self._scene.closable:
            self.sub.close()
        result = self._something()
        if asyncio.iscoroutine(result):  # is not awaited, as it is no result of a callback
            result.close()
        return result

    def _called(self) -> object:
        self.late += self.sub.closed
        return self._something()

    def _something(self) -> object:
        self._scene.maybe_close()
        rng = self._rng
        kind = rng.randrange(8)
        if kind == 0:
            raise rng.choice((*ERRORS, OddError))
        if kind == 1:
            gone = Nothing()
            return weakref.proxy(gone)
        if kind == 2:
            return Unaskable()
        if kind == 3:
            return OddAwaitable(rng)
        if kind == 4:
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            return future
        return asyncio.sleep(0) if kind == 5 else None

    async def read_all(self) -> None:
        """Read what is pending, if this is read."""
        while self.is_read and self.sub.pending:
            try:
                await self.sub.get(0.1)
                self.delivered += 1
            except SubscriptionIsClosed:
                return
            except TimeoutError:  # the rest could not be decoded
                require(not self.sub.pending, f"{self.sub!r} cannot be read")

    @property
    def is_quiet(self) -> bool:
        return bool(self.sub.closed or self.sub._inbox.idle or (self.is_read and not self.sub.pending))


class UserObjects(Scene):
    """Objects of users: odd results and exceptions of callbacks and `decode`, payloads with `__bytes__`, subclasses of
    bytes and str, and backoff objects and log handlers that raise or close. Other subscriptions lose nothing."""

    def set_up(self) -> None:
        self.server = self.start_server()
        self.admin = admin_of(self.server)
        self.closable: list[Any] = []
        reconnect.FALLBACK_DELAY = 0.02

    def maybe_close(self) -> None:
        """Close a subscription now and then, in the middle of whatever happens."""
        if self.closable and self.rng.random() < 0.002:
            self.closable.pop(self.rng.randrange(len(self.closable))).close()
            self.seen["closed"] += 1

    async def play(self) -> None:
        logger, handler, raises = logging.getLogger("redismpx"), OddHandler(self), logging.raiseExceptions
        logger.addHandler(handler)
        logging.raiseExceptions = False
        try:
            await self.play_with_odd_objects()
        finally:
            logging.raiseExceptions = raises
            logger.removeHandler(handler)
            self.closable.clear()

    async def play_with_odd_objects(self) -> None:
        rng = self.rng
        kills = rng.choice((0, 0, 1, 3))
        numbers = dict.fromkeys(CHANNELS, -1)
        async with self.multiplexer(self.server.url, backoff=OddBackoff(self)) as mpx:
            bystanders = [self.witness() for _ in range(4)]
            odd: list[Odd] = []
            for number in range(rng.choice((4, 20, 300))):
                if number < len(bystanders):
                    witness = bystanders[number]
                    witness.sub = mpx.new_channel_subscription(*witness.callbacks, on_error=witness.on_error)
                    witness.sub.add(*CHANNELS)
                odd.append(Odd(self, mpx))
            for witness in bystanders:
                await witness.sub.wait_for_activation(timeout=10)
            self.closable = [each.sub for each in odd if rng.random() < 0.5]
            for part in range(kills + 1):
                before = {id(each): (each.delivered, each.sub.dropped) for each in odd}
                first = dict(numbers)
                for _ in range(rng.randrange(1, 20)):
                    await self.publish(mpx, numbers)
                changed = [channel for channel in CHANNELS if numbers[channel] > first[channel]]
                await self.up_to_date(bystanders, {channel: numbers[channel] for channel in changed})
                await self.check_odd(odd, before, sum(numbers.values()) - sum(first.values()))
                require(
                    mpx.stats().connections == part + 1 and all(w.disconnects == part for w in bystanders),
                    f"{part} kills, but {[w.disconnects for w in bystanders]} disconnects and {mpx.stats()}",
                )
                if part < kills:
                    self.seen["kills"] += 1
                    self.admin.client_kill_filter(_type="pubsub")
                    for witness in bystanders:
                        await arrived(lambda w=witness, n=part + 1: w.disconnects == n, lambda: "a disconnect")
                        await witness.sub.wait_for_activation(timeout=10)

    @staticmethod
    async def up_to_date(bystanders: list[Witness], numbers: dict[bytes, int]) -> None:
        """Wait until each of them has got the newest message of each channel."""
        for witness in bystanders:
            await arrived(
                lambda w=witness: numbers.items() <= w.last.items(),
                lambda w=witness: f"{numbers}; {w.last}, {w.events[-3:]}",
            )

    async def check_odd(self, odd: list[Odd], before: dict[int, tuple[int, int]], published: int) -> None:
        """Check that each odd subscription has got all messages, or has counted those that it could not decode."""
        for each in odd:
            await each.read_all()
            await arrived(lambda each=each: each.is_quiet, lambda each=each: f"{each.sub!r} does not end")
            delivered, dropped = before[id(each)]
            require(not each.late, f"{each.sub!r} was called after its end")
            if not each.sub.closed:
                got = each.delivered - delivered + each.sub.dropped - dropped + each.sub.pending
                require(got == published, f"{each.sub!r}: {got} of {published} messages are delivered or counted")

    async def publish(self, mpx: Multiplexer, numbers: dict[bytes, int]) -> None:
        """Publish a number in some form."""
        rng = self.rng
        channel = rng.choice(CHANNELS)
        number = b"%d" % (numbers[channel] + 1)
        kind = rng.randrange(7)
        if kind == 0:
            with suppress(ValueError):
                await mpx.publish(channel, WithBytes(number, self.fail))
                require(False, "publish() with a payload that raises has succeeded")
            return
        name = rng.choice((channel, LyingBytes(channel), LyingText(channel.decode())))
        data: Any = (
            number, LyingBytes(number), LyingText(number.decode()), bytearray(number), memoryview(number),
            WithBytes(number, self.maybe_close), WithBytes(LyingBytes(number), lambda: None),
        )[kind]  # fmt: skip
        numbers[channel] += 1
        await mpx.publish(name, data)

    @staticmethod
    def fail() -> None:
        raise ValueError("in __bytes__")
