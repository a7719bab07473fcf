"""When the node of a cluster is taken to have lost the slot of a name: from its own replies, parsed for real."""

from __future__ import annotations

import math

from redismpx._core.registry import Registry
from redismpx._core.wire import Kind, new_parser
from redismpx._io.session.dispatcher import Dispatcher, Subscriber
from redismpx._io.session.listener import Listener
from redismpx.stats import Counters

SUBSCRIBED = b"*3\r\n$10\r\nssubscribe\r\n$1\r\na\r\n:1\r\n"
UNSUBSCRIBED = b"*3\r\n$12\r\nsunsubscribe\r\n$1\r\na\r\n:0\r\n"


class Node:
    """What a link to a node sends it, and has from it, about the name `a`."""

    def __init__(self) -> None:
        self.registry: Registry[Subscriber] = Registry()
        self.evicted: list[tuple[bytes, ...]] = []
        self._parser = new_parser()
        self._listener = Listener()
        self._dispatcher = Dispatcher(
            self.registry, Counters(), lambda _: None, lambda names, _: self.evicted.append(names)
        )

    def add(self) -> list[bytes]:
        """Want the name; return what is sent for it now."""
        self.registry.add(Kind.SHARD_CHANNEL, (b"a",), self._listener)
        return self.sent()

    def remove(self) -> list[bytes]:
        self.registry.remove(Kind.SHARD_CHANNEL, b"a", self._listener)
        return self.sent()

    def says(self, reply: bytes) -> list[bytes]:
        """Have a reply from it; return what is sent after that."""
        self._parser.feed(reply)
        self._dispatcher.receive(self._parser.gets, math.inf)
        return self.sent()

    def sent(self) -> list[bytes]:
        return [bytes(command).split(b"\r\n")[2] for command in self.registry.next_commands()]


def test_what_was_asked_for_is_no_eviction() -> None:
    node = Node()
    assert node.add() == [b"SSUBSCRIBE"]
    assert node.says(SUBSCRIBED) == []
    assert node.remove() == [b"SUNSUBSCRIBE"]
    assert node.add() == []  # not before the answer
    assert node.says(UNSUBSCRIBED) == [b"SSUBSCRIBE"]
    assert node.evicted == []


def test_what_nobody_asked_for_is_one() -> None:
    node = Node()
    node.add()
    node.says(SUBSCRIBED)
    node.says(UNSUBSCRIBED)
    assert node.evicted == [(b"a",)]


def test_one_that_was_taken_for_the_answer_is_one_when_the_answer_comes() -> None:
    """Else a primary that was demoted meanwhile would take the name again, as the replica that it is."""
    node = Node()
    node.add()
    node.says(SUBSCRIBED)
    assert node.remove() == [b"SUNSUBSCRIBE"]
    assert node.add() == []
    assert node.says(UNSUBSCRIBED) == [b"SSUBSCRIBE"]  # nobody asked for this, and it does not say so
    assert node.evicted == []
    node.says(UNSUBSCRIBED)
    assert node.evicted == [(b"a",)]
