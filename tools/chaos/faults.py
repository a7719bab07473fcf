"""The faults of a run, and the plan when they come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from redismpx.testing import Flow, Proxy

from .load import GROUPS, GUARDED

if TYPE_CHECKING:
    from .run import Run


@contextmanager
def changed(thing: Flow | Proxy, **fields: Any) -> Iterator[None]:
    """Set these fields of the proxy inside the block; afterwards reset them to their defaults, whatever they were."""
    for name, value in fields.items():
        setattr(thing, name, value)
    try:
        yield
    finally:
        for name in fields:
            setattr(thing, name, getattr(Flow(), name, None))


async def client_kill(run: Run, rng: Random) -> None:
    for _ in range(rng.randrange(1, 4)):
        await run.command("CLIENT", "KILL", "TYPE", "pubsub")
        await asyncio.sleep(rng.uniform(0, 0.2))


async def cut(run: Run, rng: Random) -> None:
    run.proxy.cut()


async def reset(run: Run, rng: Random) -> None:
    run.proxy.reset()


async def blackhole(run: Run, rng: Random) -> None:
    with changed(run.proxy.to_server, hole=True), changed(run.proxy.to_client, hole=True):
        await asyncio.sleep(rng.uniform(0.05, 1.5))


async def blackhole_to_server(run: Run, rng: Random) -> None:
    with changed(run.proxy.to_server, hole=True):
        await asyncio.sleep(rng.uniform(0.05, 1.5))


async def blackhole_to_client(run: Run, rng: Random) -> None:
    with changed(run.proxy.to_client, hole=True):
        await asyncio.sleep(rng.uniform(0.05, 1.5))


async def stall_to_server(run: Run, rng: Random) -> None:
    with changed(run.proxy.to_server, stall=True):
        await asyncio.sleep(rng.uniform(0.1, 2))


async def stall_to_client(run: Run, rng: Random) -> None:
    with changed(run.proxy.to_client, stall=True):
        await asyncio.sleep(rng.uniform(0.1, 2))


async def delay(run: Run, rng: Random) -> None:
    with changed(rng.choice((run.proxy.to_server, run.proxy.to_client)), delay=rng.uniform(0.02, 0.3)):
        await asyncio.sleep(rng.uniform(0.3, 1))


async def small_pieces(run: Run, rng: Random) -> None:
    size = rng.choice((1, 2, 7, 50))
    with changed(run.proxy.to_server, chunk=size), changed(run.proxy.to_client, chunk=size):
        await asyncio.sleep(rng.uniform(0.3, 1))


async def corrupt_a_frame(run: Run, rng: Random) -> None:
    """Change the type byte of one element, so that the parser reports an error."""
    left = 1

    def corrupt(piece: bytes) -> bytes:
        nonlocal left
        if not left or b"\r\n$" not in piece:
            return piece
        left -= 1
        return piece.replace(b"\r\n$", b"\r\nX", 1)

    with changed(run.proxy.to_client, corrupt=corrupt):
        await asyncio.sleep(0.3)


async def corrupt_payloads(run: Run, rng: Random) -> None:
    """Change a digit in some payloads. The protocol stays valid, so each message still counts as received."""

    def corrupt(piece: bytes) -> bytes:
        at = piece.find(b"#")
        if at < 0 or at + 1 == len(piece):
            return piece
        run.corrupted += 1
        return piece[: at + 1] + bytes([piece[at + 1] ^ 1]) + piece[at + 2 :]

    with changed(run.proxy.to_client, corrupt=corrupt):
        await asyncio.sleep(rng.uniform(0.05, 0.3))


async def corrupt_commands(run: Run, rng: Random) -> None:
    """Change bytes of our commands. The new connection at the end subscribes again to names that were rejected."""

    def corrupt(piece: bytes) -> bytes:
        at = rng.randrange(len(piece))
        return piece[:at] + bytes([piece[at] ^ rng.randrange(1, 256)]) + piece[at + 1 :]

    with changed(run.proxy.to_server, corrupt=corrupt):
        await asyncio.sleep(rng.uniform(0.05, 0.5))
    await run.kill_connections()


async def close_after_limit(run: Run, rng: Random) -> None:
    with changed(run.proxy.to_client, limit=rng.randrange(10_000)):
        await asyncio.sleep(rng.uniform(0.1, 0.6))


async def refuse_connections(run: Run, rng: Random) -> None:
    with changed(run.proxy, refusing=True):
        run.proxy.reset()
        await asyncio.sleep(rng.uniform(0.05, 1))


async def stop_listening(run: Run, rng: Random) -> None:
    run.proxy.stop_listening()
    run.proxy.cut()
    await asyncio.sleep(rng.uniform(0.05, 1))
    run.proxy.listen_again()


async def idle_drop(run: Run, rng: Random) -> None:
    run.load.paused += 1
    with changed(run.proxy, idle_limit=0.1):
        await asyncio.sleep(rng.uniform(0.2, 1))
        run.load.paused -= 1
        await asyncio.sleep(0.2)


async def server_killed(run: Run, rng: Random) -> None:
    async with run.server_turn:
        run.server.kill()
        await asyncio.sleep(rng.uniform(0, 1))
        await run.restart_server()


async def server_frozen_briefly(run: Run, rng: Random) -> None:
    await _freeze(run, rng.uniform(0.05, 0.4))


async def server_frozen_long(run: Run, rng: Random) -> None:
    await _freeze(run, rng.uniform(1.2, 2.5))


async def _freeze(run: Run, seconds: float) -> None:
    async with run.server_turn:
        run.server.freeze()
        await asyncio.sleep(seconds)
        run.server.thaw()


async def server_killed_while_frozen(run: Run, rng: Random) -> None:
    async with run.server_turn:
        run.server.freeze()
        await asyncio.sleep(rng.uniform(0.05, 0.5))
        run.server.kill()
        await run.restart_server()


async def server_paused_briefly(run: Run, rng: Random) -> None:
    await run.command("CLIENT", "PAUSE", str(rng.randrange(50, 400)), "ALL")


async def server_paused_long(run: Run, rng: Random) -> None:
    await run.command("CLIENT", "PAUSE", str(rng.randrange(1200, 2500)), "ALL")
    await run.command("PING")  # its reply comes when the pause is over


async def permission_revoked(run: Run, rng: Random) -> None:
    """Forbid some names for a while. The new connection at the end spares the minute until the next retry."""
    names = rng.sample([*GUARDED, *GROUPS], 2)
    run.forbidden.update(names)
    await run.apply_permissions()
    await asyncio.sleep(rng.uniform(0.1, 1))
    run.forbidden.difference_update(names)
    await run.apply_permissions()
    await run.kill_connections()


async def misbehaving_consumers(run: Run, rng: Random) -> None:
    """Add consumers that raise, hang or are slow for a while."""
    bad = [run.new_consumer(kind) for kind in ("raising", "hanging", "slow") for _ in range(5)]
    await asyncio.sleep(rng.uniform(0.3, 1))
    for consumer in bad:
        run.drop(consumer)


async def loop_blocked(run: Run, rng: Random) -> None:
    time.sleep(rng.uniform(0.1, 1.3))


FAULTS: list[Callable[[Run, Random], Awaitable[None]]] = [
    client_kill, cut, reset, blackhole, blackhole_to_server, blackhole_to_client, stall_to_server, stall_to_client,
    delay, small_pieces, corrupt_a_frame, corrupt_payloads, corrupt_commands, close_after_limit, refuse_connections,
    stop_listening, idle_drop, server_killed, server_frozen_briefly, server_frozen_long, server_killed_while_frozen,
    server_paused_briefly, server_paused_long, permission_revoked, misbehaving_consumers, loop_blocked,
]  # fmt: skip


class Step(NamedTuple):
    """One fault of a round."""

    delay: float  # seconds after the start of the round
    fault: Callable[[Run, Random], Awaitable[None]]
    seed: int  # of the random numbers for this fault


def plan(seed: int) -> Iterator[list[Step]]:
    """Yield the faults of each round, without end. Each fault comes once before any fault is repeated."""
    rng = Random(seed)
    remaining: list[Callable[[Run, Random], Awaitable[None]]] = []
    while True:
        steps = []
        for _ in range(rng.choice((1, 1, 2, 3))):
            if not remaining:
                remaining = rng.sample(FAULTS, len(FAULTS))
            steps.append(Step(rng.uniform(0, 0.4), remaining.pop(), rng.randrange(2**32)))
        yield steps
