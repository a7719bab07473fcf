"""Measure the single steps of which the cases consist: `python -m benchmarks.pieces`.

Prints the CPU time of each step in nanoseconds. It is the minimum of 40 rounds, so a disturbance of the machine does
not matter.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import hiredis

from redismpx import Overflow
from redismpx._core.budget import Budget
from redismpx._core.entry import Entry, SubscriberState
from redismpx._core.latest import new_buffer
from redismpx._core.registry import Registry
from redismpx._core.wire import Kind
from redismpx.message import new_message

CHANNEL, DATA = b"room:1", b"x" * 64
MESSAGE = b"*3\r\n$7\r\nmessage\r\n$6\r\nroom:1\r\n$64\r\n%b\r\n" % DATA
PUSH = b">" + MESSAGE[1:]
SLICE = 160  # messages that are parsed at a time

Piece = Callable[[int], Coroutine[object, object, None]]
"""Runs a step the given number of times."""


def function(channel: object, data: object) -> None:
    pass


async def coroutine(channel: object, data: object) -> None:
    pass


async def nothing(times: int) -> None:
    for _ in itertools.repeat(None, times):
        pass


def parsing(frame: bytes, unpacked: bool) -> Piece:
    async def piece(times: int) -> None:
        for _ in range(times // SLICE):
            reader = hiredis.Reader()
            reader.feed(frame * SLICE)
            gets = reader.gets
            while reply := gets():
                if unpacked:
                    reply[0]
                    _, _channel, _data = reply

    return piece


async def calls(times: int) -> None:
    for _ in itertools.repeat(None, times):
        function(CHANNEL, DATA)


async def awaits(times: int) -> None:
    for _ in itertools.repeat(None, times):
        await coroutine(CHANNEL, DATA)


async def eager_tasks(times: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in itertools.repeat(None, times):
        asyncio.Task(coroutine(CHANNEL, DATA), loop=loop, eager_start=True)


async def queues(times: int) -> None:
    buffer = new_buffer(times, Overflow.DROP_OLDEST, Budget())
    put, batch = buffer.put, buffer.batch
    for _ in range(times // SLICE):
        for _ in itertools.repeat(None, SLICE):
            put(CHANNEL, DATA)
        buffer.commit()
        while batch or buffer.pop_message() is not None:
            while batch:
                batch.pop(), batch.pop()


async def messages(times: int) -> None:
    for _ in itertools.repeat(None, times):
        new_message((CHANNEL, DATA, None))


def bare(gets: Callable[[], Any], table: dict[bytes, Entry[Any]]) -> None:
    """The floor of the case `drain`: treat every reply as a message, and call one function."""
    while (reply := gets()) is not None:
        function(reply[1], reply[2])


def looked_up(gets: Callable[[], Any], table: dict[bytes, Entry[Any]]) -> None:
    """Distinguish messages from other replies, and look up the subscriber of each channel."""
    while (reply := gets()) is not None:
        if reply[0] == b"message":
            _, channel, data = reply
            table[channel].only_active(channel, data)


def checked(gets: Callable[[], Any], table: dict[bytes, Entry[Any]]) -> None:
    """Also check that the payload is bytes, that the callback returns None, and whether the time slice has ended."""
    taken = 0
    while (reply := gets()) is not None:
        taken += 1
        if reply[0] == b"message":
            _, channel, data = reply
            entry = table[channel]
            if type(data) is bytes and entry.only_active is not None and entry.only_active(channel, data) is not None:
                raise AssertionError
        if taken >= SLICE:
            taken = 0


def draining(loop: Callable[[Callable[[], Any], dict[bytes, Entry[Any]]], None]) -> Piece:
    """Return a piece that runs this loop on parsed messages, without a socket."""
    entry: Entry[Any] = Entry(Kind.CHANNEL, CHANNEL, function)
    entry.set_state(function, SubscriberState.ACTIVE)

    async def piece(times: int) -> None:
        reader = hiredis.Reader(notEnoughData=None)
        for _ in range(times // SLICE):
            reader.feed(MESSAGE * SLICE)
            loop(reader.gets, {CHANNEL: entry})

    return piece


class Source:
    """The shortest class that supports `async for`. Unlike an async generator, it needs no closing."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise StopAsyncIteration
        return DATA


async def iterates(times: int) -> None:
    async for _ in Source(times):
        pass


async def names(times: int) -> None:
    """Subscribe to names in the registry, take the commands, and confirm them; nothing is sent or parsed."""
    registry: Registry[str] = Registry()
    registry.add(Kind.CHANNEL, [b"%d" % number for number in range(times)], "subscriber")
    while commands := registry.next_commands():
        for command in commands:
            for name in command.names:
                registry.confirm(command.verb, name)


async def bare_names(times: int) -> None:
    """The least code for the same: a dictionary of lists, without states and confirmations."""
    wanted: dict[bytes, list[str]] = {}
    for number in range(times):
        wanted.setdefault(b"%d" % number, []).append("subscriber")
    for name in list(wanted):
        wanted.get(name)


async def timers(times: int) -> None:
    loop = asyncio.get_running_loop()
    for timer in [loop.call_later(60.0, function) for _ in range(times)]:
        timer.cancel()


async def futures(times: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in itertools.repeat(None, times):
        loop.create_future().set_result(None)


PIECES: dict[str, Piece] = {
    "a message is parsed and a function called: the floor without its socket": draining(bare),
    "also: it is distinguished from other replies, and its subscriber looked up": draining(looked_up),
    "also: payload, result of the callback and end of the time slice are checked": draining(checked),
    "a message is parsed (RESP2)": parsing(MESSAGE, unpacked=False),
    "also: unpacked (RESP2)": parsing(MESSAGE, unpacked=True),
    "a message is parsed (RESP3)": parsing(PUSH, unpacked=False),
    "also: unpacked (RESP3)": parsing(PUSH, unpacked=True),
    "a function is called": calls,
    "a coroutine function is called and awaited": awaits,
    "a message is put into the queue of a subscription and taken out": queues,
    "a Message is created": messages,
    "a value is read with async for": iterates,
    "a name is subscribed and confirmed in the registry": names,
    "a name is stored in a dictionary of lists": bare_names,
    "a timer is created and cancelled": timers,
    "a future is created and resolved": futures,
}
if sys.version_info >= (3, 12):
    PIECES["a task is started that ends at once"] = eager_tasks


async def cost(piece: Piece, times: int) -> float:
    """Return the CPU time of one run of the step, in nanoseconds."""
    began = time.process_time()
    await piece(times)
    return (time.process_time() - began) / times * 1e9


async def main(times: int = 32_000, rounds: int = 40) -> None:
    """Measure all pieces in each round, so that a disturbance of the machine affects all of them."""
    least = dict.fromkeys((nothing, *PIECES.values()), math.inf)
    for _ in range(rounds):
        for piece in least:
            least[piece] = min(least[piece], await cost(piece, times))
    for what, piece in PIECES.items():
        print(f"{least[piece] - least[nothing]:6.0f} ns  {what}")


if __name__ == "__main__":
    asyncio.run(main())
