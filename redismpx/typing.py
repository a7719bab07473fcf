"""The types of callbacks and payloads.

A callback is a plain function, a coroutine function, or any callable that returns an awaitable.
"""

from __future__ import annotations

__all__ = [
    "Decode",
    "Encode",
    "OnActivation",
    "OnClose",
    "OnDisconnect",
    "OnError",
    "OnMessage",
    "OverflowName",
    "Payload",
    "T",
]

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, SupportsBytes, TypeAlias, TypeVar, Union

from .errors import ConnectionLost

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc's from Python 3.12 on

T = TypeVar("T")

OnMessage: TypeAlias = Callable[[bytes, T], object]
"""Called with the channel and the payload of each message."""

Decode: TypeAlias = Callable[[bytes], T]
"""Converts a payload to a `T`. If it raises, the message is dropped, and `on_error` gets a `DecodeError`."""

Encode: TypeAlias = Callable[[T], "Payload"]
"""Converts a `T` to a payload."""

OnDisconnect: TypeAlias = Callable[[ConnectionLost], object]
"""Called once for each lost connection on which the subscription was active."""

OnActivation: TypeAlias = Callable[[bytes], object]
"""Called with each name (channel or pattern) when it becomes active, and again after each reconnect."""

OnClose: TypeAlias = Callable[[str], object]
"""Called once when a subscription ends without a call of its own `close()`, with the reason. A plain function."""

OnError: TypeAlias = Callable[[Exception], object]
"""Called with each exception of a callback, and with `SlowConsumer`, `DecodeError` and `SubscriptionRefused`."""

OverflowName: TypeAlias = Literal["drop_oldest", "drop_newest", "latest", "close"]
"""The name of a `redismpx.Overflow`."""

Payload: TypeAlias = Union[str, "Buffer", SupportsBytes]
"""A payload to publish: `str` (encoded as UTF-8), `bytes`, or an object with the buffer protocol or `__bytes__`."""
