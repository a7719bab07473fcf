"""Measure what misbehaving subscriptions cost the others.

    $ python -m tools.measure_isolation

A thousand subscriptions share one channel. In half of the rounds three of them misbehave: one callback never returns,
one raises on each message, one sleeps 10 ms.

Prints how many messages the other subscriptions get for each second of this process's CPU time, with and without the
three, and the ratio. Fails with an AssertionError if one of the others misses a message.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import time

from redis.asyncio import Redis

from redismpx import Multiplexer
from tests.helpers.loops import run
from tests.helpers.waiting import until

from .measuring import running_server

SUBSCRIPTIONS, BAD, MESSAGES, ROUNDS = 1000, 3, 2000, 15


async def one_round(url: str, with_bad: bool) -> float:
    """Return the deliveries to the good subscriptions for each second of CPU time."""
    counts = [0] * (SUBSCRIPTIONS - BAD)

    def good(number: int) -> object:
        def on_message(channel: bytes, message: bytes) -> None:
            assert int(message) == counts[number]
            counts[number] += 1

        return on_message

    async def hang(channel: bytes, message: bytes) -> None:
        await asyncio.Event().wait()

    async def sleep(channel: bytes, message: bytes) -> None:
        await asyncio.sleep(0.01)

    def fail(channel: bytes, message: bytes) -> None:
        raise ValueError

    async with Multiplexer(url, on_error=lambda _: None) as mpx, Redis.from_url(url) as client:
        callbacks = [good(number) for number in range(SUBSCRIPTIONS - BAD)]
        if with_bad:
            for position, bad in ((10, hang), (500, fail), (900, sleep)):
                callbacks.insert(position, bad)
        subs = [mpx.new_channel_subscription(callback) for callback in callbacks]  # type: ignore[arg-type]
        for sub in subs:
            sub.add("a")
        for sub in subs:
            await sub.wait_for_activation(timeout=10)
        pipe = client.pipeline(transaction=False)
        for number in range(MESSAGES):
            pipe.publish("a", number)
        await pipe.execute()
        began = time.process_time()
        await until(lambda: counts[-1] == MESSAGES, 60)
        spent = time.process_time() - began
        assert counts == [MESSAGES] * len(counts), "a good subscription missed a message"
    return MESSAGES * len(counts) / spent


def main() -> None:
    logging.disable()
    with running_server() as server:
        rates: dict[bool, list[float]] = {False: [], True: []}
        for number in range(ROUNDS):
            for with_bad in (False, True) if number % 2 else (True, False):
                rates[with_bad].append(run(one_round(server.url, with_bad)))
            print(
                f"round {number + 1}: {rates[False][-1]:,.0f} without, {rates[True][-1]:,.0f} with bad subscriptions",
                flush=True,
            )
    without_bad, with_bad_ones = (statistics.median(rates[key]) for key in (False, True))
    ratio = statistics.median(with_bad / without for without, with_bad in zip(*rates.values(), strict=True))
    print(
        f"medians: {without_bad:,.0f} without and {with_bad_ones:,.0f} with bad subscriptions, in deliveries per "
        f"second of CPU time; the ratio within a round is {ratio:.1%}; no message was missed"
    )


if __name__ == "__main__":
    main()
