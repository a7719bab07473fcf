"""One run: all faults at random moments, under load."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import Counter
from contextlib import suppress
from random import Random
from typing import Any

import redis.exceptions
from redis.asyncio import Redis
from redis.backoff import FullJitterBackoff

from redismpx import Multiplexer
from redismpx.testing import Proxy
from tests.helpers.leaks import left_behind
from tests.helpers.monitor import subscribed
from tests.helpers.servers import Server, find_binary

from .consumers import GIVE_UP_AFTER, Consumer, PromiseMaker
from .faults import Step, plan
from .load import CHANNELS, GROUPS, PERMISSIONS, PREFIXES, Load, retry_until_reached
from .records import PASSWORD, Records, recorded
from .surroundings import nothing_left_behind, server_context

PING_INTERVAL = PING_TIMEOUT = 0.5
DETECTION_TIME = 3.0  # seconds within which pings detect a connection that is lost without an error
CONSUMERS = 250


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
            **({"ssl_cert_reqs": "none"} if proxy.url.startswith("rediss:") else {}),
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


def chaos(flavour: str, seconds: float, seed: int, settle: float, tls: bool = False) -> list[str]:
    """Run, print the results and return the violations. With `tls`, the multiplexer connects to the proxy by TLS."""
    binary = find_binary(flavour)
    assert binary is not None, f"{flavour}-server is not installed"
    violations: list[str] = []
    with nothing_left_behind(violations):
        server = Server(binary).start()
        try:
            with Proxy(server.port, server_context() if tls else None) as proxy:

                async def run_with_logging() -> Run:
                    run = Run(server, proxy, seed, settle)
                    with recorded(run.records):
                        await run.run(seconds)
                    return run

                run = asyncio.run(run_with_logging())
        finally:
            server.remove()
    violations[:0] = run.violations
    print(run.summary())
    print(f"faults: {dict(run.faults)}")
    print(f"warnings: {dict(run.records.warnings)}")
    if violations:
        run.records.print_last()
        for violation in violations[:10]:
            print("VIOLATION:", violation)
    print(f"{flavour}, seed {seed}: {len(violations)} violations")
    return violations
