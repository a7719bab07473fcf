"""Events that very many subscribers get, some at a time, and who does not have them yet. Delivers nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..._core.entry import Entry
from .subscriber import Subscriber, Subscribers

FANOUT_CHUNK = 256  # subscribers that get a message between two looks at the clock


class FanOut(NamedTuple):
    """One message that is being delivered to more subscribers than one time slice allows."""

    entry: Entry[Subscriber]
    snapshot: Subscribers
    channel: bytes
    data: bytes
    chunks: Iterator[Subscribers]  # of the subscribers that do not have the message yet


class Notices(NamedTuple):
    """One event, other than a message, that many subscribers are being notified of."""

    notify: Callable[[Subscriber], object]
    rest: Iterator[Subscriber]  # the subscribers that are not notified yet


def in_chunks(subscribers: Subscribers) -> Iterator[Subscribers]:
    """Yield subscribers, some at a time. To cut a tuple takes less time than to go through an iterator of all."""
    for start in range(0, len(subscribers), FANOUT_CHUNK):
        yield subscribers[start : start + FANOUT_CHUNK]
