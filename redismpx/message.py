"""What a subscription that is read hands out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic

from .errors import quote
from .typing import T


@dataclass(frozen=True, slots=True)
class Message(Generic[T]):
    """One message."""

    channel: bytes
    """The channel that it was published to."""
    data: T
    """The payload: bytes, or what `decode` made of them. Not shown in the `repr`."""
    pattern: bytes | None = None
    """The pattern by which it was subscribed; None for a channel subscription."""

    def __repr__(self) -> str:
        pattern = "" if self.pattern is None else f", pattern={quote(self.pattern)}"
        return f"Message(channel={quote(self.channel)}{pattern})"
