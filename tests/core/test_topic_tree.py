"""Which filters cover a topic, against a naive matcher, and the grammar of topics."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redismpx._core.topic_tree import MAX_BYTES, TopicTree, Words, parse_filter, parse_topic

from ..helpers.topics_model import covers

WORDS = ("a", "b", "c")
topics = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(tuple)
filters = st.lists(st.sampled_from((*WORDS, "=", "+")), max_size=5).map(tuple)


def expected(subscribers: list[tuple[int, Words]], topic: Words) -> list[tuple[int, Words]]:
    def rank(subscriber: tuple[int, Words]) -> tuple[int, int, int]:
        number, words = subscriber
        if not words:
            return 3, 0, number
        is_wild = "=" in words or "+" in words
        return (2, 0, number) if is_wild else (1, -len(words), number)

    return sorted([each for each in subscribers if covers(each[1], topic)], key=rank)


@given(st.lists(filters, max_size=12), st.lists(topics, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_a_tree_finds_what_a_naive_matcher_finds(some: list[Words], wanted: list[Words], rng: random.Random) -> None:
    """The subscribers that cover a topic, in their order, also after some of them were removed."""
    tree: TopicTree[tuple[int, Words]] = TopicTree()
    subscribers = list(enumerate(some))
    for subscriber in subscribers:
        tree.add(subscriber[1], subscriber)
    while True:
        for topic in wanted:
            assert tree.covering(topic) == expected(subscribers, topic)
        assert list(tree) == subscribers
        if not subscribers:
            break
        gone = subscribers.pop(rng.randrange(len(subscribers)))
        tree.remove(gone[1], gone)
    assert not tree._root.children


def test_random_topics_agree_with_the_naive_matcher() -> None:
    """Many random topics and filters; REDISMPX_TOPICS=1000000 tries a million."""
    rng = random.Random(1)
    for _ in range(int(os.environ.get("REDISMPX_TOPICS", "20000")) // 20):
        tree: TopicTree[tuple[int, Words]] = TopicTree()
        subscribers = [
            (number, tuple(rng.choices((*WORDS, "=", "+"), k=rng.randrange(6)))) for number in range(rng.randrange(20))
        ]
        for subscriber in subscribers:
            tree.add(subscriber[1], subscriber)
        for _ in range(20):
            topic = tuple(rng.choices(WORDS, k=rng.randrange(1, 7)))
            assert tree.covering(topic) == expected(subscribers, topic)


def test_a_search_visits_only_branches_that_fit() -> None:
    """Ten thousand other filters do not make a search longer, in nodes that it asks for."""

    def asked(others: int) -> int:
        count = [0]

        class Counting(dict[str, object]):
            def get(self, *arguments: object) -> object:
                count[0] += 1
                return dict.get(self, *arguments)  # type: ignore[call-overload]

        tree: TopicTree[int] = TopicTree()
        for number in range(others):
            tree.add(("other", str(number), "="), number)
        tree.add(("a", "b"), -1)
        tree.add(("a", "="), -2)
        nodes = [tree._root]
        while nodes:
            node = nodes.pop()
            nodes += node.children.values()
            node.children = Counting(node.children)  # type: ignore[assignment]
        assert tree.covering(("a", "b", "c")) == [-1, -2]
        return count[0]

    assert 0 < asked(10_000) == asked(10)


@pytest.mark.parametrize(
    ("topic", "words"),
    [
        ("a", ("a",)),
        ("a.b", ("a", "b")),
        (("a", "b"), ("a", "b")),
        ("", ()),
        ((), ()),
        (None, ()),
        ("ä.日", ("ä", "日")),
    ],
)
def test_a_topic_is_a_str_or_a_tuple(topic: str | Words | None, words: Words) -> None:
    """Both forms have the same words."""
    assert parse_filter(topic) == parse_topic(topic) == words


@pytest.mark.parametrize("parse", [parse_filter, parse_topic])
@pytest.mark.parametrize(
    ("topic", "error", "text"),
    [
        (b"a", TypeError, "must be str, a tuple of str, or None, not b'a'"),
        (["a"], TypeError, r"not \['a'\]"),
        (("a", 1), TypeError, r"not \('a', 1\)"),
        (7, TypeError, "not 7"),
        ("a..b", ValueError, r"'a\.\.b' has an empty word"),
        (".a", ValueError, "has an empty word"),
        (("a", ""), ValueError, "has an empty word"),
        (("a.b",), ValueError, r"has a word with '\.'"),
        ("a b", ValueError, "has a word with ' '"),
        ("a\n", ValueError, r"has a word with '\\n'"),
        ("a\x00", ValueError, r"has a word with '\\x00'"),
        ("a\udc80", ValueError, r"has a word with '\\udc80'"),
        ("a*", ValueError, r"has a word with '\*'"),
        ("a" * (MAX_BYTES + 1), ValueError, "of 256 bytes is too long: at most 255 are allowed"),
    ],
)
def test_an_invalid_topic_is_rejected(
    parse: Callable[[object], Words], topic: object, error: type[Exception], text: str
) -> None:
    """The error says what is wrong with it."""
    with pytest.raises(error, match=text):
        parse(topic)


@pytest.mark.parametrize("topic", ["=", "a.+", ("=", "a")])
def test_a_publisher_has_no_wildcards(topic: str | Words) -> None:
    """Only a subscription may have them; in a longer word, `=` and `+` are plain characters."""
    assert parse_filter(topic)
    with pytest.raises(ValueError, match="has a wildcard, which only a subscription may have"):
        parse_topic(topic)
    assert parse_topic("c++.a=b") == ("c++", "a=b")


@given(st.one_of(st.text(max_size=12), st.lists(st.text(max_size=4), max_size=4).map(tuple)))
def test_any_text_is_parsed_or_rejected(topic: str | Words) -> None:
    """A text is a topic or a ValueError, and both forms agree."""
    try:
        words = parse_filter(topic)
    except ValueError:
        return
    assert parse_filter(".".join(words)) == words
