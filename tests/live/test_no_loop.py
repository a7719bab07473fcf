"""Without an event loop: kept where one runs later, an error at once where none ever will."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
import trio

from redismpx import Multiplexer

pytestmark = [pytest.mark.one_flavour, pytest.mark.usefixtures("no_leaks")]

CALLS: dict[str, Callable[[Multiplexer], object]] = {
    "channels": lambda mpx: mpx.new_channel_subscription(print),
    "a pattern": lambda mpx: mpx.new_pattern_subscription("a*", print),
    "promises": lambda mpx: mpx.new_promise_subscription("a"),
    "a service": lambda mpx: mpx.serve("a", bytes),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_thread_without_a_loop_makes_no_subscription(url: str, what: str) -> None:
    """Outside the main thread, no loop will run later in this thread, so nothing would ever arrive."""
    mpx = Multiplexer(url)
    errors: list[RuntimeError] = []

    def call() -> None:
        try:
            CALLS[what](mpx)
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    (error,) = errors
    assert "no asyncio event loop runs in this thread" in str(error)
    assert "use redismpx.blocking" in str(error)
    assert mpx.stats().subscriptions == 0
    CALLS[what](mpx)  # the main thread may
    assert mpx.stats().subscriptions == 1
    mpx.close()


def test_what_waits_for_a_loop_says_so(url: str) -> None:
    """The repr of a multiplexer and a subscription that no loop serves yet tells it."""
    mpx = Multiplexer(url)
    sub = mpx.new_channel_subscription(print)
    sub.add("a")
    for each in (mpx, sub):
        assert "waits for an event loop" in repr(each)

    async def main() -> None:
        async with mpx:
            await sub.wait_for_activation(timeout=5)
            for each in (mpx, sub):
                assert "waits for" not in repr(each)

    asyncio.run(main())
    for each in (mpx, sub):
        assert "waits for" not in repr(each)


def test_another_framework_is_an_error_at_once(url: str) -> None:
    """Under trio, `async with` raises instead of waiting for a loop of asyncio."""

    async def main() -> None:
        with pytest.raises(RuntimeError, match="needs asyncio"):
            async with Multiplexer(url):
                pass

    trio.run(main)
