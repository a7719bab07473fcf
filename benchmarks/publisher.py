"""A process that publishes the messages of a case, in pipelines, on command.

It is run by its path and imports only the standard library, so that it starts fast.
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

PIPELINE_SIZE = 1000  # messages
SLOTS = 16384  # of a cluster


class Companion:
    """A script in a process of its own, which starts a step on command and prints a number at its end."""

    def __init__(self, *command: str) -> None:
        self._command = command

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, *self._command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        return self

    def tell(self) -> None:
        """Tell the script to start its next step."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()

    def hear(self) -> int:
        """Block this thread until the script prints its next number; return the number."""
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:  # the script may wait for ever
            self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self._process.wait()


class Publisher(Companion):
    """Publishes `messages` messages of `size` bytes to the channels `prefix`0, `prefix`1, ... in turn.

    Each message starts with `head`, which does not count towards `size`. With several ports, a message goes to the
    primary that owns the slot of its channel; the primaries share the slots evenly, in the order of the ports.
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
        self.hear()  # it has started
        return self

    def publish(self) -> int:
        """Publish all messages while this thread waits; return the sum of their receivers.

        An event loop in this thread stands still meanwhile, so the messages are buffered in its socket and the server.
        """
        self.tell()
        return self.hear()


def pack(*words: bytes) -> bytes:
    """Encode one command in RESP."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def owner(channel: bytes, ports: list[int]) -> int:
    """Return the port of the primary that owns the slot of a channel."""
    firsts = [SLOTS * number // len(ports) for number in range(len(ports))]
    return ports[bisect(firsts, binascii.crc_hqx(channel, 0) % SLOTS) - 1]


def pipelines(
    verb: str, channels: list[tuple[bytes, int]], numbers: range, data: bytes
) -> list[tuple[int, int, bytes]]:
    """Return, for each port, the port, the number of its commands, and the encoded commands."""
    commands: defaultdict[int, list[bytes]] = defaultdict(list)
    for number in numbers:
        channel, port = channels[number % len(channels)]
        commands[port].append(pack(verb.encode(), channel, data))
    return [(port, len(some), b"".join(some)) for port, some in commands.items()]


def main(verb: str, prefix: str, head: str, channels: int, messages: int, size: int, *ports: int) -> None:
    data = head.encode() + b"x" * size
    names = [b"%s%d" % (prefix.encode(), number) for number in range(channels)]
    owners = [(name, owner(name, list(ports))) for name in names]
    ranges = [range(start, min(start + PIPELINE_SIZE, messages)) for start in range(0, messages, PIPELINE_SIZE)]
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
