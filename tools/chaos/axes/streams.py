"""Streams: connections that are lost in every way, servers that are killed, histories that are trimmed and flushed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from inspect import isawaitable
from typing import Any, NamedTuple

import redis
from redis.crc import key_slot
from redis.exceptions import ClusterDownError

from redismpx import ConnectionLost, Multiplexer, SlowConsumer
from redismpx._core.scripts import once_key
from redismpx.testing import Proxy
from tests.helpers.servers import Server

from ..followers import Follower, Truth, key_of
from ..scenes import Scene, admin_of, arrived, require

DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--client-output-buffer-limit", "pubsub", "0", "0", "0",
           "--repl-diskless-sync-delay", "0")  # fmt: skip
"""Options of a server that keeps what it has acknowledged, when it is killed."""
OPTIONS: dict[str, Any] = {"ping_interval": 0.2, "ping_timeout": 0.2, "tail_interval": 0.4}
TAIL = 100  # entries of each stream that a failover may lose


class Size(NamedTuple):
    """How much there is in one scene, and how fast."""

    readers: int
    """The number of multiplexers that get messages, each over a connection of its own."""
    streams: int
    publishers: int
    followers: int
    seconds: float
    """The duration of the faults."""
    publish_pause: float
    """The longest pause of a publisher, in seconds."""
    fault_pause: float
    """The longest pause between two faults, in seconds."""
    slow: int
    """How often faults happen that take long."""


SMALL = Size(1, 10, 8, 60, 2.0, 0.004, 0.06, 10)
FULL = Size(10, 50, 20, 500, 20.0, 0.2, 0.01, 1)
"""The size of scenes that are played until a number of losses."""


class Reader(NamedTuple):
    """A multiplexer that gets messages, and its proxy, if it has one."""

    mpx: Multiplexer
    proxy: Any = None


class Streams(Scene):
    """Streams of a primary and its replica under all faults: connections that are killed, reset, cut in the middle of a
    message and frozen, a primary that is killed and restarted or replaced by a replica that lacks the last messages,
    histories that are trimmed and flushed, entries of others, subscriptions that come and go and are slow. Nothing is
    lost without a gap, doubled or out of order, while a plain subscription on the same connection misses messages."""

    is_cluster = False
    max_lengths: tuple[int | None, ...] = (100, 1_000)

    def set_up(self) -> None:
        self.primary = self.start_server(*DURABLE)
        self.replica = self.start_server(*DURABLE, "--replicaof", f"127.0.0.1 {self.primary.port}")
        self.admins: dict[Server, redis.Redis] = {server: admin_of(server) for server in self.servers}

    async def play(self) -> None:
        rng = self.rng
        self.size = FULL if self.losses else SMALL
        names = range(self.size.streams)
        self.names = [b"%d{%d}" % (number, number % 3) if number % 2 else b"s%d" % number for number in names]
        self.truths = {name: Truth() for name in self.names}
        await self.begin()
        self.is_over = False
        plain: set[bytes] = set()
        async with AsyncExitStack() as stack:
            self.readers = [await self.new_reader(stack) for _ in range(self.size.readers)]
            writer = await self.new_writer(stack)
            self.followers = [
                Follower(rng.choice(self.readers).mpx, rng, rng.choice(("plain", "plain", "async", "slow", "read")))
                for _ in range(self.size.followers)
            ]
            reader = self.readers[0].mpx
            witness = reader.new_channel_subscription(lambda channel, raw: plain.add(raw), sharded=self.is_cluster)
            witness.add(*self.names)
            for follower in self.followers:
                for name in rng.sample(self.names, rng.randrange(1, 4)):
                    follower.add(name, rng.choice((None, b"0")))
            for follower in self.followers:
                await follower.sub.wait_for_activation(timeout=20)
                self.note_starts(follower)
            publishers = [asyncio.create_task(self.publish(writer, number)) for number in range(self.size.publishers)]
            await self.inject()
            self.seen["connections"] += sum(reader.mpx.stats().connections for reader in self.readers)
            self.is_over = True
            await asyncio.gather(*publishers)
            await self.settle(writer)
            for follower in self.followers:
                follower.sub.close()
                if follower.task is not None:
                    await follower.task
        self.check(plain)

    async def begin(self) -> None:
        """Delete what the last scene has left."""
        self.admins[self.primary].flushall()

    async def new_reader(self, stack: AsyncExitStack) -> Reader:
        """Return a multiplexer that ends with the stack."""
        proxy = stack.enter_context(Proxy(self.primary.port))
        mpx = await stack.enter_async_context(self.multiplexer(proxy.url, **OPTIONS))
        return Reader(mpx, proxy)

    async def new_writer(self, stack: AsyncExitStack) -> Multiplexer:
        """Return a multiplexer that publishes, by a proxy of its own."""
        self.writer_proxy = stack.enter_context(Proxy(self.primary.port))
        return await stack.enter_async_context(self.multiplexer(self.writer_proxy.url))

    def admin_for(self, name: bytes) -> redis.Redis:
        """Return a client of the server that has a stream."""
        return self.admins[self.primary]

    def note_starts(self, follower: Follower) -> None:
        for name in follower.sub.channels:
            if follower.starts[name] is None:
                follower.starts[name] = follower.sub.position(name)

    async def publish(self, mpx: Multiplexer, number: int) -> None:
        """Append to random streams, once each, whatever happens."""
        count = 0
        while not self.is_over:
            name = self.rng.choice(self.names)
            data, count = b"%d:%d" % (number, count), count + 1
            await self.append(mpx, name, data)
            await self.pause(self.size.publish_pause)

    async def append(self, mpx: Multiplexer, name: bytes, data: bytes) -> bytes:
        while True:
            with suppress(ConnectionLost, ClusterDownError):  # no server owns the slot now
                entry_id = await mpx.append(name, data, key=data, max_length=self.rng.choice(self.max_lengths))
                self.truths[name].appended[key_of(entry_id)] = data
                return entry_id

    async def inject(self) -> None:
        """Let a fault happen every few hundredths of a second."""
        faults = self.faults()
        ends = time.monotonic() + self.size.seconds
        while time.monotonic() < ends and not 0 < self.losses <= self.seen["losses"]:
            (fault,) = self.rng.choices(list(faults), list(faults.values()))
            lost = fault()
            if isawaitable(lost):
                lost = await lost
            self.seen[fault.__name__] += lost != 0
            self.seen["losses"] += lost or 0
            await self.pause(self.size.fault_pause)
            while not self.connected() and self.rng.random() < 0.98:  # most faults need a connection to end
                await self.pause(0.002)

    async def pause(self, longest: float) -> None:
        await asyncio.sleep(self.rng.uniform(0, longest))

    def connected(self) -> int:
        """Return the number of readers that have a connection."""
        return sum(reader.mpx.connected for reader in self.readers)

    def faults(self) -> dict[Callable[[], Any], int]:
        """Return what may happen, and how often. Each returns how many connections or histories are lost, or None."""
        return {
            self.kill: 80, self.cut: 80, self.reset: 80, self.cut_in_a_message: 10, self.trim: 40, self.flush: 5,
            self.freeze: self.size.slow, self.restart: self.size.slow, self.fail_over: self.size.slow,
            self.kill_publisher: 10, self.add_foreign: 20, self.come_and_go: 60,
        }  # fmt: skip

    # --- connections

    def kill(self) -> int:
        return sum(int(admin.client_kill_filter(_type="pubsub", skipme=True)) for admin in self.admins.values())

    def kill_publisher(self) -> None:
        for admin in self.admins.values():
            admin.client_kill_filter(_type="normal", skipme=True)

    def cut(self) -> int:
        reader = self.rng.choice(self.readers)
        return bool(reader.proxy.cut()) & reader.mpx.connected

    def reset(self) -> int:
        reader = self.rng.choice(self.readers)
        return bool(reader.proxy.reset()) & reader.mpx.connected

    async def cut_in_a_message(self) -> int:
        proxy = self.rng.choice(self.readers).proxy
        proxy.to_client.limit = self.rng.randrange(1_000, 5_000)
        await asyncio.sleep(0.05)
        proxy.to_client.limit = None
        proxy.reset()
        return 1

    async def freeze(self) -> int:
        proxy = self.rng.choice(self.readers).proxy
        proxy.to_client.stall = True
        await asyncio.sleep(0.5)
        proxy.to_client.stall = False
        return 1  # the pings have found it

    # --- servers

    async def restart(self) -> int:
        """Kill the primary, which has everything on disk, and start it again."""
        info: Any = self.admins[self.primary].info("persistence")
        if info["aof_rewrite_in_progress"] or info["aof_rewrite_scheduled"]:  # not yet, after it was a replica
            return 0
        lost = self.connected()
        self.primary.kill()
        await self.start(self.primary)
        return lost

    async def start(self, server: Server) -> None:
        self.admins[server].connection_pool.disconnect()
        await asyncio.to_thread(server.start)
        self.admins[server].ping()

    async def fail_over(self) -> int:
        """Kill the primary and have its replica take over, which lacks the last messages or, with WAIT, none."""
        old, new = self.primary, self.replica
        role: Any = self.admins[new].execute_command("ROLE")
        if role[2:4] != [old.port, b"connected"]:
            return 0  # not yet, after the last time
        self.replicate(old)
        if is_stale := self.rng.random() < 0.7:
            self.admins[new].replicaof("NO", "ONE")
            await self.pause(0.1)
        lost = self.connected()
        tails = self.end(old)
        if not is_stale:
            self.replicate(old)
            self.admins[new].replicaof("NO", "ONE")
        self.primary, self.replica = new, old
        self.compare(tails)
        old.kill()
        for proxy in (self.writer_proxy, *(reader.proxy for reader in self.readers)):
            proxy.target = new.port
        old.options, new.options = (*DURABLE, "--replicaof", f"127.0.0.1 {new.port}"), DURABLE
        await self.start(old)
        return lost

    def replicate(self, server: Server) -> None:
        """Wait until the replica of a server has all that the server has."""
        name = self.names_of(server)[0]
        self.admins[server].set(once_key(name, b"replicated", key_slot), 1)
        require(self.admins[server].wait(1, 10_000), "the replica does not replicate")

    def names_of(self, server: Server) -> list[bytes]:
        """Return the names of the streams that a server has."""
        return [name for name in self.names if self.admin_for(name) is self.admins[server]]

    def end(self, server: Server) -> dict[bytes, tuple[Any, bytes]]:
        """Kill all clients of a primary, so that nothing is added to its streams any more.

        Return the last entries of each stream, and the last id that it gave out.
        """
        admin = self.admins[server]
        for kind in ("pubsub", "normal"):
            admin.client_kill_filter(_type=kind, skipme=True)
        names = self.names_of(server)
        return {name: (admin.xrevrange(name, count=TAIL), last_id(admin, name)) for name in names}

    def compare(self, tails: dict[bytes, tuple[Any, bytes]]) -> None:
        """Take note of what the server of a stream does not have any more."""
        for name, (tail, last) in tails.items():
            kept = last_id_until(last, self.admin_for(name), name)
            self.seen["lost by failovers"] += self.truths[name].fork(tail, last, kept)

    # --- histories

    def trim(self) -> int:
        name = self.rng.choice(self.names)
        with suppress(redis.ResponseError):
            return self.admin_for(name).xtrim(name, maxlen=self.rng.choice((0, 5, 50)), approximate=False) > 0
        return 0

    def flush(self) -> int:
        """Delete everything. Keys that make append() idempotent are needed until the call has ended."""
        deleted = 0
        for name in self.names:
            admin = self.admin_for(name)
            entries: Any = admin.xrevrange(name, count=20)
            self.truths[name].ends.append(key_of(last_id(admin, name)))
            for entry_id, fields in entries:
                if b"prev" in fields:
                    break
                self.truths[name].unknowable.add(key_of(entry_id))
            deleted += int(admin.delete(name))
        return deleted > 0

    def add_foreign(self) -> None:
        name = self.rng.choice(self.names)
        entry_id: Any = self.admin_for(name).xadd(name, {"data": "foreign"})
        self.truths[name].appended[key_of(entry_id)] = b"foreign"

    # --- subscriptions

    def come_and_go(self) -> None:
        """Remove a stream from a subscription, or add one at a position."""
        follower = self.rng.choice(self.followers)
        name = self.rng.choice(self.names)
        if name in follower.sub.channels:
            position = follower.sub.position(name)
            follower.sub.remove(name)
            follower.leave(name)
            if position is not None and self.rng.random() < 0.5:
                follower.add(name, position)
                self.seen["resumed"] += 1
        else:
            keys = self.truths[name].keys
            ids = [b"%d-%d" % key for key in self.rng.sample(keys, min(1, len(keys)))]
            follower.add(name, self.rng.choice([b"0", *ids]))

    async def settle(self, mpx: Multiplexer) -> None:
        """Append a last message to each stream, and wait until each subscription has it."""
        ends = {}
        for name in self.names:
            ends[name] = key_of(await self.append(mpx, name, b"the end"))

        def behind() -> list[str]:
            return [
                f"{f.kind} {name!r}: {f.got[name][-2:]} of {ends[name]}, {f.sub!r} "
                f"{f.sub._subscriber.cursors[name].state} {f.sub._subscriber.cursors[name].position!r}"
                for f in self.followers
                for name in f.sub.channels
                if f.last(name) != ends[name]
            ]

        await arrived(lambda: not behind(), lambda: "; ".join(behind()[:3]), 20)

    def check(self, plain: set[bytes]) -> None:
        messages = gaps = 0
        for follower in self.followers:
            for track in (*follower.past, *map(follower.track, follower.got)):
                counts = follower.check(track, self.truths[track.name])
                messages, gaps = messages + counts[0], gaps + counts[1]
            strange = [error for error in follower.errors if not isinstance(error, SlowConsumer)]
            require(not strange, f"on_error got {strange[:3]}")
            self.seen["slow consumers"] += len(follower.errors)
        appended = sum(len(truth.appended) for truth in self.truths.values())
        self.seen["appended"] += appended
        self.seen["delivered"] += messages
        self.seen["gaps"] += gaps
        self.seen["missed by a plain subscription"] += appended - len(plain)


def last_id(admin: redis.Redis, name: bytes) -> bytes:
    """Return the last id that a stream gave out; 0-0 if there is none."""
    with suppress(redis.ResponseError):  # there is no such stream
        found: Any = admin.xinfo_stream(name)
        last: bytes = found["last-generated-id"]
        return last
    return b"0-0"


def last_id_until(last: bytes, admin: redis.Redis, name: bytes) -> bytes:
    """Return the last id up to another one that a stream gave out; something may have been appended after that."""
    newest = last_id(admin, name)
    if key_of(newest) <= key_of(last):
        return newest
    later: Any = admin.xrange(name, b"(" + last, count=1)
    earlier: Any = admin.xrevrange(name, last, count=1)
    if later and b"prev" in later[0][1]:
        before: bytes = later[0][1][b"prev"]
        return before
    return earlier[0][0] if earlier else last
