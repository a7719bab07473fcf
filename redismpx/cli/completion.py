"""The command `redismpx completion`: what a shell needs to complete commands and options."""

from __future__ import annotations

__all__ = ["completion"]

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script that completes commands and options: source it at the start of the shell.

    For example, write to ~/.bashrc: eval "$(redismpx completion bash)"
    """
    completer = get_completion_class(shell)
    assert completer is not None
    click.echo(completer(context.find_root().command, {}, "redismpx", "_REDISMPX_COMPLETE").source())
