"""The benchmarks do the work that they measure, and report it. No test asserts a time."""

from __future__ import annotations

import asyncio
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import pieces
from benchmarks.__main__ import CASES
from benchmarks.harness import PEERS, UNITS, Case, Result, run_all, run_here, run_on, start_cluster
from benchmarks.report import Report
from benchmarks.targets import TARGETS, Relation, Target

from ..helpers.cluster import Cluster
from ..helpers.servers import find_binary

INSTALLED = [
    (case, contestant)
    for case in CASES.values()
    for contestant in case.contestants
    if contestant not in PEERS or contestant == "redis-py"  # our own dependency
]


@pytest.fixture(scope="module")
def binary() -> str:
    found = find_binary("valkey")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def clusters(binary: str) -> Iterator[dict[int, Cluster]]:
    """One of each size that a case needs. It takes two seconds until they serve, so the contestants share them."""
    sizes = {case.primaries for case in CASES.values()} - {0}
    started: dict[int, Cluster] = {}

    async def start(primaries: int) -> None:
        started[primaries] = await start_cluster(binary, primaries)

    async def start_all() -> None:
        await asyncio.gather(*map(start, sizes))

    async def stop_all() -> None:
        for cluster in started.values():
            await cluster.stop()

    try:
        asyncio.run(start_all())
        yield started
    finally:
        asyncio.run(stop_all())


@pytest.mark.parametrize(("case", "contestant"), INSTALLED, ids=lambda value: getattr(value, "name", value))
def test_a_contestant_does_all_of_its_case(
    case: Case, contestant: str, binary: str, clusters: dict[int, Cluster]
) -> None:
    """Each contestant completes each case, and itself asserts that the number of messages is right."""
    if case.primaries:
        measures = run_on(clusters[case.primaries].nodes, case, contestant, quick=True)
    else:
        measures = run_here(case, contestant, binary, quick=True)
    assert case.metric in measures
    assert measures.keys() <= UNITS.keys()
    assert all(map(math.isfinite, measures.values()))


def test_a_contestant_gets_its_own_cluster(binary: str) -> None:
    """A case that needs a cluster starts one for its contestant."""
    assert run_here(CASES["throughput-1"], "floor", binary, quick=True).keys() == {"cpu", "wall", "servers", "rate"}


@pytest.mark.parametrize("loop", [pieces.bare, pieces.looked_up, pieces.checked])
async def test_each_loop_of_a_drain_calls_for_each_message(loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each measured loop calls the function once for each message."""
    called: list[tuple[object, object]] = []
    monkeypatch.setattr(pieces, "function", lambda channel, data: called.append((channel, data)))
    await pieces.draining(loop)(pieces.SLICE)
    assert called == [(pieces.CHANNEL, pieces.DATA)] * pieces.SLICE


async def test_the_pieces_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """Each piece of the receive path is measured and reported."""
    await pieces.main(times=320, rounds=2)
    assert capsys.readouterr().out.count(" ns  ") == len(pieces.PIECES)


def test_the_command_reports_figures_targets_and_a_chart(tmp_path: Path) -> None:
    """The command writes the figures, the targets and a chart."""
    files = {kind: tmp_path / kind for kind in ("json", "markdown", "chart")}
    options = [option for kind, path in files.items() for option in (f"--{kind}", str(path))]
    command = [sys.executable, "-m", "benchmarks", "drain", "--quick", "--rounds", "2", "--no-peers", *options]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == files["markdown"].read_text().strip()
    assert done.stderr.splitlines()[-1] == "drain: round 2 of 2, floor"
    report = json.loads(files["json"].read_text())
    contestants = report["cases"]["drain"]["contestants"]
    assert contestants.keys() == {"redismpx", "floor"}
    assert [len(contestant["rounds"]["cpu"]) for contestant in contestants.values()] == [2, 2]
    assert [target["met"][:2] in ("ye", "no") for target in report["targets"]] == [True, False, False, False]
    assert report["targets"][1]["measured"] == "missing"
    chart = ElementTree.parse(files["chart"]).getroot()
    assert [bar.get("class") for bar in chart.findall("{*}rect")] == [None, "redismpx", "floor"]


def test_the_command_counts_bytecodes() -> None:
    """The command counts the bytecodes for each message."""
    command = [sys.executable, "-m", "benchmarks", "drain", "--quick", "--bytecodes", "floor"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60, check=False
    )
    if sys.version_info < (3, 12):
        assert "needs Python 3.12" in done.stderr
    else:
        title, total, *functions = done.stdout.splitlines()
        assert title == "drain, floor, for each message:"
        counts = [float(line.split()[0]) for line in functions]
        assert {"bare_loop", "Countdown.function"} <= {line.split()[-1] for line in functions}
        assert sum(counts) == pytest.approx(float(total.split()[0]), abs=1)


def test_missing_or_failing_contestants_are_named(binary: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report names contestants that are not installed or that fail."""

    def fail(bench: object) -> None: ...

    monkeypatch.setitem(PEERS, "no such peer", "no-such-distribution")
    case = Case("drain", "", "message", {"no such peer": fail, "no such contestant": fail})
    results = run_all([case], 1, binary, quick=True, peers=True)
    assert results["drain"]["no such peer"].failure == "not installed"
    assert results["drain"]["no such contestant"].failure == "KeyError: 'no such contestant'"
    page = Report([case], results, binary).markdown()
    assert "no such peer missing" in page
    assert "| not installed " in page
    assert "| KeyError: 'no such contestant' " in page


def test_each_target_has_a_measured_case() -> None:
    """Each target refers to a case, a contestant and a figure that exist."""
    for target in TARGETS:
        assert target.against in CASES[target.case].contestants
        assert target.metric in UNITS


@pytest.mark.parametrize(
    ("relation", "limit", "figure", "judgement"),
    [
        (Relation.TIMES, 2, 1.5, "yes"),
        (Relation.TIMES, 1, 1.5, "no, by 50%"),
        (Relation.TIMES_LESS, 1, 1 / 1.5, "no, by 33%"),
        (Relation.TIMES_LESS, 0.5, 1 / 1.5, "yes"),
        (Relation.BEYOND, 1, 2, "no, by 100%"),
        (Relation.BEYOND, 0, 2, "no"),
        (Relation.BEYOND, 2, 2, "yes"),
        (Relation.AT_MOST, 5, 6, "no, by 20%"),
        (Relation.AT_MOST, 6, 6, "yes"),
    ],
)
def test_a_target_is_judged_by_the_median_of_the_rounds(
    relation: Relation, limit: float, figure: float, judgement: str
) -> None:
    """A target is compared with the median of the rounds; a miss has its amount."""
    results = {"redismpx": Result({"cpu": [3.0, 6.0, 90.0]}), "floor": Result({"cpu": [2.0, 4.0, 10.0]})}
    target = Target("drain", relation, limit, "redismpx" if relation is Relation.AT_MOST else "floor")
    measured = target.measure(results)
    assert measured == pytest.approx(figure)
    assert target.judge(figure) == judgement


def test_each_missed_target_has_a_reason() -> None:
    """The page about performance says, for each case of which a target is missed, why."""
    pages = Path(__file__).parents[2] / "docs/explanation"
    missed = set(re.findall(r"^\| ([\w-]+) .*\| no[^|]*\|$", (pages / "performance.inc").read_text(), re.MULTILINE))
    _, _, section = (pages / "performance.md").read_text().partition("## Targets that are missed, and why")
    reasons = re.findall(r"^- \*\*(.+?)\*\*:", section.partition("\n## ")[0], re.MULTILINE)
    assert missed <= set(", ".join(reasons).split(", "))
