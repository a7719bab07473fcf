"""Who consumes the messages of which topics, and who answers requests. Any thread may use it; it calls no consumer."""

from __future__ import annotations

__all__ = ["Covering", "Directory"]

import threading
from collections import deque
from functools import partial
from typing import NamedTuple

from .._core.critical import CriticalSection
from .._core.topic_tree import TopicTree, Words, parse_topic
from .consumer import TopicConsumer
from .message_queue import TopicQueue
from .service import TopicService
from .subscription import TopicSubscription

_CACHED = 1_024  # topics whose consumers are remembered


class Covering(NamedTuple):
    """The consumers that get the messages of a topic."""

    topic: Words
    subscriptions: tuple[TopicSubscription, ...]
    queues: tuple[TopicQueue, ...]


class Directory:
    """The consumers and services of one `Topics`."""

    def __init__(self) -> None:
        self.lock: threading.RLock = threading.RLock()
        """For all that follows, and for several steps in a row."""
        self.consumers: dict[tuple[Words, object], TopicConsumer] = {}
        self.services: TopicTree[TopicService] = TopicTree()
        self.dead: deque[TopicConsumer] = deque()
        """The consumers whose object is gone. A finalizer may append one at any time."""
        self.covering: dict[object, Covering] = {}
        """By topics as they were given. Replaced at each change."""
        self._tree: TopicTree[TopicConsumer] = TopicTree()
        self._changes = CriticalSection()  # of a call that a finalizer may interrupt, and so end a consumer

    def add(self, consumer: TopicConsumer) -> None:
        """Add a consumer."""
        with self.lock, self._changes:
            self.consumers[consumer.topic, consumer.key] = consumer
            self._tree.add(consumer.topic, consumer)
            self.covering = {}

    def remove(self, consumer: TopicConsumer) -> None:
        """Remove a consumer, which it must have."""
        with self.lock:
            if self._changes.postpone(partial(self.remove, consumer)):
                return
            with self._changes:
                del self.consumers[consumer.topic, consumer.key]
                self._tree.remove(consumer.topic, consumer)
                self.covering = {}

    def add_service(self, service: TopicService) -> None:
        """Add a service."""
        with self.lock, self._changes:
            self.services.add(service.topic, service)

    def remove_service(self, service: TopicService) -> None:
        """Remove a service, which it must have."""
        with self.lock:
            if not self._changes.postpone(partial(self.remove_service, service)):
                with self._changes:
                    self.services.remove(service.topic, service)

    def service_of(self, words: Words) -> TopicService | None:
        """Return the service that answers requests to a topic: that of the longest prefix."""
        with self.lock, self._changes:
            return next(iter(self.services.covering(words)), None)

    def cover(self, topic: str | Words | None) -> Covering:
        """Return who gets the messages of a topic: each callback once, in the documented order.

        Raises:
            TypeError, ValueError: the topic is invalid.
        """
        words = parse_topic(topic)
        with self.lock, self._changes:
            unique: dict[object, TopicConsumer] = {}
            for consumer in self._tree.covering(words) if words else self._tree:
                unique.setdefault(consumer.key, consumer)
            covering = Covering(
                words,
                tuple([consumer for consumer in unique.values() if isinstance(consumer, TopicSubscription)]),
                tuple([consumer for consumer in unique.values() if isinstance(consumer, TopicQueue)]),
            )
            if len(self.covering) >= _CACHED:
                self.covering = {}
            self.covering[topic] = covering
        return covering
