"""Three periodic sources and three consumers in one event loop, as coroutines: no server.

$ python -m examples.topics_coroutines | tail -n 2
published: 30, of these tea: 15
consumed: {'stock': 30, 'journal': 30, 'bill': 15}
"""

import asyncio
from collections import Counter
from functools import partial

from redismpx.topics import TopicReader, Topics

published, stock, consumed = Counter[str](), Counter[str](), Counter[str]()


async def deliver(topics: Topics, item: str) -> None:
    published[item] += 1
    topics.publish(f"delivery.{item}", amount=1)


async def keep_stock(topic: tuple[str, ...], amount: int) -> None:
    stock[topic[-1]] += amount
    consumed["stock"] += 1
    print("stock:", topic[-1], stock[topic[-1]])


async def bill(topic: tuple[str, ...], amount: int) -> None:
    await asyncio.sleep(0.02)  # slower than its source: its messages wait, and delay nobody else
    consumed["bill"] += 1


async def keep_journal(reader: TopicReader) -> None:
    async for _message in reader:  # until the reader is closed, and has no message any more
        consumed["journal"] += 1


async def main() -> None:
    async with asyncio.TaskGroup() as group, Topics() as topics:
        topics.subscribe("delivery", keep_stock)
        topics.subscribe("delivery.tea", bill)
        group.create_task(keep_journal(topics.open("")))
        for interval, item in ((0.01, "tea"), (0.02, "milk"), (0.03, "sugar")):
            topics.every(interval)(partial(deliver, topics, item))
        await asyncio.sleep(0.2)
    # The end of the block has stopped the sources, let the consumers finish, and closed the reader.
    print(f"published: {published.total()}, of these tea: {published['tea']}\nconsumed: {dict(consumed)}")


asyncio.run(main())
