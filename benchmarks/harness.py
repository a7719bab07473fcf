"""How a case is measured: its contestants in turn, each in a process and with a server of its own, for some rounds."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.metadata
import json
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers.cluster import Cluster
from tests.helpers.servers import Server

from .publisher import Publisher

QUICK = 100  # by how much less --quick does
PEERS = {
    "redis-py": "redis",
    "valkey-glide": "valkey-glide",
    "broadcaster": "broadcaster",
    "coredis": "coredis",
    "nats-py": "nats-py",
}
"""The other libraries, and the distributions that they come in."""
UNITS = {
    **dict.fromkeys(("cpu", "wall", "p50", "p99", "timer", "servers"), "us"),
    **dict.fromkeys(("traced", "resident"), "B"),
    "stall": "ms",
    "share": "%",
    "rate": "/s",
}
"""What each metric is given in."""
TIMEOUT = 300.0  # seconds for one contestant in one round
QUICK_TIMEOUT = 30.0
HELD = ("--client-output-buffer-limit", "pubsub", "0", "0", "0")  # messages that wait in a server stay


Around = Callable[[int], contextlib.AbstractContextManager[object]]
"""Makes what is put around the work that is measured, from the number of its operations."""


class Bench:
    """What a contestant gets: a server or a cluster, how much to do, and the stopwatch."""

    def __init__(self, nodes: Sequence[Server], quick: bool = False, around: Around | None = None) -> None:
        self.ports = [node.port for node in nodes]
        self.port = nodes[0].port
        self.url = nodes[0].url
        self.measures: dict[str, float] = {}
        self._began = 0.0
        self._quick = quick
        self._around = around

    def count(self, full: int, least: int = 1) -> int:
        """Return how many of something there are to be in this run, of `full` in a full one."""
        return max(least, full // QUICK) if self._quick else full

    @contextlib.contextmanager
    def measured(self, operations: int) -> Iterator[None]:
        """Take the time of what is done inside: microseconds of CPU (user and system, all threads) and of the clock."""
        gc.collect()
        with contextlib.nullcontext() if self._around is None else self._around(operations):
            cpu, self._began = cpu_time(), time.perf_counter()
            yield
            cpu, wall = cpu_time() - cpu, time.perf_counter() - self._began
        self.measures |= {"cpu": cpu * 1e6 / operations, "wall": wall * 1e6 / operations}

    def publish(self, publisher: Publisher, messages: int) -> None:
        """Inside `measured()`: let messages wait in the socket and the server. Here nothing happens meanwhile.

        So the clock begins to run afterwards. The CPU time counts from before: valkey-glide's own threads receive all
        the while.
        """
        received = publisher.publish()
        assert received == messages, f"{received} of {messages} messages had a receiver"
        self.start_clock()

    def start_clock(self) -> None:
        """Inside `measured()`: have the clock begin to run only now."""
        self._began = time.perf_counter()


def cpu_time() -> float:
    """Seconds that this process has used, without the processes that it started."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


Contestant = Callable[[Bench], Awaitable[None] | None]


@dataclass(frozen=True)
class Case:
    """One thing that is done by several contestants. Each measures it, and asserts that all of it was done."""

    name: str
    title: str
    operation: str  # what the figures are for one of
    contestants: Mapping[str, Contestant]
    metric: str = "cpu"
    primaries: int = 0  # of a cluster; 0: a server alone


@dataclass
class Result:
    """What one contestant came to in one case: a value of each metric for each round."""

    rounds: dict[str, list[float]] = field(default_factory=dict)
    failure: str = ""

    def add(self, measures: Mapping[str, float]) -> None:
        for metric, value in measures.items():
            self.rounds.setdefault(metric, []).append(value)


Results = dict[str, dict[str, Result]]
"""By case and contestant."""


def run_here(case: Case, contestant: str, binary: str, quick: bool, around: Around | None = None) -> dict[str, float]:
    """Let one contestant do a case once in this process; return its measures."""
    if case.primaries:
        cluster = asyncio.run(start_cluster(binary, case.primaries))
        try:
            return run_on(cluster.nodes, case, contestant, quick, around)
        finally:
            asyncio.run(cluster.stop())
    server = Server(binary, *HELD).start()
    try:
        return run_on([server], case, contestant, quick, around)
    finally:
        server.remove()


async def start_cluster(binary: str, primaries: int) -> Cluster:
    cluster = await Cluster.start(binary, primaries, 0, *HELD)
    await cluster.give_up_after(15)  # nobody is to take a primary for dead that is only busy
    await cluster.release()
    return cluster


def run_on(
    nodes: Sequence[Server], case: Case, contestant: str, quick: bool, around: Around | None = None
) -> dict[str, float]:
    """The same, on servers that run."""
    bench = Bench(nodes, quick, around)
    work = case.contestants[contestant](bench)
    if work is not None:
        asyncio.run(_within(QUICK_TIMEOUT if quick else TIMEOUT, work))
    return bench.measures


async def _within(timeout: float, work: Awaitable[None]) -> None:
    async with asyncio.timeout(timeout):
        await work


def run_apart(case: Case, contestant: str, binary: str, quick: bool) -> dict[str, float]:
    """The same, in a process of its own. Raises `RuntimeError` with the last line of what it complained of."""
    command = [sys.executable, "-m", __package__, case.name, "--alone", contestant, "--redis-server", binary]
    done = subprocess.run(
        command + ["--quick"] * quick,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=TIMEOUT + QUICK_TIMEOUT,  # it has ended itself before, unless it blocks
        check=False,
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1])
    measures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measures


def run_all(cases: list[Case], rounds: int, binary: str, quick: bool, peers: bool) -> Results:
    """Run the cases one after another, and in each the contestants in turn, `rounds` times."""
    missing = {distribution for distribution in PEERS.values() if version(distribution) is None}
    results: Results = {}
    for case in cases:
        names = [name for name in case.contestants if peers or name not in PEERS]
        results[case.name] = {name: Result() for name in names}
        for number in range(rounds):
            for name in names:
                _progress(f"{case.name}: round {number + 1} of {rounds}, {name}")
                result = results[case.name][name]
                if PEERS.get(name) in missing:
                    result.failure = "not installed"
                if not result.failure:  # nor in an earlier round
                    try:
                        result.add(run_apart(case, name, binary, quick))
                    except (RuntimeError, subprocess.TimeoutExpired) as error:
                        result.failure = str(error)
    _progress("")
    return results


def version(distribution: str) -> str | None:
    """Return the version that is installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)
