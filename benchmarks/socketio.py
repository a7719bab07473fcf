"""Case: eight servers of Socket.IO with a room each, and a process that emits to the rooms in turn."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from .harness import Bench, Case, cpu_time
from .publisher import Companion

SERVERS = 8  # with one client and one room each
EVENTS = 2_000  # to all rooms together
AT_ONCE = 100


async def measure(kind: str, bench: Bench) -> None:
    """Measure the CPU time of all servers and of the emitting process, for one event that a client gets."""
    from .socketio_server import DATA, MANAGERS

    script = str(Path(__file__).with_name("socketio_server.py"))
    rooms, events = bench.count(SERVERS, least=2), bench.count(EVENTS, least=2)
    emitter = MANAGERS[kind](bench.url, write_only=True)
    with ExitStack() as stack:
        # -P: to a script in this folder, `import socketio` would be this module.
        commands = [("-P", script, kind, bench.url, f"room {number}") for number in range(rooms)]
        servers = [stack.enter_context(Companion(*command)) for command in commands]
        ports = [str(server.hear()) for server in servers]
        clients = stack.enter_context(Companion("-P", script, "clients", str(events), *ports))
        assert await asyncio.to_thread(clients.hear) == rooms
        await asyncio.sleep(1)  # until the subscriptions of python-socketio are there: it does not tell

        def used() -> int:
            for server in servers:
                server.tell()
            return sum(server.hear() for server in servers)

        before = await asyncio.to_thread(used) + cpu_time() * 1e6
        with bench.measured(events):
            for start in range(0, events, AT_ONCE):
                numbers = range(start, min(start + AT_ONCE, events))
                await asyncio.gather(
                    *(emitter.emit("event", DATA, room=f"room {number % rooms}") for number in numbers)
                )
            assert await asyncio.to_thread(clients.hear) == events
        bench.measures["cpu"] = (await asyncio.to_thread(used) + cpu_time() * 1e6 - before) / events
    if kind == "redismpx":
        await emitter.multiplexer.aclose()
    else:
        await emitter.redis.aclose()


CASES = [
    Case("socketio", "8 Socket.IO servers with a room each", "event", {
        "redismpx": partial(measure, "redismpx"),
        "python-socketio": partial(measure, "python-socketio"),
    })
]  # fmt: skip
