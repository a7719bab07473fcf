"""A few seconds of chaos, and a check that chaos detects faults."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tools.chaos import FAULTS, plan
from tools.mutants import ROOT

from ..helpers.waiting import DEADLINE

# A machine may be slow, so what should do no harm has long to settle.
HARMLESS = {
    flavour: ("--server", flavour, "--seconds", "1", "--settle", str(DEADLINE)) for flavour in ("valkey", "redis")
}
BROKEN = {
    "only the old names are asked for": "not as desired",
    "a late joiner is not activated": "which is not active",
    "taken away during a fan-out": "which is not active",
}


@pytest.fixture(scope="module")
def results() -> dict[str, tuple[int, str]]:
    """The status and the output of all runs that the tests need, made side by side: they mostly wait."""
    options = HARMLESS | {fault: ("--seconds", "60", "--settle", "0.5", "--broken", fault) for fault in BROKEN}
    command = [sys.executable, "-m", "tools.chaos", "--seed", "1"]
    processes = {
        name: subprocess.Popen([*command, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for name, words in options.items()
    }
    outputs = {name: process.communicate()[0] for name, process in processes.items()}
    return {name: (process.returncode, outputs[name]) for name, process in processes.items()}


@pytest.mark.parametrize("flavour", HARMLESS)
def test_a_second_of_chaos_violates_nothing(results: dict[str, tuple[int, str]], flavour: str) -> None:
    """A second of all faults at once violates no promise."""
    status, output = results[flavour]
    assert status == 0, output[-5000:]
    assert f"{flavour}, seed 1: 0 violations" in output


@pytest.mark.parametrize("fault", BROKEN)
def test_chaos_detects_a_fault_put_back(results: dict[str, tuple[int, str]], fault: str) -> None:
    """A chaos run finds each of these known faults."""
    status, output = results[fault]
    assert status == 1, output[-5000:]
    assert BROKEN[fault] in output


def test_the_seed_determines_the_plan() -> None:
    """One seed gives one plan, and the plans use every fault."""
    first, again, other = ([next(rounds) for _ in range(100)] for rounds in (plan(1), plan(1), plan(2)))
    assert first == again != other
    assert {step.fault for steps in first for step in steps} == set(FAULTS)
