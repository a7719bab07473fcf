"""What the scenes of all axes share, and how they are played again and again."""

from __future__ import annotations

import asyncio
import time
import traceback
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import redis
from redis.backoff import ConstantBackoff

from redismpx import Multiplexer, SlowConsumer
from redismpx.testing import Checker
from tests.helpers.leaks import left_behind
from tests.helpers.loops import LOOPS
from tests.helpers.servers import Server, find_binary
from tests.helpers.waiting import until

from .records import Records, recorded
from .surroundings import nothing_left_behind

SCENE_TIMEOUT = 60.0  # seconds
CLOSE_TIMEOUT = 2.0  # seconds that aclose() may take


class Violation(Exception):
    """A scene did not go as promised."""


def require(condition: object, text: str) -> None:
    """Raise Violation if the condition is false."""
    if not condition:
        raise Violation(text)


async def arrived(condition: Callable[[], bool], text: Callable[[], str], deadline: float = 20.0) -> None:
    """Wait until a condition is true; raise Violation with a text if it is not true in time."""
    try:
        await until(condition, deadline)
    except AssertionError:
        raise Violation(f"not within {deadline:g} s: {text()}") from None


class Witness(Checker):
    """A checker of one subscription, which also checks that each message is delivered or counted."""

    sub: Any

    def on_error(self, error: Exception) -> None:
        if not isinstance(error, SlowConsumer):
            self.faults.append(f"on_error got {error!r}")
        super().on_error(error)

    def account(self, received: int, label: str) -> None:
        """Check that this many messages are delivered, dropped and pending, all together."""
        delivered, dropped, pending = self.messages, self.sub.dropped, self.sub.pending
        require(
            received == delivered + dropped + pending,
            f"{label}: {received} received, but {delivered} delivered + {dropped} dropped + {pending} pending",
        )


class Scene(ABC):
    """A scene that is played again and again. A subclass is an axis; `--help` shows its docstring."""

    def __init__(self, flavour: str) -> None:
        self.flavour = flavour
        self.losses = 0
        """Play until so many losses were forced; 0: for some time."""
        self.servers: list[Server] = []
        self.rng = Random()  # another one for each time that the scene is played
        self.records = Records()
        self.seen: Counter[str] = Counter()
        """What happened so far."""
        self.witnesses: list[Witness] = []
        """Of the scene that is played now."""

    def start_server(self, *options: str) -> Server:
        """Start a server that ends with the run."""
        binary = find_binary(self.flavour)
        assert binary is not None, f"{self.flavour}-server is not installed"
        server = Server(binary, *options)
        self.servers.append(server)
        return server.start()

    @abstractmethod
    def set_up(self) -> None:
        """Start the servers."""

    @abstractmethod
    async def play(self) -> None:
        """Play the scene once, in a new event loop; raise Violation if it does not go as promised."""

    def witness(self, **options: Any) -> Witness:
        """Return a new checker, whose faults are looked at when the scene is over."""
        witness = Witness(**options)
        self.witnesses.append(witness)
        return witness

    @asynccontextmanager
    async def multiplexer(self, redis: Any, **options: Any) -> AsyncIterator[Multiplexer]:
        """Yield a multiplexer, and check at the end that it has released everything."""
        mpx = Multiplexer(redis, **{"backoff": ConstantBackoff(0.01), **options})
        try:
            yield mpx
        finally:
            for witness in self.witnesses:
                witness.closed = True
            began = time.monotonic()
            await mpx.aclose()
            taken = time.monotonic() - began
        require(taken < CLOSE_TIMEOUT, f"aclose() took {taken:.1f} s")
        stats = mpx.stats()
        left = (stats.channels, stats.patterns, stats.subscriptions, stats.pending, stats.pending_bytes, stats.promises)
        require(not any(left), f"not released by aclose(): {stats}")

    async def play_and_check(self) -> None:
        """Play the scene, and check what all scenes have in common."""
        loop = asyncio.get_running_loop()
        unhandled: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: unhandled.append(context))
        self.witnesses.clear()
        async with asyncio.timeout(SCENE_TIMEOUT):
            await self.play()
        for _ in range(10):
            await asyncio.sleep(0)
        left = {*left_behind(), *asyncio.all_tasks()} - {asyncio.current_task()}
        require(not left, f"left behind: {left}")
        require(not unhandled, f"unhandled: {unhandled}")
        for witness in self.witnesses:
            require(not witness.faults, f"{witness.faults[:3]}; its last events: {witness.events[-6:]}")
        require(not self.records.faults, "log records: " + "\n".join(self.records.faults[:3]))


def admin_of(server: Server) -> redis.Redis:
    """Return a client that blocks: what it does comes between two steps of the event loop."""
    admin = redis.Redis(port=server.port, socket_timeout=20)
    admin.ping()  # its socket is open from now on, and belongs to no scene
    return admin


def play(axis: type[Scene], flavour: str, seconds: float, seed: int, losses: int = 0) -> list[str]:
    """Play the scene of an axis until the time is over or something is wrong; print and return what is wrong.

    With `losses`, play until so many losses were forced, instead of `seconds`.
    """
    scene = axis(flavour)
    scene.losses = losses
    violations: list[str] = []
    count = 0
    try:
        scene.set_up()
        ends = shown = time.monotonic()
        ends += seconds
        while not violations and (scene.seen["losses"] < losses if losses else not count or time.monotonic() < ends):
            count += 1
            scene.rng = Random(f"{seed} {count}")
            kind = scene.rng.choice(sorted(LOOPS))
            with nothing_left_behind(violations), recorded(scene.records):
                try:
                    with asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
                        runner.run(scene.play_and_check())
                except Exception as error:
                    text = str(error) if isinstance(error, Violation) else "".join(traceback.format_exception(error))
                    violations.append(f"scene {count}, loop {kind}: {text}")
            if time.monotonic() > shown + 5:
                shown = time.monotonic()
                print(f"  {count} scenes: {dict(scene.seen)}", flush=True)
    finally:
        for server in scene.servers:
            server.remove()
    print(f"{count} scenes: {dict(scene.seen)}")
    if violations:
        scene.records.print_last()
        for violation in violations[:10]:
            print("VIOLATION:", violation)
    print(f"{flavour}, seed {seed}: {len(violations)} violations")
    return violations
