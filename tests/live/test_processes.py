"""Abandoned loops, threads, forks and interpreter exit harm nothing and print nothing."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import weakref

import pytest
from redis.asyncio import Redis
from redis.backoff import ConstantBackoff

from redismpx import Multiplexer
from redismpx.testing import Checker

from ..helpers.monitor import settled
from ..helpers.programs import run_program
from ..helpers.waiting import until

pytestmark = [pytest.mark.one_flavour, pytest.mark.usefixtures("no_leaks")]


@pytest.mark.parametrize("state", ["idle", "connected", "backing off"])
def test_an_interpreter_exit_prints_nothing(url: str, state: str) -> None:
    """A program that exits with an open multiplexer prints nothing, also without asyncio.run()."""
    program = """
import asyncio, sys
from redismpx import Multiplexer
url, state = sys.argv[1:]
mpx = Multiplexer(url if state != "backing off" else "redis://127.0.0.1:1")
async def hang(*_): await asyncio.Event().wait()
sub = mpx.new_channel_subscription(hang, None, hang)
sub.add("a")
async def main():
    if state == "connected":
        await sub.wait_for_activation(timeout=5)
    elif state == "backing off":
        while mpx.stats().state != state:
            sub.add("a")
            await asyncio.sleep(0.001)
import logging
logging.disable(logging.WARNING)  # that there is no server
if state != "idle":
    asyncio.run(main())
"""
    run_program(program, url, state)


@pytest.mark.parametrize("how", ["closed", "dropped", "kept"])
def test_an_abandoned_loop_adds_no_output_of_ours(url: str, how: str) -> None:
    """asyncio complains about tasks and sockets of an abandoned loop; the library adds and raises nothing."""
    program = """
import asyncio, sys
from redismpx import Multiplexer
url, how = sys.argv[1:]
loop = asyncio.new_event_loop()
mpx = Multiplexer(url)
sub = mpx.new_channel_subscription(lambda *_: None)
sub.add("a")
loop.run_until_complete(sub.wait_for_activation(timeout=5))
if how == "closed":
    loop.close()
elif how == "dropped":
    del loop, mpx, sub
"""
    command = [sys.executable, "-X", "dev", "-c", program, url, how]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (result.returncode, result.stdout) == (0, "")
    for word in ("Traceback", "internal error", "reconnecting", "ignored", "never retrieved", "never awaited"):
        assert word not in result.stderr, result.stderr


def test_a_parent_loses_nothing_to_forked_children(url: str) -> None:
    """Children forked under load exit, are rejected or make their own multiplexer; the parent misses nothing."""
    program = """
import asyncio, os, sys, warnings
from redis.asyncio import Redis
from redismpx import Multiplexer

warnings.simplefilter("ignore")  # what asyncio says of the loop that a child inherits
sys.unraisablehook = lambda _: None
url = sys.argv[1]
loop = asyncio.new_event_loop()
mpx = Multiplexer(url)
seen, lost = [], []
sub = mpx.new_channel_subscription(lambda _, data: seen.append(int(data)), lost.append)
sub.add("forked")

async def own():
    async with Multiplexer(url) as another:
        own = another.new_channel_subscription()
        own.add("child")
        await own.wait_for_activation(timeout=5)

def child(kind):
    sys.stderr = open(os.devnull, "w")
    import logging
    logging.disable()
    if kind == 0:
        sys.exit(0)
    if kind == 1:
        for call in (lambda: sub.add("b"), mpx.close, sub.close, lambda: mpx.new_promise_subscription("p")):
            try:
                call()
            except RuntimeError as error:
                assert "forked" in str(error)
            else:
                sys.exit(9)
        sys.exit(0)
    asyncio.run(own())
    sys.exit(0)

async def publish(start):
    async with Redis.from_url(url) as client:
        for number in range(start, start + 100):
            await client.publish("forked", number)

async def all_there(count):
    for _ in range(5000):
        if len(seen) >= count:
            return
        await asyncio.sleep(0.002)

loop.run_until_complete(sub.wait_for_activation(timeout=5))
for turn in range(6):
    loop.run_until_complete(publish(turn * 100))
    pid = os.fork()
    if not pid:
        child(turn % 3)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 0, (turn, status)
loop.run_until_complete(publish(600))
loop.run_until_complete(all_there(700))
assert seen == list(range(700)), len(seen)
assert lost == [] and mpx.stats().connections == 1
loop.run_until_complete(mpx.aclose())
loop.close()
"""
    result = subprocess.run(
        [sys.executable, "-c", program, url], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


async def test_threads_call_through_the_loop(url: str, admin: Redis) -> None:
    """Direct calls from threads raise; call_soon_threadsafe and run_coroutine_threadsafe work."""
    async with Multiplexer(url) as mpx:
        sub = mpx.new_channel_subscription(lambda *_: None)
        await mpx.connect(5)
        loop = asyncio.get_running_loop()
        refused: list[int] = []

        def work(number: int) -> None:
            try:
                sub.add("refused")
            except RuntimeError as error:
                if "call_soon_threadsafe" in str(error):
                    refused.append(number)
            loop.call_soon_threadsafe(sub.add, f"thread-{number}")
            asyncio.run_coroutine_threadsafe(sub.wait_for_activation(timeout=10), loop).result(10)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        assert sorted(refused) == list(range(8))
        await settled(admin, {b"thread-%d" % number for number in range(8)})


async def test_each_thread_may_have_its_own_loop_and_multiplexer(url: str) -> None:
    """Loops in several threads each have a multiplexer of their own."""
    failures: list[BaseException] = []

    async def main() -> None:
        async with Multiplexer(url) as mpx:
            promises = mpx.new_promise_subscription("p-")
            for number in range(20):
                promise = await promises.wait_for_new_promise(None, 10)
                async with Redis.from_url(url) as client:
                    await client.publish(promise.channel, number)
                assert await promise == b"%d" % number

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert failures == []


async def test_an_unreferenced_multiplexer_goes_on(url: str, admin: Redis) -> None:
    """A multiplexer without references calls its callbacks, over reconnects too, until it is closed."""
    checker = Checker()
    mpx = Multiplexer(url, backoff=ConstantBackoff(0.01))
    sub = mpx.new_channel_subscription(*checker.callbacks)
    sub.add("a")
    await sub.wait_for_activation(timeout=5)
    hub, gone = weakref.ref(mpx._hub), weakref.ref(mpx)
    del mpx, sub
    gc.collect()
    assert gone() is None
    await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    await until(lambda: checker.activations == 2)
    gc.collect()
    await admin.publish("a", "1")
    await until(lambda: checker.payloads == [b"1"])
    still = hub()
    assert still is not None
    still.close()
    await still.tasks.ended()
    assert not [t for t in asyncio.all_tasks() if "redismpx" in t.get_name()]
