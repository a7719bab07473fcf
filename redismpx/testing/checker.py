"""Callbacks that check the events of each name: (Activation Message* Disconnect)*, no message lost in between."""

from __future__ import annotations

__all__ = ["Checker"]

from collections.abc import Callable, Collection
from typing import Any

from ..errors import ConnectionLost
from ..message import Activation, Disconnect, Message

_SHOWN_BEFORE = 5  # events before the one that broke the order


class Checker:
    """Holds one subscription to the order of its events.

    For each channel or pattern, the events are `(Activation Message* Disconnect)*`: a message comes only while its name
    is active, each lost connection is reported once, and nothing comes after a removal or the end. Pass `callbacks` to
    the subscription, or each event that you read to `see()`. `check()` says which event broke the order.

    To find lost and repeated messages, publish numbers: a payload that is a number must be the one after the last, on
    its channel. After a disconnect, any number may follow.

    Args:
        name_of: returns the channel or pattern of the subscription that a message's channel belongs to. A pattern
            subscription needs it: `lambda channel: b"news:*"`.
        upcoming: returns, for a name that becomes active, the number of the next message on each of its channels.
            These messages must arrive.
        may_skip: whether numbers may be missing, because messages were dropped. `skipped` counts them.
        numbered: whether payloads of digits are such numbers.

    Example:
        ::

            checker = Checker()
            sub = mpx.new_channel_subscription(*checker.callbacks)
            sub.add("news")
            await sub.wait_for_activation(timeout=5)
            await mpx.publish("news", "1")
            await mpx.drain(timeout=5)
            checker.check()  # an AssertionError says which event broke the order
    """

    def __init__(
        self,
        name_of: Callable[[bytes], bytes] = lambda channel: channel,
        upcoming: Callable[[bytes], dict[bytes, int]] = lambda name: {},
        *,
        may_skip: bool = False,
        numbered: bool = True,
    ) -> None:
        self._name_of = name_of  # the subscribed name that a message's channel belongs to
        self._upcoming = upcoming
        self._may_skip = may_skip
        self._numbered = numbered
        self._gone: set[bytes] = set()
        self._latest: dict[bytes, int] = {}  # the highest number that the first message of a channel may have
        self._until_fault = 0  # how many events there were at the first fault
        self.events: list[tuple[str, Any]] = []
        """All events so far: the kind, and its channel and payload, its name, or its error."""
        self.active: set[bytes] = set()
        """The names that are active now."""
        self.last: dict[bytes, int] = {}
        """The last number on each channel of an active name."""
        self.faults: list[str] = []
        """What broke the order, in words."""
        self.activations: int = 0
        self.disconnects: int = 0
        self.messages: int = 0
        self.skipped: int = 0
        self.errors: list[Exception] = []
        """What `on_error` got."""
        self.closed: bool = False
        """Set it when the subscription closes: any later event is a fault."""

    def check(self) -> None:
        """Raise an error if the order was broken so far.

        Raises:
            AssertionError: its text names the event that broke the order, and the events before it.
        """
        if self.faults:
            before = self.events[max(0, self._until_fault - _SHOWN_BEFORE - 1) : self._until_fault]
            raise AssertionError(f"{self.faults[0]}; the last events until then: {before}")

    def see(self, event: Activation | Message[Any] | Disconnect) -> None:
        """Check an event of `events()`, for a subscription that is read."""
        match event:
            case Activation(name):
                self.on_activation(name)
            case Disconnect(error):
                self.on_disconnect(error)
            case Message(channel, data):
                self.on_message(channel, data)

    def on_message(self, channel: bytes, message: Any) -> None:
        """Check a message. A callback of the subscription."""
        self.messages += 1
        self._note("message", (channel, message))
        if self._name_of(channel) not in self.active:
            self._fault(f"a message on {channel!r}, which is not active")
        if self._numbered and isinstance(message, str | bytes) and message.isdigit():
            self._on_number(channel, int(message))

    def _on_number(self, channel: bytes, number: int) -> None:
        missing = number - self.last[channel] - 1 if channel in self.last else 0
        if missing and not (self._may_skip and missing > 0):
            self._fault(f"{number} after {self.last[channel]} on {channel!r}")
        elif number > self._latest.get(channel, number) and not self._may_skip:
            self._fault(f"{number} is the first on {channel!r}, which was active before {number - 1}")
        self.skipped += missing
        self._heard(channel, number)

    def on_spoilt(self, channel: bytes) -> None:
        """Count a message whose payload was damaged on the network."""
        self._note("spoilt", channel)
        if channel in self.last:
            self._heard(channel, self.last[channel] + 1)
        elif channel in self._latest:
            self._latest[channel] += 1

    def on_activation(self, name: bytes) -> None:
        """Check an activation. A callback of the subscription."""
        self.activations += 1
        self._note("activation", name)
        if name in self.active:
            self._fault(f"{name!r} activated twice")
        if name in self._gone:
            self._fault(f"{name!r} activated, which was removed")
        self.active.add(name)
        self._latest |= self._upcoming(name)

    def on_disconnect(self, error: ConnectionLost) -> None:
        """Check a disconnect. A callback of the subscription."""
        self.disconnects += 1
        self._note("disconnect", error)
        names = self.active if error.names is None else error.names
        if not names & self.active:
            self._fault(f"a disconnect of {set(names) or 'all names'}, of which none is active")
        self._forget(names)

    def on_error(self, error: Exception) -> None:
        """Keep an error. A callback of the subscription."""
        self.errors.append(error)
        self._note("error", error)

    def added(self, *names: bytes) -> None:
        """Note that removed names were added again."""
        self._gone.difference_update(names)

    def removed(self, *names: bytes) -> None:
        """Note that names were removed: any later event of theirs is a fault."""
        self._gone.update(names)
        self._forget(names)

    @property
    def callbacks(self) -> tuple[Callable[..., None], ...]:
        """`on_message`, `on_disconnect` and `on_activation`, in the order of the arguments of a subscription."""
        return self.on_message, self.on_disconnect, self.on_activation

    @property
    def kinds(self) -> list[str]:
        """The kinds of all events so far."""
        return [kind for kind, _ in self.events]

    @property
    def payloads(self) -> list[bytes]:
        """The payloads of all messages so far."""
        return [event[1] for kind, event in self.events if kind == "message"]

    def _fault(self, text: str) -> None:
        self._until_fault = self._until_fault or len(self.events)
        self.faults.append(text)

    def _note(self, kind: str, event: object) -> None:
        self.events.append((kind, event))
        if self.closed:
            self._fault(f"{kind} {event!r} after the end")

    def _heard(self, channel: bytes, number: int) -> None:
        self.last[channel] = number
        self._latest.pop(channel, None)

    def _forget(self, names: Collection[bytes]) -> None:
        names = frozenset(names)
        self.active -= names
        for numbers in (self.last, self._latest):
            for channel in [channel for channel in numbers if self._name_of(channel) in names]:
                del numbers[channel]
