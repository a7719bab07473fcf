"""Case: what observers cost, for messages to one function, each of which comes with the others from the socket."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from redismpx import Multiplexer
from redismpx.observing import Observer

from .drain import Countdown
from .harness import Bench, Case
from .publisher import Publisher

MESSAGES = 200_000
TRACED = 20_000  # messages with a span each


def metrics(mpx: Multiplexer) -> Callable[[], object]:
    """Collect the figures, as Prometheus does."""
    from prometheus_client import CollectorRegistry, generate_latest

    from redismpx.contrib.prometheus import MultiplexerCollector

    registry = CollectorRegistry()
    registry.register(MultiplexerCollector(mpx))
    return partial(generate_latest, registry)


def tracing() -> list[Observer]:
    from opentelemetry.sdk.trace import TracerProvider

    from redismpx.contrib.opentelemetry import Tracing

    return [Tracing(TracerProvider())]


async def drain(
    observers: Callable[[], Iterable[Observer]], collect: Callable[[Multiplexer], Any] | None, full: int, bench: Bench
) -> None:
    messages = bench.count(full)
    countdown = Countdown(messages)
    with Publisher(bench.port, "room:", 1, messages, 64) as publisher:
        async with Multiplexer(bench.url, observers=observers()) as mpx:
            sub = mpx.new_channel_subscription(countdown.function)
            sub.add("room:0")
            await sub.wait_for_activation(timeout=30)
            scrape = (lambda: None) if collect is None else collect(mpx)
            with bench.measured(messages):
                bench.publish(publisher, messages)
                scrape()
                await countdown.done.wait()
                scrape()


CASES = [
    Case(
        "observing", "messages to one function, with observers", "message",
        {
            "redismpx": partial(drain, list, None, MESSAGES),
            "an observer": partial(drain, lambda: [Observer()], None, MESSAGES),
            "metrics": partial(drain, lambda: [Observer()], metrics, MESSAGES),
            "tracing": partial(drain, tracing, None, TRACED),
        },
    ),
]  # fmt: skip
