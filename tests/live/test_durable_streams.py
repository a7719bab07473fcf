"""A consumer that is killed goes on from the position that it has saved."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from pathlib import Path

import pytest

from redismpx import Multiplexer

from ..helpers.servers import Server

CONSUMER = """
import asyncio, os, sys
from redismpx import Multiplexer

async def main(url, path):
    with open(path, "ab", buffering=0) as file:
        async with Multiplexer(url) as mpx:
            sub = mpx.new_stream_subscription(durable="d")
            sub.add("s", after="0")
            count = 0
            async for message in sub:
                file.write(message.data + b"\\n")
                count += 1
                if count % 10 == 0:
                    await sub.commit()

asyncio.run(main(*sys.argv[1:]))
"""
KILLS = 8


@pytest.mark.usefixtures("no_leaks")
async def test_a_killed_consumer_skips_nothing(server: Server, tmp_path: Path) -> None:
    """Killed at random moments, it repeats at most what it handled since it last saved its position."""
    path = tmp_path / "handled"
    total = 0
    async with Multiplexer(server.admin_url) as mpx:
        for kill in range(KILLS + 1):
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", CONSUMER, server.admin_url, str(path))
            stop = asyncio.get_running_loop().time() + random.uniform(0.3, 1.0)
            while asyncio.get_running_loop().time() < stop:
                await mpx.append("s", b"%d" % total, max_length=None)
                total += 1
            if kill < KILLS:
                process.send_signal(signal.SIGKILL)
                await process.wait()
        async with asyncio.timeout(20):
            while not path.exists() or not path.read_bytes().endswith(b"\n%d\n" % (total - 1)):
                await asyncio.sleep(0.02)
        process.terminate()
        await process.wait()
    highest, repeated = -1, 0
    for number in map(int, path.read_bytes().split()):
        assert number <= highest + 1, f"{number} after {highest}"
        assert highest - number < 20, f"{number} again, after {highest}"
        repeated += number <= highest
        highest = max(highest, number)
    assert highest == total - 1
    assert repeated <= 20 * KILLS
