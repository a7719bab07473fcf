"""Run a program in a process of its own."""

from __future__ import annotations

import subprocess
import sys

from .logs import without_slowness


def run_program(program: str, *arguments: str) -> None:
    """Run a Python program in development mode. It must exit with 0 and print nothing."""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", program, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (result.returncode, result.stdout, without_slowness(result.stderr.splitlines())) == (0, "", [])
