"""Bounds for the figures of redismpx, most of them relative to another contestant of the same rounds."""

from __future__ import annotations

import enum
import math
import statistics
from typing import NamedTuple

from .harness import UNITS, Result


class Relation(enum.Enum):
    """How the figure of redismpx is compared with the bound."""

    TIMES = "at most {} x {}"
    TIMES_LESS = "at least {} x less than {}"
    BEYOND = "at most {} more than {}"
    AT_MOST = "at most {}"


class Target(NamedTuple):
    """A bound for redismpx in one case."""

    case: str
    relation: Relation
    limit: float
    against: str = "redismpx"
    metric: str = "cpu"

    def __str__(self) -> str:
        is_ratio = self.relation in (Relation.TIMES, Relation.TIMES_LESS)
        limit = f"{self.limit:g}" if is_ratio else f"{self.limit:g} {UNITS[self.metric]}"
        other = "the floor" if self.against == "floor" else self.against
        return f"{self.metric} {self.relation.value.format(limit, other)}"

    def measure(self, results: dict[str, Result]) -> float | None:
        """Return the median of the compared figures of all rounds, or None if a contestant is missing."""
        try:
            ours, others = (results[name].rounds[self.metric] for name in ("redismpx", self.against))
        except KeyError:
            return None
        pairs = [(our, other or math.nan) for our, other in zip(ours, others, strict=False)]
        if self.relation is Relation.TIMES:
            figures = [our / other for our, other in pairs]
        elif self.relation is Relation.TIMES_LESS:
            figures = [other / our for our, other in pairs]
        elif self.relation is Relation.BEYOND:
            figures = [our - other for our, other in pairs]
        else:
            figures = ours
        return statistics.median(figures)

    def judge(self, figure: float) -> str:
        """Return whether a figure meets the bound, and if not, by how much it misses it."""
        if self.is_met(figure):
            return "yes"
        if not self.limit:
            return "no"
        return f"no, by {abs(figure / self.limit - 1):.0%}"

    def is_met(self, figure: float) -> bool:
        return figure >= self.limit if self.relation is Relation.TIMES_LESS else figure <= self.limit


TARGETS = [
    Target("drain", Relation.TIMES, 1.35, "floor"),
    Target("drain", Relation.TIMES_LESS, 12, "redis-py"),
    Target("drain", Relation.TIMES_LESS, 7, "valkey-glide"),
    Target("drain", Relation.TIMES_LESS, 15, "broadcaster"),
    Target("drain-1k", Relation.TIMES, 1.5, "floor"),
    Target("drain-channels", Relation.TIMES, 1.5, "floor"),
    Target("drain-pattern", Relation.TIMES, 1.5, "floor"),
    Target("drain-coroutine", Relation.TIMES, 3, "floor"),
    Target("drain-iterator", Relation.TIMES, 3, "floor"),
    Target("readers", Relation.TIMES, 1, "queue"),
    Target("fan-out-10000", Relation.AT_MOST, 0.060),
    Target("fan-out-10000", Relation.TIMES, 2.5, "floor"),
    Target("fan-out-10000", Relation.TIMES, 1.5, "guarded"),
    Target("subscribe", Relation.TIMES, 2, "floor"),
    Target("subscribe", Relation.TIMES, 4, "floor"),
    Target("subscribe", Relation.AT_MOST, 50, metric="stall"),
    Target("resubscribe", Relation.TIMES, 2, "floor"),
    Target("resubscribe", Relation.TIMES, 3, "floor"),
    Target("resubscribe", Relation.AT_MOST, 50, metric="stall"),
    Target("memory", Relation.AT_MOST, 1024, metric="traced"),
    Target("promise", Relation.BEYOND, 6, "floor"),
    Target("promise", Relation.BEYOND, 0, "floor", metric="timer"),
    Target("publish-500", Relation.TIMES_LESS, 4, "redis-py"),
    Target("publish-500", Relation.TIMES_LESS, 1, "valkey-glide"),
    Target("publish-1", Relation.TIMES, 1, "redis-py"),
    Target("publish-1", Relation.TIMES, 1, "redis-py", metric="wall"),
    Target("request", Relation.TIMES_LESS, 3, "redis-py"),
    Target("request", Relation.TIMES, 1, "nats-py"),
    Target("latency", Relation.TIMES, 1.15, "floor", metric="p50"),
    Target("key-events", Relation.TIMES, 1.5, "floor", metric="p50"),
    Target("key-events", Relation.TIMES_LESS, 100, "redis-py", metric="p50"),
    Target("socketio", Relation.TIMES_LESS, 2, "python-socketio"),
    Target("channels-send", Relation.TIMES_LESS, 4, "channels_redis"),
    Target("channels-receive", Relation.TIMES, 1, "channels_redis"),
    Target("threads-listen", Relation.TIMES_LESS, 2.5, "redis-py"),
    Target("threads-publish", Relation.TIMES, 1, "redis-py"),
    Target("threads-calls", Relation.TIMES_LESS, 4, "redis-py"),
    Target("topics", Relation.TIMES, 1, "blinker"),
    Target("topics", Relation.TIMES_LESS, 2, "PyPubSub"),
    Target("append-500", Relation.TIMES, 2, "publish"),
    Target("append-500", Relation.TIMES_LESS, 4, "redis-py"),
    Target("stream-live", Relation.TIMES, 2.5, "channel"),
    Target("stream-history", Relation.TIMES_LESS, 3, "redis-py"),
    Target("stream-shared", Relation.TIMES_LESS, 4, "redis-py"),
    Target("stream-shared", Relation.TIMES_LESS, 4, "replayrail"),
]
