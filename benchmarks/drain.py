"""Cases: receive messages that are buffered in the socket, and deliver them to one consumer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial

from redismpx import Multiplexer
from redismpx.reading import MessageSubscription

from . import floor
from .harness import Bench, Case, Contestant
from .peers import LISTEN, in_background, settled
from .publisher import Publisher


@dataclass(frozen=True)
class Drain:
    """The parameters of a case."""

    consumer: str = "function"  # or "coroutine", "suspending", "iterator"
    size: int = 64  # bytes of payload
    channels: int = 1
    pattern: bool = False  # subscribe to one pattern instead of each channel
    messages: int = 200_000

    @property
    def names(self) -> list[str]:
        return ["room:*"] if self.pattern else [f"room:{number}" for number in range(self.channels)]

    def publisher(self, bench: Bench) -> Publisher:
        return Publisher(bench.port, "room:", self.channels, bench.count(self.messages), self.size)


class Countdown:
    """Consumers of each kind. `done` is set when they have got `messages` messages."""

    def __init__(self, messages: int) -> None:
        self._left = messages
        self.done = asyncio.Event()

    def restart(self, messages: int) -> None:
        self._left = messages
        self.done.clear()

    def function(self, channel: object, data: object) -> None:
        self._left -= 1
        if not self._left:
            self.done.set()

    async def coroutine(self, channel: object, data: object) -> None:
        self._left -= 1
        if not self._left:
            self.done.set()

    async def suspending(self, channel: object, data: object) -> None:
        await asyncio.sleep(0)
        self._left -= 1
        if not self._left:
            self.done.set()

    @property
    def callbacks(self) -> dict[str, Callable[[object, object], Coroutine[object, object, None] | None]]:
        return {"function": self.function, "coroutine": self.coroutine, "suspending": self.suspending}


async def redismpx(drain: Drain, bench: Bench) -> None:
    messages = bench.count(drain.messages)
    countdown = Countdown(messages)
    callback = countdown.callbacks.get(drain.consumer)
    with drain.publisher(bench) as publisher:
        async with Multiplexer(bench.url, max_pending=messages, max_pending_bytes=None) as mpx:
            sub: MessageSubscription[bytes]
            if drain.pattern:
                sub = mpx.new_pattern_subscription(drain.names[0], callback)
            else:
                sub = channels = mpx.new_channel_subscription(callback)
                channels.add(*drain.names)
            await sub.wait_for_activation(timeout=30)

            async def read() -> None:
                async for message in sub:
                    countdown.function(message.channel, message.data)

            async with in_background(*([read()] if callback is None else [])):
                with bench.measured(messages):
                    bench.publish(publisher, messages)
                    await countdown.done.wait()
                assert sub.dropped == 0


def bare_loop(drain: Drain, bench: Bench) -> None:
    messages = bench.count(drain.messages)
    countdown = Countdown(messages)
    with drain.publisher(bench) as publisher, floor.connect(bench.port) as raw:
        raw.subscribe([name.encode() for name in drain.names], b"PSUBSCRIBE" if drain.pattern else b"SUBSCRIBE")
        feed, gets, recv, callback = raw.reader.feed, raw.reader.gets, raw.connection.recv, countdown.function
        channel, data = (2, 3) if drain.pattern else (1, 2)
        with bench.measured(messages):
            bench.publish(publisher, messages)
            while not countdown.done.is_set():
                feed(recv(floor.READ_SIZE))
                while (reply := gets()) is not None:
                    callback(reply[channel], reply[data])


async def peer(name: str, drain: Drain, bench: Bench) -> None:
    messages = bench.count(drain.messages)
    countdown = Countdown(messages)
    # The clients of the other libraries loop over messages, so for them "iterator" is the same as "coroutine".
    consume = countdown.callbacks["coroutine" if drain.consumer == "iterator" else drain.consumer]
    channels, patterns = ([], drain.names) if drain.pattern else (drain.names, [])
    with drain.publisher(bench) as publisher:
        async with LISTEN[name](bench.port, channels, patterns, consume):
            await settled(bench.port, len(channels), len(patterns))
            with bench.measured(messages):
                bench.publish(publisher, messages)
                await countdown.done.wait()


def new_case(name: str, title: str, drain: Drain) -> Case:
    contestants: dict[str, Contestant] = {
        "redismpx": partial(redismpx, drain),
        "floor": partial(bare_loop, drain),
        **{
            name: partial(peer, name, drain)
            for name in LISTEN
            if not (drain.pattern and name == "broadcaster")  # it has no patterns
        },
    }
    return Case(name, title, "message", contestants)


CASES = [
    new_case("drain", "messages of 64 B on one channel, delivered to a function", Drain()),
    new_case("drain-1k", "the same with 1 kB", Drain(size=1000)),
    new_case("drain-channels", "the same on 1,000 channels", Drain(channels=1000)),
    new_case("drain-pattern", "the same with one pattern", Drain(channels=1000, pattern=True)),
    new_case("drain-coroutine", "to a coroutine function that does not suspend", Drain("coroutine")),
    new_case("drain-suspending", "to a coroutine function that suspends", Drain("suspending", messages=50_000)),
    new_case("drain-iterator", "read with async for", Drain("iterator")),
]
