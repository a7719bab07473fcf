"""Many threads on one multiplexer, under losses of the connection: the order of events, the counters, the end."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis

from redismpx import Activation, Disconnect, Message, SubscriptionIsClosed
from redismpx.blocking import Multiplexer
from redismpx.testing import Checker

from ..helpers.leaks import open_sockets

pytestmark = pytest.mark.one_flavour

SECONDS = float(os.environ.get("REDISMPX_STRESS", "5"))
"""How long the threads run; REDISMPX_STRESS=60 runs them for a minute."""
THREADS, CHANNELS = 50, 8


class Publisher:
    """Publishes numbers to all channels, in order for each channel."""

    def __init__(self, mpx: Multiplexer) -> None:
        self._mpx = mpx
        self._locks = [threading.Lock() for _ in range(CHANNELS)]
        self._numbers = [0] * CHANNELS

    def publish(self, channel: int, how: Callable[[str, str], object]) -> None:
        with self._locks[channel]:
            self._numbers[channel] += 1
            how(f"stress:{channel}", str(self._numbers[channel]))


def read(mpx: Multiplexer, dice: random.Random) -> tuple[Checker, Any]:
    """Read everything on some channels for a while; return the checker, and the counters at the end."""
    checker = Checker(may_skip=True)  # numbers are skipped in gaps of the publishing connection
    sub = mpx.new_channel_subscription(max_pending=1_000_000)
    sub.add(*{f"stress:{dice.randrange(CHANNELS)}" for _ in range(3)})
    events = sub.events()
    timer = threading.Timer(dice.uniform(0.01, 0.5), sub.close)
    timer.start()
    for event in events:
        match event:
            case Activation(name):
                checker.on_activation(name)
            case Message(channel, data):
                checker.on_message(channel, data)
            case Disconnect(error):
                checker.on_disconnect(error)
    timer.join()
    return checker, sub


def call(mpx: Multiplexer, dice: random.Random) -> tuple[Checker, Any]:
    """Have the messages of some channels passed to callbacks for a while."""
    checker = Checker(may_skip=True)
    sub = mpx.new_channel_subscription(*checker.callbacks, max_pending=1_000_000)
    sub.add(*{f"stress:{dice.randrange(CHANNELS)}" for _ in range(3)})
    time.sleep(dice.uniform(0.01, 0.3))
    sub.close()
    return checker, sub


def test_fifty_threads_keep_the_order(url: str) -> None:
    """Threads subscribe, publish, read and close at random while connections are killed; nothing is left at the end."""
    threads_before, sockets_before = set(threading.enumerate()), open_sockets()
    checkers: list[Checker] = []
    failures: list[BaseException] = []
    counts = {"publish": 0, "publish_soon": 0, "get": 0, "kill": 0}
    mpx = Multiplexer(url)
    publisher = Publisher(mpx)
    end = time.monotonic() + SECONDS

    def get() -> None:
        with mpx.new_channel_subscription(max_pending=10_000) as sub:
            sub.add(f"stress:{dice().randrange(CHANNELS)}")
            try:
                sub.get(0.05)
                counts["get"] += 1
            except (TimeoutError, SubscriptionIsClosed):
                pass

    def dice() -> random.Random:
        return random.Random(time.perf_counter_ns())

    def publish(how: str) -> None:
        try:
            publisher.publish(dice().randrange(CHANNELS), getattr(mpx, how))
            counts[how] += 1
        except ConnectionError:
            pass
        time.sleep(0.005)  # threads that only compute would starve the one of the loop

    def work(number: int) -> None:
        actions: list[Callable[[], object]] = [
            lambda: checkers.append(read(mpx, dice())[0]),
            lambda: checkers.append(call(mpx, dice())[0]),
            get,
            lambda: publish("publish"),
            lambda: publish("publish_soon"),
        ]
        try:
            while time.monotonic() < end:
                actions[number % 5 if number < 25 else dice().randrange(5)]()
        except BaseException as error:
            failures.append(error)

    with mpx, Redis.from_url(url) as admin:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        while time.monotonic() < end:
            time.sleep(0.2)
            counts["kill"] += admin.client_kill_filter(_type="pubsub")
        for thread in threads:
            thread.join(30)
        assert not [thread for thread in threads if thread.is_alive()]
        stats = mpx.stats()
        assert (stats.subscriptions, stats.pending, stats.channels) == (0, 0, 0)
    print(counts, len(checkers), sum(checker.messages for checker in checkers), stats)
    assert failures == []
    assert [checker.faults for checker in checkers if checker.faults] == []
    assert sum(checker.messages for checker in checkers) > 0
    assert sum(checker.disconnects for checker in checkers) > 0
    give_up = time.monotonic() + 5
    while not (set(threading.enumerate()) <= threads_before and open_sockets() <= sockets_before):
        assert time.monotonic() < give_up
        time.sleep(0.01)
