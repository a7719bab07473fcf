"""The command `redismpx broker`: a server of its own for the programs of one host."""

from __future__ import annotations

__all__ = ["run"]

import contextlib
import signal
import sys
import threading
from types import FrameType

from ..embedded import CannotStartServer, Server
from ..url_file import URLFile


def run(
    url_file: str | None, port: int | None, unix: str | None, max_memory: str | None, append_only: str | None
) -> int:
    """Serve until SIGINT or SIGTERM, and return 0; return 1 if the server ends by itself.

    Raises:
        CannotStartServer, FileExistsError, ModuleNotFoundError, OSError, ValueError: with a text for the user.
    """
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with Server(port=port, unix=unix, max_memory=max_memory, append_only=append_only) as server:
            file = contextlib.nullcontext() if url_file is None else URLFile(url_file, server.url)
            with file:
                where = server.url if url_file is None else f"the URL in {url_file}"
                sys.stdout.write(f"Serving at {where} (press Ctrl-C to stop)\n")
                sys.stdout.flush()
                while not stopped.wait(0.2):
                    if server.wait(0):
                        raise CannotStartServer("the server has ended by itself, or was killed")
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
    return 0
