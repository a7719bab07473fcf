"""A message of a topic, as a `TopicReader` returns it."""

from __future__ import annotations

__all__ = ["TopicMessage"]

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from .._core.topic_tree import Words


@dataclass(frozen=True, slots=True)
class TopicMessage:
    """A message of a topic."""

    topic: Words
    """The words of the topic. A broadcast has none."""
    content: dict[str, Any]
    """The keywords of the message. All subscribers of this process get the same values. The `repr` shows no values."""
    id: str
    """A UUID, the same in all processes."""
    timestamp: datetime
    """The time at which the message was published, by the publisher's clock, in UTC."""
    headers: Mapping[str, str]
    """Text by name, read-only. `Mpx-Origin` is the `Topics` object that has published the message."""

    def __repr__(self) -> str:
        return f"<TopicMessage {self.id} of {'.'.join(self.topic)!r}, {len(self.content)} keywords>"
