"""What several tools share: a server for one run, the memory of this process, a report of violations."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.helpers.servers import Server, find_binary

FLAVOURS = ("valkey", "redis")
MAX_PRINTED = 20  # violations


@contextmanager
def running_server(flavour: str = "valkey", *options: str) -> Iterator[Server]:
    """Start a server for the length of the block. `options` are arguments of its command line."""
    binary = find_binary(flavour)
    assert binary is not None, f"{flavour}-server is not installed"
    server = Server(binary, *options).start()
    try:
        yield server
    finally:
        server.remove()


def installed_flavours() -> list[str]:
    """Return those of "valkey" and "redis" whose server is installed."""
    return [flavour for flavour in FLAVOURS if find_binary(flavour) is not None]


def resident_memory() -> int:
    """Return the bytes of memory that this process has resident."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def report(violations: Sequence[str]) -> int:
    """Print the first violations and their number, or "OK"; return the exit status."""
    print(*violations[:MAX_PRINTED], sep="\n", end="\n" if violations else "")
    print(f"{len(violations)} VIOLATIONS" if violations else "OK")
    return int(bool(violations))
