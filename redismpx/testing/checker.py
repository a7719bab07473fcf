"""Callbacks that check the events of each name: (Activation Message* Disconnect)*, no message lost in between."""

from __future__ import annotations

__all__ = ["Checker"]

from collections.abc import Callable, Collection
from typing import Any

from ..errors import ConnectionLost


class Checker:
    """The callbacks of one subscription. A message that is a number must be the one after the last, on its channel.

    `upcoming` returns, for a name, the number of the next message on each of its channels: a name that is active then
    must get that message. With `may_skip` messages may be missing, because they were dropped; `skipped` counts them.
    """

    def __init__(
        self,
        name_of: Callable[[bytes], bytes] = lambda channel: channel,
        upcoming: Callable[[bytes], dict[bytes, int]] = lambda name: {},
        may_skip: bool = False,
    ) -> None:
        self._name_of = name_of  # the subscribed name that a message's channel belongs to
        self._upcoming = upcoming
        self._may_skip = may_skip
        self._gone: set[bytes] = set()
        self._latest: dict[bytes, int] = {}  # the highest number that the first message of a channel may have
        self.events: list[tuple[str, Any]] = []
        self.active: set[bytes] = set()
        self.last: dict[bytes, int] = {}
        self.faults: list[str] = []
        self.activations: int = 0
        self.disconnects: int = 0
        self.messages: int = 0
        self.skipped: int = 0
        self.errors: list[Exception] = []
        self.closed: bool = False
        """Set it when the subscription closes: any later event is a fault."""

    def on_message(self, channel: bytes, message: bytes) -> None:
        """Check a message. A callback of the subscription."""
        self.messages += 1
        self._note("message", (channel, message))
        if self._name_of(channel) not in self.active:
            self.faults.append(f"a message on {channel!r}, which is not active")
        if message.isdigit():
            number = int(message)
            missing = number - self.last[channel] - 1 if channel in self.last else 0
            if missing and not (self._may_skip and missing > 0):
                self.faults.append(f"{number} after {self.last[channel]} on {channel!r}")
            elif number > self._latest.get(channel, number) and not self._may_skip:
                self.faults.append(f"{number} is the first on {channel!r}, which was active before {number - 1}")
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
            self.faults.append(f"{name!r} activated twice")
        if name in self._gone:
            self.faults.append(f"{name!r} activated, which was removed")
        self.active.add(name)
        self._latest |= self._upcoming(name)

    def on_disconnect(self, error: ConnectionLost) -> None:
        """Check a disconnect. A callback of the subscription."""
        self.disconnects += 1
        self._note("disconnect", error)
        if not self.active:
            self.faults.append("a disconnect with nothing active")
        self._forget(self.active if error.names is None else error.names)

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

    def _note(self, kind: str, event: object) -> None:
        self.events.append((kind, event))
        if self.closed:
            self.faults.append(f"{kind} {event!r} after the end")

    def _heard(self, channel: bytes, number: int) -> None:
        self.last[channel] = number
        self._latest.pop(channel, None)

    def _forget(self, names: Collection[bytes]) -> None:
        names = frozenset(names)
        self.active -= names
        for numbers in (self.last, self._latest):
            for channel in [channel for channel in numbers if self._name_of(channel) in names]:
                del numbers[channel]
