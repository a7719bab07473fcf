"""Streams: connections that are lost in every way, histories that are trimmed and flushed, consumers that are slow."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, NamedTuple

import redis

from redismpx import (
    ConnectionLost,
    MessageGap,
    Multiplexer,
    SlowConsumer,
    StreamMessage,
    StreamSubscription,
    SubscriptionIsClosed,
)
from tests.helpers.proxy import Proxy

from ..scenes import Scene, admin_of, arrived, require

FAULTY = 2.0  # seconds of faults in one scene
STREAMS = 10
PUBLISHERS = 8
FOLLOWERS = 60


def key_of(entry_id: bytes) -> tuple[int, int]:
    milliseconds, _, number = entry_id.partition(b"-")
    return int(milliseconds), int(number)


class Truth:
    """Everything that was appended to one stream: one clock gives the ids, so their order is that of the calls."""

    def __init__(self) -> None:
        self.appended: dict[tuple[int, int], bytes] = {}
        self.unknowable: set[tuple[int, int]] = set()
        """Entries of others that were deleted with the whole stream before anybody looked for them."""
        self.ends: list[tuple[int, int]] = []
        """The last ids of the histories that were deleted."""
        self._keys: list[tuple[int, int]] = []

    @property
    def keys(self) -> list[tuple[int, int]]:
        if len(self._keys) != len(self.appended):
            self._keys = sorted(self.appended)
        return self._keys

    def lost_between(self, after: tuple[int, int], before: tuple[int, int]) -> int:
        """How many messages were appended between two others."""
        if after == (0, 0):  # nothing tells a history that is gone from none
            after = max([end for end in self.ends if end < before], default=after)
        keys = self.keys[bisect_right(self.keys, after) : bisect_left(self.keys, before)]
        return len([key for key in keys if key not in self.unknowable])


class Track(NamedTuple):
    """What a subscription got of one stream. Checked at the end: an append may be delivered before its call returns."""

    name: bytes
    start: bytes | None
    events: list[tuple[int, int] | MessageGap]
    data: dict[tuple[int, int], bytes]


class Follower:
    """A stream subscription, and what it got of each stream since it was added."""

    def __init__(self, mpx: Multiplexer, rng: Any, kind: str) -> None:
        self.kind = kind
        self.rng = rng
        self.got: dict[bytes, list[tuple[int, int] | MessageGap]] = {}
        self.starts: dict[bytes, bytes | None] = {}
        self.data: dict[bytes, dict[tuple[int, int], bytes]] = {}
        self.past: list[Track] = []
        """What it got of the streams that were removed."""
        self.errors: list[Exception] = []
        on_message: Any = {"plain": self.on_message, "async": self.wait, "slow": self.wait_long}.get(kind)
        reads = kind == "read"
        self.sub: StreamSubscription[bytes] = mpx.new_stream_subscription(
            on_message,
            None if reads else self.on_gap,
            on_error=self.errors.append,
            max_pending=rng.choice((5, 50, 10_000)),
        )
        self.task = asyncio.create_task(self.read()) if reads else None

    def add(self, name: bytes, after: bytes | None) -> None:
        self.got[name], self.data[name] = [], {}
        self.starts[name] = after
        self.sub.add(name, after=after)

    def on_message(self, message: StreamMessage[bytes]) -> None:
        events = self.got.get(message.channel)
        if events is not None:
            events.append(key_of(message.id))
            self.data[message.channel][key_of(message.id)] = message.data

    def on_gap(self, gap: MessageGap) -> None:
        if gap.channel in self.got:
            self.got[gap.channel].append(gap)

    def wait(self, message: StreamMessage[bytes]) -> Awaitable[object]:
        self.on_message(message)
        return asyncio.sleep(0)

    def wait_long(self, message: StreamMessage[bytes]) -> Awaitable[object]:
        self.on_message(message)
        return asyncio.sleep(0.002)

    async def read(self) -> None:
        with suppress(SubscriptionIsClosed):
            async for event in self.sub.events():
                if isinstance(event, StreamMessage):
                    self.on_message(event)
                elif isinstance(event, MessageGap):
                    self.on_gap(event)
                if self.rng.random() < 0.01:
                    await asyncio.sleep(0.01)

    def last(self, name: bytes) -> tuple[int, int] | None:
        events = self.got[name]
        return events[-1] if events and not isinstance(events[-1], MessageGap) else None

    def track(self, name: bytes) -> Track:
        return Track(name, self.starts[name], self.got[name], self.data[name])

    def leave(self, name: bytes) -> None:
        """Stop to note what it gets of a stream."""
        if self.starts[name] is not None:
            self.past.append(self.track(name))
        del self.got[name]

    def check(self, track: Track, truth: Truth) -> tuple[int, int]:
        """Check what was delivered of a stream; return the number of messages and of gaps."""
        name, start, events, data = track
        last: tuple[int, int] | None = None if not start or start == b"0" else key_of(start)
        open_gap: MessageGap | None = None
        gaps = 0
        for number, event in enumerate(events):
            if isinstance(event, MessageGap):
                # A gap without a first message behind it ends at a position that it does not tell.
                is_known = last is not None and (open_gap is None or open_gap.before is not None)
                place = f"{event!r} stands behind {last}: {events[max(0, number - 3) : number]}"
                require(not is_known or key_of(event.after) == last, place)
                # The first message behind a gap may be lost, too, before the consumer gets it: the next gap is longer.
                is_longer = open_gap is None or None in (open_gap.before, event.before)
                is_longer = is_longer or key_of(event.before) > key_of(open_gap.before)  # type: ignore[union-attr, arg-type]
                require(is_longer, f"{open_gap}, then {event}")
                open_gap, gaps = event, gaps + 1
                last = key_of(event.after)
                continue
            require(event in truth.appended, f"{event} on {name!r} was never appended")
            require(truth.appended[event] == data[event], f"{event} on {name!r} has another payload")
            require(last is None or event > last, f"{self.kind}: {event} after {last} on {name!r}")
            if open_gap is not None:
                require(open_gap.before is None or key_of(open_gap.before) == event, f"{open_gap}, then {event}")
            elif last is not None:
                lost = truth.lost_between(last, event)
                require(not lost, f"{self.kind}: {lost} lost between {last} and {event} on {name!r} without a gap")
            last, open_gap = event, None
        return len(events) - gaps, gaps


class Streams(Scene):
    """Streams under all faults: connections that are killed, reset, cut in the middle of a message and frozen,
    histories that are trimmed and flushed, entries of others, subscriptions that come and go and are slow. Nothing is
    lost without a gap, doubled or out of order, while a plain subscription on the same connection misses messages."""

    def set_up(self) -> None:
        self.server = self.start_server()
        self.admin = admin_of(self.server)
        self.admin.config_set("client-output-buffer-limit", "pubsub 0 0 0")

    async def play(self) -> None:
        rng = self.rng
        self.admin.flushall()
        self.names = [b"%d{%d}" % (number, number % 3) if number % 2 else b"s%d" % number for number in range(STREAMS)]
        self.truths = {name: Truth() for name in self.names}
        self.is_over = False
        with Proxy(self.server.port) as proxy:
            options: dict[str, Any] = {"ping_interval": 0.2, "ping_timeout": 0.2, "tail_interval": 0.4}
            async with (
                self.multiplexer(f"redis://127.0.0.1:{proxy.port}", **options) as mpx,
                self.multiplexer(self.server.url) as writer,
            ):
                self.followers = [
                    Follower(mpx, rng, rng.choice(("plain", "plain", "async", "slow", "read")))
                    for _ in range(FOLLOWERS)
                ]
                plain: set[bytes] = set()
                witness = mpx.new_channel_subscription(lambda channel, raw: plain.add(raw))
                witness.add(*self.names)
                for follower in self.followers:
                    for name in rng.sample(self.names, rng.randrange(1, 4)):
                        follower.add(name, rng.choice((None, b"0")))
                for follower in self.followers:
                    await follower.sub.wait_for_activation(timeout=10)
                    self.note_starts(follower)
                publishers = [asyncio.create_task(self.publish(writer, number)) for number in range(PUBLISHERS)]
                await self.inject(proxy)
                self.is_over = True
                await asyncio.gather(*publishers)
                await self.settle(writer)
                for follower in self.followers:
                    follower.sub.close()
                    if follower.task is not None:
                        await follower.task
        self.check(plain)

    def note_starts(self, follower: Follower) -> None:
        for name in follower.sub.channels:
            if follower.starts[name] is None:
                follower.starts[name] = follower.sub.position(name)

    async def publish(self, mpx: Multiplexer, number: int) -> None:
        """Append to random streams, once each, whatever happens."""
        rng, count = self.rng, 0
        while not self.is_over:
            name = rng.choice(self.names)
            data, count = b"%d:%d" % (number, count), count + 1
            await self.append(mpx, name, data)
            await asyncio.sleep(rng.uniform(0, 0.004))

    async def append(self, mpx: Multiplexer, name: bytes, data: bytes) -> bytes:
        while True:
            with suppress(ConnectionLost):
                entry_id = await mpx.append(name, data, key=data, max_length=self.rng.choice((100, 1_000)))
                self.truths[name].appended[key_of(entry_id)] = data
                return entry_id

    async def inject(self, proxy: Proxy) -> None:
        """Let a fault happen every few hundredths of a second."""
        faults: list[Callable[[], object]] = [
            self.kill, self.kill, proxy.cut, proxy.reset, self.kill_publisher, self.trim, self.add_foreign,
            self.come_and_go, self.come_and_go, self.come_and_go, self.flush,
        ]  # fmt: skip
        ends = time.monotonic() + FAULTY
        while time.monotonic() < ends:
            fault = self.rng.choice(faults)
            name = getattr(fault, "__name__", "")
            if fault == self.flush and self.rng.random() < 0.7:
                continue
            kind = self.rng.random()
            if kind < 0.1:
                self.seen["cut in a message"] += 1
                proxy.to_client.limit = self.rng.randrange(1_000, 5_000)
                await asyncio.sleep(0.1)
                proxy.to_client.limit = None
                proxy.reset()
            elif kind < 0.13:
                self.seen["freeze"] += 1
                proxy.to_client.stall = True
                await asyncio.sleep(0.5)
                proxy.to_client.stall = False
            else:
                self.seen[name] += 1
                fault()
            await asyncio.sleep(self.rng.uniform(0, 0.06))

    def kill(self) -> None:
        self.admin.client_kill_filter(_type="pubsub", skipme=True)

    def kill_publisher(self) -> None:
        self.admin.client_kill_filter(_type="normal", skipme=True)

    def trim(self) -> None:
        with suppress(redis.ResponseError):
            self.admin.xtrim(self.rng.choice(self.names), maxlen=self.rng.choice((0, 5, 50)), approximate=False)

    def flush(self) -> None:
        """Delete everything. Keys that make append() idempotent are needed until the call has ended."""
        for name in self.names:
            entries: Any = self.admin.xrevrange(name, count=20)
            with suppress(redis.ResponseError):
                self.truths[name].ends.append(key_of(self.admin.xinfo_stream(name)["last-generated-id"]))
            for entry_id, fields in entries:
                if b"prev" in fields:
                    break
                self.truths[name].unknowable.add(key_of(entry_id))
            self.admin.delete(name)

    def add_foreign(self) -> None:
        name = self.rng.choice(self.names)
        entry_id: Any = self.admin.xadd(name, {"data": "foreign"})
        self.truths[name].appended[key_of(entry_id)] = b"foreign"

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
