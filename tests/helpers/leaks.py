"""Tasks, timers and sockets that a test may leave behind."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path


def open_sockets() -> int:
    """Return how many sockets this process has open."""
    folder = Path("/proc/self/fd")
    if not folder.exists():
        return 0
    count = 0
    for link in folder.iterdir():
        try:
            count += os.readlink(link).startswith("socket:")
        except OSError:  # the socket was closed meanwhile
            continue
    return count


def left_behind() -> list[object]:
    """Return the library's tasks and pending timers in the running loop."""
    timers = [h for h in getattr(asyncio.get_running_loop(), "_scheduled", ()) if not h.cancelled()]
    tasks = [t for t in asyncio.all_tasks() - {asyncio.current_task()} if "pytest" not in t.get_name()]
    return [item for item in (*tasks, *timers) if "redismpx" in repr(item)]
