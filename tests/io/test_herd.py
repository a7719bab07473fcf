"""Clients that lose their server at the same moment do not reconnect at the same moment."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator

import pytest
from redis.backoff import AbstractBackoff, ExponentialBackoff

from redismpx import Multiplexer

from ..helpers.herd import MOST, peak

MANY = 1000


@pytest.fixture
def seeded() -> Iterator[None]:
    """The same course of chance each time: one in many would have 61."""
    state = random.getstate()
    random.seed(1)
    logging.disable()
    yield
    logging.disable(logging.NOTSET)
    random.setstate(state)


def returns(outage: float, backoff: AbstractBackoff | None = None) -> list[float]:
    """Return when each of MANY dials first after an outage of so many seconds, on a clock that knows no lateness."""
    retries = Multiplexer(backoff=backoff)._hub.deployment.main._policy
    times = []
    for _ in range(MANY):
        retries.failures = 0
        time = retries.failed()
        while time < outage:
            time += retries.failed()
        times.append(time - outage)
    return times


@pytest.mark.parametrize("outage", [5, 20, 120])
async def test_a_thousand_clients_reconnect_spread_out(seeded: None, outage: float) -> None:
    """A thousand clients that lose their server reconnect within 5 s, at most 60 in any 100 ms."""
    times = returns(outage)
    assert peak(times) <= MOST
    assert max(times) <= 5


async def test_without_jitter_all_reconnect_at_once(seeded: None) -> None:
    """Without jitter all thousand reconnect at once: the measure tells the difference."""
    assert peak(returns(5, ExponentialBackoff(cap=5.0, base=0.05))) == MANY
