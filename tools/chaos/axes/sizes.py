"""Bytes instead of counts: the bounds in bytes, and names so long that few of them fill a buffer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from redismpx import Multiplexer, Overflow, SlowConsumer
from redismpx._core.budget import SMALL

from ..scenes import Scene, Witness, admin_of, arrived, require

DIGITS = 20  # at the end of each payload: its number
KINDS = ("unread", "hanging", "plain", "async")
OUTPUT_LIMIT = "pubsub 4mb 4mb 1"  # of the server, for each subscriber
PORTION = 1_000_000  # bytes of messages after which the publisher waits until they are received


class Sized(Witness):
    """A subscription to a name of its own, and the sizes of the payloads on it."""

    def __init__(self, mpx: Multiplexer, kind: str, name: bytes, overflow: Overflow) -> None:
        super().__init__(may_skip=True)
        self.kind = kind
        self.name = name
        self.sizes: list[int] = []
        self.go_on = asyncio.Event()
        on_message: Any = {"unread": None, "hanging": self.wait, "plain": self.on_message, "async": self.wait_a_turn}
        _, *others = self.callbacks
        self.sub = mpx.new_channel_subscription(on_message[kind], *others, on_error=self.on_error, overflow=overflow)
        self.sub.add(name)

    def on_message(self, channel: bytes, message: bytes) -> None:
        number = message[-DIGITS:].lstrip(b"0") or b"0"
        if len(message) != self.sizes[int(number)]:
            self.faults.append(f"{len(message)} bytes instead of {self.sizes[int(number)]}")
        super().on_message(channel, number)

    def wait(self, channel: bytes, message: bytes) -> Awaitable[object]:
        self.on_message(channel, message)
        return self.go_on.wait()

    def wait_a_turn(self, channel: bytes, message: bytes) -> Awaitable[object]:
        self.on_message(channel, message)
        return asyncio.sleep(0)

    def next_payload(self, size: int) -> bytes:
        self.sizes.append(size)
        return b"%0*d" % (size, len(self.sizes) - 1)


class Sizes(Scene):
    """Bytes instead of counts: max_pending_bytes, max_total_pending_bytes and long names. No bound is exceeded, each
    message is counted, SlowConsumer names the bound, and a prompt consumer gets everything while others are stuck."""

    def set_up(self) -> None:
        self.server = self.start_server()
        self.admin = admin_of(self.server)
        self.admin.config_set("client-output-buffer-limit", OUTPUT_LIMIT)

    async def play(self) -> None:
        rng = self.rng
        each = rng.randrange(5_000, 100_000)
        total = each * rng.randrange(2, 4)
        name_size = rng.choice((5, 100, 5_000, 60_000))
        self.largest = name_size + rng.choice((100, 1_000, 30_000, 2 * each))
        self.seen[f"names of {name_size} bytes"] += 1
        async with self.multiplexer(
            self.server.url, max_pending_bytes=each, max_total_pending_bytes=total, max_payload=None
        ) as mpx:
            policies = (Overflow.DROP_OLDEST, Overflow.DROP_NEWEST)
            subs = [
                Sized(mpx, rng.choice(KINDS), (b"%d:" % number).ljust(name_size, b"x"), rng.choice(policies))
                for number in range(8)
            ]
            self.witnesses += subs
            await self.add_long_names(mpx)
            for sub in subs:
                await sub.sub.wait_for_activation(timeout=10)
            for _ in range(rng.randrange(1, 8)):
                await self.publish(mpx, rng.choices(subs, k=rng.randrange(1, 100)))
                self.check(mpx, subs, each, total)
            await self.read_promptly(mpx)
            for sub in subs:
                sub.go_on.set()
                await self.empty(sub)
                sub.account(len(sub.sizes), f"{sub.kind} at the end")
            require(mpx.stats().pending_bytes == 0, f"pending at the end: {mpx.stats()}")
            require(mpx.stats().connections == 1, f"the connection was lost: {mpx.stats()}")

    async def add_long_names(self, mpx: Multiplexer) -> None:
        """Subscribe to names that are longer, all together, than what the server buffers for a subscriber."""
        if self.rng.random() < 0.3:
            self.seen["many long names"] += 1
            witness = self.witness()
            names = [(b"long %d:" % number).ljust(60_000, b"x") for number in range(150)]
            witness.sub = mpx.new_channel_subscription(*witness.callbacks, on_error=witness.on_error)
            witness.sub.add(*names)
            await witness.sub.wait_for_activation(timeout=20)

    async def publish(self, mpx: Multiplexer, subs: list[Sized]) -> None:
        """Publish a message to each of these subscriptions, in portions, and wait until all are received."""
        messages, size = mpx.stats().messages, 0
        pipeline = self.admin.pipeline(transaction=False)
        for number, sub in enumerate(subs, 1):
            room = max(DIGITS, self.largest - len(sub.name))
            pipeline.publish(sub.name, sub.next_payload(self.rng.choice((DIGITS, 100, room))))
            self.largest = max(self.largest, len(sub.name) + max(sub.sizes))
            size += len(sub.name) + sub.sizes[-1]
            if size >= PORTION or number == len(subs):
                messages, size = messages + len(pipeline), 0
                pipeline.execute()
                await arrived(
                    lambda messages=messages: mpx.stats().messages == messages,
                    lambda messages=messages: f"not {messages} messages: {mpx.stats()}",
                )
        await asyncio.sleep(0)

    def check(self, mpx: Multiplexer, subs: list[Sized], each: int, total: int) -> None:
        """Check the bounds and the counters, while some consumers are stuck."""
        stats = mpx.stats()
        unranked = len(subs) * (total // SMALL)  # bytes of buffers that are too small to make room for a large message
        require(
            stats.pending_bytes <= max(total, self.largest) + unranked,
            f"{stats.pending_bytes} bytes pending of {total}, the largest message has {self.largest}",
        )
        for sub in subs:
            sub.account(len(sub.sizes), f"{sub.kind}, {sub.sub!r}")
            buffer = sub.sub._inbox.buffer
            size = 0 if buffer is None else buffer.size
            require(
                size <= each or sub.sub.pending == 1,
                f"{sub.kind} has {sub.sub.pending} messages, {size} bytes, of {each}",
            )
            for error in sub.errors:
                limit = error.limit if isinstance(error, SlowConsumer) else ""
                require(limit in ("max_pending_bytes", "max_total_pending_bytes"), f"{error!r} names {limit!r}")

    async def read_promptly(self, mpx: Multiplexer) -> None:
        """Read one message after the other while the others are stuck: none is dropped, however large it is."""
        prompt = Sized(mpx, "unread", b"prompt", Overflow.DROP_OLDEST)
        self.witnesses.append(prompt)
        await prompt.sub.wait_for_activation(timeout=10)
        for number in range(20):
            reading = asyncio.ensure_future(prompt.sub.get(5)) if number % 2 else None
            await asyncio.sleep(0)
            before = mpx.stats().messages
            self.admin.publish(prompt.name, prompt.next_payload(self.rng.choice((DIGITS, 1_000, self.largest))))
            await arrived(lambda: mpx.stats().messages > before, lambda: "a message")  # noqa: B023
            try:
                message = await (prompt.sub.get(5) if reading is None else reading)
            except TimeoutError:
                require(False, f"a prompt reader did not get a message of {prompt.sizes[-1]} bytes: {prompt.sub!r}")
            prompt.on_message(message.channel, message.data)
        require(prompt.sub.dropped == 0, f"a prompt reader has lost messages: {prompt.sub!r}")
        prompt.sub.close()
        prompt.closed = True

    @staticmethod
    async def empty(sub: Sized) -> None:
        """Let the consumer take all that is pending."""
        if sub.kind == "unread":
            while sub.sub.pending:
                message = await sub.sub.get(5)
                sub.on_message(message.channel, message.data)
        await arrived(lambda: not sub.sub.pending, lambda: f"{sub.kind} gets no further: {sub.sub!r}")
