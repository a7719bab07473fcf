"""The event loops that the tests run in."""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def eager(loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
    """Make a loop start its tasks eagerly. Python 3.11 has no eager tasks: its loop stays as it is."""
    factory: Any = getattr(asyncio, "eager_task_factory", None)
    if factory is not None:  # uvloop passes `eager_start`, which the factory of Python 3.13.0 does not accept
        loop.set_task_factory(lambda loop, coroutine, eager_start=None, **options: factory(loop, coroutine, **options))
    return loop


def uvloop() -> asyncio.AbstractEventLoop:
    """Make a loop of uvloop, which does not exist for Windows."""
    loop: asyncio.AbstractEventLoop = importlib.import_module("uvloop").new_event_loop()
    return loop


LOOPS = {
    "asyncio": asyncio.new_event_loop,
    "eager": lambda: eager(asyncio.new_event_loop()),
    "uvloop": uvloop,
    "eager-uvloop": lambda: eager(uvloop()),
}


class Clock(asyncio.SelectorEventLoop):
    """A loop whose time goes on when it is told to."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def run_ready(self) -> None:
        for _ in range(3):  # what is due is scheduled, then run, then what that scheduled
            self.call_soon(self.stop)
            self.run_forever()


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine outside a test, in the kind of loop that REDISMPX_LOOP names."""
    with asyncio.Runner(loop_factory=LOOPS[os.environ.get("REDISMPX_LOOP", "asyncio")]) as runner:
        return runner.run(coroutine)
