"""The locks of greenlets, without gevent."""

from __future__ import annotations

import threading
from typing import Any

from redismpx.blocking.locks import _GreenletCondition


def test_a_finalizer_may_notify_in_the_middle_of_a_notification() -> None:
    """Each greenlet that waits is released once, although a finalizer has notified the others meanwhile."""
    condition = _GreenletCondition(threading.RLock())
    released: list[object] = []

    class Held:
        def release(self) -> None:
            released.append(self)
            condition.notify_all()  # as a finalizer may

    waiting: list[Any] = [Held() for _ in range(3)]
    condition._held.extend(waiting)
    with condition:
        condition.notify_all()
    assert released == waiting
