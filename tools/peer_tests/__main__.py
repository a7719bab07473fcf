"""The command line of tools.peer_tests."""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

FRAMEWORKS = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py") if path.stem != "source")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.peer_tests")
    parser.add_argument("framework", choices=FRAMEWORKS)
    parser.add_argument("--source", type=Path, help="a folder with the source, instead of the released package")
    options = parser.parse_args()
    module = importlib.import_module(f"tools.peer_tests.{options.framework}")
    with tempfile.TemporaryDirectory() as folder:
        status: int = module.run(options.source, Path(folder))
    return status


sys.exit(main())
