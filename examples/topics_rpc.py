"""Request and reply on topics: a process serves a branch of the tree, and any process sends requests.

$ python -m examples.topics_rpc serve                   (start one or more)
$ python -m examples.topics_rpc multiply 6 7            (in another terminal)
42.0
$ python -m examples.topics_rpc divide 1 0
the handler failed: ZeroDivisionError: division by zero

The environment variable REDIS_URL names the Redis server (default: redis://localhost:6379).
"""

import asyncio
import contextlib
import operator
import os
import sys

from redismpx import Multiplexer, NoResponders, RequestFailed
from redismpx.topics import Topics

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379")
OPERATIONS = {"add": operator.add, "multiply": operator.mul, "divide": operator.truediv}


def calculate(topic: tuple[str, ...], a: float, b: float) -> float:
    return OPERATIONS[topic[-1]](a, b)


async def main(*arguments: str) -> None:
    async with Multiplexer(REDIS_URL) as mpx, Topics(mpx, prefix="example") as topics:
        if arguments == ("serve",):
            topics.serve("math", calculate, concurrency=10)  # math.add, math.multiply, ...
            await topics.wait_for_activation(timeout=10)
            print("serving", flush=True)
            await asyncio.Event().wait()  # until Ctrl-C
        operation, a, b = arguments
        try:
            print(await topics.request(f"math.{operation}", timeout=5, a=float(a), b=float(b)))
        except RequestFailed as error:
            print("the handler failed:", error.reason)
        except NoResponders:
            print("nobody serves this topic")


with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(main(*sys.argv[1:]))
