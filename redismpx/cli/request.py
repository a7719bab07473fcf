"""The command `redismpx request`: ask a service, and print its reply."""

from __future__ import annotations

__all__ = ["request"]

import sys

import click

from . import options
from .options import with_server
from .output import Form, Output
from .session import connected, run_async


@click.command()
@click.argument("channel", type=options.text)
@click.argument("data", required=False, type=options.text)
@click.option("--timeout", type=options.seconds, default="5", show_default=True, help="Seconds to wait for the reply.")
@click.option("--sharded", is_flag=True, help="The service serves a channel of sharded Pub/Sub.")
@click.option("--raw", is_flag=True, help="Print the reply as it is, also to a terminal.")
@with_server
def request(url: str, channel: bytes, data: bytes | None, timeout: float, sharded: bool, raw: bool) -> None:
    """Send a request to the service of a channel, and print its reply.

    Without DATA, the request is all of stdin.
    """
    body = sys.stdin.buffer.read() if data is None else data
    reply = run_async(_request(url, channel, body, timeout, sharded))
    Output(Form.RAW if raw else Form.TEXT).message(reply)


async def _request(url: str, channel: bytes, body: bytes, timeout: float, sharded: bool) -> bytes:
    async with connected(url) as mpx:
        return await mpx.request(channel, body, timeout=timeout, sharded=sharded)
