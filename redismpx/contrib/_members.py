"""The channels and groups of a channel layer, and their messages on the way from Redis to any event loop.

Knows neither Django Channels nor what is in a message. One subscription for each server gets all messages. Its callback
puts them into the buffers of the channels, in the thread of the multiplexer, and wakes the loops that wait.
"""

from __future__ import annotations

__all__ = ["Process"]

import asyncio
import logging
import threading
import zlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

from .. import ChannelSubscription, ConnectionLost, Multiplexer, SubscriptionIsClosed, SubscriptionRefused, blocking
from ._records import Records

RING = 4096  # places for names, as in channels_redis


class Process:
    """The channels and groups of one process, and its servers. Any thread may call the methods."""

    def __init__(
        self,
        multiplexers: Iterable[blocking.Multiplexer],
        get_capacity: Callable[[str], int],
        expiry: float,
        on_disconnect: bytes | None,
        on_reconnect: bytes | None,
    ) -> None:
        self.hosts: list[LayerHost] = [LayerHost(multiplexer, self) for multiplexer in multiplexers]
        self._get_capacity = get_capacity
        self._expiry = expiry
        self.on_disconnect = on_disconnect
        self.on_reconnect = on_reconnect
        self.records: Records = Records()
        self.lock: threading.RLock = threading.RLock()  # a finalizer may interrupt
        """For all that follows."""
        self.channels: dict[str, Channel] = {}
        self.members: dict[bytes, set[Channel]] = {}
        """The channels that get the messages of a name in Redis: that of a channel or a group."""
        self._woken: list[asyncio.Future[None]] = []  # the receivers that `_wake()` is going to wake

    def host_of(self, name: bytes) -> LayerHost:
        """Return the server of a name, as channels_redis selects it."""
        return self.hosts[zlib.crc32(name) % RING * len(self.hosts) // RING]

    async def join(self, channel: str, name: bytes, timeout: float) -> None:
        """Make a channel, which may be new, a member of a name, and wait until the name is active."""
        _, is_new = self._join(channel, name)
        try:
            await self.host_of(name).subscribe(name, timeout)
        except BaseException:  # also cancelled: the caller takes it for not joined
            if is_new:
                self.leave(channel, name)
            raise

    def leave(self, channel: str, name: bytes) -> None:
        """Make a channel no member of a name any more."""
        with self.lock:
            member = self.channels.get(channel)
            if member is not None and name in member.names:
                self._leave(member, name)

    def _join(self, channel: str, name: bytes) -> tuple[Channel, bool]:
        """Make a channel a member. Return it, and whether it was none before."""
        with self.lock:
            member = self.channels.get(channel) or Channel(channel, self._get_capacity(channel))
            is_new = name not in member.names
            member.names.add(name)
            self.channels[channel] = member
            self.members.setdefault(name, set()).add(member)
        return member, is_new

    def _leave(self, channel: Channel, name: bytes) -> None:
        """Make a channel no member any more, and remove it if it is one of no other name."""
        channel.names.discard(name)
        if not channel.names:
            del self.channels[channel.name]
        self.members[name].discard(channel)
        if not self.members[name]:
            del self.members[name]
            self.host_of(name).update_soon(name)

    async def receive(self, name: str) -> bytes:
        """Wait for the next message of a channel, which may be new, and return it."""
        own = name.encode()
        receiver: asyncio.Future[None] | None = None
        channel, is_new = self.channels.get(name), False
        if channel is None:
            channel, is_new = self._join(name, own)
        try:
            if is_new:
                await self.host_of(own).subscribe(own, None)
            while True:
                with self.lock:
                    if channel.messages:
                        channel.abandoned = None
                        return channel.messages.popleft()
                    receiver = asyncio.get_running_loop().create_future()
                    channel.receivers.append(receiver)
                await receiver
        except BaseException:  # also cancelled: the channel stays for the next call, until it expires
            with self.lock:
                channel.receivers = [each for each in channel.receivers if each is not receiver]
                channel.abandoned = call = object()
            self.host_of(own).call_later(self._expiry, partial(self._expire, channel, call))
            raise

    def _expire(self, channel: Channel, call: object) -> None:
        """Remove a channel, unless it is in use after the cancelled call of receive()."""
        with self.lock:
            if channel.abandoned is call and not channel.receivers:
                for name in tuple(channel.names):
                    self._leave(channel, name)

    def put(self, channels: Iterable[Channel], data: bytes) -> None:
        """Put a message into the buffers of channels, and wake their receivers soon."""
        is_full = False
        with self.lock:
            for channel in tuple(channels):
                messages = channel.messages
                if len(messages) >= channel.capacity:
                    is_full = True
                    messages.popleft()
                    if self.on_reconnect is not None:
                        messages[0] = self.on_reconnect  # in place of another one
                messages.append(data)
                if channel.receivers:
                    if not self._woken:
                        asyncio.get_running_loop().call_soon(self._wake)
                    self._woken += channel.receivers
                    channel.receivers = []
        if is_full:
            self.records.log(
                logging.WARNING, "channel layer: messages dropped for consumers that are `capacity` behind"
            )

    def _wake(self) -> None:
        """Wake the receivers of all messages that came together, with one wake-up for each loop."""
        with self.lock:
            woken, self._woken = self._woken, []
        receivers_of = defaultdict(list)
        for receiver in woken:
            receivers_of[receiver.get_loop()].append(receiver)
        for loop, receivers in receivers_of.items():
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(_resolve, receivers)


class Channel:
    """The messages of one channel, for its consumer."""

    __slots__ = ("abandoned", "capacity", "messages", "name", "names", "receivers")

    def __init__(self, name: str, capacity: int) -> None:
        self.name = name
        self.capacity = max(2, capacity)
        self.messages: deque[bytes] = deque()
        self.names: set[bytes] = set()  # in Redis: its own, and those of its groups
        self.receivers: list[asyncio.Future[None]] = []  # of the calls of receive() that wait
        self.abandoned: object = None  # the last call, if it was cancelled


class LayerHost:
    """The multiplexer of one server, and its subscription. The methods with an underscore are for its thread."""

    def __init__(self, multiplexer: blocking.Multiplexer, process: Process) -> None:
        self.multiplexer: blocking.Multiplexer = multiplexer
        self._process = process
        self._loop: asyncio.AbstractEventLoop | None = None  # of the multiplexer
        self._sub: ChannelSubscription[bytes]
        self._active: set[bytes] = set()
        self._lost: set[bytes] = set()  # names that were active before the connection was lost

    async def subscribe(self, name: bytes, timeout: float | None) -> None:
        """Wait until a name is active."""
        if name not in self._active:
            await self.multiplexer.arun(partial(self._subscribe, name, timeout))

    async def _subscribe(self, name: bytes, timeout: float | None, multiplexer: Multiplexer) -> None:
        if self._loop is None:
            self._sub = multiplexer.new_channel_subscription(
                self._receive, self._disconnect, self._activate, on_error=self._report
            )
            self._loop = asyncio.get_running_loop()
        self._update(name)
        await self._sub.wait_for_activation(name, timeout=timeout)

    def update_soon(self, name: bytes) -> None:
        """Unsubscribe from a name that has no members."""
        if self._loop is not None:
            with suppress(RuntimeError):  # it is closed
                self._loop.call_soon_threadsafe(self._update, name)

    def call_later(self, delay: float, function: Callable[[], None]) -> None:
        """Call a function after some seconds; at once if the multiplexer is closed."""
        try:
            self._loop.call_soon_threadsafe(self._loop.call_later, delay, function)  # type: ignore[union-attr]
        except (AttributeError, RuntimeError):
            function()

    def _update(self, name: bytes) -> None:
        """Subscribe to a name if it has members, and unsubscribe from it otherwise."""
        with self._process.lock:
            is_wanted = name in self._process.members
            if not is_wanted:
                self._active.discard(name)
        with suppress(SubscriptionIsClosed):
            (self._sub.add if is_wanted else self._sub.remove)(name)
        if not is_wanted:
            self._recover(name)

    def _receive(self, name: bytes, data: bytes) -> None:
        self._process.put(self._process.members.get(name, ()), data)

    def _notify(self, notice: bytes | None) -> None:
        """Put a message of the layer itself into all channels."""
        if notice is not None:
            self._process.put(self._process.channels.values(), notice)

    def _disconnect(self, error: ConnectionLost) -> None:
        was_complete = not self._lost
        self._lost |= self._active if error.names is None else self._active & error.names
        self._active -= self._lost
        if was_complete and self._lost:
            self._notify(self._process.on_disconnect)

    def _activate(self, name: bytes) -> None:
        self._active.add(name)
        self._recover(name)

    def _recover(self, name: bytes) -> None:
        """Take note that nothing more is missed of a name."""
        if name in self._lost:
            self._lost.discard(name)
            if not self._lost:
                self._notify(self._process.on_reconnect)

    def _report(self, error: Exception) -> None:
        self._process.records.log(logging.WARNING, "channel layer: %s", error)
        if isinstance(error, SubscriptionRefused):
            self._recover(error.name)


def _resolve(receivers: Iterable[asyncio.Future[None]]) -> None:
    for receiver in receivers:
        if not receiver.done():
            receiver.set_result(None)
