"""The types of callbacks. Each may be a plain function, a coroutine function, or return any awaitable."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from .errors import ConnectionLost

OnMessage: TypeAlias = Callable[[bytes, bytes], object]
"""Called with the channel and the payload of each message."""

OnDisconnect: TypeAlias = Callable[[ConnectionLost], object]
"""Called once when a connection is lost on which the subscription was active."""

OnActivation: TypeAlias = Callable[[bytes], object]
"""Called with each name (channel or pattern) as it becomes active, again after each reconnect."""

OnError: TypeAlias = Callable[[Exception], object]
"""Called with what a callback raised, `SlowConsumer` and `SubscriptionRefused`."""
