"""Subscriptions to topics that observers follow. Decides nothing: that is for the plain subscription."""

from __future__ import annotations

__all__ = ["Arrived", "ObservedTopicSubscription", "arrived"]

from collections.abc import Callable
from functools import partial
from typing import Any

from .._core.topic_tree import Words
from .._io.delivery.watch import Watch
from ..observing import Handling
from .subscription import TopicSubscription
from .wire import Decoded


class Arrived(tuple[str, ...]):
    """The topic of a message from another process, with what the observers are told when a callback handles it."""

    handling: Handling


def arrived(message: Decoded, prefix: bytes) -> Arrived:
    """Return the topic of a message."""
    topic, envelope = Arrived(message.topic), message.envelope
    channel = prefix + b":" + ".".join(topic).encode()
    topic.handling = Handling(channel, "a topic subscription", envelope.headers, envelope.id)
    return topic


class ObservedTopicSubscription(TopicSubscription):
    """Lets the observers follow each message of another process that its callback handles."""

    __slots__ = ("_watch",)

    def __init__(self, watch: Watch, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._watch = watch
        callback, reference = self._callback, self._reference

        def find() -> Callable[..., object] | None:
            found = callback if reference is None else reference()
            return None if found is None else partial(self._follow, found)

        self._reference = find

    def _follow(self, callback: Callable[..., object], topic: Words, /, **message: Any) -> object:
        if not isinstance(topic, Arrived):
            return callback(topic, **message)
        if self._inbox is not None:
            return self._watch.call(topic.handling, callback, tuple(topic), **message)
        results: list[object] = []  # a coroutine is a mistake there, and is not to be wrapped in another one
        self._watch.call(topic.handling, lambda: results.append(callback(tuple(topic), **message)))
        return results[0]
