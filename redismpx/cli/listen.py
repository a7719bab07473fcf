"""The command `redismpx listen`: print the messages of channels, patterns and streams, and their gaps."""

from __future__ import annotations

__all__ = ["listen"]

import asyncio
import os
import stat
import sys
from typing import TypeAlias

import click

from .. import (
    ChannelSubscription,
    ConnectionLost,
    MessageGap,
    Multiplexer,
    PatternSubscription,
    StreamMessage,
    StreamSubscription,
    SubscriptionRefused,
)
from . import options
from .options import is_pattern, with_server
from .output import Form, Output, shown
from .session import connected, run_async

_AnySubscription: TypeAlias = "ChannelSubscription[bytes] | PatternSubscription[bytes] | StreamSubscription[bytes]"
_TIMED_OUT = 1


@click.command()
@click.argument("names", nargs=-1, required=True, type=options.text)
@click.option("--pattern", is_flag=True, help="All names are patterns. Without it, names with * ? [ or \\ are.")
@click.option("--sharded", is_flag=True, help="The names are channels of sharded Pub/Sub.")
@click.option("--stream", is_flag=True, help="The names are streams: nothing is missed after a lost connection.")
@click.option("--after", metavar="ID", help="Begin behind this message of the stream; 0: with the oldest one.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each message.")
@click.option("--raw", is_flag=True, help="Print the payloads as they are, also to a terminal.")
@click.option("--count", type=click.IntRange(min=1), help="End after this number of messages.")
@click.option("--timeout", type=options.seconds, help="End after so many seconds; with --count, with exit status 1.")
@with_server
def listen(
    url: str,
    names: tuple[bytes, ...],
    pattern: bool,
    sharded: bool,
    stream: bool,
    after: str | None,
    as_json: bool,
    raw: bool,
    count: int | None,
    timeout: float | None,
) -> int:
    """Print the messages of channels, patterns or streams as they arrive, until Ctrl-C.

    A line is the channel, a tab and the payload; of a stream, the id is between them. Gaps are shown too: on stderr, if
    the output is not a terminal.
    """
    if pattern + sharded + stream > 1:
        raise click.UsageError("give one of --pattern, --sharded and --stream")
    if as_json and raw:
        raise click.UsageError("give --json or --raw, not both")
    if after is not None and not stream:
        raise click.UsageError("--after is for streams: add --stream")
    form = Form.JSON if as_json else Form.RAW if raw else Form.TEXT
    patterns = () if sharded or stream else tuple(name for name in names if pattern or is_pattern(name))
    return run_async(_listen(url, names, patterns, sharded, stream, after, _Listener(Output(form), count), timeout))


async def _listen(
    url: str,
    names: tuple[bytes, ...],
    patterns: tuple[bytes, ...],
    sharded: bool,
    stream: bool,
    after: str | None,
    listener: _Listener,
    timeout: float | None,
) -> int:
    async with connected(url) as mpx:
        subscriptions: list[_AnySubscription] = [listener.pattern(mpx, pattern) for pattern in dict.fromkeys(patterns)]
        channels = [name for name in names if name not in patterns]
        if stream:
            subscriptions.append(listener.streams(mpx, channels, after))
        elif channels:
            subscriptions.append(listener.channels(mpx, channels, sharded))
        for subscription in subscriptions:
            await subscription.wait_for_activation()
        listener.is_listening = True
        listener.output.notice(f"listening to {', '.join(map(shown, names))}")
        if _is_pipe(sys.stdout.fileno()):  # it becomes readable when its reader ends
            asyncio.get_running_loop().add_reader(sys.stdout.fileno(), listener.ended.set)
        try:
            async with asyncio.timeout(timeout):
                await listener.ended.wait()
        except TimeoutError:
            return 0 if listener.left is None else _TIMED_OUT
    return 0


class _Listener:
    """Writes what subscriptions deliver, until `ended` is set: enough messages, or nobody who reads them."""

    def __init__(self, output: Output, count: int | None) -> None:
        self.output = output
        self.left = count  # messages; None: no limit
        self.ended = asyncio.Event()
        self.is_listening = False  # all names have been subscribed
        self._is_lost = False

    def pattern(self, mpx: Multiplexer, pattern: bytes) -> PatternSubscription[bytes]:
        """Listen to a pattern."""

        def on_message(channel: bytes, data: bytes) -> None:
            self._write(data, {"channel": channel}, pattern=pattern)

        return mpx.new_pattern_subscription(pattern, on_message, self._lose, self._regain, on_error=self._report)

    def channels(self, mpx: Multiplexer, names: list[bytes], sharded: bool) -> ChannelSubscription[bytes]:
        """Listen to channels."""

        def on_message(channel: bytes, data: bytes) -> None:
            self._write(data, {"channel": channel})

        subscription = mpx.new_channel_subscription(
            on_message, self._lose, self._regain, on_error=self._report, sharded=sharded
        )
        subscription.add(*names)
        return subscription

    def streams(self, mpx: Multiplexer, names: list[bytes], after: str | None) -> StreamSubscription[bytes]:
        """Listen to streams."""

        def on_message(message: StreamMessage[bytes]) -> None:
            self._write(message.data, {"channel": message.channel, "id": message.id})

        def on_disconnect(error: ConnectionLost) -> None:
            self._lose(error, "; what is missed is read from the stream")

        subscription = mpx.new_stream_subscription(
            on_message, self._report, on_disconnect, self._regain, on_error=self._report
        )
        subscription.add(*names, after=after)
        return subscription

    def _write(self, data: bytes, labels: dict[str, bytes], **others: bytes) -> None:
        if self.ended.is_set():
            return
        try:
            self.output.message(data, labels, **others)
        except BrokenPipeError:
            self.ended.set()
            return
        if self.left is not None:
            self.left -= 1
            if not self.left:
                self.ended.set()

    def _report(self, error: Exception) -> None:
        if isinstance(error, SubscriptionRefused) and not self.is_listening:
            return  # wait_for_activation() raises it, too
        self.output.notice(f"gap: {error}" if isinstance(error, MessageGap) else str(error), warning=True)

    def _lose(self, error: ConnectionLost, then: str = "; messages may be missing here") -> None:
        """Show one line for a lost connection, however many subscriptions had it."""
        if not self._is_lost or error.names is not None:
            self.output.notice(f"gap: {error}{then}", warning=True)
        self._is_lost = True

    def _regain(self, name: bytes) -> None:
        if self._is_lost:
            self.output.notice("connected again")
        self._is_lost = False


def _is_pipe(file: int) -> bool:
    return stat.S_ISFIFO(os.fstat(file).st_mode)
