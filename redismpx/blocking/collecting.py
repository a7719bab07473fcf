"""Whether the garbage collector runs in this thread. Knows no loop."""

from __future__ import annotations

__all__ = ["collects_here"]

import gc
import threading

_collecting: set[int] = set()
"""The threads in which the collector runs."""


def collects_here() -> bool:
    """Tell whether the running code is a finalizer that the garbage collector calls in this thread.

    A finalizer interrupts any line, also one that has a lock, or that wakes the loop. If it waited for the loop, the
    loop could wait for that lock.
    """
    return threading.get_ident() in _collecting


def _note(phase: str, _: object) -> None:
    if phase == "start":
        _collecting.add(threading.get_ident())
    else:
        _collecting.discard(threading.get_ident())


gc.callbacks.append(_note)
