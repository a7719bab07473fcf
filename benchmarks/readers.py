"""Case: many readers wait, each for the next message of a subscription of its own, and get one message at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial

import hiredis

from redismpx import ChannelSubscription, Multiplexer

from .drain import Countdown
from .floor import READ_SIZE
from .harness import Bench, Case, Contestant
from .peers import in_background, settled
from .publisher import Publisher, pack

READERS = 200
ROUNDS = 200  # in each, every reader gets one message

Read = Callable[[Multiplexer, str, Countdown], Coroutine[object, object, None]]


async def iterate(mpx: Multiplexer, channel: str, countdown: Countdown) -> None:
    subscription: ChannelSubscription[bytes] = mpx.new_channel_subscription()
    subscription.add(channel)
    async for message in subscription:
        countdown.function(message.channel, message.data)


async def get(mpx: Multiplexer, channel: str, countdown: Countdown) -> None:
    subscription: ChannelSubscription[bytes] = mpx.new_channel_subscription()
    subscription.add(channel)
    while True:
        message = await subscription.get()
        countdown.function(message.channel, message.data)


async def queue(mpx: Multiplexer, channel: str, countdown: Countdown) -> None:
    """What a user writes who has only callbacks; without a bound, and nothing is counted."""
    messages: asyncio.Queue[tuple[bytes, bytes]] = asyncio.Queue()
    subscription = mpx.new_channel_subscription(lambda channel, data: messages.put_nowait((channel, data)))
    subscription.add(channel)
    await consume(messages, countdown)


async def receive(queues: dict[bytes, asyncio.Queue[tuple[bytes, bytes]]], port: int) -> None:
    """The floor: one asyncio connection and hiredis; each message is put into the queue of its channel."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(pack(b"SUBSCRIBE", *queues))
    parser = hiredis.Reader(notEnoughData=None)
    try:
        while data := await reader.read(READ_SIZE):
            parser.feed(data)
            while (reply := parser.gets()) is not None:
                kind, channel, payload = reply
                if kind == b"message":
                    queues[channel].put_nowait((channel, payload))
    finally:
        writer.close()


async def consume(messages: asyncio.Queue[tuple[bytes, bytes]], countdown: Countdown) -> None:
    while True:
        countdown.function(*await messages.get())


async def measure(bench: Bench, countdown: Countdown) -> None:
    """Publish one message to each reader, round by round, while all of them wait."""
    await settled(bench.port, READERS, 0)
    rounds = bench.count(ROUNDS, least=2)
    with Publisher(bench.port, "room:", READERS, READERS, 64) as publisher, bench.measured(READERS * rounds):
        for _ in range(rounds):
            countdown.restart(READERS)
            assert publisher.publish() == READERS
            await countdown.done.wait()


async def redismpx(read: Read, bench: Bench) -> None:
    countdown = Countdown(READERS)
    async with (
        Multiplexer(bench.url) as mpx,
        in_background(*(read(mpx, f"room:{number}", countdown) for number in range(READERS))),
    ):
        await measure(bench, countdown)


async def bare_queues(bench: Bench) -> None:
    countdown = Countdown(READERS)
    queues = {b"room:%d" % number: asyncio.Queue[tuple[bytes, bytes]]() for number in range(READERS)}
    async with in_background(receive(queues, bench.port), *(consume(each, countdown) for each in queues.values())):
        await measure(bench, countdown)


CONTESTANTS: dict[str, Contestant] = {
    "redismpx": partial(redismpx, iterate),
    "get": partial(redismpx, get),
    "queue": partial(redismpx, queue),
    "floor": bare_queues,
}
CASES = [Case("readers", f"{READERS} readers wait, and each gets one message at a time", "delivery", CONTESTANTS)]
