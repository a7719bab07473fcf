"""Topics and the filters that cover them: their grammar, and which filters cover a topic. No I/O.

A topic has one word or more. A filter covers its topic and everything below it. In a filter, the word `=` stands for
one word of the topic, and `+` for one or more. The filter without words covers everything.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Generic, TypeAlias, TypeVar

K = TypeVar("K")  # a subscriber

Words: TypeAlias = tuple[str, ...]

ONE, MORE = "=", "+"
"""The words of a filter that stand for one word of a topic, and for one or more."""
MAX_BYTES = 255
"""How long a topic may be, in UTF-8 and with a dot between two words: as long as a routing key of AMQP."""
GLOB = frozenset("*?[]\\")
"""Characters that have a meaning in the patterns of Redis."""
_BLANK = frozenset({"Cc", "Cs", "Zl", "Zp", "Zs"})  # of Unicode: control characters, lone surrogates, white space


def parse_filter(topic: str | Words | None) -> Words:
    """Return the words of a filter. `""`, `()` and None are the filter without words.

    Raises:
        TypeError: the topic is not `str`, a tuple of `str`, or None.
        ValueError: a word is empty or has a character that is not allowed, or the topic is too long.
    """
    if topic is None or topic == "":
        return ()
    words = tuple(topic.split(".")) if isinstance(topic, str) else topic
    if not isinstance(words, tuple) or not all(isinstance(word, str) for word in words):
        raise TypeError(f"a topic must be str, a tuple of str, or None, not {_short(topic)}")
    for word in words:
        if not word:
            raise ValueError(f"the topic {_short(topic)} has an empty word")
        for character in word:
            if character == "." or character in GLOB or unicodedata.category(character) in _BLANK:
                raise ValueError(f"the topic {_short(topic)} has a word with {character!r}, which is not allowed")
    if (size := len(".".join(words).encode())) > MAX_BYTES:
        raise ValueError(f"the topic {_short(topic)} of {size} bytes is too long: at most {MAX_BYTES} are allowed")
    return words


def parse_topic(topic: str | Words | None) -> Words:
    """Return the words of a topic for a publisher. `""`, `()` and None are a broadcast, which has none.

    Raises:
        TypeError, ValueError: as for `parse_filter()`; or a word is `=` or `+`.
    """
    words = parse_filter(topic)
    if ONE in words or MORE in words:
        raise ValueError(f"the topic {_short(topic)} has a wildcard, which only a subscription may have")
    return words


def _short(topic: object) -> str:
    text = repr(topic)
    return text if len(text) <= 64 else text[:64] + "..."


class TopicTree(Generic[K]):
    """Subscribers by their filters. A search visits the branches that fit the topic, and no others."""

    __slots__ = ("_added", "_root")

    def __init__(self) -> None:
        self._root: _Node[K] = _Node(is_more=False)
        self._added = 0

    def add(self, words: Words, subscriber: K) -> None:
        """Add a subscriber of a filter. It must not have it already."""
        node = self._root
        for word in words:
            node = node.children.setdefault(word, _Node(is_more=word == MORE))
        node.subscribers[subscriber] = self._added
        self._added += 1

    def remove(self, words: Words, subscriber: K) -> None:
        """Remove a subscriber of a filter, which it must have."""
        path = [self._root]
        for word in words:
            path.append(path[-1].children[word])
        del path[-1].subscribers[subscriber]
        for node, parent, word in zip(path[:0:-1], path[-2::-1], reversed(words), strict=True):
            if node.subscribers or node.children:
                break
            del parent.children[word]

    def covering(self, topic: Words) -> list[K]:
        """Return the subscribers whose filters cover a topic.

        Their order: those of the topic itself, those of its prefixes from long to short, those with wildcards, those of
        the filter without words; and the earlier one first. A subscriber of several filters is there for each.
        """
        path = [self._root]
        for word in topic:
            if (node := path[-1].children.get(word)) is None:
                break
            path.append(node)
        found = [subscriber for node in path[:0:-1] for subscriber in node.subscribers]
        found += self._covering_by_wildcards(topic)
        found += self._root.subscribers
        return found

    def _covering_by_wildcards(self, topic: Words) -> list[K]:
        plain: list[_Node[K]] = [self._root]  # reached by the words themselves; at most one
        nodes: dict[_Node[K], None] = {}  # reached by wildcards, too, and by the words so far
        reached: dict[_Node[K], None] = {}
        for word in topic:
            following: dict[_Node[K], None] = {}
            for node in nodes:
                if node.is_more:
                    following[node] = None
                _follow(node, (word, ONE, MORE), following)
            for node in plain:
                _follow(node, (ONE, MORE), following)
            plain = [node.children[word] for node in plain if word in node.children]
            nodes = following
            reached |= following
        found = [(number, subscriber) for node in reached for subscriber, number in node.subscribers.items()]
        found.sort(key=lambda pair: pair[0])
        return [subscriber for _, subscriber in found]

    def __iter__(self) -> Iterator[K]:
        """Return all subscribers, the earlier one first. A subscriber of several filters is there for each."""
        found: list[tuple[int, K]] = []
        nodes = [self._root]
        while nodes:
            node = nodes.pop()
            found += [(number, subscriber) for subscriber, number in node.subscribers.items()]
            nodes += node.children.values()
        found.sort(key=lambda pair: pair[0])
        return iter([subscriber for _, subscriber in found])


class _Node(Generic[K]):
    """The filters that begin with the same words. `is_more`: the last of them is `+`."""

    __slots__ = ("children", "is_more", "subscribers")

    def __init__(self, *, is_more: bool) -> None:
        self.children: dict[str, _Node[K]] = {}
        self.subscribers: dict[K, int] = {}
        self.is_more: bool = is_more


def _follow(node: _Node[K], words: tuple[str, ...], into: dict[_Node[K], None]) -> None:
    for word in words:
        child = node.children.get(word)
        if child is not None:
            into[child] = None
