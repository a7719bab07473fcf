"""The command `redismpx bench`: latency and throughput through the user's own server, beside redis-py alone."""

from __future__ import annotations

__all__ = ["Figures", "Side", "bench"]

import asyncio
import json
import secrets
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import click

from .. import Multiplexer
from .._io.redispy.direct import DirectServer, Redis
from .options import with_server
from .session import connected, run_async

_MOST_BYTES = 1_048_576  # of a payload: the multiplexer's default
_PATIENCE = 10.0  # seconds for one message
_WARM_UP = 20  # messages before the clock starts
_ONE_BY_ONE = 1_000  # messages for the latency, at most


class Side(NamedTuple):
    """One way to publish on a channel, and to receive from it."""

    publish: Callable[[bytes], Awaitable[object]]
    receive: Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Figures:
    """What was measured, in seconds."""

    p50: float
    """The median of the times from a call of publish to the message at the subscriber."""
    p99: float
    rate: float
    """Messages per second, from all callers to one subscriber."""
    cpu: float
    """CPU time of this program for one of these messages."""


@click.command()
@click.option("--messages", type=click.IntRange(min=100), default=10_000, show_default=True, help="Messages to send.")
@click.option("--size", type=click.IntRange(1, _MOST_BYTES), default=64, show_default=True, help="Bytes of each.")
@click.option("--callers", type=click.IntRange(1, 1_000), default=50, show_default=True, help="Callers at once.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object, with times in seconds.")
@with_server
def bench(url: str, messages: int, size: int, callers: int, as_json: bool) -> None:
    """Measure latency and throughput through a server: with redismpx, and with redis-py alone.

    A subscriber and the callers of publish are in this program. The latency is that of one message at a time; then all
    callers publish at once. The channel has a name that nobody else has.
    """
    figures = run_async(_measure(url, messages, size, callers))
    if as_json:
        sides = {name: asdict(side) for name, side in figures.items()}
        click.echo(json.dumps({"messages": messages, "size": size, "callers": callers, **sides}))
    else:
        _draw(figures)


async def _measure(url: str, messages: int, size: int, callers: int) -> dict[str, Figures]:
    channel = f"__mpx_bench:{secrets.token_hex(8)}"
    data = b"x" * size
    async with connected(url) as mpx, DirectServer(url, max_connections=callers + 2) as server:
        try:
            ours = await _redismpx(mpx, channel, messages, callers, data)
            theirs = await _redis_py(server.client, channel, messages, callers, data)
        except TimeoutError:
            raise click.ClickException(f"a message has not arrived within {_PATIENCE:g} s") from None
    return {"redismpx": ours, "redis-py": theirs}


async def _redismpx(mpx: Multiplexer, channel: str, messages: int, callers: int, data: bytes) -> Figures:
    async with mpx.new_channel_subscription(max_pending=max(messages, 1_000)) as sub:
        sub.add(channel)
        await sub.wait_for_activation(timeout=_PATIENCE)
        return await _figures(Side(lambda data: mpx.publish(channel, data), sub.get), messages, callers, data)


async def _redis_py(client: Redis, channel: str, messages: int, callers: int, data: bytes) -> Figures:
    async with client.pubsub(ignore_subscribe_messages=True) as sub:
        await sub.subscribe(channel)

        async def receive() -> Any:
            while (message := await sub.get_message(timeout=_PATIENCE)) is None:
                pass
            return message

        return await _figures(Side(lambda data: client.publish(channel, data), receive), messages, callers, data)


async def _figures(side: Side, messages: int, callers: int, data: bytes) -> Figures:
    times = []
    for number in range(_WARM_UP + min(messages // 10, _ONE_BY_ONE)):
        began = time.perf_counter()
        async with asyncio.timeout(_PATIENCE):
            await side.publish(data)
            await side.receive()
        if number >= _WARM_UP:
            times.append(time.perf_counter() - began)
    turns = iter(range(messages))

    async def call() -> None:
        for _ in turns:
            await side.publish(data)

    async def receive() -> None:
        for _ in range(messages):
            async with asyncio.timeout(_PATIENCE):
                await side.receive()

    began, cpu = time.perf_counter(), time.process_time()
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(receive())
            for _ in range(callers):
                group.create_task(call())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu
    times.sort()
    return Figures(times[len(times) // 2], times[len(times) * 99 // 100], messages / elapsed, cpu / messages)


def _draw(figures: dict[str, Figures]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", *figures)
    for column in table.columns[1:]:
        column.justify = "right"
    rows: list[tuple[str, Callable[[Figures], str]]] = [
        ("latency, median", lambda side: f"{side.p50 * 1e3:.2f} ms"),
        ("latency, 99 of 100", lambda side: f"{side.p99 * 1e3:.2f} ms"),
        ("messages per second", lambda side: f"{side.rate:,.0f}"),
        ("CPU for a message", lambda side: f"{side.cpu * 1e6:.1f} us"),
    ]
    for name, form in rows:
        table.add_row(name, *map(form, figures.values()))
    Console(file=sys.stdout, markup=False, highlight=False, emoji=False).print(table)
