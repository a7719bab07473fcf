"""The command `redismpx`. It prints errors that a user can fix in one line and exits with code 2."""

from __future__ import annotations

__all__ = ["main"]

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 after a signal stopped it, 2 if it cannot start.

    Args:
        argv: The arguments without the program's name. None: those of the process.
    """
    try:
        from .commands import run
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        sys.stderr.write("redismpx: click is not installed; in the source of redismpx, run: pip install '.[cli]'\n")
        return 2
    return run(sys.argv[1:] if argv is None else list(argv))
