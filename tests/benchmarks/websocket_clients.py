"""WebSocket clients in a process of their own: says how many are connected; later, how many messages they got."""

from __future__ import annotations

import asyncio
import sys

from websockets.asyncio.client import ClientConnection, connect

AT_A_TIME = 50  # that connect


async def main(port: int, rooms: int, clients: int, messages: int) -> None:
    gate = asyncio.Semaphore(AT_A_TIME)

    async def join(number: int) -> ClientConnection:
        async with gate:
            return await connect(f"ws://127.0.0.1:{port}/room:{number % rooms}", compression=None, ping_interval=None)

    async def listen(connection: ClientConnection) -> int:
        for _ in range(messages):
            await connection.recv()
        return messages

    connections = await asyncio.gather(*map(join, range(clients)))
    print(len(connections), flush=True)
    print(sum(await asyncio.gather(*map(listen, connections))), flush=True)
    await asyncio.gather(*(connection.close() for connection in connections))


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
