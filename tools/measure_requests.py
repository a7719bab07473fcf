"""Check ten thousand requests at once, with services that fail and die.

    $ python -m tools.measure_requests [--requests 10000] [--timeout 15]

Three processes serve requests. Each has a channel of its own, and all three serve one shared channel. A service replies
after up to a second; some requests fail, and some are never answered. One service is killed in the middle. Meanwhile
forged replies are published to guessed reply channels.

The program checks, with assertions, that each request has exactly one outcome, that each reply belongs to its request,
and that only requests to the killed service or without a reply time out. Prints the number of requests for each
outcome, on each installed server (Valkey, Redis).
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
    ConnectionLost,
    Envelope,
    Multiplexer,
    NoResponders,
    PromiseTimeout,
    Request,
    RequestFailed,
)
from tests.helpers.loops import run
from tests.helpers.servers import Server
from tests.helpers.waiting import until

from .measuring import installed_flavours, running_server

SERVICES = 3
SHARED = "work"  # the channel that all services serve
MAX_DELAY = 1.0  # seconds until a reply
FAILS, HANGS = 11, 97  # one of 11 requests fails, one of 97 gets no reply


async def serve(url: str, number: int) -> None:
    """Run one service process: serve, print "ready", and go on until killed."""

    async def handle(request: Request) -> bytes:
        count = int(request.body.split()[0])
        if count % HANGS == HANGS - 1:
            await asyncio.Event().wait()
        await asyncio.sleep(random.uniform(0, MAX_DELAY))
        if count % FAILS == FAILS - 1:
            raise ValueError(f"{number} cannot: {request.body.decode()}")
        return b"%d did: %b" % (number, request.body)

    mpx = Multiplexer(url, on_error=lambda _: None, max_pending=1_000_000)
    for channel in (SHARED, f"{SHARED}-{number}"):
        service = mpx.serve(channel, handle, concurrency=1_000_000)
        await service.wait_for_activation(timeout=30)
    print("ready", flush=True)
    await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def services(url: str) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    """Run the service processes for the length of the block."""
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


async def send_request(mpx: Multiplexer, number: int, timeout: float, outcomes: Counter[str]) -> None:
    """Send one request, record its outcome, and check that the reply belongs to it."""
    channel = SHARED if number % (SERVICES + 1) == SERVICES else f"{SHARED}-{number % (SERVICES + 1)}"
    body = f"{number} {secrets.token_hex(8)}"
    try:
        reply = (await mpx.request(channel, body, timeout=timeout)).decode()
        service, _, mine = reply.partition(" did: ")
        outcome = f"reply from service {service}"
    except RequestFailed as error:
        mine = error.reason.rpartition("cannot: ")[2]
        outcome = "failed"
    except PromiseTimeout:
        assert number % HANGS == HANGS - 1 or channel == f"{SHARED}-0", f"{body!r} has lost its reply"
        outcome, mine = "timed out", body
    except NoResponders:
        outcome, mine = "no responders", body
    except ConnectionLost:
        outcome, mine = "interrupted", body
    assert mine == body, f"{body!r} got the reply to {mine!r}"
    outcomes[outcome] += 1


async def forge(admin: Redis, mpx: Multiplexer, stopped: asyncio.Event) -> int:
    """Publish replies to guessed channels below the known prefix until stopped; return their number."""
    prefix = mpx._requester._prefix
    reply = bytes(Envelope(b"0 did: forged"))
    count = 0
    while not stopped.is_set():
        pipe = admin.pipeline(transaction=False)
        for _ in range(100):
            pipe.publish(prefix + secrets.token_urlsafe(16).encode(), reply)
        pipe.publish(prefix, reply)
        assert set(await pipe.execute()) <= {0, 1}
        count += 101
        await asyncio.sleep(0.01)
    return count


async def storm(server: Server, total: int, timeout: float) -> tuple[Counter[str], int, int]:
    """Send `total` requests at once and a few later; return the outcomes, the most pending, and the forged replies."""
    outcomes: Counter[str] = Counter()
    stopped = asyncio.Event()
    async with (
        services(server.url) as processes,
        Multiplexer(server.url, publish_timeout=timeout) as mpx,
        Redis.from_url(server.admin_url) as admin,
    ):
        requests = [asyncio.ensure_future(send_request(mpx, number, timeout, outcomes)) for number in range(total)]
        await until(lambda: mpx.stats().promises == total, timeout)
        most = mpx.stats().promises
        forger = asyncio.ensure_future(forge(admin, mpx, stopped))
        # Service 0 is killed while many requests are pending, and after it has replied to some.
        await until(lambda: outcomes.total() >= total // 4 and outcomes["reply from service 0"], timeout)
        processes[0].kill()
        async with asyncio.timeout(timeout):
            while (await admin.pubsub_numsub(f"{SHARED}-0"))[0][1]:
                await asyncio.sleep(0.01)
        late = range(total, total + 2 * (SERVICES + 1))
        requests += [asyncio.ensure_future(send_request(mpx, number, timeout, outcomes)) for number in late]
        await asyncio.gather(*requests)
        stopped.set()
        forged = await forger
        assert outcomes.total() == len(requests), "a request has no outcome"
        assert mpx.stats().promises == 0, "a promise is left"
        assert mpx.stats().patterns == mpx.stats().subscriptions == 1
    return outcomes, most, forged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--timeout", type=float, default=15)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)  # runs one of the service processes
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable()
    if options.serve is not None:
        run(serve(options.url, options.serve))
        return
    for flavour in installed_flavours():
        with running_server(flavour) as server:
            began = time.monotonic()
            outcomes, most, forged = run(storm(server, options.requests, options.timeout))
        print(f"{flavour}: {outcomes.total()} requests, at most {most} pending, in {time.monotonic() - began:.1f} s:")
        print(*[f"  {count} {outcome}" for outcome, count in sorted(outcomes.items())], sep="\n")
        print(f"  each reply belongs to its request; {forged} forged replies had no effect", flush=True)


if __name__ == "__main__":
    main()
