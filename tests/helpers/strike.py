"""Runs the garbage collector in the n-th line of a part of the package, as it may run in any."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from .waiting import DEADLINE


class Session:
    """An object of a user in a cycle with itself, whose finalizer calls a function."""

    def __init__(self, end: Callable[[], object]) -> None:
        self._me = self
        self._end = end

    def __del__(self) -> None:
        self._end()


def struck(at: int, part: str, sessions: list[Session], call: Callable[[], object]) -> bool:
    """Call a function in a thread; free the sessions in the n-th line that runs in this part, or at the end.

    Return whether there was such a line. Fail if the function raises, or hangs.
    """
    left = at
    done: list[bool] = []

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if part not in frame.f_code.co_filename:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                sys.settrace(None)
                sessions.clear()
                gc.collect()
        return trace

    def run() -> None:
        sys.settrace(trace)
        try:
            call()
        finally:
            sys.settrace(None)
        done.append(left <= 0)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(DEADLINE)
    sessions.clear()
    gc.collect()
    assert done, f"it hangs, or has raised, in line {at}"
    return done[0]


def collected(at: int, end: Callable[[], object], call: Callable[[], object]) -> bool:
    """Call a function; the collector runs by itself after the n-th allocation, and a finalizer calls `end`.

    Return whether it ran before the function returned.
    """
    ended: list[bool] = []

    def finalize() -> None:
        ended.append(True)
        end()

    before = gc.get_threshold()
    gc.collect()
    gc.disable()
    Session(finalize)
    gc.set_threshold(at, 1, 1)
    gc.enable()
    try:
        call()
    finally:
        gc.set_threshold(*before)
    has_run = bool(ended)
    gc.collect()
    assert ended
    return has_run
