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

    Each begins with `head`, which does not count.
    """

    def __init__(self, port: int, prefix: str, channels: int, messages: int, size: int, head: str = "") -> None:
        super().__init__(__file__, str(port), prefix, head, str(channels), str(messages), str(size))

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


def pipeline(prefix: str, channels: int, numbers: range, data: bytes) -> bytes:
    return b"".join(pack(b"PUBLISH", b"%s%d" % (prefix.encode(), number % channels), data) for number in numbers)


def main(port: int, prefix: str, head: str, channels: int, messages: int, size: int) -> None:
    data = head.encode() + b"x" * size
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
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], *map(int, sys.argv[4:]))
