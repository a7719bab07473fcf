"""Names that are removed one at a time, while the messages of many wait for a consumer that is stuck."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any

from redismpx import Message, Multiplexer

from ..scenes import Scene, Witness, admin_of, arrived, require

CPU_PER_REMOVAL = 0.0004  # seconds on average; a walk through a backlog of these sizes takes several times as long
KINDS = ("hanging", "read", "plain", "async")


class Removing(Witness):
    """A subscription whose names come and go, and what was published for it."""

    def __init__(self, mpx: Multiplexer, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.go_on = asyncio.Event()
        on_message: Any = {
            "hanging": self.wait,
            "read": None,
            "plain": self.on_message,
            "async": self.wait_a_turn,
        }[kind]
        _, *others = self.callbacks
        self.sub = mpx.new_channel_subscription(on_message, *others, on_error=self.on_error, max_pending=100_000)

    def wait(self, channel: bytes, message: bytes) -> Awaitable[object]:
        self.on_message(channel, message)
        return self.go_on.wait()

    def wait_a_turn(self, channel: bytes, message: bytes) -> Awaitable[object]:
        self.on_message(channel, message)
        return asyncio.sleep(0)

    def read_some(self, most: int) -> None:
        """Read what is pending, without a wait for the callbacks that are due before it."""
        for _ in range(most):
            try:
                message: Message[bytes] = self.sub.get_nowait()
            except asyncio.QueueEmpty:
                return
            self.on_message(message.channel, message.data)


class Removals(Scene):
    """Names are removed one at a time, and some come back, while a backlog waits for its consumers. Its messages are
    counted as dropped, none is delivered, and a removal takes no longer with a long backlog than without one."""

    def set_up(self) -> None:
        self.server = self.start_server()
        self.admin = admin_of(self.server)
        self.admin.config_set("client-output-buffer-limit", "pubsub 0 0 0")

    async def play(self) -> None:
        rng = self.rng
        names = [b"%d" % number for number in range(rng.choice((100, 500, 1_000)))]
        backlog = rng.choice((0, 2_000, 10_000))
        is_quiet = rng.random() < 0.5
        self.seen[f"backlog of {backlog}{', quiet' if is_quiet else ''}"] += 1
        async with self.multiplexer(self.server.url) as mpx:
            self.numbers = dict.fromkeys(names, 0)
            subs = [Removing(mpx, kind) for kind in rng.choices(KINDS, k=rng.randrange(1, 5))]
            self.witnesses += subs
            for sub in subs:
                sub.sub.add(*names)
            for sub in subs:
                await sub.sub.wait_for_activation(timeout=10)
            for sub in subs:
                if sub.kind == "hanging" and backlog:
                    await self.publish(mpx, names[:1])
            await self.publish(mpx, rng.choices(names, k=backlog))
            received = mpx.stats().messages
            for sub in subs:
                await arrived(lambda sub=sub: sub.kind != "async" or not sub.sub.pending, lambda: "async callbacks")
                sub.account(received, f"{sub.kind}, before")
            for sub in subs:
                await self.remove_one_by_one(mpx, sub, names, is_quiet)
                if is_quiet:
                    sub.account(received, f"{sub.kind}, {len(names)} names, after the removals")
            await self.go_on(mpx, subs, names)

    async def publish(self, mpx: Multiplexer, names: list[bytes]) -> None:
        """Publish on these names, and wait until the messages are received."""
        before = mpx.stats().messages
        pipeline = self.admin.pipeline(transaction=False)
        for name in names:
            self.numbers[name] += 1
            pipeline.publish(name, b"%d" % self.numbers[name])
        expected = before + sum(pipeline.execute())
        await arrived(lambda: mpx.stats().messages == expected, lambda: f"{mpx.stats()} instead of {expected} messages")

    async def remove_one_by_one(self, mpx: Multiplexer, sub: Removing, names: list[bytes], is_quiet: bool) -> None:
        """Remove most names in a random order. If it is not quiet, names come back and messages arrive meanwhile."""
        rng = self.rng
        chosen = rng.sample(names, len(names) * 9 // 10)
        spent = 0.0
        for number, name in enumerate(chosen):
            began = time.process_time()
            sub.sub.remove(name)
            spent += time.process_time() - began
            sub.removed(name)
            if sub.kind == "read" and rng.random() < 0.05:
                sub.read_some(rng.randrange(1, 20))
            if not is_quiet and rng.random() < 0.02:
                again = rng.choice(chosen[: number + 1])
                sub.added(again)
                sub.sub.add(again)
            if not is_quiet and rng.random() < 0.02:
                self.publish_unseen(rng.choices(names, k=10))
                await asyncio.sleep(0)
        require(
            spent < CPU_PER_REMOVAL * max(100, len(chosen)),
            f"{len(chosen)} removals one by one with a backlog of {sub.sub.pending} took {spent:.3f} s ({sub.kind})",
        )

    def publish_unseen(self, names: list[bytes]) -> None:
        """Publish on these names, whether anybody gets it or not."""
        pipeline = self.admin.pipeline(transaction=False)
        for name in names:
            self.numbers[name] += 1
            pipeline.publish(name, b"%d" % self.numbers[name])
        pipeline.execute()

    async def go_on(self, mpx: Multiplexer, subs: list[Removing], names: list[bytes]) -> None:
        """Let the consumers go on; each gets a message on each name that it has."""
        for sub in subs:
            sub.go_on.set()
        for sub in subs:
            await sub.sub.wait_for_activation(timeout=10)
        self.publish_unseen(names)
        for sub in subs:

            def is_up_to_date(sub: Removing = sub) -> bool:
                if sub.kind == "read":
                    sub.read_some(sub.sub.pending)
                return (
                    all(sub.last.get(name) == self.numbers[name] for name in sub.sub.channels) and not sub.sub.pending
                )

            await arrived(is_up_to_date, lambda sub=sub: f"{sub.kind}: {sub.sub!r}, {sub.events[-5:]}")
