"""The command `redismpx serve`: reply to requests with the output of a program."""

from __future__ import annotations

__all__ = ["CommandFailed", "serve"]

import asyncio
import contextlib
import os
import shlex
import shutil
import sys

import click

from .. import Request
from ..errors import plain
from . import options
from .options import with_server
from .output import shown
from .session import connected, run_async

_DRAIN_TIMEOUT = 10.0  # seconds for the programs that run at the end


class CommandFailed(Exception):
    """A program has not replied. The requester gets this text."""


@click.command()
@click.argument("channel", type=options.text)
@click.option("--command", required=True, help="The program, with its arguments; without a shell.")
@click.option("--concurrency", type=click.IntRange(min=1), default=1, show_default=True, help="Programs at a time.")
@click.option("--timeout", type=options.seconds, default="30", show_default=True, help="Seconds for a program.")
@click.option("--sharded", is_flag=True, help="Serve a channel of sharded Pub/Sub.")
@with_server
def serve(url: str, channel: bytes, command: str, concurrency: int, timeout: float, sharded: bool) -> None:
    """Run a program for each request on a channel or a pattern, until Ctrl-C.

    The program reads the request from its stdin, and writes the reply to its stdout. REDISMPX_CHANNEL is the channel.
    An exit status other than 0 makes the request fail.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise click.UsageError(f"--command: {error}") from None
    if not words or shutil.which(words[0]) is None:
        raise click.UsageError(f"--command: there is no program {plain(words[0] if words else '')!r}")
    run_async(_serve(url, channel, words, concurrency, timeout, sharded))


async def _serve(url: str, channel: bytes, words: list[str], concurrency: int, timeout: float, sharded: bool) -> None:
    async def handle(request: Request[bytes]) -> bytes:
        return await _reply(words, request, timeout)

    def report(error: Exception) -> None:
        sys.stderr.write(f"redismpx serve: {plain(str(error))}\n")
        sys.stderr.flush()

    async with connected(url, report) as mpx:
        service = mpx.serve(channel, handle, concurrency=concurrency, sharded=sharded)
        await service.wait_for_activation()
        sys.stdout.write(f"Serving {shown(channel)} (press Ctrl-C to stop)\n")
        sys.stdout.flush()
        try:
            await asyncio.Event().wait()
        finally:
            with contextlib.suppress(TimeoutError):
                await mpx.drain(_DRAIN_TIMEOUT)


async def _reply(words: list[str], request: Request[bytes], timeout: float) -> bytes:
    """Run the program for one request, and return what it writes."""
    process = await asyncio.create_subprocess_exec(
        *words,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "REDISMPX_CHANNEL": shown(request.channel)},
        start_new_session=True,  # Ctrl-C is for this command, which waits for the program
    )
    try:
        async with asyncio.timeout(timeout):
            output, _ = await process.communicate(request.body)
    except TimeoutError:
        raise CommandFailed(f"the program has not ended within {timeout:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode:
        raise CommandFailed(f"the program has ended with exit status {process.returncode}")
    return output
