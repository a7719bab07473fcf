"""The multiplexer for threads begins with its first call, survives forks before that, and ends by itself."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from redis import Redis

from redismpx.blocking import Multiplexer

from ..helpers.programs import run_program
from ..helpers.strike import Session, struck
from ..helpers.waiting import DEADLINE

pytestmark = pytest.mark.one_flavour


@pytest.mark.parametrize("state", ["idle", "connected", "reading", "calling", "backing off", "sending", "closed"])
def test_a_threaded_exit_prints_nothing(url: str, state: str) -> None:
    """A program that exits in any state of its multiplexer ends at once, and prints nothing."""
    program = """
import logging, sys, threading, time
from redismpx.blocking import Multiplexer
url, state = sys.argv[1:]
logging.disable(logging.WARNING)  # that there is no server
mpx = Multiplexer(url if state != "backing off" else "redis://localhost:1")
if state == "calling":
    called = threading.Event()
    def hang(*_):
        called.set()
        time.sleep(60)
    sub = mpx.new_channel_subscription(hang)
else:
    sub = None if state == "idle" else mpx.new_channel_subscription(on_close=lambda _: None)
if sub is not None:
    sub.add("exits")
    if state != "backing off":
        sub.wait_for_activation(timeout=5)
if state == "reading":
    threading.Thread(target=lambda: list(sub), daemon=True).start()
    threading.Thread(target=sub.get, daemon=True).start()
    while sub._hand_over._readers < 2:
        time.sleep(0.001)
elif state == "calling":
    mpx.publish("exits", "x")
    called.wait(5)
elif state == "backing off":
    while mpx.stats().state != state:
        time.sleep(0.001)
elif state == "sending":
    for number in range(100):
        mpx.publish_soon("exits", str(number))
elif state == "closed":
    mpx.close()
"""
    if state == "sending":
        with Redis.from_url(url) as client, client.pubsub(ignore_subscribe_messages=True) as sub:
            sub.subscribe("exits")
            sub.get_message(timeout=5)  # the confirmation
            run_program(program, url, state)
            seen: list[int] = []
            while (message := sub.get_message(timeout=1)) is not None:
                seen.append(int(message["data"]))
            assert seen == list(range(100))
    else:
        run_program(program, url, state)


FORK = """
import os, sys
from redismpx.blocking import Multiplexer
url, is_started = sys.argv[1], sys.argv[2] == "started"
mpx = Multiplexer(url)
if is_started:
    sub = mpx.new_channel_subscription()
    sub.add("parent")
    sub.wait_for_activation(timeout=5)

def child():
    if is_started:
        calls = [lambda: mpx.publish("a", "x"), mpx.stats, sub.get, lambda: sub.add("b"), mpx.close,
                 mpx.__enter__, sub.close, lambda: mpx.new_promise_subscription("p"), lambda: list(sub),
                 lambda: mpx.publish_soon("a", "x"), lambda: sub.pending]
        for call in calls:
            try:
                call()
            except RuntimeError as error:
                assert "forked" in str(error), error
            else:
                sys.exit(9)
        sys.exit(0)
    with mpx, mpx.subscribe("child") as own:
        assert mpx.publish("child", "x") >= 1
        assert own.get(timeout=5).data == b"x"
        mpx.serve(f"pid-{os.getpid()}", lambda _: b"me").wait_for_activation(timeout=5)
        assert mpx.request(f"pid-{os.getpid()}", "", timeout=5) == b"me"

def run(pids):
    for pid in pids:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status == 0, status

pids = []
for _ in range(3):
    pid = os.fork()
    if not pid:
        child()
        sys.exit(0)
    pids.append(pid)
run(pids)
if is_started:
    mpx.publish("parent", "still here")
    assert sub.get(timeout=5).data == b"still here"
    assert mpx.stats().connections == 1
else:
    child()
"""


@pytest.mark.parametrize("when", ["started", "not started"])
def test_a_fork_before_the_first_call_is_safe(url: str, when: str) -> None:
    """Not started, it works in each child; started, each call in a child raises, and the parent goes on."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", FORK, url, when],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


MULTIPROCESSING = """
import multiprocessing, os, sys
from redismpx.blocking import Multiplexer
mpx = Multiplexer(os.environ["BLOCKING_URL"])  # each process of "spawn" makes it again

def work(number):
    with mpx.subscribe(f"work-{number}") as sub:
        mpx.publish(f"work-{number}", str(number))
        return int(sub.get(timeout=10).data)

if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(work, range(10)) == list(range(10)), method
            pool.close()
            pool.join()
"""


def test_process_pools_use_a_module_level_multiplexer(url: str, tmp_path: Path) -> None:
    """A multiplexer of a module works in the processes of multiprocessing, however they are started."""
    path = tmp_path / "pools.py"
    path.write_text(MULTIPROCESSING)
    result = subprocess.run(
        [sys.executable, "-W", "error", path], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "BLOCKING_URL": url},
    )  # fmt: skip
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


SOON = """
import multiprocessing, os
from redismpx.blocking import Multiplexer
mpx = Multiplexer(os.environ["BLOCKING_URL"])

def work():
    for number in range(200):  # a busy machine sends them within the two seconds, too
        mpx.publish_soon("soon", str(number))

if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        process = multiprocessing.get_context(method).Process(target=work)
        process.start()
        process.join()
        assert process.exitcode == 0
"""


def test_the_end_of_a_child_sends_what_is_left(url: str, tmp_path: Path) -> None:
    """Processes of multiprocessing send the messages of publish_soon() before they end, however they are started."""
    path = tmp_path / "soon.py"
    path.write_text(SOON)
    with Redis.from_url(url) as client, client.pubsub(ignore_subscribe_messages=True) as sub:
        sub.subscribe("soon")
        sub.get_message(timeout=5)  # the confirmation
        result = subprocess.run(
            [sys.executable, "-W", "error", path], capture_output=True, text=True, timeout=60, check=False,
            env={**os.environ, "BLOCKING_URL": url},
        )  # fmt: skip
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
        seen = []
        while (message := sub.get_message(timeout=1)) is not None:
            seen.append(int(message["data"]))
    assert seen == [*range(200)] * 3


def test_eventlet_is_rejected_at_once(url: str) -> None:
    """Where eventlet has replaced the threads, the first call raises, and says what to do."""
    program = """
import sys, types
patcher = types.ModuleType("eventlet.patcher")
patcher.is_monkey_patched = lambda module: module == "thread"
sys.modules["eventlet.patcher"] = patcher
from redismpx.blocking import Multiplexer
try:
    Multiplexer(sys.argv[1]).publish("a", "x")
except RuntimeError as error:
    assert "monkey_patch(thread=False), and what waits by eventlet.tpool.execute()" in str(error)
else:
    sys.exit(1)
"""
    run_program(program, url)


def is_struck_in_get(mpx: Multiplexer, line: int) -> bool:
    """Let a finalizer close one subscription while another one is read; return whether get() has so many lines."""
    doomed, sub = mpx.new_channel_subscription(), mpx.new_channel_subscription()
    for each in (doomed, sub):
        each.add("a")
        each.wait_for_activation(timeout=DEADLINE)
    mpx.publish("a", "x")
    while sub.pending < 1:
        time.sleep(0.001)
    was_struck = struck(line, "redismpx/blocking", [Session(doomed.close)], lambda: sub.get(timeout=DEADLINE))
    while not doomed.closed:
        time.sleep(0.001)
    sub.close()
    return was_struck


def test_a_finalizer_that_interrupts_get_does_not_wait(url: str) -> None:
    """The collector may run in any line of get(), also in one that has a lock, or wakes the loop."""
    with Multiplexer(url) as mpx:
        line = 1
        while is_struck_in_get(mpx, line):
            line += 1
    assert line > 20


def test_a_finalizer_may_look_and_may_not_wait(url: str) -> None:
    """In a finalizer that the collector calls, properties work; calls that wait or change something raise."""
    with Multiplexer(url) as mpx:
        sub = mpx.new_channel_subscription()
        sub.add("a")
        sub.wait_for_activation(timeout=DEADLINE)
        got: list[object] = []

        def look() -> None:
            got.extend((sub.closed, sub.channels, sub.active, sub.pending, mpx.connected))
            for call in (lambda: mpx.publish("a", "x"), lambda: sub.add("b")):
                with pytest.raises(RuntimeError):
                    call()
            got.append("end")

        Session(look)
        gc.collect()
        assert got == [False, {b"a"}, {b"a"}, 0, True, "end"]
