"""Check sharded channels while slots move and primaries fail over.

    $ python -m tools.measure_migrations [--server redis] [--seed N]

300 subscriptions with one sharded channel each, in a cluster of three primaries and three replicas. Another multiplexer
publishes consecutive numbers to all channels. Meanwhile a hundred slots of these channels move to other primaries, and
ten times a replica takes over from its primary, by command or because the primary is killed.

The program checks that each subscription gets (Activation Message* Disconnect)* for its channel and nothing else, and
that no number is missing in between. One second after the last change, the nodes themselves must report that each
channel is subscribed exactly once, at the owner of its slot.

Prints counts and the slowest recovery, then "OK" or the violations. The exit status is 1 if there is a violation.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
from dataclasses import dataclass, field

from redis.asyncio import RedisCluster
from redis.crc import key_slot
from redis.exceptions import ResponseError

from redismpx import ConnectionLost, Multiplexer
from redismpx.testing import Checker
from tests.helpers.cluster import Cluster
from tests.helpers.loops import run
from tests.helpers.waiting import until

from .measuring import report

CHANNELS, MOVES, FAILOVERS, RATE, SEED = 300, 100, 10, 2000.0, 33


@dataclass
class Result:
    """The counts and violations of one run."""

    published: int = 0
    uncertain: int = 0  # the connection was lost after they were sent
    received: int = 0
    disconnects: int = 0
    slowest: float = 0.0  # seconds from the moment when all nodes agree on a change until all channels are active
    violations: list[str] = field(default_factory=list)


class Stream:
    """Publishes consecutive numbers to each channel, each after the outcome of the previous one on that channel."""

    def __init__(self, mpx: Multiplexer, checkers: dict[bytes, Checker], rate: float, result: Result) -> None:
        self._mpx = mpx
        self._checkers = checkers
        self._interval = len(checkers) / rate
        self._result = result
        self.ended = False

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for channel in self._checkers:
                group.create_task(self._publish(channel))

    async def _publish(self, channel: bytes) -> None:
        number = 0
        await asyncio.sleep(random.uniform(0, self._interval))
        while not self.ended:
            try:
                await self._mpx.publish(channel, b"%d" % number, sharded=True)
            except ResponseError:
                await asyncio.sleep(self._interval)  # the cluster is down and has not published this number
                continue
            except ConnectionLost as error:
                if not error.sent:
                    continue
                self._result.uncertain += 1
                self._checkers[channel].last.pop(channel, None)  # it may arrive or not; accept both
            else:
                self._result.published += 1
            number += 1
            await asyncio.sleep(self._interval)


async def migrate(cluster: Cluster, channels: int, moves: int, failovers: int, rate: float, seed: int) -> Result:
    """Move slots and let primaries fail over, under load."""
    result = Result()
    chance = random.Random(seed)
    names = [b"channel-%d" % number for number in range(channels)]
    checkers = {name: Checker() for name in names}
    async with RedisCluster.from_url(cluster.url) as client, Multiplexer(client) as mpx, Multiplexer(client) as other:
        subs = []
        for name in names:
            checker = checkers[name]
            sub = mpx.new_channel_subscription(*checker.callbacks, on_error=checker.on_error, sharded=True)
            sub.add(name)
            subs.append(sub)
        for sub in subs:
            await sub.wait_for_activation(timeout=10)
        stream = Stream(other, checkers, rate, result)
        streaming = asyncio.create_task(stream.run())
        for change in range(moves + failovers):
            if (change + 1) % ((moves + failovers) // failovers):
                slot = key_slot(chance.choice(names))
                owner = await cluster.owner(slot)
                await cluster.move_slot(slot, chance.choice([p for p in await cluster.primaries() if p is not owner]))
            else:
                primary = chance.choice(await cluster.primaries())
                kill = change % 2 == 0
                await cluster.failover(primary, "kill" if kill else "command")
                if kill:
                    await cluster.restart(primary)
            settled = asyncio.get_running_loop().time()
            await until(lambda: all(checkers[name].active for name in names))
            result.slowest = max(result.slowest, asyncio.get_running_loop().time() - settled)
        await asyncio.sleep(1)  # the time within which the subscriptions must be correct
        subscribers = await cluster.shard_subscribers(names)
        for name in names:
            if subscribers[name] != {await cluster.owner(name): 1}:
                result.violations.append(f"{name!r} is subscribed at {subscribers[name]}")
        for node, found in (await cluster.shard_channels()).items():
            if strangers := found - set(names):
                result.violations.append(f"{node} has other channels subscribed: {strangers}")
        stream.ended = True
        await streaming
        for name, checker in checkers.items():
            result.violations += [f"{name!r}: {fault}" for fault in checker.faults]
            result.violations += [f"{name!r}: {error!r}" for error in checker.errors]
            result.received += checker.messages
            result.disconnects += checker.disconnects
            if checker.activations != checker.disconnects + 1:
                result.violations.append(
                    f"{name!r}: {checker.activations} activations, {checker.disconnects} disconnects"
                )
    return result


async def measure(flavour: str, channels: int, moves: int, failovers: int, rate: float, seed: int) -> int:
    """Do one run and print its report; return the exit status."""
    cluster = await Cluster.start(flavour)
    try:
        result = await migrate(cluster, channels, moves, failovers, rate, seed)
    finally:
        await cluster.stop()
    print(f"{flavour}, seed {seed}: {channels} channels, {moves} slots moved, {failovers} failovers")
    print(
        f"{result.published} messages published, {result.uncertain} of unknown outcome, {result.received} received; "
        f"{result.disconnects} disconnects; all channels active again at most {result.slowest:.3f} s after a change"
    )
    return report(result.violations)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", choices=("valkey", "redis"), default="valkey")
    parser.add_argument("--channels", type=int, default=CHANNELS)
    parser.add_argument("--moves", type=int, default=MOVES)
    parser.add_argument("--failovers", type=int, default=FAILOVERS)
    parser.add_argument("--rate", type=float, default=RATE, help="messages per second, on all channels together")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    logging.disable()
    raise SystemExit(
        run(measure(options.server, options.channels, options.moves, options.failovers, options.rate, options.seed))
    )


if __name__ == "__main__":
    main()
