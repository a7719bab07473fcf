"""Servers of Socket.IO in other processes, and clients in Python and JavaScript, which do what their server can do."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from abc import ABC, abstractmethod
from asyncio.subprocess import PIPE
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import socketio

from .npm import installed
from .waiting import DEADLINE

SERVER = (sys.executable, "-m", "tests.helpers.socketio_server")
SCRIPT = Path(__file__).with_name("socketio_client.cjs")


class Servers:
    """Running servers. They stop at the end of the block, and must not have logged a traceback."""

    def __init__(self, url: str, count: int = 2) -> None:
        self._url = url
        self._count = count
        self.ports: list[int] = []
        self.log = ""
        """What they have logged, after the end."""

    async def __aenter__(self) -> Self:
        command = (*SERVER, self._url, str(self._count))
        self._process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, start_new_session=True)
        assert self._process.stdout is not None
        async with asyncio.timeout(30):
            self.ports = [int(await self._process.stdout.readline()) for _ in range(self._count)]
        return self

    async def __aexit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGTERM)
        async with asyncio.timeout(30):
            _, log = await self._process.communicate()
        self.log = log.decode()
        assert "Traceback" not in self.log, self.log


class Client(ABC):
    """A client that is connected."""

    sid: str

    def __init__(self) -> None:
        self.events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

    @abstractmethod
    async def do(self, event: str, *arguments: Any) -> Any:
        """Emit an event to the server, and return its reply."""

    async def emit(self, event: str, data: Any, **options: Any) -> None:
        """Let the server emit an event."""
        assert await self.do("emit", event, data, options) == "ok"

    async def hear(self) -> tuple[str, Any]:
        """Return the next event, with its data."""
        async with asyncio.timeout(DEADLINE):
            return await self.events.get()

    async def hears(self, *events: str) -> None:
        """Wait for these events, in this order, with nothing between them."""
        assert [(await self.hear())[0] for _ in events] == list(events)

    async def hears_nothing(self, server: Client) -> None:
        """Check that nothing else was sent: an event that is emitted now, by another client's server, is the next."""
        await server.emit("last", None, room=self.sid)
        assert await self.hear() == ("last", None)


class PythonClient(Client):
    def __init__(self, client: socketio.AsyncClient, namespace: str) -> None:
        super().__init__()
        self._client = client
        self._namespace = namespace
        client.on("*", self._hear, namespace=namespace)
        client.on("disconnect", self._left, namespace=namespace)

    def _hear(self, event: str, data: Any = None) -> Any:
        if event == "ask":
            return data[::-1] if isinstance(data, bytes) else f"python: {data}"
        self.events.put_nowait((event, data))
        return None

    def _left(self, reason: str) -> None:
        self.events.put_nowait(("disconnect", None))

    async def do(self, event: str, *arguments: Any) -> Any:
        return await self._client.call(event, arguments, namespace=self._namespace, timeout=int(DEADLINE))


class JavaScriptClient(Client):
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        super().__init__()
        self._process = process
        self._replies: asyncio.Queue[Any] = asyncio.Queue()

    async def listen(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            event, data = json.loads(line)
            if event == "reply":
                self._replies.put_nowait(data)
            else:
                self.events.put_nowait((event, data))

    async def do(self, event: str, *arguments: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([event, *arguments]).encode() + b"\n")
        async with asyncio.timeout(DEADLINE):
            return await self._replies.get()


class Clients:
    """Connects clients, and disconnects them at the end of the block."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def python(self, port: int, room: str | None = None, namespace: str = "/") -> Client:
        raw = socketio.AsyncClient(reconnection=False)
        client = PythonClient(raw, namespace)
        auth = None if room is None else {"room": room}
        await raw.connect(
            f"http://127.0.0.1:{port}", transports=["websocket"], auth=auth, namespaces=[namespace], wait_timeout=10
        )
        self._stack.push_async_callback(raw.disconnect)
        client.sid = str(raw.get_sid(namespace))
        return client

    async def javascript(self, port: int, room: str | None = None) -> Client:
        modules = await asyncio.to_thread(installed, "socket.io-client", "4.8.1")
        auth = json.dumps({} if room is None else {"room": room})
        command = ("node", str(SCRIPT), f"http://127.0.0.1:{port}", auth)
        environment = {**os.environ, "NODE_PATH": str(modules)}
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, env=environment)
        client = JavaScriptClient(process)
        listening = asyncio.create_task(client.listen())

        async def leave() -> None:
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()
            await listening

        self._stack.push_async_callback(leave)
        event, client.sid = await client.hear()
        assert event == "connect"
        return client
