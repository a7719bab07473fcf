"""Cases: publishing on a tree of topics in one process, without a server."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from redismpx.topics import Topics

from .harness import Bench, Case

PUBLISHED = 200_000
ON_EACH_TOPIC = 10  # subscriptions, where there are many
TOPIC = "orders.eu.paid"


def on_message(topic: object, number: int = 0) -> None:
    """Take a message of Topics, or of blinker with the topic as the sender."""


def listen(number: int = 0) -> None:
    """Take a message of PyPubSub, whose listeners get no topic."""


def publish(bench: Bench, send: Callable[..., object]) -> None:
    count = bench.count(PUBLISHED)
    send(TOPIC, number=0)
    with bench.measured(count):
        for number in range(count):
            send(TOPIC, number=number)


def floor(bench: Bench) -> None:
    """Call the function."""
    publish(bench, on_message)


def topics(bench: Bench, *, others: int) -> None:
    """Publish to one subscriber, beside others of other topics."""
    tree = Topics()
    for number in range(bench.count(others, ON_EACH_TOPIC)):
        tree.subscribe(f"others.{number // ON_EACH_TOPIC}.=", partial(on_message, number=number))
    tree.subscribe(TOPIC, on_message)
    publish(bench, tree.publish)


def blinker(bench: Bench) -> None:
    import blinker

    signal = blinker.Signal()
    signal.connect(on_message)
    publish(bench, signal.send)


def pypubsub(bench: Bench) -> None:
    from pubsub import pub

    pub.subscribe(listen, TOPIC)
    publish(bench, pub.sendMessage)


CASES = [
    Case(
        "topics", "messages on a topic with one subscriber", "message",
        {"redismpx": partial(topics, others=0), "floor": floor, "blinker": blinker, "PyPubSub": pypubsub},
    ),
    *(
        Case(
            f"topics-{others}", f"the same beside {others:,} subscriptions to other topics", "message",
            {"redismpx": partial(topics, others=others), "floor": floor},
        )
        for others in (10, 1_000, 100_000)
    ),
]  # fmt: skip
