"""Everything at once, at random moments: `python -m tools.chaos [--seconds 60] [--seed N] [--server valkey|redis]`.

One multiplexer, whose network is a proxy, and hundreds of names under a steady load of numbered messages, published to
the server directly. Consumers of all kinds come and go. Faults of all kinds come in rounds of one to three, which may
overlap; the seed alone decides which, when and how. After each round all must be as it is wanted: the server's own word
within --settle seconds of the last connection, and every consumer up to date. Each subscription has a checker: no
number is lost between an activation and a disconnect. In the end nothing may be left.

Ends at the first violation, with status 1. `--broken TEXT` runs in a copy of the package that has the fault of
tools.mutants whose name has that text, and must fail.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import subprocess
import sys
import time
import zlib
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from random import Random
from typing import Any, NamedTuple

import redis.exceptions
from redis.asyncio import Redis
from redis.backoff import FullJitterBackoff

from redismpx import Multiplexer, PromiseInterrupted, PromiseTimeout, SlowConsumer, SubscriptionRefused
from tests.helpers.checker import Checker
from tests.helpers.leaks import left_behind, open_sockets
from tests.helpers.monitor import subscribed
from tests.helpers.proxy import Flow, Proxy
from tests.helpers.servers import Server, find_binary

from .mutants import MUTANTS, broken_copy

PING_INTERVAL = PING_TIMEOUT = 0.5
NOTICED = 3.0  # seconds within which a link that is dead, and does not say so, is noticed
BLOCKED = 1.0  # seconds after which a call must have waited for something; without that it takes microseconds
GIVE_UP = 20.0  # seconds after which something that should happen is taken never to happen
CONSUMERS = 250
PASSWORD = "a password that is in no record"

PLAIN = [b"c:%d" % number for number in range(200)]
GUARDED = [b"guarded:%d" % number for number in range(10)]
GROUPS = {b"p:%d:*" % group: [b"p:%d:%d" % (group, number) for number in range(3)] for group in range(20)}
CHANNELS = [*PLAIN, *GUARDED, *(channel for group in GROUPS.values() for channel in group)]
PREFIXES = [f"promise:{number}:" for number in range(4)]
PERMISSIONS = [b"c:*", b"promise:*", *GUARDED, *GROUPS, *(f"{prefix}*".encode() for prefix in PREFIXES)]


def pattern_of(channel: bytes) -> bytes:
    return channel[: channel.rindex(b":") + 1] + b"*"


def seal(channel: bytes, number: int) -> bytes:
    text = b"%s#%d#" % (channel, number)
    return text + b"%d" % zlib.crc32(text)


def unseal(channel: bytes, payload: bytes) -> bytes | None:
    """Return the number of a payload, if it is as it was published, and on its own channel."""
    name, _, rest = payload.partition(b"#")
    number, _, _ = rest.partition(b"#")
    return number if name == channel and number.isdigit() and payload == seal(channel, int(number)) else None


async def persist(attempt: Callable[[], Awaitable[Any]]) -> Any:
    """Talk to the server, as soon as there is one."""
    while True:
        try:
            return await attempt()
        except (redis.exceptions.ConnectionError, OSError):
            await asyncio.sleep(0.02)


class Load:
    """Publishes straight to the server: the numbers of each channel in order, and each until it has been published.

    A message may be published twice only when the server died in between, and with it all who were subscribed.
    """

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._turn = asyncio.Lock()
        self.numbers = dict.fromkeys(CHANNELS, 0)  # of the last message of each
        self.published = 0
        self.paused = 0

    async def publish(self, *channels: bytes) -> None:
        """Publish the next number on each."""
        async with self._turn:
            pipe = self._client.pipeline(transaction=False)
            for channel in channels:
                self.numbers[channel] += 1
                pipe.publish(channel, seal(channel, self.numbers[channel]))
            commands = list(pipe.command_stack)

            async def attempt() -> None:
                pipe.command_stack = list(commands)
                await pipe.execute()

            await persist(attempt)
            self.published += len(channels)

    async def go_on(self, dice: Random) -> None:
        """Publish for ever."""
        while True:
            if not self.paused:
                await self.publish(*dice.sample(CHANNELS, 12))
            await asyncio.sleep(0.01)


class Consumer:
    """One subscription, its way to consume, and its checker."""

    def __init__(self, run: Run, how: str, pattern: bytes | None) -> None:
        self._run = run
        self.how = how
        self.pattern = pattern
        self.checker = Checker(
            (lambda channel: channel) if pattern is None else pattern_of,
            lambda name: {channel: run.load.numbers[channel] + 1 for channel in GROUPS.get(name, (name,))},
            may_skip=how == "slow",
        )
        note, (_, on_disconnect, on_activation) = self.note, self.checker.callbacks

        def fail(channel: bytes, message: bytes) -> None:
            note(channel, message)
            raise ValueError("as planned")

        # These note when they are called: on Python 3.11 the body of an `async def` begins in the next tick, when its
        # name may have been removed.
        def note_later(channel: bytes, message: bytes) -> Awaitable[None]:
            note(channel, message)
            return asyncio.sleep(run.whims.uniform(0, 0.003) if run.whims.random() < 0.05 else 0)

        def hang(channel: bytes, message: bytes) -> Awaitable[object]:
            note(channel, message)
            return asyncio.Event().wait()

        def dawdle(channel: bytes, message: bytes) -> Awaitable[None]:
            note(channel, message)
            return asyncio.sleep(0.02)

        def disconnected(error: Any) -> Awaitable[None]:
            on_disconnect(error)
            return asyncio.sleep(run.whims.uniform(0, 0.01))

        def activated(name: Any) -> Awaitable[None]:
            on_activation(name)
            return asyncio.sleep(0)

        callbacks: dict[str, tuple[Any, Any, Any]] = {
            "sync": (note, on_disconnect, on_activation),
            "async": (note_later, disconnected, activated),
            "read": (None, on_disconnect, on_activation),
            "raising": (fail, on_disconnect, on_activation),
            "hanging": (hang, on_disconnect, on_activation),
            "slow": (dawdle, disconnected, activated),
        }
        options: dict[str, Any] = {"on_error": self.checker.on_error, "max_pending": 5 if how == "slow" else None}
        self.sub: Any = (
            run.mpx.new_channel_subscription(*callbacks[how], **options)
            if pattern is None
            else run.mpx.new_pattern_subscription(pattern, *callbacks[how], **options)
        )
        self._reading = asyncio.create_task(self._read()) if how == "read" else None

    def note(self, channel: bytes, message: bytes) -> None:
        self._run.delivered += 1
        number = unseal(channel, message)
        if number is not None:
            self.checker.on_message(channel, number)
        elif self._run.spoilt:
            self.checker.on_spoilt(channel)
        else:
            self.checker.faults.append(f"another payload than was published: {message!r} on {channel!r}")
        if self._run.whims.random() < 0.03:
            self._run.change_something(channel)  # from inside a callback

    async def _read(self) -> None:
        async for message in self.sub:
            self.note(message.channel, message.data)

    def add(self, *channels: bytes) -> None:
        self.checker.added(*channels)
        with self._at_once("add"):
            self.sub.add(*channels)

    def remove(self, *channels: bytes) -> None:
        with self._at_once("remove"):
            self.sub.remove(*channels)
        self.checker.removed(*channels)

    async def close(self) -> None:
        self.end()
        if self._reading is not None:
            await asyncio.wait([self._reading], timeout=GIVE_UP)
            if not self._reading.done():
                self.checker.faults.append("its reader does not end")

    def end(self) -> None:
        with self._at_once("close"):
            self.sub.close()
        self.checker.closed = True

    @contextmanager
    def _at_once(self, call: str) -> Iterator[None]:
        """No call may wait for the network, whatever becomes of it just then."""
        began = time.monotonic()
        yield
        if (taken := time.monotonic() - began) > BLOCKED:
            self._run.violate(f"{call}() took {taken:.1f} s: {self.sub!r}")

    @property
    def channels(self) -> list[bytes]:
        """The channels whose messages it gets."""
        return GROUPS[self.pattern] if self.pattern is not None else list(self.sub.channels)

    @property
    def is_active(self) -> bool:
        return bool(self.sub._inbox.active == len(self.sub._names))

    @property
    def missing(self) -> dict[bytes, tuple[int | None, int]]:
        """The channels on which it has another number than was published last, with both."""
        last, numbers = self.checker.last, self._run.load.numbers
        return {n: (last.get(n), numbers[n]) for n in self.channels if last.get(n) != numbers[n]}

    def violations(self) -> list[str]:
        who = f"{self.how} {self.pattern or 'channels'}"
        last = self.checker.events[-6:]
        found = [f"{who}: {fault}; its last events: {last}" for fault in self.checker.faults]
        expected = {"raising": ValueError, "slow": SlowConsumer}.get(self.how, SubscriptionRefused)
        errors = [e for e in self.checker.errors if not isinstance(e, (expected, SubscriptionRefused))]
        found += [f"{who}: {error!r}" for error in errors]
        if self.checker.skipped > self.sub.dropped:
            found.append(f"{who}: {self.checker.skipped} skipped, but {self.sub.dropped} dropped")
        for seen in (self.checker.events, self.checker.faults, self.checker.errors):
            seen.clear()
        return found


class Asker:
    """Makes promises on one prefix, one after another: each is kept, unless the connection was lost."""

    def __init__(self, run: Run, prefix: str) -> None:
        self._run = run
        self.sub = run.mpx.new_promise_subscription(prefix)
        self.name = f"{prefix}*".encode()
        self._task = asyncio.create_task(self._ask())

    async def _ask(self) -> None:
        outcomes = self._run.promises
        while not self.sub.closed:
            try:
                promise = await self.sub.wait_for_new_promise(None, GIVE_UP)
                payload = seal(promise.channel, 1)
                await persist(lambda: self._run.publisher.publish(promise.channel, payload))  # noqa: B023
                if await promise != payload and not self._run.spoilt:
                    self._run.violate("a promise got what was not published")
                outcomes["kept"] += 1
            except PromiseInterrupted as error:
                outcomes[f"interrupted: {error.reason}"] += 1
            except SubscriptionRefused:
                await asyncio.sleep(0.1)
            except PromiseTimeout as error:
                self._run.violate(f"{error!r}: {self.sub!r}")
                return
            await asyncio.sleep(0.005)

    @property
    def is_active(self) -> bool:
        return self.sub._inbox.active == 1

    async def close(self) -> None:
        self.sub.close()
        self._task.cancel()
        await asyncio.wait([self._task], timeout=GIVE_UP)


class Records(logging.Handler):
    """Keeps the last records, counts the warnings, and looks for what must never be said."""

    def __init__(self) -> None:
        super().__init__()
        self.last: deque[str] = deque(maxlen=60)
        self.warnings: Counter[str] = Counter()
        self.faults: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self.last.append(f"{time.monotonic():.3f} {record.name} {record.levelname} {text}")
        if record.threadName == "proxy":
            return
        if record.levelno >= logging.WARNING and record.name == "redismpx":
            self.warnings[str(record.msg)] += 1
        if (
            PASSWORD in text
            or record.levelno >= logging.CRITICAL
            or (record.name == "asyncio" and not text.startswith("Executing"))
        ):
            self.faults.append(f"{record.levelname} {text} {record.exc_info or ''}")


class Run:
    """One run: the server, the network, the multiplexer, its consumers, the load, and what went wrong."""

    def __init__(self, server: Server, proxy: Proxy, seed: int, settle: float) -> None:
        self.server = server
        self.proxy = proxy
        self.whims = Random(f"whims {seed}")  # of consumers; their course depends on time as well
        self._seed = seed
        self._settle = settle
        self.admin = Redis.from_url(server.url, socket_timeout=None)
        self.publisher = Redis.from_url(server.url, socket_timeout=None)
        self.load = Load(self.publisher)
        self.mpx = Multiplexer(
            proxy.url,
            username="chaos",
            password=PASSWORD,
            ping_interval=PING_INTERVAL,
            ping_timeout=PING_TIMEOUT,
            backoff=FullJitterBackoff(cap=0.2, base=0.01),
            socket_timeout=1.0,
            socket_connect_timeout=1.0,
        )
        self.consumers: list[Consumer] = []
        self.askers: list[Asker] = []
        self.gone: list[Consumer] = []
        self.server_turn = asyncio.Lock()  # one fault at a time has the server
        self.refused: set[bytes] = set()
        self.calm = False  # whether consumers stay as they are
        self.spoilt = 0  # payloads, by us
        self.delivered = self.changes = self.recoveries = 0
        self.faults: Counter[str] = Counter()
        self.promises: Counter[str] = Counter()
        self.lags: list[float] = []
        self.records = Records()
        self.violations: list[str] = []
        self._background: set[asyncio.Task[None]] = set()

    def violate(self, text: str) -> None:
        self.violations.append(text)

    # --- the server

    async def order(self, *words: str | bytes) -> Any:
        """Tell the server, as soon as there is one that listens."""
        return await persist(lambda: self.admin.execute_command(*words))

    async def permit(self) -> None:
        """Permit all names but the refused."""
        names = [b"&" + name for name in PERMISSIONS if name not in self.refused]
        await self.order("ACL", "SETUSER", "chaos", "on", f">{PASSWORD}", "resetchannels", *names, "+@all")

    async def kill_chaos(self) -> None:
        with suppress(redis.exceptions.ResponseError):  # started anew, a server knows of no such user for a moment
            await self.order("CLIENT", "KILL", "USER", "chaos")

    async def start_again(self) -> None:
        await asyncio.to_thread(self.server.start)
        await self.permit()

    async def bury(self) -> None:
        """End, on the server, the connections of which the network has lost the other end: all but the newest."""
        ids = [int(c["id"]) for c in await persist(self.admin.client_list) if c["user"] == "chaos"]
        for identity in sorted(ids)[:-1]:
            with suppress(redis.exceptions.ResponseError):  # gone by itself
                await self.order("CLIENT", "KILL", "ID", str(identity))

    # --- consumers

    def change_something(self, channel: bytes | None = None) -> None:
        """Have a consumer come, go, or change its channels; perhaps one that is to get a message of `channel` next."""
        if self.calm:
            return
        self.changes += 1
        dice = self.whims
        peers = [c for c in self.consumers if channel in c.channels]
        if peers and dice.random() < 0.5:
            peers[-1].remove(channel) if peers[-1].pattern is None else self.drop(peers[-1])
            return
        if len(self.consumers) < CONSUMERS * dice.uniform(0.8, 1):
            self.new_consumer(dice.choices(("sync", "async", "read"), (3, 2, 2))[0])
            return
        consumer = dice.choice(self.consumers)
        if consumer.pattern is None and dice.random() < 0.8:
            if dice.random() < 0.5:
                consumer.add(*dice.sample(CHANNELS, dice.randrange(1, 4)))
            elif consumer.channels:
                some = dice.sample(sorted(consumer.channels), dice.randrange(1, len(consumer.channels) + 1))
                consumer.remove(*some)
                if dice.random() < 0.5:
                    consumer.add(some[0])
        elif consumer.how in ("sync", "async", "read"):
            self.drop(consumer)

    def new_consumer(self, how: str) -> Consumer:
        dice = self.whims
        consumer = Consumer(self, how, dice.choice(list(GROUPS)) if dice.random() < 0.2 else None)
        if consumer.pattern is None:
            consumer.add(*dice.sample(CHANNELS, dice.randrange(1, 5)))
        self.consumers.append(consumer)
        return consumer

    def drop(self, consumer: Consumer) -> None:
        if consumer not in self.consumers:
            return
        self.consumers.remove(consumer)
        self.gone.append(consumer)
        consumer.end()
        self._spawn(consumer.close())

    def new_askers(self) -> None:
        for prefix in PREFIXES[len(self.askers) :]:
            self.askers.append(Asker(self, prefix))

    async def _come_and_go(self) -> None:
        while True:
            self.change_something()
            if not self.calm and self.askers and self.whims.random() < 0.005:
                await self.askers.pop().close()
                self.new_askers()
            await asyncio.sleep(self.whims.uniform(0, 0.02))

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # --- the course of it

    async def go(self, seconds: float) -> None:
        """Run for so long, or until the first violation, and to the very end."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.violate(f"unhandled: {context}"))
        before = asyncio.all_tasks()
        await self.permit()
        for _ in range(CONSUMERS):
            self.change_something()
        self.new_askers()
        steady = [
            asyncio.create_task(self.load.go_on(Random(f"load {self._seed}"))),
            asyncio.create_task(self._come_and_go()),
            asyncio.create_task(self._tell()),
        ]
        await self.recover()
        ends = loop.time() + seconds
        for steps in plan(self._seed):
            if loop.time() > ends or self.violations:
                break
            try:
                async with asyncio.timeout(GIVE_UP * 3), asyncio.TaskGroup() as group:
                    for step in steps:
                        group.create_task(self._commit(step))
            except Exception as error:
                names = [step.fault.__name__ for step in steps]
                self.violate(f"{error!r} {getattr(error, 'exceptions', '')} in {names}")
            await self.recover()
        self._inspect()
        for task in steady:
            task.cancel()
        await asyncio.gather(*steady, return_exceptions=True)
        await self._end(before)

    async def _commit(self, step: Step) -> None:
        await asyncio.sleep(step.delay)
        self.faults[step.fault.__name__] += 1
        await step.fault(self, Random(step.seed))

    async def recover(self) -> None:
        """Wait until all is as wanted; note how long it took from the last connection on."""
        loop = asyncio.get_running_loop()
        self.calm = True
        self.load.paused += 1
        self._inspect()
        healed = loop.time()
        stale = self.mpx.stats().connections  # the network may have lost it without a word
        epoch, since, lag, told = stale, healed, None, -1
        while not self.violations:
            await asyncio.sleep(0.005)
            if self.mpx.stats().connections != epoch:
                epoch, since, lag = self.mpx.stats().connections, loop.time(), None
            if loop.time() - healed > GIVE_UP:
                self.violate(f"no recovery within {GIVE_UP} s: {self._differences()}")
            if lag is None:
                if not self.mpx.connected:
                    continue
                word = await persist(lambda: subscribed(self.admin))
                taken = loop.time() - since
                if taken > self._settle + (NOTICED if epoch == stale else 0):
                    self.violate(f"not as wanted {taken:.3f} s after the last connection: {self._differences()}; "
                                 f"the server's word: {word}")  # fmt: skip
                elif word == self._wanted() and all(c.is_active for c in (*self.consumers, *self.askers)):
                    lag = taken
                else:
                    await self.bury()
            elif told != epoch:
                await self.load.publish(*CHANNELS)
                told = epoch
            elif not any(c.missing for c in self.consumers):
                self.recoveries += 1
                if epoch != stale:
                    self.lags.append(lag)
                break
        self._inspect()
        self.load.paused -= 1
        self.calm = False

    def _wanted(self) -> tuple[set[bytes], int]:
        """What the server's own word should be."""
        channels = {channel for c in self.consumers if c.pattern is None for channel in c.sub.channels}
        return channels, len({c.pattern for c in self.consumers if c.pattern} | {a.name for a in self.askers})

    def _differences(self) -> str:
        registry = self.mpx._hub.main.registry
        late = [(c.how, c.sub, c.missing, c.checker.events[-6:]) for c in self.consumers if c.missing]
        channels, patterns = self._wanted()
        return (
            f"{self.mpx!r}; wanted {len(channels)} channels, {patterns} patterns; inactive: "
            f"{[c.sub for c in (*self.consumers, *self.askers) if not c.is_active][:5]}; not up to date: {late[:5]}; "
            f"in flight: {registry.oldest_command}; {[e for e in registry._entries() if e.state.value != 'joined'][:5]}"
        )

    def _inspect(self) -> None:
        """Ask all checkers, and the log."""
        for consumer in (*self.consumers, *self.gone):
            self.violations += consumer.violations()
        self.violations += self.records.faults
        self.records.faults.clear()
        outages = self.records.warnings["no connection to Redis at %s; reconnecting (%s)"]
        if outages > self.mpx.stats().connections + 1:
            self.violate(f"{outages} warnings of {self.mpx.stats().connections} connections")

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(5)
            print(f"  {self.summary()}", flush=True)

    def summary(self) -> str:
        return (
            f"{self.faults.total()} faults, {self.recoveries} recoveries (slowest {max(self.lags, default=0):.3f} s), "
            f"{self.mpx.stats().connections} connections, {self.load.published:,} messages published, "
            f"{self.delivered:,} delivered, {self.changes:,} changes of {len(self.consumers)} consumers, "
            f"promises {dict(self.promises)}, {len(self.violations)} violations"
        )

    async def _end(self, before: set[asyncio.Task[Any]]) -> None:
        """Close, and see that nothing is left."""
        began = time.monotonic()
        for consumer in self.consumers:
            consumer.checker.closed = True  # nothing may come once the multiplexer is closed
        self.calm = True
        await self.mpx.aclose()
        spent = time.monotonic() - began
        if spent > 2:
            self.violate(f"closing took {spent:.1f} s")
        for consumer in self.consumers:
            await consumer.close()
        for asker in self.askers:
            await asker.close()
        await asyncio.gather(*self._background)
        await self.admin.aclose()
        await self.publisher.aclose()
        await asyncio.sleep(0.1)
        gc.collect()
        await asyncio.sleep(0)
        self.gone += self.consumers
        self.consumers.clear()
        self._inspect()
        left = {*asyncio.all_tasks(), *left_behind()} - before
        self.violations += [f"left behind: {item!r}" for item in left]


# --- faults


@contextmanager
def changed(thing: Flow | Proxy, **fields: Any) -> Iterator[None]:
    """Have the network in another mood for a while; afterwards in none, whatever another fault had made of it."""
    for name, value in fields.items():
        setattr(thing, name, value)
    try:
        yield
    finally:
        for name in fields:
            setattr(thing, name, getattr(Flow(), name, None))


async def client_kill(run: Run, dice: Random) -> None:
    for _ in range(dice.randrange(1, 4)):
        await run.order("CLIENT", "KILL", "TYPE", "pubsub")
        await asyncio.sleep(dice.uniform(0, 0.2))


async def cut(run: Run, dice: Random) -> None:
    run.proxy.cut()


async def reset(run: Run, dice: Random) -> None:
    run.proxy.reset()


async def hole(run: Run, dice: Random) -> None:
    with changed(run.proxy.to_server, hole=True), changed(run.proxy.to_client, hole=True):
        await asyncio.sleep(dice.uniform(0.05, 1.5))


async def hole_to_server(run: Run, dice: Random) -> None:
    with changed(run.proxy.to_server, hole=True):
        await asyncio.sleep(dice.uniform(0.05, 1.5))


async def hole_to_client(run: Run, dice: Random) -> None:
    with changed(run.proxy.to_client, hole=True):
        await asyncio.sleep(dice.uniform(0.05, 1.5))


async def stall_to_server(run: Run, dice: Random) -> None:
    with changed(run.proxy.to_server, stall=True):
        await asyncio.sleep(dice.uniform(0.1, 2))


async def stall_to_client(run: Run, dice: Random) -> None:
    with changed(run.proxy.to_client, stall=True):
        await asyncio.sleep(dice.uniform(0.1, 2))


async def delay(run: Run, dice: Random) -> None:
    with changed(dice.choice((run.proxy.to_server, run.proxy.to_client)), delay=dice.uniform(0.02, 0.3)):
        await asyncio.sleep(dice.uniform(0.3, 1))


async def slices(run: Run, dice: Random) -> None:
    size = dice.choice((1, 2, 7, 50))
    with changed(run.proxy.to_server, chunk=size), changed(run.proxy.to_client, chunk=size):
        await asyncio.sleep(dice.uniform(0.3, 1))


async def corrupt_a_frame(run: Run, dice: Random) -> None:
    """Spoil the type of one element: no parser can miss it."""
    left = 1

    def spoil(piece: bytes) -> bytes:
        nonlocal left
        if not left or b"\r\n$" not in piece:
            return piece
        left -= 1
        return piece.replace(b"\r\n$", b"\r\nX", 1)

    with changed(run.proxy.to_client, corrupt=spoil):
        await asyncio.sleep(0.3)


async def corrupt_payloads(run: Run, dice: Random) -> None:
    """Spoil a digit of some numbers: nothing on the wire tells, and each still counts as received."""

    def spoil(piece: bytes) -> bytes:
        at = piece.find(b"#")
        if at < 0 or at + 1 == len(piece):
            return piece
        run.spoilt += 1
        return piece[: at + 1] + bytes([piece[at + 1] ^ 1]) + piece[at + 2 :]

    with changed(run.proxy.to_client, corrupt=spoil):
        await asyncio.sleep(dice.uniform(0.05, 0.3))


async def corrupt_commands(run: Run, dice: Random) -> None:
    """Spoil any byte of what we send; what the server refused for that is asked for again on a new connection."""

    def spoil(piece: bytes) -> bytes:
        at = dice.randrange(len(piece))
        return piece[:at] + bytes([piece[at] ^ dice.randrange(1, 256)]) + piece[at + 1 :]

    with changed(run.proxy.to_server, corrupt=spoil):
        await asyncio.sleep(dice.uniform(0.05, 0.5))
    await run.kill_chaos()


async def limit(run: Run, dice: Random) -> None:
    with changed(run.proxy.to_client, limit=dice.randrange(10_000)):
        await asyncio.sleep(dice.uniform(0.1, 0.6))


async def refuse(run: Run, dice: Random) -> None:
    with changed(run.proxy, refusing=True):
        run.proxy.reset()
        await asyncio.sleep(dice.uniform(0.05, 1))


async def stop_listening(run: Run, dice: Random) -> None:
    run.proxy.stop_listening()
    run.proxy.cut()
    await asyncio.sleep(dice.uniform(0.05, 1))
    run.proxy.listen_again()


async def idle_drop(run: Run, dice: Random) -> None:
    run.load.paused += 1
    with changed(run.proxy, idle_limit=0.1):
        await asyncio.sleep(dice.uniform(0.2, 1))
        run.load.paused -= 1
        await asyncio.sleep(0.2)


async def server_killed(run: Run, dice: Random) -> None:
    async with run.server_turn:
        run.server.kill()
        await asyncio.sleep(dice.uniform(0, 1))
        await run.start_again()


async def server_frozen_a_moment(run: Run, dice: Random) -> None:
    await _freeze(run, dice.uniform(0.05, 0.4))


async def server_frozen_for_long(run: Run, dice: Random) -> None:
    await _freeze(run, dice.uniform(1.2, 2.5))


async def _freeze(run: Run, seconds: float) -> None:
    async with run.server_turn:
        run.server.freeze()
        await asyncio.sleep(seconds)
        run.server.thaw()


async def server_killed_while_frozen(run: Run, dice: Random) -> None:
    async with run.server_turn:
        run.server.freeze()
        await asyncio.sleep(dice.uniform(0.05, 0.5))
        run.server.kill()
        await run.start_again()


async def server_paused_a_moment(run: Run, dice: Random) -> None:
    await run.order("CLIENT", "PAUSE", str(dice.randrange(50, 400)), "ALL")


async def server_paused_for_long(run: Run, dice: Random) -> None:
    await run.order("CLIENT", "PAUSE", str(dice.randrange(1200, 2500)), "ALL")
    await run.order("PING")  # until it is over


async def permission_revoked(run: Run, dice: Random) -> None:
    """Take names away for a while; they are asked for again on a new connection, as it would be a minute else."""
    names = dice.sample([*GUARDED, *GROUPS], 2)
    run.refused.update(names)
    await run.permit()
    await asyncio.sleep(dice.uniform(0.1, 1))
    run.refused.difference_update(names)
    await run.permit()
    await run.kill_chaos()


async def bad_consumers(run: Run, dice: Random) -> None:
    """Have some that raise, hang and dawdle among the others for a while."""
    bad = [run.new_consumer(how) for how in ("raising", "hanging", "slow") for _ in range(5)]
    await asyncio.sleep(dice.uniform(0.3, 1))
    for consumer in bad:
        run.drop(consumer)


async def loop_blocked(run: Run, dice: Random) -> None:
    time.sleep(dice.uniform(0.1, 1.3))


FAULTS: list[Callable[[Run, Random], Awaitable[None]]] = [
    client_kill, cut, reset, hole, hole_to_server, hole_to_client, stall_to_server, stall_to_client, delay, slices,
    corrupt_a_frame, corrupt_payloads, corrupt_commands, limit, refuse, stop_listening, idle_drop, server_killed,
    server_frozen_a_moment, server_frozen_for_long, server_killed_while_frozen, server_paused_a_moment,
    server_paused_for_long, permission_revoked, bad_consumers, loop_blocked,
]  # fmt: skip


class Step(NamedTuple):
    """One fault of a round."""

    delay: float  # seconds from the round's beginning
    fault: Callable[[Run, Random], Awaitable[None]]
    seed: int  # of its own dice


def plan(seed: int) -> Iterator[list[Step]]:
    """Say what happens, round by round, for ever. Each fault comes once before any comes again."""
    dice = Random(seed)
    deck: list[Callable[[Run, Random], Awaitable[None]]] = []
    while True:
        steps = []
        for _ in range(dice.choice((1, 1, 2, 3))):
            if not deck:
                deck = dice.sample(FAULTS, len(FAULTS))
            steps.append(Step(dice.uniform(0, 0.4), deck.pop(), dice.randrange(2**32)))
        yield steps


# --- the command


def chaos(flavour: str, seconds: float, seed: int, settle: float) -> list[str]:
    """Run, and print what happened; return the violations."""
    binary = find_binary(flavour)
    assert binary is not None, f"there is no {flavour}-server"
    sockets = open_sockets()
    unraisable: list[str] = []
    hook = sys.unraisablehook
    sys.unraisablehook = lambda args: unraisable.append(f"{args.exc_value!r} in {args.object!r}")
    loggers = [logging.getLogger(name) for name in ("redismpx", "asyncio")]
    server = Server(binary).start()
    try:
        with Proxy(server.port) as proxy:

            async def go() -> Run:
                run = Run(server, proxy, seed, settle)
                for logger in loggers:
                    logger.addHandler(run.records)
                    logger.propagate = False
                loggers[0].setLevel(logging.DEBUG)
                try:
                    await run.go(seconds)
                finally:
                    for logger in loggers:
                        logger.removeHandler(run.records)
                        logger.propagate = True
                    loggers[0].setLevel(logging.NOTSET)
                return run

            run = asyncio.run(go())
    finally:
        server.remove()
        gc.collect()
        sys.unraisablehook = hook
    run.violations += unraisable
    if open_sockets() > sockets:
        run.violate(f"{open_sockets() - sockets} sockets are left open")
    print(run.summary())
    print(f"faults: {dict(run.faults)}")
    print(f"warnings: {dict(run.records.warnings)}")
    if run.violations:
        print("the last records:", *run.records.last, sep="\n  ")
        for violation in run.violations[:10]:
            print("VIOLATION:", violation)
    print(f"{flavour}, seed {seed}: {len(run.violations)} violations")
    return run.violations


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=Random().randrange(10**6))
    parser.add_argument("--server", default="valkey", choices=("valkey", "redis"))
    parser.add_argument("--settle", type=float, default=1.0)
    parser.add_argument("--broken")
    options = parser.parse_args(arguments)
    if options.broken is None:
        return int(bool(chaos(options.server, options.seconds, options.seed, options.settle)))
    (mutant,) = [mutant for mutant in MUTANTS if options.broken in mutant.fault]
    print(f"with this fault put back: {mutant.fault}", flush=True)
    with broken_copy(mutant) as folder:
        command = [sys.executable, "-m", "tools.chaos"]
        for name in ("seconds", "seed", "server", "settle"):
            command += [f"--{name}", str(getattr(options, name))]
        return subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": folder}, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
