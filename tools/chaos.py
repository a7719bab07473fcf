"""Chaos test: faults of all kinds at random moments, under load.

    $ python -m tools.chaos                              # one minute on Valkey, with a random seed
    $ python -m tools.chaos --seconds 600 --server redis --seed 7
    $ python -m tools.chaos --broken "a late joiner"     # with a known fault in the package: must fail

One multiplexer is connected through a proxy. A load publishes numbered messages to 270 channels, directly to the
server. Consumers of all kinds subscribe and unsubscribe all the time. Faults come in rounds of one to three, which may
overlap; the seed alone decides which faults, when and how.

After each round the program waits until everything has recovered: the server has exactly the desired names subscribed
within `--settle` seconds of the last connection, and every consumer has got the newest message of each of its channels.
A checker for each subscription verifies that no message is missing between an activation and a disconnect. At the end
the multiplexer is closed, and no task, socket or other object may be left.

Prints a summary every five seconds, then the faults, the warnings, and the violations. It stops at the first violation.
The exit status is 1 if there is a violation, otherwise 0. `--broken TEXT` runs in a copy of the package with the fault
of `tools.mutants` whose name contains TEXT, and exits with the status of that run.
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
DETECTION_TIME = 3.0  # seconds within which pings detect a connection that is lost without an error
MAX_CALL_TIME = 1.0  # seconds; a call that does not wait for anything takes microseconds
GIVE_UP_AFTER = 20.0  # seconds after which an expected event counts as missing
CONSUMERS = 250
PASSWORD = "a password that no log record may contain"

PLAIN = [b"c:%d" % number for number in range(200)]
GUARDED = [b"guarded:%d" % number for number in range(10)]
GROUPS = {b"p:%d:*" % group: [b"p:%d:%d" % (group, number) for number in range(3)] for group in range(20)}
CHANNELS = [*PLAIN, *GUARDED, *(channel for group in GROUPS.values() for channel in group)]
PREFIXES = [f"promise:{number}:" for number in range(4)]
PERMISSIONS = [b"c:*", b"promise:*", *GUARDED, *GROUPS, *(f"{prefix}*".encode() for prefix in PREFIXES)]


def pattern_of(channel: bytes) -> bytes:
    return channel[: channel.rindex(b":") + 1] + b"*"


def encode_payload(channel: bytes, number: int) -> bytes:
    text = b"%s#%d#" % (channel, number)
    return text + b"%d" % zlib.crc32(text)


def decode_number(channel: bytes, payload: bytes) -> bytes | None:
    """Return the number in a payload, or None if the payload or its channel was changed on the way."""
    name, _, rest = payload.partition(b"#")
    number, _, _ = rest.partition(b"#")
    return number if name == channel and number.isdigit() and payload == encode_payload(channel, int(number)) else None


async def retry_until_reached(attempt: Callable[[], Awaitable[Any]]) -> Any:
    """Repeat an attempt until the server can be reached."""
    while True:
        try:
            return await attempt()
        except (redis.exceptions.ConnectionError, OSError):
            await asyncio.sleep(0.02)


class Load:
    """Publishes consecutive numbers to each channel, directly to the server, and repeats a publish that failed.

    A message can be published twice only if the server died in between, and then no subscriber was connected.
    """

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._turn = asyncio.Lock()
        self.numbers = dict.fromkeys(CHANNELS, 0)  # of the last message on each channel
        self.published = 0
        self.paused = 0

    async def publish(self, *channels: bytes) -> None:
        """Publish the next number on each of these channels."""
        async with self._turn:
            pipe = self._client.pipeline(transaction=False)
            for channel in channels:
                self.numbers[channel] += 1
                pipe.publish(channel, encode_payload(channel, self.numbers[channel]))
            commands = list(pipe.command_stack)

            async def attempt() -> None:
                pipe.command_stack = list(commands)
                await pipe.execute()

            await retry_until_reached(attempt)
            self.published += len(channels)

    async def publish_forever(self, rng: Random) -> None:
        """Publish to random channels until cancelled."""
        while True:
            if not self.paused:
                await self.publish(*rng.sample(CHANNELS, 12))
            await asyncio.sleep(0.01)


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


class Records(logging.Handler):
    """Keeps the last log records, counts the warnings, and reports records that must not exist."""

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
    """One run: the server, the proxy, the multiplexer, its consumers, the load and the violations."""

    def __init__(self, server: Server, proxy: Proxy, seed: int, settle: float) -> None:
        self.server = server
        self.proxy = proxy
        self.rng = Random(f"consumers {seed}")  # for the consumers; what they do depends on timing as well
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
        self.promise_makers: list[PromiseMaker] = []
        self.closed: list[Consumer] = []
        self.server_turn = asyncio.Lock()  # only one fault at a time stops or freezes the server
        self.forbidden: set[bytes] = set()
        self.consumers_fixed = False  # True while no consumer may change its subscriptions
        self.corrupted = 0  # payloads that the proxy has changed
        self.delivered = self.changes = self.recoveries = 0
        self.faults: Counter[str] = Counter()
        self.promises: Counter[str] = Counter()
        self.lags: list[float] = []
        self.records = Records()
        self.violations: list[str] = []
        self._background: set[asyncio.Task[None]] = set()

    def add_violation(self, text: str) -> None:
        self.violations.append(text)

    # --- the server

    async def command(self, *words: str | bytes) -> Any:
        """Send the server a command, as soon as it can be reached."""
        return await retry_until_reached(lambda: self.admin.execute_command(*words))

    async def apply_permissions(self) -> None:
        """Let the multiplexer's user subscribe to all names except the forbidden ones."""
        names = [b"&" + name for name in PERMISSIONS if name not in self.forbidden]
        await self.command("ACL", "SETUSER", "chaos", "on", f">{PASSWORD}", "resetchannels", *names, "+@all")

    async def kill_connections(self) -> None:
        with suppress(redis.exceptions.ResponseError):  # a restarted server does not have the user yet
            await self.command("CLIENT", "KILL", "USER", "chaos")

    async def restart_server(self) -> None:
        await asyncio.to_thread(self.server.start)
        await self.apply_permissions()

    async def kill_stale_connections(self) -> None:
        """Let the server close all of the multiplexer's connections but the newest: the proxy has lost the others."""
        ids = [int(c["id"]) for c in await retry_until_reached(self.admin.client_list) if c["user"] == "chaos"]
        for identity in sorted(ids)[:-1]:
            with suppress(redis.exceptions.ResponseError):  # already closed
                await self.command("CLIENT", "KILL", "ID", str(identity))

    # --- consumers

    def change_something(self, channel: bytes | None = None) -> None:
        """Add, remove or change a consumer, perhaps one that gets the current message of `channel` next."""
        if self.consumers_fixed:
            return
        self.changes += 1
        rng = self.rng
        peers = [c for c in self.consumers if channel in c.channels]
        if peers and rng.random() < 0.5:
            peers[-1].remove(channel) if peers[-1].pattern is None else self.drop(peers[-1])
            return
        if len(self.consumers) < CONSUMERS * rng.uniform(0.8, 1):
            self.new_consumer(rng.choices(("sync", "async", "read"), (3, 2, 2))[0])
            return
        consumer = rng.choice(self.consumers)
        if consumer.pattern is None and rng.random() < 0.8:
            if rng.random() < 0.5:
                consumer.add(*rng.sample(CHANNELS, rng.randrange(1, 4)))
            elif consumer.channels:
                some = rng.sample(sorted(consumer.channels), rng.randrange(1, len(consumer.channels) + 1))
                consumer.remove(*some)
                if rng.random() < 0.5:
                    consumer.add(some[0])
        elif consumer.kind in ("sync", "async", "read"):
            self.drop(consumer)

    def new_consumer(self, kind: str) -> Consumer:
        rng = self.rng
        consumer = Consumer(self, kind, rng.choice(list(GROUPS)) if rng.random() < 0.2 else None)
        if consumer.pattern is None:
            consumer.add(*rng.sample(CHANNELS, rng.randrange(1, 5)))
        self.consumers.append(consumer)
        return consumer

    def drop(self, consumer: Consumer) -> None:
        if consumer not in self.consumers:
            return
        self.consumers.remove(consumer)
        self.closed.append(consumer)
        consumer.end()
        self._spawn(consumer.close())

    def new_promise_makers(self) -> None:
        for prefix in PREFIXES[len(self.promise_makers) :]:
            self.promise_makers.append(PromiseMaker(self, prefix))

    async def _change_consumers(self) -> None:
        while True:
            self.change_something()
            if not self.consumers_fixed and self.promise_makers and self.rng.random() < 0.005:
                await self.promise_makers.pop().close()
                self.new_promise_makers()
            await asyncio.sleep(self.rng.uniform(0, 0.02))

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # --- the run

    async def run(self, seconds: float) -> None:
        """Inject faults for `seconds` or until the first violation, then close everything and check that it is gone."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.add_violation(f"unhandled: {context}"))
        before = asyncio.all_tasks()
        await self.apply_permissions()
        for _ in range(CONSUMERS):
            self.change_something()
        self.new_promise_makers()
        steady = [
            asyncio.create_task(self.load.publish_forever(Random(f"load {self._seed}"))),
            asyncio.create_task(self._change_consumers()),
            asyncio.create_task(self._print_progress()),
        ]
        await self.recover()
        ends = loop.time() + seconds
        for steps in plan(self._seed):
            if loop.time() > ends or self.violations:
                break
            try:
                async with asyncio.timeout(GIVE_UP_AFTER * 3), asyncio.TaskGroup() as group:
                    for step in steps:
                        group.create_task(self._inject(step))
            except Exception as error:
                names = [step.fault.__name__ for step in steps]
                self.add_violation(f"{error!r} {getattr(error, 'exceptions', '')} in {names}")
            await self.recover()
        self._inspect()
        for task in steady:
            task.cancel()
        await asyncio.gather(*steady, return_exceptions=True)
        await self._end(before)

    async def _inject(self, step: Step) -> None:
        await asyncio.sleep(step.delay)
        self.faults[step.fault.__name__] += 1
        await step.fault(self, Random(step.seed))

    async def recover(self) -> None:
        """Wait until the server and all consumers have recovered; record the time since the last connection."""
        loop = asyncio.get_running_loop()
        self.consumers_fixed = True
        self.load.paused += 1
        self._inspect()
        began = loop.time()
        stale = self.mpx.stats().connections  # the proxy may have lost this connection without an error
        epoch, since, lag, published_epoch = stale, began, None, -1
        while not self.violations:
            await asyncio.sleep(0.005)
            if self.mpx.stats().connections != epoch:
                epoch, since, lag = self.mpx.stats().connections, loop.time(), None
            if loop.time() - began > GIVE_UP_AFTER:
                self.add_violation(f"no recovery within {GIVE_UP_AFTER} s: {self._differences()}")
            if lag is None:
                if not self.mpx.connected:
                    continue
                on_server = await retry_until_reached(lambda: subscribed(self.admin))
                taken = loop.time() - since
                if taken > self._settle + (DETECTION_TIME if epoch == stale else 0):
                    self.add_violation(
                        f"not as desired {taken:.3f} s after the last connection: {self._differences()}; "
                        f"the server has: {on_server}"
                    )
                elif on_server == self._desired() and all(c.is_active for c in (*self.consumers, *self.promise_makers)):
                    lag = taken
                else:
                    await self.kill_stale_connections()
            elif published_epoch != epoch:
                await self.load.publish(*CHANNELS)
                published_epoch = epoch
            elif not any(c.missing for c in self.consumers):
                self.recoveries += 1
                if epoch != stale:
                    self.lags.append(lag)
                break
        self._inspect()
        self.load.paused -= 1
        self.consumers_fixed = False

    def _desired(self) -> tuple[set[bytes], int]:
        """Return the channels that must be subscribed on the server, and the number of patterns."""
        channels = {channel for c in self.consumers if c.pattern is None for channel in c.sub.channels}
        return channels, len({c.pattern for c in self.consumers if c.pattern} | {a.name for a in self.promise_makers})

    def _differences(self) -> str:
        registry = self.mpx._hub.deployment.main.registry
        late = [(c.kind, c.sub, c.missing, c.checker.events[-6:]) for c in self.consumers if c.missing]
        channels, patterns = self._desired()
        return (
            f"{self.mpx!r}; desired: {len(channels)} channels, {patterns} patterns; inactive: "
            f"{[c.sub for c in (*self.consumers, *self.promise_makers) if not c.is_active][:5]}; "
            f"not up to date: {late[:5]}; "
            f"in flight: {registry.oldest_command}; {[e for e in registry._entries() if e.state.value != 'joined'][:5]}"
        )

    def _inspect(self) -> None:
        """Collect the violations of all checkers and of the log."""
        for consumer in (*self.consumers, *self.closed):
            self.violations += consumer.violations()
        self.violations += self.records.faults
        self.records.faults.clear()
        outages = self.records.warnings["no connection to Redis at %s; reconnecting (%s)"]
        if outages > self.mpx.stats().connections + 1:
            self.add_violation(f"{outages} warnings for {self.mpx.stats().connections} connections: at most one each")

    async def _print_progress(self) -> None:
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
        """Close everything, and check that no task or object is left."""
        began = time.monotonic()
        for consumer in self.consumers:
            consumer.checker.closed = True  # no event may arrive after the multiplexer is closed
        self.consumers_fixed = True
        await self.mpx.aclose()
        spent = time.monotonic() - began
        if spent > 2:
            self.add_violation(f"closing took {spent:.1f} s")
        for consumer in self.consumers:
            await consumer.close()
        for promise_maker in self.promise_makers:
            await promise_maker.close()
        await asyncio.gather(*self._background)
        await self.admin.aclose()
        await self.publisher.aclose()
        await asyncio.sleep(0.1)
        gc.collect()
        await asyncio.sleep(0)
        self.closed += self.consumers
        self.consumers.clear()
        self._inspect()
        left = {*asyncio.all_tasks(), *left_behind()} - before
        self.violations += [f"left behind: {item!r}" for item in left]


# --- faults


@contextmanager
def changed(thing: Flow | Proxy, **fields: Any) -> Iterator[None]:
    """Set these fields of the proxy inside the block; afterwards reset them to their defaults, whatever they were."""
    for name, value in fields.items():
        setattr(thing, name, value)
    try:
        yield
    finally:
        for name in fields:
            setattr(thing, name, getattr(Flow(), name, None))


async def client_kill(run: Run, rng: Random) -> None:
    for _ in range(rng.randrange(1, 4)):
        await run.command("CLIENT", "KILL", "TYPE", "pubsub")
        await asyncio.sleep(rng.uniform(0, 0.2))


async def cut(run: Run, rng: Random) -> None:
    run.proxy.cut()


async def reset(run: Run, rng: Random) -> None:
    run.proxy.reset()


async def blackhole(run: Run, rng: Random) -> None:
    with changed(run.proxy.to_server, hole=True), changed(run.proxy.to_client, hole=True):
        await asyncio.sleep(rng.uniform(0.05, 1.5))


async def blackhole_to_server(run: Run, rng: Random) -> None:
    with changed(run.proxy.to_server, hole=True):
        await asyncio.sleep(rng.uniform(0.05, 1.5))


async def blackhole_to_client(run: Run, rng: Random) -> None:
    with changed(run.proxy.to_client, hole=True):
        await asyncio.sleep(rng.uniform(0.05, 1.5))


async def stall_to_server(run: Run, rng: Random) -> None:
    with changed(run.proxy.to_server, stall=True):
        await asyncio.sleep(rng.uniform(0.1, 2))


async def stall_to_client(run: Run, rng: Random) -> None:
    with changed(run.proxy.to_client, stall=True):
        await asyncio.sleep(rng.uniform(0.1, 2))


async def delay(run: Run, rng: Random) -> None:
    with changed(rng.choice((run.proxy.to_server, run.proxy.to_client)), delay=rng.uniform(0.02, 0.3)):
        await asyncio.sleep(rng.uniform(0.3, 1))


async def small_pieces(run: Run, rng: Random) -> None:
    size = rng.choice((1, 2, 7, 50))
    with changed(run.proxy.to_server, chunk=size), changed(run.proxy.to_client, chunk=size):
        await asyncio.sleep(rng.uniform(0.3, 1))


async def corrupt_a_frame(run: Run, rng: Random) -> None:
    """Change the type byte of one element, so that the parser reports an error."""
    left = 1

    def corrupt(piece: bytes) -> bytes:
        nonlocal left
        if not left or b"\r\n$" not in piece:
            return piece
        left -= 1
        return piece.replace(b"\r\n$", b"\r\nX", 1)

    with changed(run.proxy.to_client, corrupt=corrupt):
        await asyncio.sleep(0.3)


async def corrupt_payloads(run: Run, rng: Random) -> None:
    """Change a digit in some payloads. The protocol stays valid, so each message still counts as received."""

    def corrupt(piece: bytes) -> bytes:
        at = piece.find(b"#")
        if at < 0 or at + 1 == len(piece):
            return piece
        run.corrupted += 1
        return piece[: at + 1] + bytes([piece[at + 1] ^ 1]) + piece[at + 2 :]

    with changed(run.proxy.to_client, corrupt=corrupt):
        await asyncio.sleep(rng.uniform(0.05, 0.3))


async def corrupt_commands(run: Run, rng: Random) -> None:
    """Change bytes of our commands. The new connection at the end subscribes again to names that were rejected."""

    def corrupt(piece: bytes) -> bytes:
        at = rng.randrange(len(piece))
        return piece[:at] + bytes([piece[at] ^ rng.randrange(1, 256)]) + piece[at + 1 :]

    with changed(run.proxy.to_server, corrupt=corrupt):
        await asyncio.sleep(rng.uniform(0.05, 0.5))
    await run.kill_connections()


async def close_after_limit(run: Run, rng: Random) -> None:
    with changed(run.proxy.to_client, limit=rng.randrange(10_000)):
        await asyncio.sleep(rng.uniform(0.1, 0.6))


async def refuse_connections(run: Run, rng: Random) -> None:
    with changed(run.proxy, refusing=True):
        run.proxy.reset()
        await asyncio.sleep(rng.uniform(0.05, 1))


async def stop_listening(run: Run, rng: Random) -> None:
    run.proxy.stop_listening()
    run.proxy.cut()
    await asyncio.sleep(rng.uniform(0.05, 1))
    run.proxy.listen_again()


async def idle_drop(run: Run, rng: Random) -> None:
    run.load.paused += 1
    with changed(run.proxy, idle_limit=0.1):
        await asyncio.sleep(rng.uniform(0.2, 1))
        run.load.paused -= 1
        await asyncio.sleep(0.2)


async def server_killed(run: Run, rng: Random) -> None:
    async with run.server_turn:
        run.server.kill()
        await asyncio.sleep(rng.uniform(0, 1))
        await run.restart_server()


async def server_frozen_briefly(run: Run, rng: Random) -> None:
    await _freeze(run, rng.uniform(0.05, 0.4))


async def server_frozen_long(run: Run, rng: Random) -> None:
    await _freeze(run, rng.uniform(1.2, 2.5))


async def _freeze(run: Run, seconds: float) -> None:
    async with run.server_turn:
        run.server.freeze()
        await asyncio.sleep(seconds)
        run.server.thaw()


async def server_killed_while_frozen(run: Run, rng: Random) -> None:
    async with run.server_turn:
        run.server.freeze()
        await asyncio.sleep(rng.uniform(0.05, 0.5))
        run.server.kill()
        await run.restart_server()


async def server_paused_briefly(run: Run, rng: Random) -> None:
    await run.command("CLIENT", "PAUSE", str(rng.randrange(50, 400)), "ALL")


async def server_paused_long(run: Run, rng: Random) -> None:
    await run.command("CLIENT", "PAUSE", str(rng.randrange(1200, 2500)), "ALL")
    await run.command("PING")  # its reply comes when the pause is over


async def permission_revoked(run: Run, rng: Random) -> None:
    """Forbid some names for a while. The new connection at the end spares the minute until the next retry."""
    names = rng.sample([*GUARDED, *GROUPS], 2)
    run.forbidden.update(names)
    await run.apply_permissions()
    await asyncio.sleep(rng.uniform(0.1, 1))
    run.forbidden.difference_update(names)
    await run.apply_permissions()
    await run.kill_connections()


async def misbehaving_consumers(run: Run, rng: Random) -> None:
    """Add consumers that raise, hang or are slow for a while."""
    bad = [run.new_consumer(kind) for kind in ("raising", "hanging", "slow") for _ in range(5)]
    await asyncio.sleep(rng.uniform(0.3, 1))
    for consumer in bad:
        run.drop(consumer)


async def loop_blocked(run: Run, rng: Random) -> None:
    time.sleep(rng.uniform(0.1, 1.3))


FAULTS: list[Callable[[Run, Random], Awaitable[None]]] = [
    client_kill, cut, reset, blackhole, blackhole_to_server, blackhole_to_client, stall_to_server, stall_to_client,
    delay, small_pieces, corrupt_a_frame, corrupt_payloads, corrupt_commands, close_after_limit, refuse_connections,
    stop_listening, idle_drop, server_killed, server_frozen_briefly, server_frozen_long, server_killed_while_frozen,
    server_paused_briefly, server_paused_long, permission_revoked, misbehaving_consumers, loop_blocked,
]  # fmt: skip


class Step(NamedTuple):
    """One fault of a round."""

    delay: float  # seconds after the start of the round
    fault: Callable[[Run, Random], Awaitable[None]]
    seed: int  # of the random numbers for this fault


def plan(seed: int) -> Iterator[list[Step]]:
    """Yield the faults of each round, without end. Each fault comes once before any fault is repeated."""
    rng = Random(seed)
    remaining: list[Callable[[Run, Random], Awaitable[None]]] = []
    while True:
        steps = []
        for _ in range(rng.choice((1, 1, 2, 3))):
            if not remaining:
                remaining = rng.sample(FAULTS, len(FAULTS))
            steps.append(Step(rng.uniform(0, 0.4), remaining.pop(), rng.randrange(2**32)))
        yield steps


# --- the command


def chaos(flavour: str, seconds: float, seed: int, settle: float) -> list[str]:
    """Run, print the results and return the violations."""
    binary = find_binary(flavour)
    assert binary is not None, f"{flavour}-server is not installed"
    sockets = open_sockets()
    unraisable: list[str] = []
    hook = sys.unraisablehook
    sys.unraisablehook = lambda args: unraisable.append(f"{args.exc_value!r} in {args.object!r}")
    loggers = [logging.getLogger(name) for name in ("redismpx", "asyncio")]
    server = Server(binary).start()
    try:
        with Proxy(server.port) as proxy:

            async def run_with_logging() -> Run:
                run = Run(server, proxy, seed, settle)
                for logger in loggers:
                    logger.addHandler(run.records)
                    logger.propagate = False
                loggers[0].setLevel(logging.DEBUG)
                try:
                    await run.run(seconds)
                finally:
                    for logger in loggers:
                        logger.removeHandler(run.records)
                        logger.propagate = True
                    loggers[0].setLevel(logging.NOTSET)
                return run

            run = asyncio.run(run_with_logging())
    finally:
        server.remove()
        gc.collect()
        sys.unraisablehook = hook
    run.violations += unraisable
    if open_sockets() > sockets:
        run.add_violation(f"{open_sockets() - sockets} sockets are still open")
    print(run.summary())
    print(f"faults: {dict(run.faults)}")
    print(f"warnings: {dict(run.records.warnings)}")
    if run.violations:
        print("the last log records:", *run.records.last, sep="\n  ")
        for violation in run.violations[:10]:
            print("VIOLATION:", violation)
    print(f"{flavour}, seed {seed}: {len(run.violations)} violations")
    return run.violations


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="duration (60)")
    parser.add_argument("--seed", type=int, default=Random().randrange(10**6), help="decides all faults (random)")
    parser.add_argument("--server", default="valkey", choices=("valkey", "redis"), help="(valkey)")
    parser.add_argument("--settle", type=float, default=1.0, help="seconds until a connection has all names (1)")
    parser.add_argument("--broken", metavar="TEXT", help="run with a fault of tools.mutants")
    options = parser.parse_args(arguments)
    if options.broken is None:
        return int(bool(chaos(options.server, options.seconds, options.seed, options.settle)))
    (mutant,) = [mutant for mutant in MUTANTS if options.broken in mutant.fault]
    print(f"with this fault in the package: {mutant.fault}", flush=True)
    with broken_copy(mutant) as folder:
        command = [sys.executable, "-m", "tools.chaos"]
        for name in ("seconds", "seed", "server", "settle"):
            command += [f"--{name}", str(getattr(options, name))]
        return subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": folder}, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
