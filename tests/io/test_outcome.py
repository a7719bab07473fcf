"""The threads that wait for outcomes wake each other up."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable

import pytest

from redismpx.blocking.outcome import ThreadOutcome, WakeUps

from ..helpers.interrupts import interrupted


def new_outcomes(count: int) -> list[ThreadOutcome[int]]:
    wake_ups = WakeUps()
    return [ThreadOutcome(wake_ups) for _ in range(count)]


def is_awake(outcome: ThreadOutcome[int]) -> bool:
    """Tell whether the thread that waits for an outcome is awake."""
    return not outcome._is_set.locked()


def test_each_thread_wakes_the_next_one() -> None:
    """Threads wake up one after the other, in the order in which their outcomes were settled."""
    outcomes = new_outcomes(3)
    for number, outcome in enumerate(outcomes):
        outcome.resolve(number)
    for number, outcome in enumerate(outcomes):
        assert [is_awake(other) for other in outcomes[number:]] == [True] + [False] * (2 - number)
        assert outcome.get() == number


def test_an_error_wakes_the_next_thread_too() -> None:
    """A call that raises wakes the next thread, and the next outcome after the last one wakes its thread at once."""
    first, second, third = new_outcomes(3)
    first.reject(ValueError("no"))
    second.resolve(2)
    with pytest.raises(ValueError, match="no"):
        first.get()
    assert second.get() == 2
    third.resolve(3)
    assert is_awake(third)


def test_an_interrupted_wait_delays_no_other() -> None:
    """The outcome of a call that Ctrl-C has ended does not count: the thread after it is woken up."""
    interrupted, other = new_outcomes(2)
    with pytest.raises(KeyboardInterrupt):
        in_signal_handler(interrupt, interrupted)
    interrupted.reject(ValueError("cancelled"))
    other.resolve(1)
    assert is_awake(other)


def test_a_signal_handler_may_wait_for_an_outcome() -> None:
    """A handler that waits gets its outcome, although the call that it interrupts was settled before."""
    first, second = new_outcomes(2)
    seen: list[int] = []

    def handle() -> None:
        first.resolve(1)
        second.resolve(2)
        seen.append(second.get())

    assert in_signal_handler(handle, first) == 1
    assert seen == [2]


def interrupt() -> None:
    raise KeyboardInterrupt


def in_signal_handler(function: Callable[[], object], outcome: ThreadOutcome[int]) -> int:
    """Wait for an outcome; call a function in the handler of a signal that comes during the wait."""
    main, code = threading.get_ident(), ThreadOutcome.get.__code__

    def send() -> None:
        give_up = time.monotonic() + 10
        while (frame := sys._current_frames()[main]).f_code is not code or frame.f_lineno <= code.co_firstlineno + 3:
            assert time.monotonic() < give_up
            time.sleep(0.001)
        signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda *_: function())
    thread = threading.Thread(target=send)
    thread.start()
    try:
        return outcome.get()
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)


def test_ctrl_c_in_any_step_of_a_wait_leaves_no_other_asleep() -> None:
    """An interrupted thread may just be waking the next one: that one returns its outcome, perhaps a little later."""
    at = 1
    while _wakes_after_an_interrupted_wait(at):
        at += 1
    assert at > 5


def _wakes_after_an_interrupted_wait(at: int) -> bool:
    """Interrupt a wait in its n-th step, and wait for the next outcome; return whether there was such a step."""
    first, second = new_outcomes(2)
    first.resolve(1)
    second.resolve(2)
    was_interrupted = interrupted(at, first.get)
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(second.get()), daemon=True)
    thread.start()
    thread.join(5)
    assert seen == [2]
    return was_interrupted
