"""Packages of npm for tests, installed once in the cache of the user, outside this repository."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path


def installed(package: str, version: str) -> Path:
    """Return the folder of node's modules that has a package; install it there first, unless it is there already.

    It needs `node` and `npm` on PATH. On Debian, `.ci/run` installs them.
    """
    import fcntl  # Windows has none, and collects the tests all the same

    for program in ("node", "npm"):
        assert shutil.which(program), f"{program} is not on PATH: apt-get install nodejs npm"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "redismpx-tests" / f"{package}-{version}"
    folder.mkdir(parents=True, exist_ok=True)
    complete = folder / "complete"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            options = ["--prefix", str(folder), "--no-audit", "--no-fund", "--loglevel=error"]
            subprocess.run(["npm", "install", *options, f"{package}@{version}"], check=True, timeout=100)
            complete.touch()
    return folder / "node_modules"
