"""The command `redismpx channels`: who is subscribed to what, as the server knows it."""

from __future__ import annotations

__all__ = ["ChannelCount", "Snapshot", "channels"]

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from .._io.redispy.direct import DirectServer, Redis, RedisError, ResponseError
from . import options
from .options import with_server
from .output import shown
from .session import run_async

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

_INTERVAL = 1.0  # seconds between two pictures of --watch
_NAMES_AT_A_TIME = 1_000  # channels in one command
_OTHER_LINES = 12  # of a screen: titles, borders, and some clients


class ChannelCount(NamedTuple):
    """A channel, and how many connections are subscribed to it."""

    kind: str
    name: bytes
    number: int


class Snapshot(NamedTuple):
    """What a server knows of its subscriptions."""

    channels: list[ChannelCount]
    patterns: int
    clients: list[dict[str, str]]


@click.command()
@click.argument("pattern", default=b"*", type=options.text)
@click.option("--watch", is_flag=True, help="Draw it again each second, until Ctrl-C.")
@with_server
def channels(url: str, pattern: bytes, watch: bool) -> None:
    """Show the channels that match PATTERN with their numbers of subscribers, and the connections that subscribe.

    The server does not tell the names of patterns, only their number. In a cluster, each node knows its own
    subscribers.
    """
    if watch and not sys.stdout.isatty():
        raise click.UsageError("--watch needs a terminal")
    run_async(_show(url, pattern, watch))


async def _show(url: str, pattern: bytes, watch: bool) -> None:
    async with DirectServer(url) as server:
        client = server.client
        snapshot = await _look(client, pattern)
        if not sys.stdout.isatty():
            _print(snapshot)
            return
        from rich.console import Console
        from rich.live import Live

        console = Console(markup=False, highlight=False, emoji=False)
        if not watch:
            console.print(_draw(snapshot, None))
            return
        with Live(_draw(snapshot, console.height), console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(await _next_picture(client, pattern, console.height), refresh=True)
                await asyncio.sleep(_INTERVAL)


async def _next_picture(client: Redis, pattern: bytes, height: int) -> RenderableType:
    try:
        return _draw(await _look(client, pattern), height)
    except (RedisError, OSError) as error:  # the next one may be drawn
        return shown(str(error).encode())


async def _look(client: Redis, pattern: bytes) -> Snapshot:
    found: list[ChannelCount] = []
    kinds: list[tuple[str, Any, Any]] = [
        ("channel", client.pubsub_channels, client.pubsub_numsub),
        ("sharded", client.pubsub_shardchannels, client.pubsub_shardnumsub),
    ]
    for kind, names_of, counts_of in kinds:
        try:
            names = await names_of(pattern)
        except ResponseError:
            if kind == "channel":
                raise
            continue  # a server without sharded Pub/Sub
        for first in range(0, len(names), _NAMES_AT_A_TIME):
            counts = await counts_of(*names[first : first + _NAMES_AT_A_TIME])
            found += [ChannelCount(kind, name, count) for name, count in counts]
    found.sort(key=lambda each: (-each.number, each.name))
    clients: list[dict[str, str]] = []
    with contextlib.suppress(ResponseError):  # without the right to CLIENT LIST
        clients = await client.client_list(_type="pubsub")
    return Snapshot(found, await client.pubsub_numpat(), clients)


def _print(snapshot: Snapshot) -> None:
    """Print lines for programs: words with tabs between them."""
    lines = [f"{each.kind}\t{shown(each.name)}\t{each.number}" for each in snapshot.channels]
    lines.append(f"patterns\t{snapshot.patterns}")
    lines += ["\t".join(("client", *_describe(client))) for client in snapshot.clients]
    sys.stdout.buffer.write("".join(f"{line}\n" for line in lines).encode())


def _describe(client: dict[str, str]) -> tuple[str, ...]:
    """Return the address and the name of a client, its subscriptions by kind, and its unsent bytes."""
    return tuple(
        shown(client.get(field, "0").encode(errors="surrogateescape"))
        for field in ("addr", "name", "sub", "psub", "ssub", "omem")
    )


def _draw(snapshot: Snapshot, height: int | None) -> Group:
    """Draw two tables: for a screen of some lines, or all of it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    rows = len(snapshot.channels) if height is None else max(height - _OTHER_LINES, 1)
    table = Table("channel", "kind", "subscribers")
    for each in snapshot.channels[:rows]:
        table.add_row(Text(shown(each.name)), each.kind, Text(f"{each.number:,}", justify="right"))
    more = len(snapshot.channels) - rows
    connections = Table("connection", "name", "channels", "patterns", "sharded", "unsent bytes")
    for client in snapshot.clients if height is None else snapshot.clients[:rows]:
        connections.add_row(*map(Text, _describe(client)))
    total = (
        f"{len(snapshot.channels):,} channels, {snapshot.patterns:,} patterns, {len(snapshot.clients):,} connections"
    )
    return Group(table, *([Text(f"and {more:,} more channels")] if more > 0 else []), connections, Text(total))
