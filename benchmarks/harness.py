"""Run the cases: the contestants take turns for some rounds, each turn in a process and with a server of its own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.metadata
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers.cluster import Cluster
from tests.helpers.servers import Server

from .publisher import Publisher

QUICK_DIVISOR = 100  # of the work, with --quick
PEERS = {
    "redis-py": "redis",
    "valkey-glide": "valkey-glide",
    "broadcaster": "broadcaster",
    "litestar": "litestar",
    "python-socketio": "python-socketio",
    "channels_redis": "channels-redis",
    "coredis": "coredis",
    "nats-py": "nats-py",
    "blinker": "blinker",
    "PyPubSub": "pypubsub",
    "replayrail": "replayrail",
}
"""The other libraries, and the distribution of each."""
UNITS = {
    **dict.fromkeys(("cpu", "wall", "p50", "p99", "timer", "servers"), "us"),
    **dict.fromkeys(("traced", "resident"), "B"),
    "stall": "ms",
    "share": "%",
    "rate": "/s",
    "connections": "",
}
"""The unit of each metric."""
TURN_TIMEOUT = 300.0  # seconds, for one contestant in one round
QUICK_TURN_TIMEOUT = 30.0
# The server buffers any number of messages for a subscriber.
NO_OUTPUT_LIMIT = ("--client-output-buffer-limit", "pubsub", "0", "0", "0")


Around = Callable[[int], contextlib.AbstractContextManager[object]]
"""Takes the number of operations; returns the context in which the measured work runs, such as a profiler."""


class Bench:
    """What a contestant gets: the servers, the amount of work, and the stopwatch."""

    def __init__(self, nodes: Sequence[Server], quick: bool = False, around: Around | None = None) -> None:
        self.ports = [node.port for node in nodes]
        self.port = nodes[0].port
        self.url = nodes[0].url
        self.measures: dict[str, float] = {}
        self._began = 0.0
        self._quick = quick
        self._around = around

    def count(self, full: int, least: int = 1) -> int:
        """Return the amount of work in this run: `full`, or a hundredth of it but `least` with --quick."""
        return max(least, full // QUICK_DIVISOR) if self._quick else full

    @contextlib.contextmanager
    def measured(self, operations: int) -> Iterator[None]:
        """Measure the block: microseconds of CPU time (user and system, all threads) and of wall time per operation."""
        gc.collect()
        with contextlib.nullcontext() if self._around is None else self._around(operations):
            cpu, self._began = cpu_time(), time.perf_counter()
            yield
            cpu, wall = cpu_time() - cpu, time.perf_counter() - self._began
        self.measures |= {"cpu": cpu * 1e6 / operations, "wall": wall * 1e6 / operations}

    def publish(self, publisher: Publisher, messages: int) -> None:
        """Inside `measured()`: publish messages while this thread waits, so that socket and server buffer them.

        The wall time starts afterwards. The CPU time includes this period, because valkey-glide receives in its own
        threads meanwhile.
        """
        received = publisher.publish()
        assert received == messages, f"only {received} of {messages} messages had a receiver"
        self.start_clock()

    def start_clock(self) -> None:
        """Inside `measured()`: restart the wall time."""
        self._began = time.perf_counter()


def cpu_time() -> float:
    """Return the seconds of CPU time of this process, without its child processes."""
    return time.process_time()


Contestant = Callable[[Bench], Awaitable[None] | None]


@dataclass(frozen=True)
class Case:
    """One kind of work, and its contestants. Each contestant measures the work and asserts that all of it was done."""

    name: str
    title: str
    operation: str  # the figures are for one operation
    contestants: Mapping[str, Contestant]
    metric: str = "cpu"
    primaries: int = 0  # of a cluster; 0: a single server


@dataclass
class Result:
    """The values of one contestant in one case, for each metric and round."""

    rounds: dict[str, list[float]] = field(default_factory=dict)
    failure: str = ""

    def add(self, measures: Mapping[str, float]) -> None:
        for metric, value in measures.items():
            self.rounds.setdefault(metric, []).append(value)


Results = dict[str, dict[str, Result]]
"""Results by name of the case and name of the contestant."""


def run_here(case: Case, contestant: str, binary: str, quick: bool, around: Around | None = None) -> dict[str, float]:
    """Run one contestant of a case once, in this process; return its measures."""
    if case.primaries:
        cluster = asyncio.run(start_cluster(binary, case.primaries))
        try:
            return run_on(cluster.nodes, case, contestant, quick, around)
        finally:
            asyncio.run(cluster.stop())
    server = Server(binary, *NO_OUTPUT_LIMIT).start()
    try:
        return run_on([server], case, contestant, quick, around)
    finally:
        server.remove()


async def start_cluster(binary: str, primaries: int) -> Cluster:
    cluster = await Cluster.start(binary, primaries, 0, *NO_OUTPUT_LIMIT)
    await cluster.give_up_after(15)  # seconds; a busy primary must not count as dead
    await cluster.release()
    return cluster


def run_on(
    nodes: Sequence[Server], case: Case, contestant: str, quick: bool, around: Around | None = None
) -> dict[str, float]:
    """Run one contestant of a case once, on running servers; return its measures."""
    bench = Bench(nodes, quick, around)
    work = case.contestants[contestant](bench)
    if work is not None:
        asyncio.run(_within(QUICK_TURN_TIMEOUT if quick else TURN_TIMEOUT, work))
    return bench.measures


async def _within(timeout: float, work: Awaitable[None]) -> None:
    async with asyncio.timeout(timeout):
        await work


def run_apart(case: Case, contestant: str, binary: str, quick: bool) -> dict[str, float]:
    """Run one contestant once, in a new process. Raises `RuntimeError` with the last line of its stderr if it fails."""
    command = [sys.executable, "-m", __package__, case.name, "--alone", contestant, "--redis-server", binary]
    done = subprocess.run(
        command + ["--quick"] * quick,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=TURN_TIMEOUT + QUICK_TURN_TIMEOUT,  # the process itself ends earlier, unless it blocks
        check=False,
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1])
    measures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measures


def run_all(cases: list[Case], rounds: int, binary: str, quick: bool, peers: bool) -> Results:
    """Run the cases one after another. In each, all contestants run once per round."""
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
                if not result.failure:  # a contestant that failed does not run again
                    try:
                        result.add(run_apart(case, name, binary, quick))
                    except (RuntimeError, subprocess.TimeoutExpired) as error:
                        result.failure = str(error)
    _progress("")
    return results


def version(distribution: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)
