"""Check the outcomes of `publish()` while its connections are killed.

    $ python -m tools.measure_publish [--tasks 1000] [--messages 100000] [--kills 50]

The tasks publish the messages, each task one after another. Meanwhile the server kills the publishing connection again
and again. No message is published a second time.

The program checks that each call has one outcome; that the messages of each task arrive in order and at most once; that
every message with a receiver has arrived; and that no message arrives that was reported as not sent.

Prints the number of calls for each outcome, then "OK" or the violations. The exit status is 1 if there is a violation.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, field

from redis.asyncio import Redis

from redismpx import ConnectionLost, Multiplexer
from tests.helpers.loops import run
from tests.helpers.servers import Server
from tests.helpers.waiting import until

from .measuring import report, running_server

TASKS, MESSAGES, KILLS = 1000, 100_000, 50


@dataclass
class Result:
    """The counts and violations of one run."""

    outcomes: Counter[str] = field(default_factory=Counter)
    killed: int = 0
    arrived: int = 0
    violations: list[str] = field(default_factory=list)


async def publish_while_killing(server: Server, admin: Redis, tasks: int, each: int, kills: int) -> Result:
    """Publish `each` messages from each of `tasks` tasks, while the publishing connection is killed `kills` times."""
    result = Result()
    total = tasks * each
    outcomes: dict[tuple[int, int], str] = {}
    arrived: dict[tuple[int, int], int] = {}
    last = [-1] * tasks
    ended = asyncio.Event()

    def on_message(channel: bytes, data: bytes) -> None:
        if data == b"end":
            ended.set()
            return
        task, number = map(int, data.split(b":"))
        if number <= last[task]:
            result.violations.append(f"task {task}: {number} arrived after {last[task]}")
        last[task] = number
        arrived[task, number] = arrived.get((task, number), 0) + 1

    async def caller(mpx: Multiplexer, task: int) -> None:
        for number in range(each):
            try:
                outcome = str(await mpx.publish("load", f"{task}:{number}"))
            except ConnectionLost as error:
                outcome = "lost after it was sent" if error.sent else "not sent"
            if (task, number) in outcomes:
                result.violations.append(f"task {task}: {number} has two outcomes")
            outcomes[task, number] = outcome
            result.outcomes[outcome] += 1

    async def kill() -> None:
        for step in range(1, kills + 1):
            await until(lambda step=step: len(outcomes) >= total * step // (kills + 1), 60)  # type: ignore[misc]
            killed = 0
            while not killed and len(outcomes) < total:  # 0 while the next connection is not made yet
                killed = await admin.client_kill_filter(_type="normal", skipme=True)
            result.killed += killed

    async with Multiplexer(server.url, publish_timeout=30) as mpx:
        sub = mpx.new_channel_subscription(on_message)  # uses the connection of type pubsub, which is not killed
        sub.add("load")
        await sub.wait_for_activation(timeout=10)
        await asyncio.gather(kill(), *(caller(mpx, task) for task in range(tasks)))
        await admin.publish("load", "end")
        await asyncio.wait_for(ended.wait(), 30)
        assert mpx.stats().connections == 1
        assert mpx.stats().published == result.outcomes["0"] + result.outcomes["1"]
    result.arrived = len(arrived)
    if len(outcomes) != total:
        result.violations.append(f"{total - len(outcomes)} calls have no outcome")
    for call, outcome in outcomes.items():
        times = arrived.get(call, 0)
        allowed = {"1": (1,), "not sent": (0,), "lost after it was sent": (0, 1)}.get(outcome, ())
        if times not in allowed:
            result.violations.append(f"task {call[0]}: {call[1]} ({outcome}) arrived {times} times")
    return result


async def measure(server: Server, tasks: int, messages: int, kills: int) -> int:
    """Do one run and print its report; return the exit status."""
    async with Redis.from_url(server.admin_url) as admin:
        began = asyncio.get_running_loop().time()
        result = await publish_while_killing(server, admin, tasks, messages // tasks, kills)
        seconds = asyncio.get_running_loop().time() - began
    print(f"{messages} calls from {tasks} tasks in {seconds:.1f} s; {result.killed} connections killed")
    print(f"{result.arrived} messages arrived; outcomes: {dict(result.outcomes)}")
    return report(result.violations)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=TASKS)
    parser.add_argument("--messages", type=int, default=MESSAGES)
    parser.add_argument("--kills", type=int, default=KILLS)
    options = parser.parse_args()
    logging.disable()
    with running_server() as server:
        raise SystemExit(run(measure(server, options.tasks, options.messages, options.kills)))


if __name__ == "__main__":
    main()
