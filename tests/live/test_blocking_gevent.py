"""The multiplexer for threads, where gevent has replaced threads by greenlets."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import pytest

from redismpx.blocking.threads import WakingExecutor

pytestmark = pytest.mark.one_flavour

GEVENT = """
import gevent.monkey
gevent.monkey.patch_all()
import sys
import gevent
from redismpx.blocking import Multiplexer

url = sys.argv[1].replace("127.0.0.1", "localhost")
with Multiplexer(url) as mpx, Multiplexer(url) as other:
    with mpx.subscribe("a") as sub:
        seen = []
        called = []
        calling = mpx.new_channel_subscription(lambda _, data: called.append(int(data)))
        calling.add("a")
        calling.wait_for_activation(timeout=5)
        readers = [gevent.spawn(lambda: seen.extend(int(message.data) for message in sub)) for _ in range(10)]
        ticks = []
        def tick():
            while True:
                ticks.append(1)
                gevent.sleep(0.001)
        ticking = gevent.spawn(tick)
        writers = [gevent.spawn(lambda: [other.publish("a", str(n)) for n in range(100)]) for _ in range(5)]
        gevent.joinall(writers, raise_error=True)
        with gevent.Timeout(10):
            while len(called) < 500 or len(seen) < 500:
                gevent.sleep(0.01)
        sub.close()
        gevent.joinall(readers, timeout=5, raise_error=True)
        assert sorted(seen) == sorted(called) == sorted(list(range(100)) * 5), len(seen)
        mpx.serve("echo", lambda request: request.body, threads=2).wait_for_activation(timeout=5)
        assert other.request("echo", "x", timeout=5) == b"x"
        assert len(ticks) > 10
        ticking.kill()
"""


def test_greenlets_share_a_multiplexer(url: str) -> None:
    """Under gevent, greenlets read, publish and serve on one multiplexer; no greenlet blocks the others."""
    result = subprocess.run(
        [sys.executable, "-c", GEVENT, url], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


async def test_the_end_of_work_wakes_the_loop() -> None:
    """The loop comes to what work in a greenlet of its own thread has scheduled, as asyncio does since Python 3.14."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def work() -> None:
        time.sleep(0.1)  # the loop waits by now
        loop.call_soon(done.set)  # does not wake it

    with WakingExecutor(loop) as executor:
        executor.submit(work)
        async with asyncio.timeout(5):
            await done.wait()
