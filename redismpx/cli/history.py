"""The command `redismpx history`: print what a stream keeps."""

from __future__ import annotations

__all__ = ["history"]

import click

from .. import StreamMessage
from . import options
from .options import with_server
from .output import Form, Output
from .session import connected, run_async


@click.command()
@click.argument("stream", type=options.text)
@click.option("--after", metavar="ID", default="0", help="Begin behind this message. Default: with the oldest one.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Messages at most.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each message.")
@click.option("--raw", is_flag=True, help="Print the payloads as they are, also to a terminal.")
@with_server
def history(url: str, stream: bytes, after: str, limit: int, as_json: bool, raw: bool) -> None:
    """Print the messages that a stream keeps, oldest first. A line is the id, a tab and the payload."""
    if as_json and raw:
        raise click.UsageError("give --json or --raw, not both")
    output = Output(Form.JSON if as_json else Form.RAW if raw else Form.TEXT)
    for message in run_async(_history(url, stream, after, limit)):
        output.message(message.data, {"id": message.id})


async def _history(url: str, stream: bytes, after: str, limit: int) -> list[StreamMessage[bytes]]:
    async with connected(url) as mpx:
        return await mpx.history(stream, after=after, limit=limit)
