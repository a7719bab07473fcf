"""The command `redismpx publish`: one message, or one for each line of stdin."""

from __future__ import annotations

__all__ = ["publish"]

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, TypeAlias

import click

from .. import Multiplexer
from ..errors import plain
from . import options
from .options import with_server
from .session import connected, run_async

_Send: TypeAlias = "Callable[[bytes], Coroutine[Any, Any, int]]"
_CHUNK = 65_536  # bytes that are read, and published in one pipeline
_LONGEST_LINE = 1_048_576  # bytes; the multiplexer's default for a payload


@click.command()
@click.argument("channel", type=options.text)
@click.argument("data", required=False, type=options.text)
@click.option("--sharded", is_flag=True, help="Publish to a channel of sharded Pub/Sub.")
@click.option("--stream", is_flag=True, help="Append to a stream: Redis keeps the message, and publishes it.")
@with_server
def publish(url: str, channel: bytes, data: bytes | None, sharded: bool, stream: bool) -> None:
    """Publish DATA on a channel, and print how many connections have received it.

    Without DATA, publish each line of stdin as a message. With --stream, print the id of the message.
    """
    if sharded and stream:
        raise click.UsageError("give --sharded or --stream, not both")
    run_async(_publish(url, channel, data, sharded, stream))


async def _publish(url: str, channel: bytes, data: bytes | None, sharded: bool, stream: bool) -> None:
    async with connected(url) as mpx:
        if data is None:
            await _publish_lines(_sender(mpx, channel, sharded, stream))
        elif stream:
            click.echo((await mpx.append(channel, data)).decode())
        else:
            count = await mpx.publish(channel, data, sharded=sharded)
            click.echo(f"{count} receiver{'' if count == 1 else 's'}")


def _sender(mpx: Multiplexer, channel: bytes, sharded: bool, stream: bool) -> _Send:
    async def append(line: bytes) -> int:
        await mpx.append(channel, line)
        return 0

    async def send(line: bytes) -> int:
        return await mpx.publish(channel, line, sharded=sharded)

    return append if stream else send


async def _publish_lines(send: _Send) -> None:
    """Publish the lines of stdin in their order, as soon as they can be read."""
    count = receivers = 0
    since = time.monotonic()
    with _progress() as advance:
        async for lines in _read_lines(0):
            outcomes = await asyncio.gather(*map(send, lines), return_exceptions=True)
            for number, outcome in enumerate(outcomes, count + 1):
                if isinstance(outcome, BaseException):
                    rest = sum(not isinstance(each, BaseException) for each in outcomes[number - count :])
                    after = f", and {rest} after it" if rest else ""
                    raise click.ClickException(
                        f"line {number} of stdin: {plain(str(outcome))}; "
                        f"the {number - 1} lines before it were published{after}"
                    )
                receivers += outcome
            count += len(lines)
            advance(sum(map(len, lines)) + len(lines), count)
    elapsed = time.monotonic() - since
    rate = f"{count / elapsed:,.0f} a second" if elapsed else ""
    sys.stderr.write(f"published {count} message{'' if count == 1 else 's'} in {elapsed:.1f} s, {rate}\n")


async def _read_lines(file: int) -> AsyncIterator[list[bytes]]:
    """Yield the lines of a file without their ends, as many at a time as can be read at once."""
    count, rest = 0, b""
    while chunk := await _read(file):
        *lines, rest = (rest + chunk).split(b"\n")
        if lines:
            yield lines
            count += len(lines)
        if len(rest) > _LONGEST_LINE:
            raise click.ClickException(
                f"line {count + 1} of stdin: longer than {_LONGEST_LINE} bytes; "
                f"the {count} lines before it were published"
            )
    if rest:
        yield [rest]


async def _read(file: int) -> bytes:
    """Read what a file has now, and wait for a terminal or a pipe in the event loop: Ctrl-C ends that."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    try:
        loop.add_reader(file, readable.set)
    except PermissionError:  # a regular file
        await asyncio.sleep(0)
    else:
        try:
            await readable.wait()
        finally:
            loop.remove_reader(file)
    return os.read(file, _CHUNK)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Draw a progress bar on stderr if it is a terminal; yield what advances it, by bytes, to a count of messages."""
    if not sys.stderr.isatty() or sys.stdin.isatty():
        yield lambda read, count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    size = os.fstat(0).st_size or None  # of a regular file; a pipe has none
    since = time.monotonic()
    columns = (BarColumn(), TextColumn("{task.fields[count]:,} messages"), TextColumn("{task.fields[rate]:,.0f}/s"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=size, count=0, rate=0.0)

        def advance(read: int, count: int) -> None:
            rate = count / max(time.monotonic() - since, 0.001)
            progress.update(task, advance=read, count=count, rate=rate)

        yield advance
