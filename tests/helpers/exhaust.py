"""Random calls beyond every limit of a multiplexer, in a process with 512 MB of address space.

`python -m tests.helpers.exhaust URL [SEED]` prints how often each limit was reached. It exits with 1 if a limit was not
reached, if a rejected call changed anything, or if the memory was not enough.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from redismpx import (
    LimitReached,
    Multiplexer,
    PatternSubscription,
    SlowConsumer,
    Stats,
    TooManyChannels,
    TooManyPatterns,
    TooManyPromises,
)

from .waiting import until

MEMORY = 512 * 2**20
OPERATIONS = 4000
EXPECTED = {TooManyChannels, TooManyPatterns, TooManyPromises, ValueError, SlowConsumer}


def settled(mpx: Multiplexer) -> Stats:
    """Return the counters, without the figures that time changes."""
    return replace(mpx.stats(), lag=0.0, last_message=None)


async def exhaust(url: str, seed: int) -> Counter[str]:
    """Ask for too much, again and again; return what was refused or dropped."""
    chance = random.Random(seed)
    met: Counter[str] = Counter()
    mpx = Multiplexer(
        url, max_channels=500, max_patterns=50, max_promises=500, max_name_bytes=8192, max_payload=2**20,
        max_pending_bytes=4 * 2**20, max_total_pending_bytes=32 * 2**20,
        on_error=lambda error: met.update([type(error).__name__]),
    )  # fmt: skip
    async with mpx:
        channels = mpx.new_channel_subscription()  # nobody reads
        pattern = mpx.new_pattern_subscription("*")
        promises = mpx.new_promise_subscription("exhaust-")
        patterns: list[PatternSubscription] = []
        await promises.wait_for_activation(timeout=10)

        def names(count: int) -> list[bytes]:
            size = chance.choices((8, 100, 8000, 9000), (10, 10, 5, 1))[0]  # the last is too long
            return [chance.randbytes(size) for _ in range(count)]

        def add() -> None:
            channels.add(*names(chance.randrange(50)))

        def listen() -> None:
            patterns.append(mpx.new_pattern_subscription(b"[" + chance.randbytes(4)))

        def promise() -> None:
            promises.new_promise(*names(1), chance.random() * 10)

        async def flood() -> None:
            size = chance.choice((0, 1000, 2**18))
            await asyncio.gather(*(mpx.publish("exhaust", bytes(size)) for _ in range(8)))

        def give_up() -> None:
            channels.clear()
            promises.clear()
            while patterns:
                patterns.pop().close()

        operations: list[Callable[[], object]] = [add, listen, promise, give_up]
        for _ in range(OPERATIONS):
            operation = chance.choices(operations, [10, 10, 20, 0.03])[0]
            before = settled(mpx)
            try:
                operation()
            except (LimitReached, ValueError) as error:
                met[type(error).__name__] += 1
                after = settled(mpx)
                assert before == after, f"{operation.__name__} was refused, and left {after} of {before}"
            if chance.random() < 0.02:
                await flood()
        stats = mpx.stats()
        assert stats.connections == 1, stats
        assert stats.pending_bytes <= 32 * 2**20, stats
        give_up()
        pattern.close()
        await until(lambda: mpx.stats().promises == 0)  # they fail in time slices
        assert (mpx.stats().channels, mpx.stats().promises, mpx.stats().pending_bytes) == (0, 0, 0), mpx.stats()
    return met


def main() -> None:
    import resource  # not on Windows

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(10**6)
    met = asyncio.run(exhaust(sys.argv[1], seed))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"seed {seed}: {dict(met)}; {peak:.0f} MB at most")
    missing = {error.__name__ for error in EXPECTED} - set(met)
    if missing:
        sys.exit(f"never met: {missing}")


if __name__ == "__main__":
    main()
