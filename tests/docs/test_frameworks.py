"""The programs of docs/how-to/frameworks.md, each served by its framework, with a client."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest
from redis.asyncio import Redis
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from ..helpers.servers import free_port
from ..helpers.waiting import DEADLINE

pytestmark = pytest.mark.one_flavour

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/how-to/frameworks.md").read_text()
PROGRAMS = {text.split()[1]: text for text in re.findall(r"^```py\n(# \w+\n.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)}

UVICORN = ("-m", "uvicorn", "program:app", "--port", "{port}", "--timeout-graceful-shutdown", "1")
SERVERS = {
    "aiohttp": ("-c", "import program, aiohttp.web as w; w.run_app(program.app, host='127.0.0.1', port={port})"),
    "ariadne": UVICORN,
    "django": UVICORN,
    "faststream": ("-c", "import asyncio, program; asyncio.run(program.app.run())"),
    "grpc": ("program.py",),
    "quart": ("-m", "hypercorn", "program:app", "--bind", "127.0.0.1:{port}"),
    "sanic": ("-m", "sanic", "program:app", "--host", "127.0.0.1", "--port", "{port}", "--single-process"),
    "strawberry": UVICORN,
    "taskiq": ("-m", "taskiq", "worker", "program:broker", "--workers", "1"),
    "websockets": ("program.py",),
}
"""The command that serves each program, for Python."""

Hear = Callable[[], Awaitable[str]]


@asynccontextmanager
async def websocket(port: int) -> AsyncIterator[Hear]:
    async with connect(f"ws://127.0.0.1:{port}/news", proxy=None) as client:

        async def hear() -> str:
            return str(await client.recv())

        yield hear


@asynccontextmanager
async def graphql(port: int) -> AsyncIterator[Hear]:
    protocol = Subprotocol("graphql-transport-ws")
    async with connect(f"ws://127.0.0.1:{port}/", subprotocols=[protocol], proxy=None) as client:
        await client.send('{"type": "connection_init"}')
        assert json.loads(await client.recv())["type"] == "connection_ack"
        await client.send('{"id": "1", "type": "subscribe", "payload": {"query": "subscription { news }"}}')

        async def hear() -> str:
            return str(json.loads(await client.recv())["payload"]["data"]["news"])

        yield hear


@asynccontextmanager
async def events(port: int) -> AsyncIterator[Hear]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /news HTTP/1.1\r\nHost: localhost\r\n\r\n")

    async def hear() -> str:
        return (await reader.readuntil(b"\n\n")).decode().rpartition("data: ")[2].strip()

    yield hear
    writer.transport.abort()


@asynccontextmanager
async def replies(port: int) -> AsyncIterator[Hear]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stream = channel.unary_stream("/News/Follow")(b"news")

        async def hear() -> str:
            return bytes(await stream.read()).decode()

        yield hear


CLIENTS = {
    "aiohttp": websocket,
    "ariadne": graphql,
    "django": events,
    "grpc": replies,
    "quart": websocket,
    "sanic": websocket,
    "strawberry": graphql,
    "websockets": websocket,
}


@asynccontextmanager
async def served(name: str, folder: Path, url: str) -> AsyncIterator[int]:
    """Run a program until the end of the block. It must end in time when it is told to."""
    (folder / "program.py").write_text(PROGRAMS[name])
    port = free_port()
    paths = os.pathsep.join([str(ROOT), str(folder)])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *(word.format(port=port) for word in SERVERS[name])),
        env={**os.environ, "PYTHONPATH": paths, "REDIS_URL": url, "PORT": str(port)},
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield port
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(DEADLINE):
                output, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            output, _ = await process.communicate()
            pytest.fail(f"{name} does not end: {output.decode()}")
        print(output.decode())


@pytest.mark.parametrize("name", sorted(CLIENTS))
async def test_each_framework_carries_a_message(name: str, url: str, admin: Redis, tmp_path: Path) -> None:
    """A client of the program hears what is published."""
    async with asyncio.timeout(4 * DEADLINE), served(name, tmp_path, url) as port:
        while True:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            await asyncio.sleep(0.05)
        async with CLIENTS[name](port) as hear:
            hearing = asyncio.ensure_future(hear())
            while not hearing.done():
                await admin.publish("news", "hello")
                await asyncio.wait([hearing], timeout=0.05)
            assert await hearing == "hello"


@pytest.mark.parametrize("name", ["faststream", "taskiq"])
async def test_a_job_publishes(name: str, url: str, admin: Redis, tmp_path: Path) -> None:
    """A job in a queue of the framework is done, and publishes."""
    async with asyncio.timeout(4 * DEADLINE), admin.pubsub() as pubsub, served(name, tmp_path, url):
        await pubsub.subscribe("news")
        if name == "faststream":
            await admin.lpush("jobs", "hello")
        else:
            kick = "import asyncio, program\nasync def main():\n await program.broker.startup()\n"
            kick += " await program.announce.kiq('hello')\n await program.broker.shutdown()\nasyncio.run(main())"
            environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "REDIS_URL": url}
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", kick, env=environment)
            assert await process.wait() == 0
        while (message := await pubsub.get_message(ignore_subscribe_messages=True, timeout=1)) is None:
            pass
        assert message["data"] == b"hello"


def test_each_program_of_the_page_is_run() -> None:
    """No program of the page is left out here."""
    assert set(PROGRAMS) == set(SERVERS) == {*CLIENTS, "faststream", "taskiq"}
