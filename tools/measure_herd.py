"""A thousand multiplexers lose their server and get it back: `python -m tools.measure_herd [--seconds 10]`.

In PROCESSES processes, through a proxy that stands for the server's port: it notes when somebody dials. Prints the most
dials in any 100 ms after the return, at most MOST of which are allowed, and how long recovery took. The machine must be
idle otherwise: one that is late lets dials pile up which had been spread; so do the thousands of attempts right after
the loss, with which a small machine is not done within 5 s. tests/live/test_herd.py knows no such lateness.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import statistics
import sys

from redis.asyncio import Redis

from redismpx import Multiplexer
from tests.helpers.herd import MOST, peak
from tests.helpers.proxy import Proxy
from tests.helpers.servers import Server, find_binary
from tests.helpers.waiting import until

PROCESSES, EACH = 5, 200


async def herd(url: str) -> None:
    """Be one process: connect, say so, and say when each has recovered, by the clock that all processes share."""
    loop = asyncio.get_running_loop()
    # Without what redis-py says of itself, for here a thousand handshakes share one machine.
    mpxs = [Multiplexer(url, protocol=2, lib_name=None, lib_version=None) for _ in range(EACH)]
    recovered: list[float] = []
    for number, mpx in enumerate(mpxs):
        mpx.new_channel_subscription(lambda *_: None, None, lambda _: recovered.append(loop.time())).add(str(number))
        if number % 20 == 0:
            await asyncio.sleep(0.02)
    await until(lambda: len(recovered) == EACH, 60)
    recovered.clear()
    print("ready", flush=True)
    await until(lambda: len(recovered) == EACH, 120)
    print(*recovered, flush=True)
    for mpx in mpxs:
        await mpx.aclose()


async def measure(server: Server, proxy: Proxy, seconds: float) -> int:
    """Take the server away for so long; return the exit status."""
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
        names = await admin.execute_command("PUBSUB", "NUMSUB", *range(EACH))
        assert sum(names[1::2]) == PROCESSES * EACH
    print(f"{PROCESSES * EACH} multiplexers are connected; away for {seconds:g} s", flush=True)
    proxy.stop_listening()
    proxy.cut()
    await asyncio.sleep(seconds)
    proxy.accepted.clear()
    back = loop.time()
    proxy.listen_again()
    recovered: list[float] = []
    for output in outputs:
        recovered += [float(word) - back for word in (await output.readline()).split()]
    for process in processes:
        await process.wait()
    dials = [time - back for time in proxy.accepted]
    most = peak(dials)
    percentiles = statistics.quantiles(recovered, n=100)
    print(f"{len(dials)} dials: at most {most} in any 100 ms ({MOST} allowed); in each 100 ms after the return:")
    print(*[sum(number <= time * 10 < number + 1 for time in dials) for number in range(int(max(dials) * 10) + 1)])
    print(f"{len(recovered)} recovered: p50 {percentiles[49]:.2f} s, p99 {percentiles[98]:.2f} s")
    return int(most > MOST)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--herd")
    options = parser.parse_args()
    logging.disable()
    if options.herd is not None:
        asyncio.run(herd(options.herd))
        return
    binary = find_binary("valkey")
    assert binary is not None
    server = Server(binary).start()
    try:
        with Proxy(server.port) as proxy:
            raise SystemExit(asyncio.run(measure(server, proxy, options.seconds)))
    finally:
        server.remove()


if __name__ == "__main__":
    main()
