"""The channels of a run, and the messages that are published on them."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import redis.exceptions
from redis.asyncio import Redis

PLAIN = [b"c:%d" % number for number in range(200)]
GUARDED = [b"guarded:%d" % number for number in range(10)]
GROUPS = {b"p:%d:*" % group: [b"p:%d:%d" % (group, number) for number in range(3)] for group in range(20)}
CHANNELS = [*PLAIN, *GUARDED, *(channel for group in GROUPS.values() for channel in group)]
PREFIXES = [f"promise:{number}:" for number in range(4)]
PERMISSIONS = [b"c:*", b"promise:*", *GUARDED, *GROUPS, *(f"{prefix}*".encode() for prefix in PREFIXES)]


def pattern_of(channel: bytes) -> bytes:
    return channel[: channel.rindex(b":") + 1] + b"*"


def encode_payload(channel: bytes, number: int) -> bytes:
    text = b"%s#%d#" % (channel, number)
    return text + b"%d" % zlib.crc32(text)


def decode_number(channel: bytes, payload: bytes) -> bytes | None:
    """Return the number in a payload, or None if the payload or its channel was changed on the way."""
    name, _, rest = payload.partition(b"#")
    number, _, _ = rest.partition(b"#")
    return number if name == channel and number.isdigit() and payload == encode_payload(channel, int(number)) else None


async def retry_until_reached(attempt: Callable[[], Awaitable[Any]]) -> Any:
    """Repeat an attempt until the server can be reached."""
    while True:
        try:
            return await attempt()
        except (redis.exceptions.ConnectionError, OSError):
            await asyncio.sleep(0.02)


class Load:
    """Publishes consecutive numbers to each channel, directly to the server, and repeats a publish that failed.

    A message can be published twice only if the server died in between, and then no subscriber was connected.
    """

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._turn = asyncio.Lock()
        self.numbers = dict.fromkeys(CHANNELS, 0)  # of the last message on each channel
        self.published = 0
        self.paused = 0

    async def publish(self, *channels: bytes) -> None:
        """Publish the next number on each of these channels."""
        async with self._turn:
            pipe = self._client.pipeline(transaction=False)
            for channel in channels:
                self.numbers[channel] += 1
                pipe.publish(channel, encode_payload(channel, self.numbers[channel]))
            commands = list(pipe.command_stack)

            async def attempt() -> None:
                pipe.command_stack = list(commands)
                await pipe.execute()

            await retry_until_reached(attempt)
            self.published += len(channels)

    async def publish_forever(self, rng: Random) -> None:
        """Publish to random channels until cancelled."""
        while True:
            if not self.paused:
                await self.publish(*rng.sample(CHANNELS, 12))
            await asyncio.sleep(0.01)
