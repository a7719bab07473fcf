"""Messages on their way from a loop to the threads that read: order, counts and the end, without a server."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import pytest

from redismpx import Message, Overflow
from redismpx.blocking.hand_over import Border, HandOver

MANY = 20_000


def new_message(number: int) -> Message[int]:
    return Message(b"a", number)


def until(condition: Callable[[], object], timeout: float = 10.0) -> None:
    """Wait until a condition of another thread holds."""
    give_up = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < give_up, condition
        time.sleep(0.001)


class Source:
    """Numbered messages that are buffered, as a subscription has them. It ends after the last one."""

    def __init__(self, count: int) -> None:
        self.messages = deque(map(new_message, range(count)))

    def __aiter__(self) -> AsyncIterator[Message[int]]:
        return self

    async def __anext__(self) -> Message[int]:
        if not self.messages:
            raise StopAsyncIteration
        return self.messages.popleft()

    def read_many(self, most: int, size: int) -> list[Message[int]]:
        return [self.messages.popleft() for _ in range(min(most, len(self.messages)))]


@pytest.fixture
def border() -> Iterator[Border]:
    border = Border()
    yield border
    border.portal.post(border.portal.stop)
    border.portal.join()


@pytest.fixture
def hurry() -> Iterator[None]:
    """The threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def read(border: Border, source: Source, read_many: Callable[[int, int], list[Any]] | None) -> HandOver:
    hand_over = HandOver(border, 10_000, Overflow.DROP_OLDEST)
    border.portal.call(lambda: hand_over.read("messages", source, lambda: len(source.messages), read_many))
    return hand_over


@pytest.mark.usefixtures("hurry")
def test_messages_are_counted_while_a_thread_takes_them(border: Border) -> None:
    """A thread gets each message once, in order, while the loop counts them and looks for those of another channel."""
    source = Source(MANY)
    hand_over = read(border, source, source.read_many)
    border.is_draining = True  # the end leaves to the thread what is on the way
    numbers: list[int] = []
    thread = threading.Thread(target=lambda: numbers.extend(message.data for message in hand_over.iterate(None)))
    thread.start()
    while thread.is_alive():
        border.portal.call(lambda: hand_over.forget({b"b"}))
        assert 0 <= border.portal.call(lambda: border.pending) <= 256
    assert numbers == list(range(MANY))
    assert (hand_over.dropped, hand_over.pending) == (0, 0)


class Contested(deque[Message[int]]):
    """A thread takes the first message before each operation of the loop."""

    def __init__(self, messages: Iterable[Message[int]]) -> None:
        super().__init__(messages)
        self.taken: list[int] = []

    def take(self) -> None:
        if self:
            self.taken.append(super().popleft().data)

    def pop(self) -> Message[int]:  # type: ignore[override]
        self.take()
        return super().pop()

    def popleft(self) -> Message[int]:
        self.take()
        return super().popleft()

    def copy(self) -> Any:
        self.take()
        return super().copy()

    def clear(self) -> None:
        self.take()
        super().clear()


def test_messages_keep_their_order_while_others_are_dropped(border: Border) -> None:
    """A thread takes messages while the loop drops those of another channel."""
    hand_over = read(border, Source(0), None)
    hand_over._batch = batch = Contested(map(new_message, range(9)))
    batch.append(Message(b"b", 9))
    border.portal.call(lambda: hand_over.forget({b"b"}))
    rest = [message.data for message in [*batch]]
    assert batch.taken + rest == list(range(9))
    assert rest
    assert hand_over.dropped == 1


def test_nothing_is_added_after_a_finalizer_has_closed(border: Border) -> None:
    """A finalizer that closes the subscription while messages are added: they are dropped, and counted."""
    source = Source(10)

    def interrupted(most: int, size: int) -> list[Message[int]]:
        messages = source.read_many(most, size)
        hand_over.end()
        return messages

    hand_over = read(border, source, interrupted)
    with pytest.raises(EOFError):
        hand_over.take()
    assert (hand_over.dropped, border.dropped, hand_over.pending, border.pending) == (10, 10, 0, 0)


def test_a_callback_waits_for_no_message_that_is_taken(border: Border) -> None:
    """A thread takes the last message at the moment at which a callback begins to wait for that."""
    hand_over = read(border, Source(1), None)
    called: list[object] = []

    class Interrupted(list[Any]):
        def append(self, future: object) -> None:
            assert hand_over.take_nowait() == new_message(0)
            super().append(future)

    hand_over._batch.append(new_message(0))
    hand_over._empty = Interrupted()
    call = hand_over.then(called.append)
    assert call is not None
    border.portal.wait(lambda: asyncio.wait_for(call("lost"), 5))
    assert called == ["lost"]


def test_an_interrupted_thread_keeps_no_other_from_asking(border: Border, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C just before a thread asks for messages: another thread, which relies on that, asks."""
    monkeypatch.setattr("redismpx.blocking.hand_over.LONG", 60.0)  # a thread that waits does not look again by itself
    hand_over = read(border, Source(1), None)
    post, seen = border.portal.post, []
    other = threading.Thread(target=lambda: seen.append(hand_over.take()), daemon=True)

    def interrupt(function: Callable[[], object]) -> None:
        monkeypatch.setattr(border.portal, "post", post)
        other.start()
        until(lambda: hand_over._readers == 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(border.portal, "post", interrupt)
    with pytest.raises(KeyboardInterrupt):
        hand_over.take(10)
    other.join(5)
    assert seen == [new_message(0)]
