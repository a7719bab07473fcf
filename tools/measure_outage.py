"""Check that a long outage leaves few records in the log.

    $ python -m tools.measure_outage [--minutes 10]

Three multiplexers with a hundred subscriptions each are connected. Then the first one's server is stopped; the second
one's connections are reset as soon as they are accepted; the third one's server is frozen, so it accepts connections
and never replies. After `--minutes` all three servers return, and all subscriptions must become active.

Prints the number of attempts and of log records every 30 s, then the records at WARNING or above. The exit status is 1
if there are more than MAX_RECORDS of these, from all three multiplexers and asyncio together.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections import Counter

from redismpx import Multiplexer
from redismpx.testing import Proxy
from tests.helpers.servers import Server

from .measuring import running_server

SUBSCRIPTIONS, MAX_RECORDS = 100, 5


class RecordCounter(logging.Handler):
    """Counts log records by level, those at WARNING or above by text, and the dials."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: Counter[str] = Counter()
        self.warnings: Counter[str] = Counter()
        self.attempts = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.levels[record.levelname] += 1
        self.attempts += record.getMessage() == "session backing off -> dialling"
        if record.levelno >= logging.WARNING:
            self.warnings[record.getMessage()] += 1


async def outage(server: Server, proxy: Proxy, frozen: Server, minutes: float) -> int:
    """Go through an outage; return the exit status."""
    records = RecordCounter()
    for name in ("redismpx", "asyncio"):
        logging.getLogger(name).addHandler(records)
        logging.getLogger(name).propagate = False
    logging.getLogger("redismpx").setLevel(logging.DEBUG)
    mpxs = [Multiplexer(url) for url in (server.url, proxy.url, frozen.url)]
    subs = [mpx.new_channel_subscription(lambda *_: None) for mpx in mpxs for _ in range(SUBSCRIPTIONS)]
    try:
        for number, sub in enumerate(subs):
            sub.add(str(number))
        for sub in subs:
            await sub.wait_for_activation(timeout=10)
        records.levels.clear()

        proxy.refusing = True
        server.kill()
        frozen.freeze()
        loop = asyncio.get_running_loop()
        began = loop.time()
        while (since := loop.time() - began) < minutes * 60:
            await asyncio.sleep(min(30, minutes * 60 - since))
            print(f"{loop.time() - began:5.0f} s: {records.attempts} attempts; {dict(records.levels)}", flush=True)
        levels, warnings = Counter(records.levels), Counter(records.warnings)
        attempts = records.attempts

        server.start()
        proxy.refusing = False
        frozen.thaw()
        began = loop.time()
        for sub in subs:
            await sub.wait_for_activation(timeout=60)
        print(f"the servers are back; all subscriptions are active after {loop.time() - began:.1f} s")
    finally:
        for mpx in mpxs:
            await mpx.aclose()
    for text, times in warnings.items():
        print(f"{times} x {text}")
    total = sum(warnings.values())
    print(f"{minutes:g} minutes, {len(mpxs)} multiplexers: {attempts} attempts; records by level: {dict(levels)}")
    print(f"{total} at WARNING or above, at most {MAX_RECORDS} allowed: {'OK' if total <= MAX_RECORDS else 'TOO MANY'}")
    return int(total > MAX_RECORDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    minutes = parser.parse_args().minutes
    with running_server() as server, running_server() as frozen, Proxy(server.port) as proxy:
        raise SystemExit(asyncio.run(outage(server, proxy, frozen, minutes)))


if __name__ == "__main__":
    main()
