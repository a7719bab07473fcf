"""The command `python -m tools.chaos`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from random import Random
from textwrap import fill

from tools.mutants import MUTANTS, broken_copy

from . import __doc__ as description
from .axes import AXES
from .run import chaos
from .scenes import play


def main(arguments: list[str] | None = None) -> int:
    axes = {
        "tls": "All faults of the run above, over TLS.",
        **{name: axis.__doc__ or "" for name, axis in AXES.items()},
    }
    items = [fill(f"- {name}: {text}", 116, subsequent_indent="  ") for name, text in axes.items()]
    about = (description or "").replace("AXES", "\n".join(items))
    parser = argparse.ArgumentParser(
        prog="python -m tools.chaos", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60, help="duration (60)")
    parser.add_argument("--seed", type=int, default=Random().randrange(10**6), help="decides all faults (random)")
    parser.add_argument("--server", default="valkey", choices=("valkey", "redis"), help="(valkey)")
    parser.add_argument("--settle", type=float, default=1.0, help="seconds until a connection has all names (1)")
    parser.add_argument("--axis", choices=axes, help="what the run is about (all faults)")
    parser.add_argument(
        "--losses", type=int, default=0, help="an axis of streams: go on until so many losses, with 500 subscriptions"
    )
    parser.add_argument("--broken", metavar="TEXT", help="run with a fault of tools.mutants")
    options = parser.parse_args(arguments)
    if options.broken is not None:
        return run_broken(options)
    if options.axis in AXES:
        axis = AXES[options.axis]
        return int(bool(play(axis, options.server, options.seconds, options.seed, options.losses)))
    return int(bool(chaos(options.server, options.seconds, options.seed, options.settle, tls=options.axis == "tls")))


def run_broken(options: argparse.Namespace) -> int:
    """Run again in a copy of the package that has the fault; return the status of that run."""
    (mutant,) = [mutant for mutant in MUTANTS if options.broken in mutant.fault]
    print(f"with this fault in the package: {mutant.fault}", flush=True)
    with broken_copy(mutant) as folder:
        command = [sys.executable, "-m", "tools.chaos"]
        for name in ("seconds", "seed", "server", "settle", "axis", "losses"):
            if (value := getattr(options, name)) is not None:
                command += [f"--{name}", str(value)]
        return subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": folder}, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
