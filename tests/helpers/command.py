"""The command `redismpx` as a program: with pipes, and in a pseudo-terminal."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

COMMAND = (sys.executable, "-W", "error", "-m", "redismpx")
PATIENCE = 20.0  # seconds after which an expected output counts as missing


def environment(**changes: str) -> dict[str, str]:
    """The environment of a command: that of the tests, without a server and without colors that they set."""
    kept = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "NO_COLOR", "TERM")}
    return {**kept, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30", **changes}


def run(*arguments: str | bytes, stdin: bytes = b"", **changes: str) -> tuple[int, str, str]:
    """Run a command to its end; return its exit status, stdout and stderr."""
    result = subprocess.run(
        [*COMMAND, *arguments], input=stdin, capture_output=True, timeout=PATIENCE, check=False,
        env=environment(**changes),
    )  # fmt: skip
    return result.returncode, result.stdout.decode(), result.stderr.decode()


class Running:
    """A command that runs. `output` is what it has written to the pseudo-terminal, or to stdout and stderr."""

    def __init__(self, process: subprocess.Popen[bytes], files: list[int]) -> None:
        self.process = process
        self.output = b""
        self._files = files

    def until(self, pattern: str) -> re.Match[str]:
        """Read until the output has a pattern, and return the match."""
        give_up = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self.output.decode(errors="replace"))):
            assert self._read(give_up - time.monotonic()), (pattern, self.output)
        return found

    def _read(self, timeout: float) -> bool:
        """Read what there is; return False at the end, or when the time is over."""
        ready, _, _ = select.select(self._files, [], [], max(timeout, 0))
        for file in ready:
            try:
                data = os.read(file, 65_536)
            except OSError:  # the end of a pseudo-terminal
                data = b""
            if not data:
                self._files.remove(file)
            self.output += data
        return bool(ready and self._files)

    def stop(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """Send a signal, and return the exit status and all output."""
        self.process.send_signal(number)
        return self.end()

    def end(self) -> tuple[int, str]:
        """Wait for the end, and return the exit status and all output."""
        give_up = time.monotonic() + PATIENCE
        while self._files and self._read(give_up - time.monotonic()):
            pass
        return self.process.wait(max(give_up - time.monotonic(), 0.1)), self.output.decode(errors="replace")

    @classmethod
    def start(cls, *arguments: str | bytes, terminal: bool, stdin: int = subprocess.DEVNULL, **changes: str) -> Self:
        if terminal:
            import pty  # there is none on Windows

            reader, writer = pty.openpty()
        else:
            reader, writer = os.pipe()
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=stdin,
            stdout=writer,
            stderr=writer,
            env=environment(**changes),
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in the background of a shell
        )
        os.close(writer)
        return cls(process, [reader])


@contextmanager
def running(
    *arguments: str | bytes, terminal: bool = False, stdin: int = subprocess.DEVNULL, **changes: str
) -> Iterator[Running]:
    """Start a command, and kill it at the end of the block if it still runs."""
    command = Running.start(*arguments, terminal=terminal, stdin=stdin, **changes)
    files = list(command._files)
    try:
        yield command
    finally:
        command.process.kill()
        command.process.wait()
        for file in files:
            os.close(file)
