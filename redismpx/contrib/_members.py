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
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from time import monotonic

from .. import ChannelSubscription, ConnectionLost, Multiplexer, SubscriptionIsClosed, SubscriptionRefused, blocking
from ._records import Records

DROPS_INTERVAL = 10.0  # seconds
RING = 4096  # places for names, as in channels_redis

layer_logger = logging.getLogger("redismpx")


class Process:
    """The channels and groups of one process, and its hosts. Any thread may call the methods."""

    def __init__(
        self,
        multiplexers: Iterable[blocking.Multiplexer],
        get_capacity: Callable[[str], int],
        expiry: float,
        on_disconnect: bytes | None,
        on_reconnect: bytes | None,
    ) -> None:
        self._get_capacity = get_capacity
        self._expiry = expiry
        self.on_disconnect = on_disconnect
        self.on_reconnect = on_reconnect
        self.hosts: list[LayerHost] = [LayerHost(multiplexer, self) for multiplexer in multiplexers]
        self.lock: threading.Lock = threading.Lock()
        """For all that follows."""
        self.members: dict[bytes, set[Channel]] = {}
        """The channels that get the messages of a name in Redis."""
        self._channels: dict[str, Channel] = {}
        self._wakers: dict[asyncio.AbstractEventLoop, Waker] = {}
        self._dropped = 0  # messages since the last log record
        self._logged = -DROPS_INTERVAL

    def host_of(self, name: bytes) -> LayerHost:
        """Return the server of a name, as channels_redis selects it."""
        return self.hosts[zlib.crc32(name) % RING * len(self.hosts) // RING]

    # --- members

    def open(self, name: str) -> Channel:
        """Return a channel, which may be new."""
        with self.lock:
            channel = self._channels.get(name)
            if channel is None:
                channel = self._channels[name] = Channel(name, self._get_capacity(name))
                self._join(channel, name.encode())
            return channel

    def join(self, name: str, group: bytes) -> bool | None:
        """Add a channel to a group. Return whether it was not in it; None if there is no such channel."""
        with self.lock:
            channel = self._channels.get(name)
            if channel is None or group in channel.names:
                return None if channel is None else False
            self._join(channel, group)
            return True

    def _join(self, channel: Channel, name: bytes) -> None:
        channel.names.add(name)
        self.members.setdefault(name, set()).add(channel)

    def leave(self, name: str, group: bytes) -> None:
        """Remove a channel from a group, if it is in it."""
        with self.lock:
            channel = self._channels.get(name)
            if channel is not None and group in channel.names:
                self._leave(channel, group)

    def _leave(self, channel: Channel, name: bytes) -> None:
        channel.names.discard(name)
        self.members[name].discard(channel)
        if not self.members[name]:
            del self.members[name]
            self.host_of(name).update_soon(name)

    def remove(self, channel: Channel, call: object) -> None:
        """Remove a channel, and unsubscribe, unless it is in use after the cancelled call of receive()."""
        with self.lock:
            is_unused = channel.abandoned is call and not channel.receivers
            if is_unused and self._channels.get(channel.name) is channel:
                del self._channels[channel.name]
                for name in tuple(channel.names):
                    self._leave(channel, name)

    # --- messages

    async def receive(self, name: str) -> bytes:
        """Wait for the next message of a channel, and return it."""
        channel = self._channels.get(name)
        is_new = channel is None
        if channel is None:
            channel = self.open(name)
        try:
            if is_new:
                await self.host_of(name.encode()).subscribe(name.encode(), None)
            while True:
                if channel.messages:
                    with suppress(IndexError):  # a receiver in another thread was faster
                        message = channel.messages.popleft()
                        channel.abandoned = None
                        return message
                await self._wait(channel)
        except BaseException:  # also cancelled: the channel stays for the next call, until it expires
            channel.abandoned = call = object()
            self.host_of(name.encode()).call_later(self._expiry, partial(self.remove, channel, call))
            raise

    async def _wait(self, channel: Channel) -> None:
        """Wait until there may be a message."""
        loop = asyncio.get_running_loop()
        with self.lock:
            if channel.messages:
                return
            waker = self._wakers.get(loop)
            if waker is None:
                self._wakers = {each: waker for each, waker in self._wakers.items() if not each.is_closed()}
                waker = self._wakers[loop] = Waker(loop)
            receiver = (waker, loop.create_future())
            channel.receivers.append(receiver)
        try:
            await receiver[1]
        except BaseException:
            with self.lock:
                if receiver in channel.receivers:
                    channel.receivers.remove(receiver)
                elif channel.messages:  # it was woken for a message, which another receiver gets
                    self._wake(channel)
            raise

    def _wake(self, channel: Channel) -> None:
        while channel.receivers:
            waker, future = channel.receivers.popleft()
            if waker.wake(future):
                return

    def put(self, name: bytes, data: bytes) -> None:
        """Take a message from Redis."""
        with self.lock:
            self._put(self.members.get(name, ()), data)
        if self._dropped and monotonic() > self._logged + DROPS_INTERVAL:
            dropped, self._dropped, self._logged = self._dropped, 0, monotonic()
            layer_logger.warning("channel layer: %d messages dropped for consumers that are `capacity` behind", dropped)

    def notify(self, notice: bytes | None) -> None:
        """Put a message of the layer itself into all channels."""
        if notice is not None:
            with self.lock:
                self._put(self._channels.values(), notice)

    def _put(self, channels: Iterable[Channel], data: bytes) -> None:
        for channel in channels:
            messages = channel.messages
            if len(messages) >= channel.capacity:
                self._dropped += messages.popleft() is not self.on_reconnect
                if self.on_reconnect is not None:
                    self._dropped += 1
                    messages[0] = self.on_reconnect  # in place of another one
            messages.append(data)
            if channel.receivers:
                self._wake(channel)


class LayerHost:
    """The multiplexer of one server, and its subscription. The methods with an underscore are for its thread."""

    def __init__(self, multiplexer: blocking.Multiplexer, process: Process) -> None:
        self.multiplexer: blocking.Multiplexer = multiplexer
        self._process = process
        self._loop: asyncio.AbstractEventLoop | None = None  # of the multiplexer
        self._sub: ChannelSubscription[bytes]
        self._active: set[bytes] = set()
        self._lost: set[bytes] = set()  # names that were active before the connection was lost
        self._records = Records()

    async def subscribe(self, name: bytes, timeout: float | None) -> None:
        """Wait until a name is active."""
        if name not in self._active:
            await self.multiplexer.arun(partial(self._subscribe, name, timeout))

    async def _subscribe(self, name: bytes, timeout: float | None, multiplexer: Multiplexer) -> None:
        if self._loop is None:
            self._sub = multiplexer.new_channel_subscription(
                self._process.put, self._disconnect, self._activate, on_error=self._refuse
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

    def _disconnect(self, error: ConnectionLost) -> None:
        was_complete = not self._lost
        self._lost |= self._active if error.names is None else self._active & error.names
        self._active -= self._lost
        if was_complete and self._lost:
            self._process.notify(self._process.on_disconnect)

    def _activate(self, name: bytes) -> None:
        self._active.add(name)
        self._recover(name)

    def _recover(self, name: bytes) -> None:
        """Take note that nothing more is missed of a name."""
        if name in self._lost:
            self._lost.discard(name)
            if not self._lost:
                self._process.notify(self._process.on_reconnect)

    def _refuse(self, error: Exception) -> None:
        self._records.log(logging.WARNING, "channel layer: %s", error)
        if isinstance(error, SubscriptionRefused):
            self._recover(error.name)


class Channel:
    """The messages of one channel, for its consumer."""

    __slots__ = ("abandoned", "capacity", "messages", "name", "names", "receivers")

    def __init__(self, name: str, capacity: int) -> None:
        self.name = name
        self.capacity = max(2, capacity)
        self.messages: deque[bytes] = deque()
        self.names: set[bytes] = set()  # in Redis: its own, and those of its groups
        self.receivers: deque[tuple[Waker, asyncio.Future[None]]] = deque()  # the calls of receive() that wait
        self.abandoned: object = None  # the last call, if it was cancelled


class Waker:
    """Resolves futures of one event loop, many with one wake-up."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ready: deque[asyncio.Future[None]] = deque()
        self._is_woken = False

    def wake(self, future: asyncio.Future[None]) -> bool:
        """Resolve a future soon. Return False if the loop is closed."""
        self._ready.append(future)
        if not self._is_woken:
            self._is_woken = True
            try:
                self._loop.call_soon_threadsafe(self._run)
            except RuntimeError:
                return False
        return True

    def _run(self) -> None:
        self._is_woken = False  # before the look: each future that is added from now on wakes the loop again
        while self._ready:
            future = self._ready.popleft()
            if not future.done():
                future.set_result(None)
