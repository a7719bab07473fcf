"""An unsubscribe that a cluster node sends by itself means that it lost the slot; its replies are parsed for real."""

from __future__ import annotations

import math

from redismpx._core.registry import Registry
from redismpx._core.wire import Kind, new_parser
from redismpx._io.session.dispatcher import Dispatcher
from redismpx._io.session.listener import Listener
from redismpx._io.session.subscriber import Subscriber

from ..helpers.options import session_options

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
            self.registry,
            session_options(),
            lambda _: None,
            lambda _: None,
            lambda names, _: self.evicted.append(names),
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


def test_a_requested_unsubscribe_is_no_eviction() -> None:
    """The reply to our own SUNSUBSCRIBE is not taken for a lost slot."""
    node = Node()
    assert node.add() == [b"SSUBSCRIBE"]
    assert node.says(SUBSCRIBED) == []
    assert node.remove() == [b"SUNSUBSCRIBE"]
    assert node.add() == []  # not before the answer
    assert node.says(UNSUBSCRIBED) == [b"SSUBSCRIBE"]
    assert node.evicted == []


def test_an_unrequested_unsubscribe_is_an_eviction() -> None:
    """An unsubscribe that was not requested means that the node lost the slot."""
    node = Node()
    node.add()
    node.says(SUBSCRIBED)
    node.says(UNSUBSCRIBED)
    assert node.evicted == [(b"a",)]


def test_an_eviction_taken_for_a_reply_is_found_later() -> None:
    """An unrequested unsubscribe that looks like our reply is found out when the real reply arrives.

    Otherwise a primary that was demoted meanwhile would get the name again, as a replica.
    """
    node = Node()
    node.add()
    node.says(SUBSCRIBED)
    assert node.remove() == [b"SUNSUBSCRIBE"]
    assert node.add() == []
    assert node.says(UNSUBSCRIBED) == [b"SSUBSCRIBE"]  # nobody asked for this, and it does not say so
    assert node.evicted == []
    node.says(UNSUBSCRIBED)
    assert node.evicted == [(b"a",)]
