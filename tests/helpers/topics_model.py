"""Which filters cover a topic: the rule, without a tree."""

from __future__ import annotations

from redismpx._core.topic_tree import Words


def covers(words: Words, topic: Words) -> bool:
    """The rule, word for word."""
    if not words:
        return True
    if not topic:
        return False
    if words[0] == "+":
        return covers(words[1:], topic[1:]) or covers(words, topic[1:])
    return words[0] in ("=", topic[0]) and covers(words[1:], topic[1:])
