"""The types of what callers hand in. A callback may be plain, a coroutine function, or return any awaitable."""

from __future__ import annotations

__all__ = ["Decode", "OnActivation", "OnDisconnect", "OnError", "OnMessage", "Payload", "T"]

from collections.abc import Callable
from typing import TYPE_CHECKING, SupportsBytes, TypeAlias, TypeVar, Union

from .errors import ConnectionLost

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc's from Python 3.12 on

T = TypeVar("T")

OnMessage: TypeAlias = Callable[[bytes, T], object]
"""Called with the channel and the payload of each message."""

Decode: TypeAlias = Callable[[bytes], T]
"""Makes a `T` of a payload; what it raises means that the payload cannot be decoded."""

OnDisconnect: TypeAlias = Callable[[ConnectionLost], object]
"""Called once when a connection is lost on which the subscription was active."""

OnActivation: TypeAlias = Callable[[bytes], object]
"""Called with each name (channel or pattern) as it becomes active, again after each reconnect."""

OnError: TypeAlias = Callable[[Exception], object]
"""Called with what a callback raised, `SlowConsumer`, `DecodeError` and `SubscriptionRefused`."""

Payload: TypeAlias = Union[str, "Buffer", SupportsBytes]
"""What can be published: `str` as its UTF-8, `bytes` and whatever else has the buffer protocol, or `__bytes__`."""
