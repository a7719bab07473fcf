"""The command `redismpx broker`: a server of its own for the programs of one host."""

from __future__ import annotations

__all__ = ["broker"]

import contextlib
import signal
import sys
import threading
from types import FrameType

import click

from ..embedded import CannotStartServer, Server
from ..url_file import URLFile
from . import options


@click.command()
@click.option(
    "--url-file",
    metavar="PATH",
    help="Write the URL, with its password, to this file, for Multiplexer.from_url_file().",
)
@click.option("--port", type=options.port, help="Listen on this port of 127.0.0.1; 0 chooses a free one.")
@click.option("--unix", metavar="PATH", help="Listen on this Unix socket. Default: one in a new directory.")
@click.option("--max-memory", metavar="SIZE", help="Memory for data, for example 100mb. Default: no limit.")
@click.option("--append-only", metavar="DIR", help="Keep the data in this directory. Default: only in memory.")
def broker(
    url_file: str | None, port: int | None, unix: str | None, max_memory: str | None, append_only: str | None
) -> None:
    """Run a Valkey server for the programs of one host, until Ctrl-C."""
    if port is not None and unix is not None:
        raise click.UsageError("give --port or --unix, not both")
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
