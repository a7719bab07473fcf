"""The floor: a blocking socket and the hiredis parser. It uses RESP2, as redismpx does."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import hiredis

from .publisher import pack

READ_SIZE = 65536
NAMES_PER_COMMAND = 512  # as in redismpx

Gets = Callable[[], object]


class Raw:
    """A connection to the server, and a parser for its replies."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.reader = hiredis.Reader(notEnoughData=None)

    def command(self, *words: bytes) -> object:
        """Send a command that has one reply; return the reply."""
        self.connection.sendall(pack(*words))
        return self.take(1)[0]

    def subscribe(self, names: Sequence[bytes], verb: bytes = b"SUBSCRIBE") -> None:
        """Subscribe to all names, and read all confirmations."""
        batches = [names[start : start + NAMES_PER_COMMAND] for start in range(0, len(names), NAMES_PER_COMMAND)]
        self.connection.sendall(b"".join([hiredis.pack_command((verb, *batch)) for batch in batches]))
        self.take(len(names))

    def take(self, count: int) -> list[object]:
        """Read `count` replies."""
        replies: list[object] = []
        feed, gets, recv = self.reader.feed, self.reader.gets, self.connection.recv
        while len(replies) < count:
            while (reply := gets()) is not None:
                replies.append(reply)
            if len(replies) < count:
                feed(recv(READ_SIZE))
        return replies


@contextmanager
def connect(port: int) -> Iterator[Raw]:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        yield Raw(connection)
