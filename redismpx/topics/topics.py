"""A tree of topics in one process."""

from __future__ import annotations

__all__ = ["Topics"]

import asyncio
import functools
import inspect
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from .._core.topic_tree import TopicTree, Words, parse_filter, parse_topic
from ..arguments import check_plain, check_positive
from .subscription import Owner, TopicSubscription, key_of, topic_logger

_CACHED = 1_024  # topics whose subscriptions are remembered


class Topics:
    """Publish and subscribe on a tree of topics, in one process, without a server.

    A topic is a `str` of words with dots between them, or a tuple of words: `"orders.eu"` and `("orders", "eu")` are
    the same. A subscription covers its topic and everything below it. In a subscription, the word `=` stands for one
    word, and `+` for one word or more. `""`, `()` or None subscribes to everything, and publishes to every subscriber.

    A word has one character or more. A dot, white space, control characters, and `*`, `?`, `[`, `]` and the backslash
    are not allowed in it. A topic has at most 255 bytes in UTF-8.

    Any thread may call the methods. A callback may, too, and a message that it publishes is delivered before its own
    call of `publish()` returns.

    Args:
        on_error: called with each exception of a callback, and with a `SlowConsumer`. Without it, they are logged.
        max_pending: how many messages may wait for one coroutine function. Beyond that, the oldest one is dropped.

    Raises:
        TypeError, ValueError: an argument is invalid.

    Example:
        ::

            topics = Topics()
            topics.subscribe("orders.eu", lambda topic, **message: print(topic, message))
            topics.publish("orders.eu.paid", id=7)  # prints ('orders', 'eu', 'paid') {'id': 7}
    """

    def __init__(self, *, on_error: Callable[[Exception], object] | None = None, max_pending: int = 10_000) -> None:
        self._on_error = check_plain(on_error, "on_error", "error")
        self._owner = Owner(self._report, self._forget, self._bury, check_positive(max_pending, "max_pending"))
        self._lock = threading.RLock()  # for the next two, and for all changes of the last one
        self._tree: TopicTree[TopicSubscription] = TopicTree()
        self._subscriptions: dict[tuple[Words, object], TopicSubscription] = {}
        self._dead: deque[TopicSubscription] = deque()  # those whose object is gone
        self._covering: dict[object, tuple[Words, tuple[TopicSubscription, ...]]] = {}
        """By topics as they were given: their words, and the subscriptions that cover them. Replaced at each change."""

    def subscribe(
        self, topic: str | Words | None, callback: Callable[..., Any], *, weak: bool = False
    ) -> TopicSubscription:
        """Call a callback for each message to a topic and to everything below it.

        It is called as `callback(topic, **message)`; `topic` is a tuple of words. It gets the keywords that its
        parameters take. For each keyword that it lacks, there is one warning in the log.

        A plain function is called before `publish()` returns, in the thread of the publisher. A coroutine function is
        awaited in the loop that runs now, for one message at a time, in their order.

        A callback is called once for a message, whatever number of its subscriptions cover the topic.

        Args:
            topic: the topic, perhaps with wildcards. `""`, `()` or None: everything.
            callback: a function, a method, or another object that can be called.
            weak: hold the callback weakly: the subscription ends with the object of a method, or with the function.

        Returns:
            The subscription. A second subscription of the same callback to the same topic is the first one.

        Raises:
            TypeError, ValueError: the topic is invalid, or the callback does not take a topic.
            RuntimeError: the callback is a coroutine function, and no event loop runs in this thread.
        """
        words = parse_filter(topic)
        if not callable(callback):
            raise TypeError(f"the callback must be callable, not {type(callback).__name__}")
        loop = None
        if _is_coroutine_function(callback):
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                raise RuntimeError(
                    "the callback is a coroutine function, and no event loop runs here that could await it; "
                    "subscribe in a coroutine, or pass a plain function"
                ) from None
        key = words, key_of(callback)
        with self._lock:
            self._drop_dead()
            if (known := self._subscriptions.get(key)) is not None:
                return known
            subscription = TopicSubscription(self._owner, words, callback, loop, weak=weak)
            self._subscriptions[key] = subscription
            self._tree.add(words, subscription)
            self._covering = {}
        return subscription

    def unsubscribe(self, topic: str | Words | None, callback: Callable[..., Any]) -> bool:
        """End the subscription of a callback to a topic, as `TopicSubscription.close()` does.

        Returns:
            Whether there was one.

        Raises:
            TypeError, ValueError: the topic is invalid.
        """
        subscription = self._subscriptions.get((parse_filter(topic), key_of(callback)))
        if subscription is None:
            return False
        subscription.close()
        return True

    def clear(self) -> None:
        """End all subscriptions, as `TopicSubscription.close()` does."""
        with self._lock:
            for subscription in tuple(self._subscriptions.values()):
                self._forget(subscription)

    def publish(self, topic: str | Words | None, /, **message: Any) -> int:
        """Deliver a message to the subscribers of a topic.

        They are called in this order: those of the topic itself, those of shorter prefixes of it, the longest first,
        those with wildcards, and those of everything; among these, the earlier subscription first. An exception in one
        goes to `on_error`, and the others are called all the same; but one that is no `Exception`, such as
        `KeyboardInterrupt`, leaves `publish()`. The message to a coroutine function waits until the function has
        returned from the messages before it.

        Args:
            topic: the topic, without wildcards. `""`, `()` or None: a broadcast to every subscriber, the earlier
                subscription first.
            message: the keywords of the message. All subscribers get the same values.

        Returns:
            How many subscribers were called, or will be.

        Raises:
            TypeError, ValueError: the topic is invalid.
        """
        try:
            words, subscriptions = self._covering[topic]
        except (KeyError, TypeError):  # TypeError: it has no hash, and is no topic
            words, subscriptions = self._cover(topic)
        called = 0
        for subscription in subscriptions:
            called += subscription.deliver(words, message)
        return called

    def _cover(self, topic: str | Words | None) -> tuple[Words, tuple[TopicSubscription, ...]]:
        words = parse_topic(topic)
        with self._lock:
            self._drop_dead()
            unique: dict[object, TopicSubscription] = {}
            for subscription in self._tree.covering(words) if words else self._tree:
                unique.setdefault(subscription.key, subscription)
            covering = words, tuple(unique.values())
            if len(self._covering) >= _CACHED:
                self._covering = {}
            self._covering[topic] = covering
        return covering

    # --- for the subscriptions

    def _forget(self, subscription: TopicSubscription) -> None:
        with self._lock:
            if not subscription.closed:
                subscription.end()
                del self._subscriptions[subscription.topic, subscription.key]
                self._tree.remove(subscription.topic, subscription)
                self._covering = {}

    def _bury(self, subscription: TopicSubscription) -> None:
        self._dead.append(subscription)

    def _drop_dead(self) -> None:
        while self._dead:
            self._forget(self._dead.popleft())

    def _report(self, error: Exception) -> None:
        try:
            if self._on_error is not None:
                self._on_error(error)
                return
        except Exception:  # noqa: BLE001, users' code
            topic_logger.exception("on_error raised an exception")
        topic_logger.error("a subscriber of a topic failed: %s", error, exc_info=error)


def _is_coroutine_function(callback: Callable[..., Any]) -> bool:
    while isinstance(callback, functools.partial):
        callback = callback.func
    return inspect.iscoroutinefunction(callback) or inspect.iscoroutinefunction(type(callback).__call__)
