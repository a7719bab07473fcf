"""`python -m redismpx`: the command line, for an environment whose scripts are not on PATH."""

from __future__ import annotations

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
