"""Cases: deliver each message to many subscriptions. Only the last callback counts; the others do nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from redismpx import Multiplexer

from . import floor
from .drain import Countdown
from .harness import Bench, Case
from .peers import LISTEN, in_background, settled
from .publisher import Publisher

DELIVERIES = 2_000_000

Callback = Callable[[object, object], None]


def sizes(bench: Bench, full: int) -> tuple[int, int]:
    """Return the numbers of subscriptions and of messages."""
    return bench.count(full, least=min(full, 100)), max(1, bench.count(min(200_000, DELIVERIES // full)))


def new_callback() -> Callback:
    def on_message(channel: object, data: object) -> None:
        pass

    return on_message


def new_callbacks(subscriptions: int, countdown: Countdown) -> list[Callback]:
    return [*(new_callback() for _ in range(subscriptions - 1)), countdown.function]


async def redismpx(full: int, bench: Bench) -> None:
    subscriptions, messages = sizes(bench, full)
    countdown = Countdown(messages)
    with Publisher(bench.port, "room:", 1, messages, 64) as publisher:
        async with Multiplexer(bench.url) as mpx:
            for callback in new_callbacks(subscriptions, countdown):
                sub = mpx.new_channel_subscription(callback)
                sub.add("room:0")
            await sub.wait_for_activation(timeout=30)
            with bench.measured(subscriptions * messages):
                bench.publish(publisher, messages)
                await countdown.done.wait()


def bare_loop(full: int, bench: Bench) -> None:
    subscriptions, messages = sizes(bench, full)
    countdown = Countdown(messages)
    callbacks = tuple(new_callbacks(subscriptions, countdown))
    with Publisher(bench.port, "room:", 1, messages, 64) as publisher, floor.connect(bench.port) as raw:
        raw.subscribe([b"room:0"])
        feed, gets, recv = raw.reader.feed, raw.reader.gets, raw.connection.recv
        with bench.measured(subscriptions * messages):
            bench.publish(publisher, messages)
            while not countdown.done.is_set():
                feed(recv(floor.READ_SIZE))
                while (reply := gets()) is not None:
                    _, channel, data = reply
                    for callback in callbacks:
                        callback(channel, data)


def guarded_loop(full: int, bench: Bench) -> None:
    """The same, where a callback that raises does not end the loop."""
    subscriptions, messages = sizes(bench, full)
    countdown = Countdown(messages)
    callbacks = tuple(new_callbacks(subscriptions, countdown))
    failures: list[Exception] = []
    with Publisher(bench.port, "room:", 1, messages, 64) as publisher, floor.connect(bench.port) as raw:
        raw.subscribe([b"room:0"])
        feed, gets, recv = raw.reader.feed, raw.reader.gets, raw.connection.recv
        with bench.measured(subscriptions * messages):
            bench.publish(publisher, messages)
            while not countdown.done.is_set():
                feed(recv(floor.READ_SIZE))
                while (reply := gets()) is not None:
                    _, channel, data = reply
                    for callback in callbacks:
                        try:
                            callback(channel, data)
                        except Exception as error:
                            failures.append(error)
    assert not failures


async def redis_py(full: int, bench: Bench) -> None:
    """redis-py has no fan-out, so its user has to write the loop over functions."""
    subscriptions, messages = sizes(bench, full)
    countdown = Countdown(messages)
    callbacks = tuple(new_callbacks(subscriptions, countdown))

    def consume(channel: object, data: object) -> None:
        for callback in callbacks:
            callback(channel, data)

    with Publisher(bench.port, "room:", 1, messages, 64) as publisher:
        async with LISTEN["redis-py"](bench.port, ["room:0"], [], consume):
            await settled(bench.port, 1, 0)
            with bench.measured(subscriptions * messages):
                bench.publish(publisher, messages)
                await countdown.done.wait()


async def broadcaster(full: int, bench: Bench) -> None:
    """broadcaster has a queue for each subscriber; its user adds a task."""
    from broadcaster import Broadcast

    subscriptions, messages = sizes(bench, full)
    messages = max(1, messages // 10)  # a delivery takes long enough to measure with fewer messages
    countdown = Countdown(subscriptions * messages)
    ready = Countdown(subscriptions)

    async def listen(broadcast: Broadcast) -> None:
        async with broadcast.subscribe("room:0") as subscriber:
            ready.function(None, None)
            async for event in subscriber:
                countdown.function(event.channel, event.message)

    with Publisher(bench.port, "room:", 1, messages, 64) as publisher:
        async with (
            Broadcast(bench.url) as broadcast,
            # Works around a fault: of several first subscribers at once, only the last gets messages.
            broadcast.subscribe("room:0"),
            in_background(*(listen(broadcast) for _ in range(subscriptions))),
        ):
            await ready.done.wait()
            await settled(bench.port, 1, 0)
            with bench.measured(subscriptions * messages):
                bench.publish(publisher, messages)
                await countdown.done.wait()


def new_case(subscriptions: int) -> Case:
    contestants = {
        "redismpx": redismpx,
        "guarded": guarded_loop,
        "floor": bare_loop,
        "redis-py": redis_py,
        "broadcaster": broadcaster,
    }
    return Case(
        f"fan-out-{subscriptions}",
        f"one message to {subscriptions:,} subscription{'s' * (subscriptions > 1)}",
        "delivery",
        {name: partial(contestant, subscriptions) for name, contestant in contestants.items()},
    )


CASES = [new_case(1), new_case(100), new_case(10_000)]
