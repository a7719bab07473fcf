"""Malicious names, payloads and replies."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from redismpx import Multiplexer, escape_glob

from ..helpers.monitor import Monitor, settled
from ..helpers.waiting import until

pytestmark = pytest.mark.usefixtures("no_leaks")

HOSTILE = [
    b"a\r\nFLUSHALL\r\n",
    b"*1\r\n$8\r\nFLUSHALL\r\n",
    b'" "FLUSHALL',
    b"a\x00b",
    b"\r\n",
    b"a b",
    b"",
]


async def test_a_hostile_name_is_one_argument_of_one_command(url: str, admin: Redis) -> None:
    """Line ends, quotes and protocol bytes in a name stay one argument of one command."""
    flushed = "cmdstat_flushall" in await admin.info("commandstats")
    async with Monitor(admin) as monitor, Multiplexer(url) as mpx:
        channels, patterns = mpx.new_channel_subscription(), []
        for name in HOSTILE:
            channels.add(name)
            await channels.wait_for_activation(timeout=5)
            if name:
                patterns.append(mpx.new_pattern_subscription(name))
                await patterns[-1].wait_for_activation(timeout=5)
        channels.clear()
        await settled(admin, set(), len(patterns))
        await monitor.saw("the end")
        words = [command.partition(" ")[0] for command in monitor.commands]
        asked = [word for word in words if "SUBSCRIBE" in word]
        assert asked.count("SUBSCRIBE") == len(HOSTILE)
        assert asked.count("PSUBSCRIBE") == len(patterns)
        assert asked.count("UNSUBSCRIBE") == 1
        assert len(asked) == len(HOSTILE) + len(patterns) + 1
        assert ("cmdstat_flushall" in await admin.info("commandstats")) == flushed


@pytest.mark.parametrize("text", ["*", "a?", "[a-z]", "\\*", "tenant:*", b"\xff*"])
async def test_escape_glob_makes_untrusted_text_literal(url: str, admin: Redis, text: str | bytes) -> None:
    """Text in a pattern, escaped with escape_glob(), matches itself only."""
    name = text if isinstance(text, bytes) else text.encode()
    async with Multiplexer(url) as mpx:
        sub = mpx.new_pattern_subscription(b"room:" + escape_glob(text) + b":*")
        await sub.wait_for_activation(timeout=5)
        for other in (b"room:b:1", b"room:ab:1", b"room:tenant:7:1", b"room:\xffx:1"):
            assert await admin.publish(other, "no") == 0
        await admin.publish(b"room:%b:1" % name, "yes")
        assert (await sub.get(5)).data == b"yes"


async def test_forged_messages_keep_no_promise(url: str, admin: Redis) -> None:
    """Messages to guessed and similar channels keep no promise without a suffix."""
    async with Multiplexer(url) as mpx:
        promises = mpx.new_promise_subscription("reply:")
        await promises.wait_for_activation(timeout=5)
        made = [promises.new_promise() for _ in range(1000)]
        suffixes = {promise.channel.removeprefix(b"reply:") for promise in made}
        assert len(suffixes) == 1000
        assert all(len(suffix) >= 22 for suffix in suffixes)  # 128 bits
        messages = mpx.stats().messages
        async with admin.pipeline(transaction=False) as pipe:
            for number in range(1000):
                pipe.publish(b"reply:%d" % number, "forged")
            for promise in made:
                pipe.publish(promise.channel[:-1], "forged")
                pipe.publish(promise.channel + b"x", "forged")
                pipe.publish(b"reply:" + promise.channel.removeprefix(b"reply:").swapcase(), "forged")
            await pipe.execute()
        await until(lambda: mpx.stats().messages == messages + 4000)
        assert promises.pending == 1000
        assert not any(promise.done() for promise in made)
        await admin.publish(made[7].channel, "true")
        assert await asyncio.wait_for(made[7], 5) == b"true"
        promises.clear()


class Bomb:
    """What runs when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


async def test_a_malicious_pickle_is_delivered_as_bytes(url: str, admin: Redis, tmp_path: Path) -> None:
    """A pickle is delivered as bytes and is never loaded."""
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    async with Multiplexer(url) as mpx:
        sub = mpx.new_channel_subscription()
        sub.add("a")
        promises = mpx.new_promise_subscription("p-")
        await sub.wait_for_activation(timeout=5)
        promise = await promises.wait_for_new_promise(timeout=5)
        await admin.publish("a", bomb)
        await admin.publish(promise.channel, bomb)
        assert (await sub.get(5)).data == await promise == bomb
    assert not (tmp_path / "exploded").exists()
    pickle.loads(bomb)  # it would have
    assert (tmp_path / "exploded").exists()
