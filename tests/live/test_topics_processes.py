"""Three processes with random topics and subscriptions, under kills, against a naive model."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import pytest
from redis import Redis

from ..helpers.servers import Server
from ..helpers.topics_model import covers

pytestmark = pytest.mark.one_flavour

SECONDS = float(os.environ.get("REDISMPX_STRESS", "3"))
"""How long the processes run; REDISMPX_STRESS=60 runs them for a minute."""
KINDS = ("asyncio", "threads", "asyncio")


class Run:
    """A process and what it wrote."""

    def __init__(self, url: str, number: int, kind: str) -> None:
        command = [sys.executable, "-W", "error", "-m", "tests.helpers.topics_process"]
        self.number, self.kind = number, kind
        self.process = subprocess.Popen(
            [*command, url, str(number), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.events: list[list[Any]] = []
        self._is_connected = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith("\n"):  # a kill may cut the last one
                self.events.append(json.loads(line))
            self._is_connected.set()

    def wait(self) -> None:
        """Wait until it is connected."""
        assert self._is_connected.wait(30)

    def end(self, *, by_kill: bool) -> None:
        if by_kill:
            self.process.kill()
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write("\n")
            self.process.stdin.close()
        self._thread.join()
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        assert by_kill or self.process.returncode == 0

    @property
    def sent(self) -> list[tuple[int, tuple[str, ...]]]:
        return [(event[1], tuple(event[2])) for event in self.events if event[0] == "sent"]


def check(run: Run, publishers: dict[int, Run]) -> tuple[int, int]:
    """Hold what one process got against what all have sent; return the number of messages, and of gaps."""
    filters: dict[int, tuple[str, ...]] = {}
    active: set[tuple[str, ...]] = set()  # filters of which no message is missed now
    last: dict[tuple[int, int], int] = {}  # by subscription and publisher; only while nothing may be missed
    sent = {number: dict(publisher.sent) for number, publisher in publishers.items()}
    got: set[tuple[int, int, int]] = set()
    newest: dict[tuple[int, int], int] = {}
    messages = gaps = 0
    closing: int | None = None
    for event, *rest in run.events:
        if event == "open":
            filters[rest[0]] = tuple(rest[1])
        elif event == "closed":
            del filters[rest[0]]
            closing = rest[0] if run.kind == "threads" else None
        elif event == "active":
            active.add(tuple(rest[0]))
        elif event == "gap":
            gaps += 1
            active.clear()
            last.clear()
        elif event == "got":
            name, publisher, number, topic = rest
            messages += 1
            place = f"process {run.number}, subscription {name} to {filters.get(name)}: {publisher}/{number}"
            if name == closing:  # the callback ran already, in another thread than close()
                continue
            assert name in filters, f"{place} after its end"
            assert sent[publisher].get(number) == tuple(topic), f"{place} was not sent on {topic}"
            assert covers(filters[name], tuple(topic)), f"{place} is not covered: {topic}"
            assert (name, publisher, number) not in got, f"{place} twice"
            assert number > newest.get((name, publisher), -1), f"{place} out of order"
            got.add((name, publisher, number))
            before = last.get((name, publisher))
            if before is not None:
                missed = [
                    between
                    for between in range(before + 1, number)
                    if covers(filters[name], sent[publisher][between])
                    and (publisher, between) not in unsent(publishers[publisher])
                ]
                assert not missed, f"{place}: {missed} are missing without a gap"
            newest[name, publisher] = number
            if filters[name] in active or publisher == run.number:
                last[name, publisher] = number
    return messages, gaps


def unsent(publisher: Run) -> set[tuple[int, int]]:
    """The messages around an error of the publisher: it is told that one did not arrive, and not which."""
    around: set[tuple[int, int]] = set()
    number = -1
    for event, *rest in publisher.events:
        if event == "sent":
            number = rest[0]
        elif event == "error":
            around |= {(publisher.number, each) for each in range(number - 200, number + 1)}
    return around


def test_three_processes_agree_with_a_naive_model(server: Server) -> None:
    """Each subscriber gets what is covered, in the order of each publisher, once; what is missed is told."""
    seed = int(os.environ.get("REDISMPX_SEED", random.SystemRandom().randrange(1_000_000)))
    rng = random.Random(seed)
    running = [Run(server.admin_url, number, kind) for number, kind in enumerate(KINDS)]
    for run in running:
        run.wait()
    runs = list(running)
    give_up = time.monotonic() + SECONDS
    with Redis.from_url(server.admin_url) as admin:
        while time.monotonic() < give_up:
            time.sleep(rng.uniform(0.1, 0.5))
            if rng.random() < 0.7:
                admin.client_kill_filter(_type="pubsub", skipme=True)
            else:
                place = rng.randrange(len(running))
                running[place].end(by_kill=True)
                running[place] = Run(server.admin_url, len(runs), KINDS[place])
                running[place].wait()
                runs.append(running[place])
    for run in running:
        run.end(by_kill=False)
    totals = [check(run, {each.number: each for each in runs}) for run in runs]
    assert sum(messages for messages, _ in totals) > 100, f"seed {seed}"
    assert sum(gaps for _, gaps in totals) > 0, f"seed {seed}"
