"""An event for very many subscribers is delivered in time slices, to each of them once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from redismpx._core.entry import SubscriberState
from redismpx._core.registry import Registry
from redismpx._core.wire import NOT_ENOUGH, Kind
from redismpx._io.session.dispatcher import Dispatcher
from redismpx._io.session.fan_out import FANOUT_CHUNK
from redismpx.errors import ConnectionLost, SubscriptionRefused

from ..helpers.options import session_options

MANY = 4 * FANOUT_CHUNK
OVER = -math.inf  # a deadline that has passed


class Client:
    """A subscriber that notes its events, and may do something in each."""

    def __init__(self, act: Callable[[Client], object] = lambda client: None) -> None:
        self.events: list[str] = []
        self._act = act
        self.deliver: Any = self._deliver

    def _note(self, event: str) -> None:
        self.events.append(event)
        self._act(self)

    def _deliver(self, channel: bytes, data: bytes) -> None:
        self._note("message")

    def flush(self) -> None: ...

    def accept(self, result: object) -> None: ...

    def failed(self, error: BaseException) -> None: ...

    def activate(self, name: bytes) -> None:
        self._note("activation")

    def disconnect(self, error: ConnectionLost, lost: Iterable[bytes] | None = None) -> None:
        self._note("disconnect")

    def refuse(self, error: SubscriptionRefused) -> None:
        self._note("refusal")


class Rig:
    """A dispatcher whose replies come from a list, with many clients of one channel."""

    def __init__(self, clients: list[Client]) -> None:
        self.clients = clients
        self.registry: Registry[Any] = Registry()
        self.dispatcher = Dispatcher(self.registry, session_options(), lambda delay: None, lambda error: None)
        self.replies: list[Any] = []
        for client in clients:
            self.registry.add(Kind.CHANNEL, (b"a",), client)
        self.registry.next_commands()

    def receive(self, *replies: Any, deadline: float = math.inf) -> tuple[int, bool]:
        self.replies += replies
        return self.dispatcher.receive(lambda: self.replies.pop(0) if self.replies else NOT_ENOUGH, deadline)

    def count(self, event: str) -> int:
        return sum(client.events.count(event) for client in self.clients)

    def finish(self) -> None:
        for _ in range(MANY):
            if self.receive(deadline=OVER)[1]:
                return
        raise AssertionError("it never ends")


CONFIRMED = [b"subscribe", b"a", 1]
LEFT = [b"unsubscribe", b"a", 0]
MESSAGE = [b"message", b"a", b"x"]


@pytest.mark.parametrize(
    ("before", "reply", "event"),
    [
        ([], CONFIRMED, "activation"),
        ([], Exception("NOPERM no"), "refusal"),
        ([CONFIRMED], LEFT, "disconnect"),
        ([CONFIRMED], MESSAGE, "message"),
    ],
    ids=["activation", "refusal", "disconnect", "message"],
)
def test_an_event_for_many_is_delivered_in_slices(before: list[Any], reply: Any, event: str) -> None:
    """Each subscriber gets the event once, over several slices; no later reply is taken before all have it."""
    rig = Rig([Client() for _ in range(MANY)])
    rig.receive(*before)
    assert rig.receive(reply, [b"message", b"nobody", b"x"], deadline=OVER) == (1, False)
    assert 0 < rig.count(event) < MANY
    assert len(rig.replies) == 1
    rig.finish()
    assert all(client.events.count(event) == 1 for client in rig.clients)
    assert rig.replies == []


def test_a_slice_ends_after_any_disconnect() -> None:
    """The clock is looked at after each disconnect: with a long queue, a subscriber may have much to do for one."""
    rig = Rig([Client()])
    rig.receive(CONFIRMED)
    assert rig.receive(LEFT, LEFT, deadline=OVER) == (1, False)
    assert rig.count("disconnect") == 1
    assert rig.receive(deadline=OVER) == (1, True)
    assert rig.count("disconnect") == 1


@pytest.mark.parametrize("event", ["activation", "message"])
def test_subscribers_that_leave_meanwhile_get_nothing(event: str) -> None:
    """A subscriber that leaves between two slices does not get the event any more."""
    rig = Rig([Client() for _ in range(MANY)])
    if event == "message":
        rig.receive(CONFIRMED)
    rig.receive(CONFIRMED if event == "activation" else MESSAGE, deadline=OVER)
    waiting = [client for client in rig.clients if event not in client.events]
    for client in waiting[::2]:
        rig.registry.remove(Kind.CHANNEL, b"a", client)
    rig.finish()
    assert Counter(event in client.events for client in waiting[::2]) == {False: len(waiting[::2])}
    assert all(client.events.count(event) == 1 for client in rig.clients if client not in waiting[::2])


async def test_a_loss_during_a_fan_out_comes_after_the_message() -> None:
    """When the link is lost in the middle of a fan-out, each subscriber still gets the message, then the disconnect."""
    rig = Rig([Client() for _ in range(MANY)])
    rig.receive(CONFIRMED)
    rig.receive(MESSAGE, deadline=OVER)
    await rig.dispatcher.lose(ConnectionLost("a test"))
    assert all(client.events == ["activation", "message", "disconnect"] for client in rig.clients)


async def test_a_loss_during_activation_is_for_the_active() -> None:
    """When the link is lost before all are active, only the active ones get a disconnect."""
    rig = Rig([Client() for _ in range(MANY)])
    rig.receive(CONFIRMED, deadline=OVER)
    active = [client for client in rig.clients if client.events]
    assert 0 < len(active) < MANY
    await rig.dispatcher.lose(ConnectionLost("a test"))
    assert all(client.events == (["activation", "disconnect"] if client in active else []) for client in rig.clients)


async def test_nothing_in_a_fan_out_is_done_twice() -> None:
    """An exception that no guard catches leaves the fan-out where it is; the message is not delivered again."""
    clients = [Client() for _ in range(MANY)]
    rig = Rig(clients)

    def interrupt(error: BaseException) -> None:
        raise error

    def failing(channel: bytes, data: bytes) -> None:
        clients[FANOUT_CHUNK + 5].events.append("message")
        raise KeyboardInterrupt

    clients[FANOUT_CHUNK + 5].failed = interrupt  # type: ignore[method-assign]
    rig.receive(CONFIRMED)
    clients[FANOUT_CHUNK + 5].deliver = failing
    with pytest.raises(KeyboardInterrupt):
        rig.receive(MESSAGE)
    rig.finish()
    await rig.dispatcher.lose(ConnectionLost("a test"))
    assert max(client.events.count("message") for client in clients) == 1


def test_a_removal_by_a_finalizer_is_no_fault() -> None:
    """The garbage collector may remove subscribers in any line: what is iterated is always a copy."""
    rig = Rig([Client() for _ in range(10)])
    rig.receive(CONFIRMED)
    entry = rig.registry.channels[b"a"]

    class Meddler(dict[Any, SubscriberState]):
        """Removes a subscriber while it is iterated, as a finalizer might."""

        def items(self) -> Any:
            for item in super().items():
                yield item
                self.pop(rig.clients[9], None)

    assert entry.states is not None
    entry.states = Meddler(entry.states)
    with pytest.raises(RuntimeError, match="changed size"):
        list(entry.states.items())
    entry.states = Meddler(dict.fromkeys(rig.clients, SubscriberState.ACTIVE))
    entry.states[rig.clients[0]] = SubscriberState.WAITING
    assert list(entry.active_subscribers) == rig.clients[1:]
