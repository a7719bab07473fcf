"""Three periodic sources and three consumers in one process, with callbacks: no server, no event loop.

$ python -m examples.topics_callbacks
ticker: tea costs 251
journal: market.tea {'cents': 251}
...
"""

from itertools import count
from queue import SimpleQueue

from redismpx.blocking import Topics

LINES = 30  # the program ends after these
lines: SimpleQueue[str] = SimpleQueue()


def show_price(topic: tuple[str, ...], cents: int) -> None:
    lines.put(f"ticker: {topic[-1]} costs {cents}")


def warn(topic: tuple[str, ...], celsius: int) -> None:
    lines.put(f"warning: {celsius} degrees in {topic[-1]}")


def keep_journal(topic: tuple[str, ...], **message: object) -> None:
    lines.put(f"journal: {'.'.join(topic)} {message}")


def main() -> None:
    tea, milk, oven = count(251), count(121), count(201)
    with Topics() as topics:
        topics.subscribe("market", show_price)  # market, market.tea, market.milk, ...
        topics.subscribe("kitchen.=", warn)
        topics.subscribe("", keep_journal)  # everything
        # Each source has a thread of its own. The callbacks run in it, before publish() returns.
        topics.every(0.02)(lambda: topics.publish("market.tea", cents=next(tea)))
        topics.every(0.03)(lambda: topics.publish("market.milk", cents=next(milk)))
        topics.every(0.05)(lambda: topics.publish("kitchen.oven", celsius=next(oven)))
        for _ in range(LINES):
            print(lines.get())
    # The end of the block has stopped the sources, and waited for callbacks that ran.


main()
