"""One process of several that share topics: `python -m tests.helpers.topics_process URL SEED asyncio|threads`.

It subscribes to random filters, for a while each, and publishes numbers on random topics, until a line arrives at its
standard input. It writes what happens to its standard output, a line of JSON for each event, in order.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
import time
from itertools import count
from typing import Any

from redismpx import Multiplexer
from redismpx import blocking as threads
from redismpx.topics import Topics

from .backoffs import QUICK

WORDS = ("a", "b", "c")
FILTERS = 12  # that are open at a time


class Process:
    """What one process does, and what it writes."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.numbers = count()
        self._subscriptions = count()
        self._lock = threading.Lock()
        self.open: list[Any] = []

    def write(self, *event: object) -> None:
        with self._lock:
            sys.stdout.write(json.dumps(event) + "\n")
            sys.stdout.flush()

    def options(self) -> dict[str, Any]:
        return {
            "prefix": "stress",
            "on_disconnect": lambda error: self.write("gap"),
            "on_activation": lambda topic: self.write("active", topic),
            "on_error": lambda error: self.write("error", type(error).__name__),
        }

    def step(self, topics: Any) -> None:
        """Subscribe, end a subscription, or publish."""
        rng = self.rng
        if len(self.open) < FILTERS or rng.random() < 0.05:
            words = [rng.choice((*WORDS, "=", "+")) for _ in range(rng.randrange(4))]
            name = next(self._subscriptions)

            def on_message(topic: tuple[str, ...], publisher: int, number: int) -> None:
                self.write("got", name, publisher, number, topic)

            self.write("open", name, words)
            self.open.append((name, topics.subscribe(tuple(words), on_message)))
        if len(self.open) > FILTERS:
            old, subscription = self.open.pop(rng.randrange(len(self.open)))
            subscription.close()
            self.write("closed", old)
        topic = [rng.choice(WORDS) for _ in range(rng.randrange(1, 5))]
        number = next(self.numbers)
        self.write("sent", number, topic)
        topics.publish(tuple(topic), publisher=int(sys.argv[2]), number=number)


async def main(url: str, process: Process, end: threading.Event) -> None:
    async with Multiplexer(url, backoff=QUICK) as mpx, Topics(mpx, **process.options()) as topics:
        await mpx.connect()
        while not end.is_set():
            process.step(topics)
            await asyncio.sleep(process.rng.random() * 0.01)
        await topics.flush()


def main_of_threads(url: str, process: Process, end: threading.Event) -> None:
    with threads.Multiplexer(url, backoff=QUICK) as mpx, threads.Topics(mpx, **process.options()) as topics:
        mpx.connect()
        while not end.is_set():
            process.step(topics)
            time.sleep(process.rng.random() * 0.01)
        topics.flush()


def wait_for_line(end: threading.Event) -> None:
    sys.stdin.readline()
    end.set()


if __name__ == "__main__":
    ended = threading.Event()
    threading.Thread(target=wait_for_line, args=(ended,), daemon=True).start()
    own = Process(int(sys.argv[2]))
    if sys.argv[3] == "threads":
        main_of_threads(sys.argv[1], own, ended)
    else:
        asyncio.run(main(sys.argv[1], own, ended))
