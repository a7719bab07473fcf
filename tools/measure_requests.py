"""Ten thousand requests at once, three services, one of them killed: `python -m tools.measure_requests`.

The services run in processes of their own. Each has a channel to itself, and one that all three serve; they answer
after a while, fail now and then, and now and then never answer. One is killed in the middle. Meanwhile somebody forges
answers to channels that he guesses. Prints how the requests ended: each has one outcome, what it got is its own, and
nothing is missing that was not asked of the killed one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import random
import secrets
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator

from redis.asyncio import Redis

from redismpx import (
    Envelope,
    Multiplexer,
    NoResponders,
    PromiseInterrupted,
    PromiseTimeout,
    Request,
    RequestFailed,
)
from tests.helpers.loops import run
from tests.helpers.servers import Server, find_binary
from tests.helpers.waiting import until

SERVICES = 3
SHARED = "work"  # the channel that all of them serve
SPREAD = 1.0  # seconds that an answer takes at most
FAILS, HANGS = 11, 97  # one request in so many fails, or is never answered


async def serve(url: str, number: int) -> None:
    """Be one process: serve, say so, and go on until killed."""

    async def handle(request: Request) -> bytes:
        count = int(request.body.split()[0])
        if count % HANGS == HANGS - 1:
            await asyncio.Event().wait()
        await asyncio.sleep(random.uniform(0, SPREAD))
        if count % FAILS == FAILS - 1:
            raise ValueError(f"{number} cannot: {request.body.decode()}")
        return b"%d did: %b" % (number, request.body)

    mpx = Multiplexer(url, on_error=lambda _: None, max_pending=1_000_000)
    for channel in (SHARED, f"{SHARED}-{number}"):
        service = mpx.serve(channel, handle, concurrency=1_000_000)
        await service.wait_for_activation(30)
    print("ready", flush=True)
    await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def services(url: str) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    """Run them until the end."""
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tools.measure_requests", "--serve", str(number), "--url", url),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for number in range(SERVICES)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ready\n"
        yield processes
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def ask(mpx: Multiplexer, number: int, timeout: float, outcomes: Counter[str]) -> None:
    """Ask once; note the one outcome, and see that it is this request's own."""
    channel = SHARED if number % (SERVICES + 1) == SERVICES else f"{SHARED}-{number % (SERVICES + 1)}"
    body = f"{number} {secrets.token_hex(8)}"
    try:
        answer = (await mpx.request(channel, body, timeout=timeout)).decode()
        who, _, mine = answer.partition(" did: ")
        outcome = f"answered by service {who}"
    except RequestFailed as error:
        mine = error.reason.rpartition("cannot: ")[2]
        outcome = "failed"
    except PromiseTimeout:
        assert number % HANGS == HANGS - 1 or channel == f"{SHARED}-0", f"{body!r} has lost its answer"
        outcome, mine = "timed out", body
    except NoResponders:
        outcome, mine = "nobody there", body
    except PromiseInterrupted:
        outcome, mine = "interrupted", body
    assert mine == body, f"{body!r} was answered with {mine!r}"
    outcomes[outcome] += 1


async def forge(admin: Redis, mpx: Multiplexer, stopped: asyncio.Event) -> int:
    """Answer channels that are guessed, with the prefix known, until stopped; return how often."""
    prefix = mpx._requester._prefix
    answer = bytes(Envelope(b"0 did: forged"))
    count = 0
    while not stopped.is_set():
        pipe = admin.pipeline(transaction=False)
        for _ in range(100):
            pipe.publish(prefix + secrets.token_urlsafe(16).encode(), answer)
        pipe.publish(prefix, answer)
        assert set(await pipe.execute()) <= {0, 1}
        count += 101
        await asyncio.sleep(0.01)
    return count


async def storm(server: Server, total: int, timeout: float) -> tuple[Counter[str], int, int]:
    """Ask `total` times at once, and a few times more; return the outcomes, the most at a time, and the forgeries."""
    outcomes: Counter[str] = Counter()
    stopped = asyncio.Event()
    async with (
        services(server.url) as processes,
        Multiplexer(server.url, publish_timeout=timeout) as mpx,
        Redis.from_url(server.admin_url) as admin,
    ):
        asking = [asyncio.ensure_future(ask(mpx, number, timeout, outcomes)) for number in range(total)]
        await until(lambda: mpx.stats().promises == total, timeout)
        most = mpx.stats().promises
        forger = asyncio.ensure_future(forge(admin, mpx, stopped))
        await until(lambda: outcomes.total() >= total // 4, timeout)  # in the middle of it
        processes[0].kill()
        async with asyncio.timeout(timeout):
            while (await admin.pubsub_numsub(f"{SHARED}-0"))[0][1]:
                await asyncio.sleep(0.01)
        late = range(total, total + 2 * (SERVICES + 1))
        asking += [asyncio.ensure_future(ask(mpx, number, timeout, outcomes)) for number in late]
        await asyncio.gather(*asking)
        stopped.set()
        forged = await forger
        assert outcomes.total() == len(asking), "a request without an outcome"
        assert mpx.stats().promises == 0, "a promise that was left behind"
        assert mpx.stats().patterns == mpx.stats().subscriptions == 1
    return outcomes, most, forged


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--timeout", type=float, default=15)
    parser.add_argument("--serve", type=int)
    parser.add_argument("--url")
    options = parser.parse_args()
    logging.disable()
    if options.serve is not None:
        run(serve(options.url, options.serve))
        return
    for flavour in ("valkey", "redis"):
        binary = find_binary(flavour)
        if binary is None:
            continue
        server = Server(binary).start()
        try:
            began = time.monotonic()
            outcomes, most, forged = run(storm(server, options.requests, options.timeout))
        finally:
            server.remove()
        print(f"{flavour}: {outcomes.total()} requests, {most} of them at a time, in {time.monotonic() - began:.1f} s:")
        print(*[f"  {count} {outcome}" for outcome, count in sorted(outcomes.items())], sep="\n")
        print(f"  each its own; {forged} forged answers did nothing", flush=True)


if __name__ == "__main__":
    main()
