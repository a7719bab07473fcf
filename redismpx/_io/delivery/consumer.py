"""What a subscription's events are delivered to, and what delivery shares with the other subscriptions. No logic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..._core.budget import Budget
from ..._core.overflow import Overflow
from ...stats import Counters
from ...typing import Decode, OnActivation, OnClose, OnDisconnect, OnError, OnMessage
from ..runtime.log import RecordLimit
from ..runtime.tasks import Tasks
from .watch import Watch


class Consumer(NamedTuple):
    """The callbacks and options of one subscription. A subscription without `on_message` is read."""

    on_message: OnMessage[Any] | None = None
    on_disconnect: OnDisconnect | None = None
    on_activation: OnActivation | None = None
    on_error: OnError | None = None
    decode: Decode[Any] | None = None
    max_pending: int = 10_000
    overflow: Overflow = Overflow.DROP_OLDEST
    on_close: OnClose | None = None
    on_gap: Callable[[Any], object] | None = None
    """Called with the argument of a gap. Only streams have gaps."""
    is_own: bool = False  # on_message and on_disconnect belong to the library: a slow on_error must not delay them

    @property
    def has_callbacks(self) -> bool:
        """Whether events reach the consumer although nobody reads."""
        return any(callback is not None for callback in (self.on_message, self.on_disconnect, self.on_activation))


@dataclass(frozen=True, slots=True)  # its attributes are read for each message, and those of a tuple are slow
class DeliveryContext:
    """What all subscriptions of one multiplexer share."""

    tasks: Tasks
    counters: Counters
    budget: Budget
    call_soon: Callable[[Callable[[], object]], None]
    """Has the loop call a function in its next iteration."""
    record_limit: RecordLimit
    watch: Watch | None = None
    """The observers. None: there are none."""

    @property
    def follows(self) -> bool:
        """Whether an observer follows each message."""
        return self.watch is not None and self.watch.follows
