"""Several threads share one multiplexer: some read one subscription, one serves requests, others publish and ask.

python -m examples.threads
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from redismpx import Request
from redismpx.blocking import ChannelSubscription, Multiplexer

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379")
JOBS, READERS = 200, 4


def main() -> None:
    done: Counter[str] = Counter()
    lock = threading.Lock()

    def read(sub: ChannelSubscription[bytes]) -> None:
        for job in sub.listen(timeout=1):  # each job goes to one of the threads
            with lock:
                done[job.data.decode()] += 1

    def square(request: Request) -> bytes:
        return str(int(request.body) ** 2).encode()

    with Multiplexer(REDIS_URL) as mpx, mpx.subscribe("jobs") as sub, ThreadPoolExecutor() as pool:
        mpx.serve("square", square, threads=4).wait_for_activation(timeout=5)
        readers = [pool.submit(read, sub) for _ in range(READERS)]
        list(pool.map(lambda number: mpx.publish("jobs", str(number)), range(JOBS)))
        squares = list(pool.map(lambda number: int(mpx.request("square", str(number), timeout=5)), range(20)))
        for reader in readers:
            reader.result()
        print("jobs done, each once:", len(done) == JOBS and set(done.values()) == {1})
        print("squares:", squares == [number**2 for number in range(20)])
        print("Redis connections for messages:", mpx.stats().connections)


if __name__ == "__main__":
    main()
