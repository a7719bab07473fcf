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


WAKE_UPS = """
import gevent.monkey
gevent.monkey.patch_all()
import collections
import threading
import gevent
from redismpx.blocking.locks import Event, new_condition, new_held_lock

# Whether a count is lost is a matter of chance, most of all on a busy machine; these use locks of gevent.
assert type(new_condition()) is not threading.Condition
assert type(new_held_lock()) is not type(threading.Lock())

start_thread = gevent.monkey.get_original("_thread", "start_new_thread")
sleep_in_thread = gevent.monkey.get_original("time", "sleep")
loop = gevent.get_hub().loop
for _ in range(10_000):  # so that the loop goes on when it loses some of them
    loop.ref()
before = loop.activecnt
wakers = collections.deque()
is_over = False
woken = [0, 0, 0]

def wake():
    while not is_over:
        try:
            wakers.popleft()()
        except IndexError:
            sleep_in_thread(0)

def tick(seconds):
    while not is_over:
        gevent.sleep(seconds)

def wait_for_lock():
    while not is_over:
        lock = new_held_lock()
        wakers.append(lock.release)
        woken[0] += lock.acquire(timeout=1)

def wait_for_condition():
    condition = new_condition()
    def notify():
        with condition:
            condition.notify_all()
    while not is_over:
        with condition:
            wakers.append(notify)
            woken[1] += condition.wait(1)

def wait_for_event():
    while not is_over:
        event = Event()
        wakers.append(event.set)
        woken[2] += event.wait(1)

waiting = [gevent.spawn(wait) for wait in (wait_for_lock, wait_for_condition, wait_for_event) for _ in range(7)]
ticking = [gevent.spawn(tick, 0.00005 * n) for n in range(1, 21)]
for _ in range(2):
    start_thread(wake, ())
with gevent.Timeout(40):
    while min(woken) < 1000:
        gevent.sleep(0.05)
is_over = True
gevent.joinall(waiting + ticking, timeout=5, raise_error=True)
assert loop.activecnt == before, loop.activecnt - before
"""


def test_wake_ups_of_greenlets_are_counted() -> None:
    """Other threads wake greenlets, and gevent's loop knows what it has to do: otherwise it raises LoopExit one day."""
    result = subprocess.run([sys.executable, "-c", WAKE_UPS], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


EARLY = """
import gevent.monkey
gevent.monkey.patch_all()
import gevent.hub
from redismpx.blocking.locks import new_held_lock

lock = new_held_lock()
new_waiter = gevent.hub.Waiter

def release_first(hub):
    lock.release()
    return new_waiter(hub)

gevent.hub.Waiter = release_first
with gevent.Timeout(5):
    assert lock.acquire()
    gevent.hub.Waiter = new_waiter
    assert not lock.acquire(timeout=0.01)
"""


def test_a_release_just_before_a_wait_is_noticed() -> None:
    """A thread may release the lock while the greenlet is about to wait."""
    result = subprocess.run([sys.executable, "-c", EARLY], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


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
