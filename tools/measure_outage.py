"""What ten minutes without a server leave in the log: `python -m tools.measure_outage [--minutes 10]`.

Three multiplexers with a hundred subscriptions each, all connected at first. Then nobody listens where the first dials;
the second is reset as soon as it is accepted; the third is accepted and never answered. At most MOST records at WARNING
or above may come of it, from all three and asyncio together. In the end their server is back, and everything active.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections import Counter

from redismpx import Multiplexer
from tests.helpers.proxy import Proxy
from tests.helpers.servers import Server, find_binary

SUBSCRIPTIONS, MOST = 100, 5


class Count(logging.Handler):
    """Counts records by level and text."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: Counter[str] = Counter()
        self.loud: Counter[str] = Counter()
        self.attempts = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.levels[record.levelname] += 1
        self.attempts += record.getMessage() == "session backing off -> dialling"
        if record.levelno >= logging.WARNING:
            self.loud[record.getMessage()] += 1


async def outage(server: Server, proxy: Proxy, minutes: float) -> int:
    """Live through an outage; return the exit status."""
    count = Count()
    for name in ("redismpx", "asyncio"):
        logging.getLogger(name).addHandler(count)
        logging.getLogger(name).propagate = False
    logging.getLogger("redismpx").setLevel(logging.DEBUG)
    binary = find_binary("valkey")
    assert binary is not None
    frozen = Server(binary).start()
    mpxs = [Multiplexer(url) for url in (server.url, proxy.url, frozen.url)]
    subs = [mpx.new_channel_subscription(lambda *_: None) for mpx in mpxs for _ in range(SUBSCRIPTIONS)]
    try:
        for number, sub in enumerate(subs):
            sub.add(str(number))
        for sub in subs:
            await sub.wait_for_activation(10)
        count.levels.clear()

        proxy.refusing = True
        server.kill()
        frozen.freeze()
        loop = asyncio.get_running_loop()
        began = loop.time()
        while (since := loop.time() - began) < minutes * 60:
            await asyncio.sleep(min(30, minutes * 60 - since))
            print(f"{loop.time() - began:5.0f} s: {count.attempts} attempts; {dict(count.levels)}", flush=True)
        levels, loud = Counter(count.levels), Counter(count.loud)
        attempts = count.attempts

        server.start()
        proxy.refusing = False
        frozen.thaw()
        began = loop.time()
        for sub in subs:
            await sub.wait_for_activation(60)
        print(f"the servers are back, and all is active after {loop.time() - began:.1f} s")
    finally:
        for mpx in mpxs:
            await mpx.aclose()
        frozen.remove()
    for text, times in loud.items():
        print(f"{times} x {text}")
    total = sum(loud.values())
    print(f"{minutes:g} minutes, {len(mpxs)} multiplexers: {attempts} attempts; records by level: {dict(levels)}")
    print(f"{total} at WARNING or above, at most {MOST} allowed: {'well' if total <= MOST else 'TOO MANY'}")
    return int(total > MOST)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10)
    minutes = parser.parse_args().minutes
    binary = find_binary("valkey")
    assert binary is not None
    server = Server(binary).start()
    try:
        with Proxy(server.port) as proxy:
            raise SystemExit(asyncio.run(outage(server, proxy, minutes)))
    finally:
        server.remove()


if __name__ == "__main__":
    main()
