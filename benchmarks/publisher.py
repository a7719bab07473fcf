"""A process of its own that publishes: the messages of a case, in pipelines, when it is told to.

It is run by its path and imports nothing that is not Python's own, so that it starts at once.
"""

from __future__ import annotations

import binascii
import socket
import subprocess
import sys
from bisect import bisect
from collections import defaultdict
from contextlib import ExitStack
from types import TracebackType
from typing import Self

CHUNK = 1000  # messages in one pipeline
SLOTS = 16384  # of a cluster


class Companion:
    """A script that runs beside a benchmark, and says a number now and then."""

    def __init__(self, *command: str) -> None:
        self._command = command

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, *self._command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        return self

    def tell(self) -> None:
        """Let it go on."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()

    def hear(self) -> int:
        """Wait, with the whole thread, for what it says next."""
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:  # it may wait for what will not come
            self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self._process.wait()


class Publisher(Companion):
    """Publishes `messages` of `size` bytes each: the first to channel `prefix`0, and so on round and round.

    Each begins with `head`, which does not count. Of several ports, that of the primary that has the slot of a channel
    is its port; they share the slots evenly, in this order.
    """

    def __init__(
        self,
        ports: int | list[int],
        prefix: str,
        channels: int,
        messages: int,
        size: int,
        head: str = "",
        verb: str = "PUBLISH",
    ) -> None:
        numbers = [channels, messages, size, *([ports] if isinstance(ports, int) else ports)]
        super().__init__(__file__, verb, prefix, head, *map(str, numbers))

    def __enter__(self) -> Self:
        super().__enter__()
        self.hear()  # it has begun
        return self

    def publish(self) -> int:
        """Publish all of it, while this thread does nothing else; return how often a message had a receiver.

        An event loop stands still meanwhile, so that the messages wait: in its socket, and in the server.
        """
        self.tell()
        return self.hear()


def pack(*words: bytes) -> bytes:
    """Write one command as it goes over the wire."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def owner(channel: bytes, ports: list[int]) -> int:
    """Return the port of the primary that has the slot of a channel."""
    firsts = [SLOTS * number // len(ports) for number in range(len(ports))]
    return ports[bisect(firsts, binascii.crc_hqx(channel, 0) % SLOTS) - 1]


def pipelines(
    verb: str, channels: list[tuple[bytes, int]], numbers: range, data: bytes
) -> list[tuple[int, int, bytes]]:
    """Return, for each port, how many commands there are for it, and these."""
    commands: defaultdict[int, list[bytes]] = defaultdict(list)
    for number in numbers:
        channel, port = channels[number % len(channels)]
        commands[port].append(pack(verb.encode(), channel, data))
    return [(port, len(some), b"".join(some)) for port, some in commands.items()]


def main(verb: str, prefix: str, head: str, channels: int, messages: int, size: int, *ports: int) -> None:
    data = head.encode() + b"x" * size
    names = [b"%s%d" % (prefix.encode(), number) for number in range(channels)]
    owners = [(name, owner(name, list(ports))) for name in names]
    ranges = [range(start, min(start + CHUNK, messages)) for start in range(0, messages, CHUNK)]
    chunks = [pipelines(verb, owners, numbers, data) for numbers in ranges]
    with ExitStack() as stack:
        connections = {port: stack.enter_context(socket.create_connection(("127.0.0.1", port))) for port in ports}
        replies = {port: stack.enter_context(connections[port].makefile("rb")) for port in ports}
        print(0, flush=True)
        while sys.stdin.readline():
            received = 0
            for chunk in chunks:
                for port, _, commands in chunk:
                    connections[port].sendall(commands)
                for port, count, _ in chunk:
                    received += sum(int(replies[port].readline()[1:]) for _ in range(count))
            print(received, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))
