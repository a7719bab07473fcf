"""What was appended to streams, and what subscriptions get of them."""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, NamedTuple

from redismpx import MessageGap, Multiplexer, StreamMessage, StreamSubscription, SubscriptionIsClosed

from .scenes import require


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
        self.forks: list[tuple[tuple[int, int], tuple[int, int]]] = []
        """For each failover that has lost messages: the last id that both servers had, and the last id that is lost."""
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
        gone = [fork for fork in self.forks if fork[1] < before]  # no server has these messages any more
        keys = [key for key in keys if not any(kept < key <= end for kept, end in gone)]
        return len([key for key in keys if key not in self.unknowable])

    def is_forked(self, after: tuple[int, int], before: tuple[int, int]) -> bool:
        """Tell whether a failover has lost the first of two messages before the second was appended."""
        return any(kept < after <= end < before for kept, end in self.forks)

    def fork(self, tail: Any, last: bytes, kept: bytes) -> int:
        """Take the last entries that a primary had when it was killed, and the last id that it gave out.

        `kept` is the last id that its replica knows of; what came after that is lost. The entries do not tell: the
        stream may have been trimmed to nothing on the one or the other. Return how many of the entries are lost.
        """
        entries = {key_of(entry_id): fields[b"data"] for entry_id, fields in tail}
        self.appended |= entries
        if key_of(kept) < key_of(last):
            self.forks.append((key_of(kept), key_of(last)))
        return len([key for key in entries if key > key_of(kept)])


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
                place = f"{self.kind}: {event} on {name!r} after {last}, which a failover has lost, without a gap"
                require(not truth.is_forked(last, event), place)
                lost = truth.lost_between(last, event)
                require(not lost, f"{self.kind}: {lost} lost between {last} and {event} on {name!r} without a gap")
            last, open_gap = event, None
        return len(events) - gaps, gaps
