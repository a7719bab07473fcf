"""A process of its own that publishes: the messages of a case, in pipelines, when it is told to.

It is run by its path and imports nothing that is not Python's own, so that it starts at once.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from types import TracebackType
from typing import Self

CHUNK = 1000  # messages in one pipeline


class Publisher:
    """Publishes `messages` of `size` bytes each: the first to channel `prefix`0, and so on round and round."""

    def __init__(self, port: int, prefix: str, channels: int, messages: int, size: int) -> None:
        self._arguments = [str(port), prefix, str(channels), str(messages), str(size)]

    def __enter__(self) -> Self:
        command = [sys.executable, __file__, *self._arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._read()  # it has begun
        return self

    def publish(self) -> int:
        """Publish all of it, while this thread does nothing else; return how often a message had a receiver.

        An event loop stands still meanwhile, so that the messages wait: in its socket, and in the server.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def pack(*words: bytes) -> bytes:
    """Write one command as it goes over the wire."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def pipeline(prefix: str, channels: int, numbers: range, data: bytes) -> bytes:
    return b"".join(pack(b"PUBLISH", b"%s%d" % (prefix.encode(), number % channels), data) for number in numbers)


def main(port: int, prefix: str, channels: int, messages: int, size: int) -> None:
    data = b"x" * size
    ranges = [range(start, min(start + CHUNK, messages)) for start in range(0, messages, CHUNK)]
    pipelines = [(len(numbers), pipeline(prefix, channels, numbers, data)) for numbers in ranges]
    with socket.create_connection(("127.0.0.1", port)) as connection, connection.makefile("rb") as replies:
        print(0, flush=True)
        while sys.stdin.readline():
            received = 0
            for count, commands in pipelines:
                connection.sendall(commands)
                received += sum(int(replies.readline()[1:]) for _ in range(count))
            print(received, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
