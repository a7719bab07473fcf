"""WebSocket clients in a process of their own: says how many are connected; then, for each round, how many got it."""

from __future__ import annotations

import asyncio
import sys

from websockets.asyncio.client import ClientConnection, connect

AT_A_TIME = 50  # that connect


async def main(port: int, rooms: int, clients: int, rounds: int) -> None:
    gate = asyncio.Semaphore(AT_A_TIME)

    async def join(number: int) -> ClientConnection:
        async with gate:
            return await connect(f"ws://127.0.0.1:{port}/room:{number % rooms}", compression=None, ping_interval=None)

    connections = await asyncio.gather(*map(join, range(clients)))
    print(len(connections), flush=True)
    for _ in range(rounds):
        print(len(await asyncio.gather(*(connection.recv() for connection in connections))), flush=True)
    for connection in connections:
        connection.transport.abort()  # the server stands still until this process has ended


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
