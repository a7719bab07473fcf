"""A process with WebSocket clients. Prints the number of connected clients, then the receivers of each round.

The clients know just enough of the protocol, and of Socket.IO, so that ten thousand of them take little time.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

MAX_CONNECTING = 50  # clients that connect at a time
REQUEST = (
    "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
MESSAGES = (0x81, 0x82)  # of text or of bytes, in one frame
LONG = 126  # in the place of a length, which follows


class Client(asyncio.Protocol):
    """A client that calls `on_message` for each message."""

    def __init__(self, path: str, is_socketio: bool, on_message: Callable[[], None]) -> None:
        self.joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._path = path
        self._is_socketio = is_socketio
        self._on_message = on_message
        self._is_open = False
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(REQUEST.format(path=self._path).encode())

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._is_open:
            head, end, rest = self._data.partition(b"\r\n\r\n")
            if not end:
                return
            assert head.startswith(b"HTTP/1.1 101 "), head
            self._is_open, self._data = True, rest
            if not self._is_socketio:
                self.joined.set_result(None)
        while len(self._data) >= 2:
            length, start = self._data[1], 2
            if length == LONG:
                length, start = int.from_bytes(self._data[2:4]), 4
            assert self._data[0] in MESSAGES
            assert length < LONG or start == 4, "a message of more than 64 kB"
            if len(self._data) < start + length:
                return
            text, self._data = self._data[start : start + length], self._data[start + length :]
            self._receive(text)

    def _receive(self, text: bytes) -> None:
        if not self._is_socketio or text.startswith(b"42"):
            self._on_message()
        elif text.startswith(b"0"):
            self.transport.write(b"\x81\x82\0\0\0\0" + b"40")  # the mask is zero
        elif text.startswith(b"40"):
            self.joined.set_result(None)
        else:
            raise ValueError(text)


async def main(path: str, port: int, rooms: int, clients: int, rounds: int) -> None:
    gate = asyncio.Semaphore(MAX_CONNECTING)
    loop = asyncio.get_running_loop()
    arrived, complete = 0, asyncio.Event()

    def count() -> None:
        nonlocal arrived
        arrived += 1
        if arrived % clients == 0:
            complete.set()

    async def join(number: int) -> Client:
        async with gate:
            _, client = await loop.create_connection(
                lambda: Client(path.format(number % rooms), "EIO=" in path, count), "127.0.0.1", port
            )
            await client.joined
            return client

    connected = await asyncio.gather(*map(join, range(clients)))
    print(len(connected), flush=True)
    for _ in range(rounds):
        await complete.wait()
        complete.clear()
        print(clients, flush=True)
    for client in connected:
        client.transport.abort()  # without a closing handshake: the server is blocked until this process ends


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
