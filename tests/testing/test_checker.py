"""The checker accepts the order of events, and names the event that breaks it."""

from __future__ import annotations

import pytest

from redismpx import Activation, ConnectionLost, Disconnect, Message, Multiplexer
from redismpx.testing import Checker, Faults

from ..helpers.backoffs import QUICK
from ..helpers.waiting import DEADLINE, until

A, B = b"a", b"b"
LOST = ConnectionLost("gone")


def seen(checker: Checker, *events: Activation | Message[bytes] | Disconnect) -> Checker:
    for event in events:
        checker.see(event)
    return checker


def test_the_order_is_accepted() -> None:
    """Names become active, get messages and are lost, together or one by one, any number of times."""
    checker = seen(
        Checker(),
        *(Activation(A), Message(A, b"7"), Activation(B), Message(A, b"8"), Message(B, b"1"), Message(B, b"hello")),
        *(Disconnect(LOST), Activation(A), Message(A, b"12"), Disconnect(ConnectionLost("moved", frozenset({A})))),
        *(Activation(A), Activation(B), Message(B, b"5")),
    )
    checker.removed(A)
    checker.added(A)
    seen(checker, Activation(A), Message(A, b"1"))
    checker.check()
    assert checker.kinds.count("message") == checker.messages == 7


@pytest.mark.parametrize(
    ("events", "fault"),
    [
        ([Message(A, b"x")], r"a message on b'a', which is not active; the last events until then: \[\('message'"),
        ([Activation(A), Disconnect(LOST), Message(A, b"x")], "a message on b'a', which is not active"),
        ([Activation(A), Activation(A)], "b'a' activated twice"),
        ([Disconnect(LOST)], "a disconnect of all names, of which none is active"),
        ([Activation(A), Disconnect(LOST), Disconnect(LOST)], "a disconnect of all names"),
        ([Activation(A), Disconnect(ConnectionLost("", frozenset({B})))], r"a disconnect of \{b'b'\}"),
        ([Activation(A), Message(A, b"1"), Message(A, b"3")], r"3 after 1 on b'a'.*'activation'.*b'1'.*b'3'\)\)\]$"),
        ([Activation(A), Message(A, b"1"), Message(A, b"1")], "1 after 1 on b'a'"),
    ],
)
def test_what_breaks_the_order_is_named(events: list[Activation | Message[bytes] | Disconnect], fault: str) -> None:
    """The error has the first event that broke the order, and those before it."""
    checker = seen(Checker(), *events)
    with pytest.raises(AssertionError, match=fault):
        checker.check()
    seen(checker, Message(B, b"later"))
    with pytest.raises(AssertionError, match=fault):
        checker.check()


def test_events_after_the_end_are_faults() -> None:
    """Nothing follows a removal, nor the end."""
    checker = seen(Checker(), Activation(A))
    checker.removed(A)
    with pytest.raises(AssertionError, match="b'a' activated, which was removed"):
        seen(checker, Activation(A)).check()
    checker = Checker()
    checker.closed = True
    with pytest.raises(AssertionError, match="activation b'a' after the end"):
        seen(checker, Activation(A)).check()


def test_numbers_may_be_skipped_or_mean_nothing() -> None:
    """`may_skip` counts what is missing, but rejects repeats; `numbered=False` reads no numbers."""
    checker = seen(Checker(may_skip=True), Activation(A), Message(A, b"1"), Message(A, b"4"))
    checker.check()
    assert checker.skipped == 2
    with pytest.raises(AssertionError, match="4 after 4"):
        seen(checker, Message(A, b"4")).check()
    seen(Checker(numbered=False), Activation(A), Message(A, b"4"), Message(A, b"1")).check()


async def test_a_real_subscription_keeps_the_order(no_leaks: None) -> None:
    """Through cuts, with numbers: each one between an activation and a disconnect arrives once."""
    checker, number = Checker(), 0
    async with Faults() as faults, Multiplexer(faults.url, backoff=QUICK) as mpx:
        sub = mpx.new_channel_subscription(*checker.callbacks)
        sub.add("a")
        for cuts in range(1, 4):
            await sub.wait_for_activation(timeout=DEADLINE)
            for _ in range(5):
                number += await mpx.publish("a", str(number))
            await until(lambda sent=number: checker.messages == sent)  # type: ignore[misc]
            faults.cut()
            await until(lambda cuts=cuts: checker.disconnects == cuts)  # type: ignore[misc]
    checker.check()
    assert checker.messages == number
