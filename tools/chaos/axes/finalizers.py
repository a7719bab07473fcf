"""Finalizers: objects in cycles whose `__del__` closes a subscription, in any line of the library."""

from __future__ import annotations

import asyncio
import gc
import sys
import traceback
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Self

import redismpx
from redismpx import Multiplexer, SubscriptionIsClosed

from ..scenes import Scene, admin_of, arrived, require

CHANNELS = ("a", "b")
PACKAGE = str(Path(redismpx.__file__).parent)


class Session:
    """An object of a user in a cycle with itself: the garbage collector frees it at any time, and it closes then."""

    def __init__(self, scene: Finalizers, mpx: Multiplexer) -> None:
        self._me = self
        self._scene = scene
        kind = scene.rng.randrange(4)
        me = weakref.ref(self)  # a callback must not keep the session alive: the multiplexer refers to it

        def on_event(*event: object) -> None:
            require(me() is not None, "a callback was called after the finalizer closed its subscription")

        self.sub: Any
        if kind == 0:
            self.sub = mpx.new_pattern_subscription("[ab]", on_event, on_event, on_event)
        elif kind == 1:
            self.sub = mpx.new_promise_subscription("promise:")
        else:
            self.sub = mpx.new_channel_subscription(on_event if kind == 2 else None, on_event, on_event)
            self.sub.add(*CHANNELS)
        self._end = self.sub.clear if kind == 2 and scene.rng.random() < 0.3 else self.sub.close

    def __del__(self) -> None:
        self._scene.seen["finalized"] += 1
        try:
            with suppress(SubscriptionIsClosed):  # the multiplexer was closed before
                self._end()
            self.sub.close()
        except Exception:
            self._scene.finalizer_errors.append(traceback.format_exc())


class Striker:
    """Runs a function in the n-th round from now of any loop in the library."""

    def __init__(self, at: int, strike: Callable[[], object]) -> None:
        self._left = at
        self._strike = strike
        self.where = ""
        """The line of that loop."""

    def __enter__(self) -> Self:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if PACKAGE not in frame.f_code.co_filename:
            return None
        before = frame.f_lasti

        def trace_lines(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal before
            if event == "line" and frame.f_lasti <= before:  # a jump back, perhaps within one line
                self._step(frame)
            before = frame.f_lasti
            return trace_lines

        return trace_lines

    def _step(self, frame: FrameType) -> None:
        self._left -= 1
        if self._left == 0:
            sys.settrace(None)
            self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
            self._strike()


class Finalizers(Scene):
    """Objects in cycles whose finalizer closes or clears a subscription. The garbage collector runs very often, and in
    random rounds of the loops of the library: in a fan-out, a loss, an activation, stats() or aclose(). Other
    subscriptions lose nothing."""

    def set_up(self) -> None:
        self.server = self.start_server()
        self.admin = admin_of(self.server)
        self.finalizer_errors: list[str] = []

    async def play(self) -> None:
        thresholds = gc.get_threshold()
        gc.set_threshold(self.rng.choice((1, 5, 20, 700)))
        try:
            await self.play_with_collector()
        finally:
            gc.set_threshold(*thresholds)
            sys.settrace(None)
        require(not self.finalizer_errors, "in a finalizer: " + "\n".join(self.finalizer_errors[:3]))

    async def play_with_collector(self) -> None:
        rng = self.rng
        steps: dict[str, Callable[[], Any]] = {
            "message": self.publish, "burst": self.burst, "loss": self.lose, "activation": self.activate,
            "stats": self.ask,
        }  # fmt: skip
        self.number = 0
        self.lost = 0
        async with self.multiplexer(self.server.url) as mpx:
            self.mpx = mpx
            self.bystanders = [self.witness() for _ in range(rng.choice((5, 30)))]
            for witness in self.bystanders:
                witness.sub = mpx.new_channel_subscription(*witness.callbacks, on_error=witness.on_error)
                witness.sub.add(*CHANNELS)
            for _ in range(rng.randrange(3, 8)):
                sessions = [Session(self, mpx) for _ in range(rng.choice((1, 3, 20)))]
                await self.settled()
                name = rng.choice(sorted(steps))
                self.seen[name] += 1
                at = rng.randrange(1, rng.choice((50, 500, 5_000)))
                if rng.random() < 0.3:  # then the collector frees them when it wants to
                    sessions.clear()

                def strike(sessions: list[Session] = sessions) -> None:
                    sessions.clear()
                    gc.collect()

                with Striker(at, strike) as striker:
                    await steps[name]()
                    await self.settled()
                strike()
                require(
                    mpx.stats().connections == self.lost + 1,
                    f"{self.lost} kills, but {mpx.stats()} after {name}; the collector ran in {striker.where}",
                )
            self.doomed = [Session(self, mpx) for _ in range(3)]
            for witness in self.bystanders:
                witness.account(2 * self.number, "a bystander")
            stop = Striker(rng.randrange(1, 300), lambda: (self.doomed.clear(), gc.collect()))
            with stop:
                mpx.close() if rng.random() < 0.5 else await mpx.aclose()
            self.doomed.clear()
            gc.collect()

    async def settled(self) -> None:
        """Wait until each bystander is active and up to date."""
        for witness in self.bystanders:
            await witness.sub.wait_for_activation(timeout=10)
            await arrived(
                lambda w=witness: not self.number or w.messages == 2 * self.number,
                lambda w=witness: f"{w.messages} of {2 * self.number} messages: {w.events[-5:]}, {self.mpx.stats()}",
            )

    def publish_number(self) -> None:
        self.number += 1
        pipeline = self.admin.pipeline(transaction=False)
        for channel in CHANNELS:
            pipeline.publish(channel, b"%d" % self.number)
        require(all(pipeline.execute()), "nobody is subscribed")

    async def publish(self) -> None:
        self.publish_number()

    async def burst(self) -> None:
        for _ in range(50):
            self.publish_number()

    async def lose(self) -> None:
        self.lost += 1
        self.admin.client_kill_filter(_type="pubsub")
        await arrived(lambda: all(w.disconnects == self.lost for w in self.bystanders), lambda: "a disconnect for each")

    async def activate(self) -> None:
        sub = self.mpx.new_channel_subscription(lambda channel, data: None)
        sub.add("c", *CHANNELS)
        await sub.wait_for_activation(timeout=10)
        sub.close()

    async def ask(self) -> None:
        for _ in range(20):
            self.mpx.stats()
            repr(self.mpx)
            await asyncio.sleep(0)
