"""The command `redismpx demo`: a page that shows subscriptions and promises at work."""

from __future__ import annotations

__all__ = ["demo"]

import click

from . import options


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=options.port, default="8000", show_default=True, help="Port; 0 chooses a free one.")
@click.option(
    "--redis",
    metavar="URL",
    envvar="REDIS_URL",
    help="Redis server. Default: the environment variable REDIS_URL; without it, an embedded Valkey server.",
)
def demo(host: str, port: int, redis: str | None) -> None:
    """Serve a web page on which chat clients, a pattern subscription and promises share one Redis connection."""
    from ..demo.errors import CannotStart
    from ..demo.serve import run

    try:
        run(host, port, redis or None)
    except CannotStart as error:
        raise click.ClickException(str(error)) from error
