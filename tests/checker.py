"""Callbacks that check the events of each name: (Activation Message* Disconnect)*, no message lost in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redismpx import ConnectionLost


class Checker:
    """The callbacks of one subscription. A message that is a number must be the one after the last, on its channel."""

    def __init__(self, name_of: Callable[[bytes], bytes] = lambda channel: channel) -> None:
        self._name_of = name_of  # the name by which a message's channel is subscribed
        self.events: list[tuple[str, Any]] = []
        self.active: set[bytes] = set()
        self.last: dict[bytes, int] = {}
        self.faults: list[str] = []
        self.activations = self.disconnects = self.messages = 0
        self.errors: list[Exception] = []

    def on_message(self, channel: bytes, message: bytes) -> None:
        self.messages += 1
        self.events.append(("message", (channel, message)))
        if self._name_of(channel) not in self.active:
            self.faults.append(f"a message on {channel!r}, which is not active")
        if message.isdigit():
            number = int(message)
            if channel in self.last and number != self.last[channel] + 1:
                self.faults.append(f"{number} after {self.last[channel]} on {channel!r}")
            self.last[channel] = number

    def on_activation(self, name: bytes) -> None:
        self.activations += 1
        self.events.append(("activation", name))
        if name in self.active:
            self.faults.append(f"{name!r} activated twice")
        self.active.add(name)

    def on_disconnect(self, error: ConnectionLost) -> None:
        self.disconnects += 1
        self.events.append(("disconnect", error))
        if not self.active:
            self.faults.append("a disconnect with nothing active")
        if error.names is None:
            self.active.clear()
            self.last.clear()
        else:
            self.active -= error.names
            for name in error.names:
                self.last.pop(name, None)

    def on_error(self, error: Exception) -> None:
        self.errors.append(error)
        self.events.append(("error", error))

    @property
    def callbacks(self) -> tuple[Callable[..., None], ...]:
        return self.on_message, self.on_disconnect, self.on_activation

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]

    @property
    def payloads(self) -> list[bytes]:
        return [event[1] for kind, event in self.events if kind == "message"]
