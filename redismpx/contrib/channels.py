"""Django Channels: a channel layer with one connection to each server, for all event loops and threads of a process.

Names and payloads are those of `channels_redis.pubsub.RedisPubSubChannelLayer`: processes with the one and with the
other layer can exchange messages.
"""

from __future__ import annotations

__all__ = ["ChannelLayer"]

import asyncio
import base64
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4
from weakref import WeakSet

from channels.layers import BaseChannelLayer
from redis.asyncio.sentinel import Sentinel

from ..blocking import Multiplexer
from ._members import Process

_CONFIRMATION_TIMEOUT = 5.0  # seconds


class ChannelLayer(BaseChannelLayer):  # type: ignore[misc]
    """A channel layer for Django Channels, in place of `channels_redis.pubsub.RedisPubSubChannelLayer`.

    A process has one connection to each server for all subscriptions, and one for publishing, in a thread of their own.
    The first call starts it. Coroutines may run in any event loop, also in one that lasts for one call, as that of
    `async_to_sync`. A layer that was used before a fork works in the child, without the channels of the parent.

    Each consumer has a channel, whose name `new_channel()` returns. A message to a group is published once. As with all
    Pub/Sub, a message to a channel from which no process receives is lost.

    Args:
        hosts: the servers. Each is a URL, a dictionary with the `address` and options of `redismpx.Multiplexer`, one
            with `master_name`, `sentinels` and `sentinel_kwargs`, one with options of a redis-py connection, a tuple of
            host and port, or a client: `redis.asyncio.Redis` or `redis.asyncio.RedisCluster`. Names are distributed
            over several servers as in channels_redis. Default: `redis://localhost:6379`.
        prefix: how the names in Redis begin.
        capacity: messages that a channel buffers for its consumer. Beyond that, the oldest is dropped. The log has a
            warning, and the consumer gets a message of the type `on_reconnect`.
        expiry: seconds after which a channel is removed, with its messages and groups, when its `receive()` was
            cancelled, and no other followed: the consumer has ended.
        channel_capacity: other capacities: a dictionary of glob patterns, or compiled patterns, of channels.
        group_expiry: without effect: a channel leaves its groups when it is removed.
        serializer_format: `"msgpack"`, `"json"`, or an object with the methods `serialize` and `deserialize`.
        symmetric_encryption_keys: keys to encrypt messages with. The first encrypts, and all can decrypt.
        on_disconnect: the type of the message that every consumer gets when the connection to a server is lost. None:
            consumers get none. The log has a warning anyway.
        on_reconnect: the type of the message that every consumer gets when everything is subscribed again, and when
            messages of its own were dropped: it may have missed messages, and loads its state again.

    Raises:
        ValueError: an option is invalid.

    Example:
        ::

            layer = ChannelLayer(["redis://localhost:6379"])
            channel = await layer.new_channel()
            await layer.group_add("room", channel)
            await layer.group_send("room", {"type": "chat.message", "text": "hello"})
            print(await layer.receive(channel))  # {'type': 'chat.message', 'text': 'hello'}
    """

    extensions: tuple[str, ...] = ("groups", "flush")

    def __init__(
        self,
        hosts: Sequence[Any] | None = None,
        prefix: str = "asgi",
        *,
        capacity: int = 1_000,
        expiry: float = 60,
        channel_capacity: Mapping[Any, int] | None = None,
        group_expiry: float | None = None,
        serializer_format: Any = "msgpack",
        symmetric_encryption_keys: Sequence[str | bytes] | None = None,
        on_disconnect: str | None = None,
        on_reconnect: str | None = None,
    ) -> None:
        patterns: dict[Any, int] = {**channel_capacity} if channel_capacity else {}
        options: dict[str, Any] = {"expiry": expiry, "channel_capacity": self.compile_capacities(patterns)}
        super().__init__(capacity=capacity, **options)
        if isinstance(hosts, (str, bytes)):
            raise ValueError("hosts must be a list, also of a single server")
        self.prefix = prefix
        self._serialize, self._deserialize = _new_codec(serializer_format, symmetric_encryption_keys)
        self._hosts = hosts or ["redis://localhost:6379"]
        self._notices = [self.serialize({"type": each}) if each else None for each in (on_disconnect, on_reconnect)]
        self._process = self._new_process()
        _layers.add(self)

    def _new_process(self) -> Process:
        return Process(map(_new_multiplexer, self._hosts), self.get_capacity, self.expiry, *self._notices)

    def serialize(self, message: Any) -> bytes:
        """Return the payload of a message."""
        return self._serialize(message)

    def deserialize(self, data: bytes) -> Any:
        """Return the message of a payload."""
        return self._deserialize(data)

    # --- channels

    async def new_channel(self, prefix: str = "specific.") -> str:
        """Make a channel for a consumer, and return its name. It is active when this returns.

        Raises:
            TimeoutError: Redis did not confirm it within 5 seconds, for example because it cannot be reached.
            SubscriptionRefused: Redis rejects the name.
        """
        name = f"{self.prefix}{prefix}{uuid4().hex}"
        await self._process.join(name, name.encode(), _CONFIRMATION_TIMEOUT)
        return name

    async def send(self, channel: str, message: Any) -> None:
        """Send a message to a channel. Offline, it waits for a connection, for 5 seconds at most.

        Raises:
            ConnectionLost: there was no connection, or it was lost before the reply.
        """
        await self._publish(channel.encode(), message)

    async def receive(self, channel: str) -> Any:
        """Wait for the next message of a channel, and return it. Offline, it waits for the connection.

        A message goes to one of several calls. A cancelled call loses no message: the next one within `expiry` seconds
        goes on. A channel that was not made by `new_channel()` is active soon after the first call.

        Raises:
            SubscriptionRefused: Redis rejects the name.
        """
        return self.deserialize(await self._process.receive(channel))

    # --- groups

    async def group_add(self, group: str, channel: str) -> None:
        """Add a channel of this process to a group. The group is active when this returns.

        Raises:
            RuntimeError: no consumer of this process has the channel.
            TimeoutError, SubscriptionRefused: as for `new_channel()`. The channel is not added.
        """
        process = self._process
        if channel not in process.channels:
            raise RuntimeError(
                f"group_add() needs a channel of this process: call group_add({group!r}, self.channel_name) in a "
                "consumer"
            )
        await process.join(channel, self._to_group_name(group), _CONFIRMATION_TIMEOUT)

    async def group_discard(self, group: str, channel: str) -> None:
        """Remove a channel from a group. Without effect if it is not in the group. Works offline."""
        self._process.leave(channel, self._to_group_name(group))

    async def group_send(self, group: str, message: Any) -> None:
        """Send a message to all channels of a group, in all processes. As `send()` otherwise."""
        await self._publish(self._to_group_name(group), message)

    async def _publish(self, name: bytes, message: Any) -> None:
        await self._process.host_of(name).multiplexer.apublish(name, self.serialize(message))

    def _to_group_name(self, group: str) -> bytes:
        return f"{self.prefix}__group__{group}".encode()

    # --- the end

    async def flush(self) -> None:
        """Remove all channels and groups of this process, and close the connections. The next call opens new ones."""
        process, self._process = self._process, self._new_process()
        for host in process.hosts:
            await asyncio.to_thread(host.multiplexer.close)

    close = flush


def _new_multiplexer(host: Any) -> Multiplexer:
    if isinstance(host, (tuple, list)):
        host = {"host": host[0], "port": host[1]}
    options: dict[str, Any] = dict(host) if isinstance(host, Mapping) else {"address": host}
    if "master_name" in options:
        sentinel = Sentinel(options.pop("sentinels"), sentinel_kwargs=options.pop("sentinel_kwargs", None))
        options = {"address": sentinel.master_for(options.pop("master_name"), **options)}
    return Multiplexer(options.pop("address", "redis://"), **options)


def _new_codec(
    serializer_format: Any, keys: Sequence[str | bytes] | None
) -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
    """Return the functions that make a payload of a message, and a message of a payload."""
    serialize: Any  # typed or not, depending on the stubs
    deserialize: Any
    if serializer_format == "msgpack":
        import msgpack

        serialize, deserialize = msgpack.packb, msgpack.unpackb
    elif serializer_format == "json":
        serialize, deserialize = (lambda message: json.dumps(message).encode()), json.loads
    elif isinstance(serializer_format, str):
        raise ValueError(f"serializer_format is 'msgpack', 'json' or an object, not {serializer_format!r}")
    else:
        serialize, deserialize = serializer_format.serialize, serializer_format.deserialize
    if not keys:
        return serialize, deserialize
    if isinstance(keys, (str, bytes)):
        raise ValueError("symmetric_encryption_keys must be a list, also of a single key")
    from cryptography.fernet import Fernet, MultiFernet

    digests = [hashlib.sha256(key.encode() if isinstance(key, str) else key).digest() for key in keys]
    fernet = MultiFernet([Fernet(base64.urlsafe_b64encode(digest)) for digest in digests])
    return (lambda message: fernet.encrypt(serialize(message))), (lambda data: deserialize(fernet.decrypt(data)))


_layers: WeakSet[ChannelLayer] = WeakSet()


def _forget_parent() -> None:
    """In a forked child, begin with connections of its own: those of the parent, and its thread, are not there."""
    for layer in _layers:
        layer._process = layer._new_process()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)
