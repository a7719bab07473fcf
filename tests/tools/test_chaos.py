"""A few seconds of chaos, and a check that chaos detects faults."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading

import pytest

from tools.chaos import surroundings
from tools.chaos.axes import AXES
from tools.chaos.faults import FAULTS, plan
from tools.chaos.followers import Truth
from tools.chaos.surroundings import nothing_left_behind
from tools.mutants import ROOT

from ..helpers.waiting import DEADLINE

# A machine may be slow, so what should do no harm has long to settle.
HARMLESS = ("--seconds", "1", "--settle", str(DEADLINE))
BROKEN = {
    "only the old names are asked for": ["not as desired"],
    "a late joiner is not activated": ["which is not active", "a disconnect with nothing active"],
    "taken away during a fan-out": ["which is not active"],
}
"""Some faults, and what a run may say about them."""
# For each axis: the server, a fault that the axis must detect, and what it then prints: one of these texts.
AXIS_FAULTS: dict[str, tuple[str, ...]] = {
    "tls": ("valkey", "only the old names are asked for", "not as desired"),
    "link-end": ("redis", "before the server closed the connection", "were delivered before the disconnect"),
    "removals": ("valkey", "to remove a channel walks", "removals one by one"),
    "bytes": ("redis", "an empty buffer rejects a message", "a prompt reader did not get a message"),
    "user-objects": ("valkey", "the result of a callback is asked", "internal error"),
    "finalizers": ("redis", "an activation iterates over subscribers", "internal error"),
    "failover": ("redis", "a master is believed to count", "NoResponders"),
    "keys": ("valkey", "a key subscription is active at the first primary", "instead of"),
    "streams": ("redis", "a message is delivered whatever its link", "without a gap", " after (", "stands behind"),
}
# With its faults, a thread may hang; and the cluster of streams has the checks of the axis above.
UNBROKEN = {"loops": "valkey", "stream-cluster": "valkey"}


# A test makes its own run: with pytest-xdist, each worker would make all runs of a fixture.
def run(*options: str) -> tuple[int, str]:
    """Run chaos with a seed, and return its status and its output."""
    command = [sys.executable, "-m", "tools.chaos", "--seed", "1", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("flavour", ["valkey", "redis"])
def test_a_second_of_chaos_violates_nothing(flavour: str) -> None:
    """A second of all faults at once violates no promise."""
    status, output = run("--server", flavour, *HARMLESS)
    assert status == 0, output[-5000:]
    assert f"{flavour}, seed 1: 0 violations" in output


def test_a_message_that_was_trimmed_is_not_lost_by_a_failover() -> None:
    """A failover loses the only entry behind a stream that was trimmed to nothing: the one before it is no loss."""
    truth = Truth()
    assert truth.fork([(b"7-0", {b"data": b"x"})], b"7-0", b"5-0") == 1
    assert not truth.is_forked((5, 0), (9, 0))
    assert truth.is_forked((7, 0), (9, 0))


def test_a_failover_loses_also_what_was_trimmed() -> None:
    """The primary has trimmed its only entry, and its replica has no such stream: nothing tells that it was there."""
    truth = Truth()
    truth.appended = {(7, 0): b"trimmed", (9, 0): b"later"}
    assert truth.lost_between((0, 0), (9, 0)) == 1
    assert truth.fork([], b"7-0", b"0-0") == 0
    assert truth.lost_between((0, 0), (9, 0)) == 0


@pytest.mark.parametrize("fault", BROKEN)
def test_chaos_detects_a_fault_put_back(fault: str) -> None:
    """A chaos run finds each of these known faults."""
    status, output = run("--seconds", "60", "--settle", "0.5", "--broken", fault)
    assert status == 1, output[-5000:]
    assert any(complaint in output for complaint in BROKEN[fault]), output[-5000:]


@pytest.mark.parametrize("axis", [*AXIS_FAULTS, *UNBROKEN])
def test_a_second_of_each_axis_violates_nothing(axis: str) -> None:
    """A second of each axis violates no promise."""
    server = UNBROKEN.get(axis) or AXIS_FAULTS[axis][0]
    status, output = run("--axis", axis, "--server", server, *HARMLESS)
    assert status == 0, output[-5000:]
    assert f"{server}, seed 1: 0 violations" in output


def test_losses_are_counted_at_full_size() -> None:
    """A run until a number of losses ends with it, and violates nothing with 500 subscriptions to 50 streams."""
    status, output = run("--axis", "streams", "--server", "valkey", "--losses", "20")
    assert status == 0, output[-5000:]
    assert int(output.rpartition("'losses': ")[2].partition(",")[0]) >= 20
    assert "1 scenes" in output


@pytest.mark.parametrize("axis", AXIS_FAULTS)
def test_each_axis_detects_a_fault_put_back(axis: str) -> None:
    """Each axis finds a known fault that it is about."""
    server, fault, *complaints = AXIS_FAULTS[axis]
    status, output = run("--axis", axis, "--server", server, "--seconds", "60", "--broken", fault)
    assert status == 1, output[-5000:]
    assert any(complaint in output for complaint in complaints), output[-5000:]


def test_a_socket_that_a_proxy_is_about_to_close_is_no_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run waits for the threads of its proxies to close their sockets, and reports a socket that stays open."""
    violations: list[str] = []
    late = threading.Timer(0.2, lambda: sockets.pop().close())
    with nothing_left_behind(violations):
        sockets = [socket.socket()]
        late.start()
    late.join()
    assert not violations
    monkeypatch.setattr(surroundings, "GRACE", 0.0)
    with nothing_left_behind(violations):
        sock = socket.socket()
    sock.close()
    assert violations == ["1 sockets are still open"]


def test_each_axis_has_a_fault_to_detect() -> None:
    """No axis is left out of the tests above."""
    assert {*AXIS_FAULTS, *UNBROKEN} == {"tls", *AXES}


def test_the_seed_determines_the_plan() -> None:
    """One seed gives one plan, and the plans use every fault."""
    first, again, other = ([next(rounds) for _ in range(100)] for rounds in (plan(1), plan(1), plan(2)))
    assert first == again != other
    assert {step.fault for steps in first for step in steps} == set(FAULTS)
