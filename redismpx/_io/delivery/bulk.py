"""Many messages of a subscription at once, for a reader that hands them on. Waits for nothing."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

from .inbox import Inbox


def read_many(inbox: Inbox, most: int, size: int) -> list[bytes]:
    """Return queued messages, as far as there is nothing to do between them: channel, payload, channel, ...

    There are at most `most` messages, and none is added to `size` bytes. There are none if they are to be decoded.
    """
    items: list[bytes] = []
    if inbox.consumer.decode is not None:
        return items
    while len(items) < 2 * most and size > 0 and (message := inbox.read_nowait(most - len(items) // 2)) is not None:
        items += message
        size -= sum(map(len, message))
        if size > 0 and (batch := inbox.batch):
            with inbox.context.budget.critical:
                messages = batch[::-1]
                total = sum(map(len, messages))
                if total > size:
                    ends = [*accumulate(map(len, messages))][1::2]
                    del messages[2 * bisect_left(ends, size) + 2 :]
                del batch[len(batch) - len(messages) :]
            items += messages
            size -= total
    if inbox.buffer is not None:
        inbox.buffer.recall()
    return items
