"""Check that a thousand multiplexers do not all dial at once when their server returns after an outage.

    $ python -m tools.measure_herd [--seconds 10]

Five processes with 200 multiplexers each connect through a proxy, which records when each connection is dialled. The
proxy stops listening for `--seconds`, then listens again.

Prints the number of dials in each 100 ms after the return, and the p50 and p99 of the time until a multiplexer has
recovered. The exit status is 1 if there were more than 60 dials within any 100 ms.

Run it on a machine that is idle otherwise. A slow machine delays dials, and delayed dials pile up. For the same reason
an outage of less than 5 s shows more dials: a small machine is still busy with the attempts right after the loss.
tests/io/test_herd.py checks the backoff alone, without this effect.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import statistics
import sys

from redis.asyncio import Redis

from redismpx import Multiplexer
from redismpx.testing import Proxy
from tests.helpers.herd import MOST, peak
from tests.helpers.servers import Server
from tests.helpers.waiting import until

from .measuring import running_server

PROCESSES, MULTIPLEXERS_EACH = 5, 200


async def herd(url: str) -> None:
    """Run one process: connect, print "ready", then print the time of each recovery. All processes share a clock."""
    loop = asyncio.get_running_loop()
    # RESP2 and no CLIENT SETINFO: a short handshake, because a thousand of them share one machine.
    mpxs = [Multiplexer(url, protocol=2, lib_name=None, lib_version=None) for _ in range(MULTIPLEXERS_EACH)]
    recovered: list[float] = []
    for number, mpx in enumerate(mpxs):
        mpx.new_channel_subscription(lambda *_: None, None, lambda _: recovered.append(loop.time())).add(str(number))
        if number % 20 == 0:
            await asyncio.sleep(0.02)
    await until(lambda: len(recovered) == MULTIPLEXERS_EACH, 60)
    recovered.clear()
    print("ready", flush=True)
    await until(lambda: len(recovered) == MULTIPLEXERS_EACH, 120)
    print(*recovered, flush=True)
    for mpx in mpxs:
        await mpx.aclose()


async def measure(server: Server, proxy: Proxy, seconds: float) -> int:
    """Make the server unreachable for `seconds`; return the exit status."""
    loop = asyncio.get_running_loop()
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tools.measure_herd", "--herd", proxy.url, stdout=asyncio.subprocess.PIPE
        )
        for _ in range(PROCESSES)
    ]
    outputs = [process.stdout for process in processes if process.stdout is not None]
    for output in outputs:
        assert await output.readline() == b"ready\n"
    async with Redis.from_url(server.url) as admin:
        names = await admin.execute_command("PUBSUB", "NUMSUB", *range(MULTIPLEXERS_EACH))
        assert sum(names[1::2]) == PROCESSES * MULTIPLEXERS_EACH
    print(
        f"{PROCESSES * MULTIPLEXERS_EACH} multiplexers are connected; outage of {seconds:g} s",
        flush=True,
    )
    proxy.stop_listening()
    proxy.cut()
    await asyncio.sleep(seconds)
    proxy.accepted.clear()
    returned = loop.time()
    proxy.listen_again()
    recovered: list[float] = []
    for output in outputs:
        recovered += [float(word) - returned for word in (await output.readline()).split()]
    for process in processes:
        await process.wait()
    dials = [time - returned for time in proxy.accepted]
    most = peak(dials)
    percentiles = statistics.quantiles(recovered, n=100)
    print(f"{len(dials)} dials: at most {most} in any 100 ms ({MOST} allowed); in each 100 ms after the return:")
    print(*[sum(number <= time * 10 < number + 1 for time in dials) for number in range(int(max(dials) * 10) + 1)])
    print(f"{len(recovered)} recovered: p50 {percentiles[49]:.2f} s, p99 {percentiles[98]:.2f} s")
    return int(most > MOST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--herd", metavar="URL", help=argparse.SUPPRESS)  # runs one of the processes
    options = parser.parse_args()
    logging.disable()
    if options.herd is not None:
        asyncio.run(herd(options.herd))
        return
    with running_server() as server, Proxy(server.port) as proxy:
        raise SystemExit(asyncio.run(measure(server, proxy, options.seconds)))


if __name__ == "__main__":
    main()
