"""A process with WebSocket clients. Prints the number of connected clients, then the receivers of each round."""

from __future__ import annotations

import asyncio
import sys

from websockets.asyncio.client import ClientConnection, connect

MAX_CONNECTING = 50  # clients that connect at a time


async def main(port: int, rooms: int, clients: int, rounds: int) -> None:
    gate = asyncio.Semaphore(MAX_CONNECTING)

    async def join(number: int) -> ClientConnection:
        async with gate:
            return await connect(f"ws://127.0.0.1:{port}/room:{number % rooms}", compression=None, ping_interval=None)

    connections = await asyncio.gather(*map(join, range(clients)))
    print(len(connections), flush=True)
    for _ in range(rounds):
        print(len(await asyncio.gather(*(connection.recv() for connection in connections))), flush=True)
    for connection in connections:
        connection.transport.abort()  # without a closing handshake: the server is blocked until this process ends


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
