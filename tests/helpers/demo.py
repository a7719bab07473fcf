"""The demo in a process of its own, and a client of its WebSockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect

PATIENCE = 20.0  # seconds after which an expected event counts as missing
COMMAND = [sys.executable, "-W", "error", "-m", "redismpx"]


class Demo:
    """A running demo."""

    process: asyncio.subprocess.Process

    def __init__(self) -> None:
        self.output: list[str] = []
        self.url = self.redis = ""

    @classmethod
    async def start(cls, *arguments: str) -> Self:
        demo = cls()
        process = demo.process = await asyncio.create_subprocess_exec(
            *COMMAND,
            "demo",
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(),
        )
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            while line := (await process.stdout.readline()).decode():
                demo.output.append(line)
                if found := re.match(r"Redis is at (\S+)", line):
                    demo.redis = found[1] if "://" in found[1] else f"redis://{found[1]}"
                if found := re.match(r"Serving on (http://127\.0\.0\.1:\d+)", line):
                    demo.url = found[1]
                    return demo
        _, errors = await process.communicate()
        raise AssertionError(f"the demo did not start: {demo.output} {errors.decode()}")

    async def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Stop it; return its exit code and what it wrote to stderr."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)
        async with asyncio.timeout(PATIENCE):
            _, errors = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, errors.decode()

    @asynccontextmanager
    async def open(self, path: str, **options: Any) -> AsyncIterator[Page]:
        async with connect(self.url.replace("http", "ws") + path, proxy=None, **options) as socket:
            yield Page(socket)

    @asynccontextmanager
    async def chat(self, *rooms: str) -> AsyncIterator[Page]:
        """Open a chat client and join rooms."""
        async with self.open("/chat") as page:
            page.name = (await page.until(type="welcome"))["name"]
            for room in rooms:
                await page.ask(do="join", room=room)
                await page.until(type="activation", room=room)
            yield page


class Page:
    """One WebSocket of the page."""

    name = ""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def ask(self, **request: object) -> None:
        await self.socket.send(json.dumps(request))

    async def until(self, check: Callable[[dict[str, Any]], bool] = lambda _: True, **facts: object) -> dict[str, Any]:
        """Read until a message has these facts; return it."""
        seen = []
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    message: dict[str, Any] = json.loads(await self.socket.recv())
                    if facts.items() <= message.items() and check(message):
                        return message
                    seen.append(message)
        except TimeoutError:
            raise AssertionError(f"{facts} did not come; what came: {seen}") from None


def environment(**changes: str) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "REDIS_URL"} | changes


@contextmanager
def in_background(log: Path, port: int = 0) -> Iterator[str]:
    """Run a demo outside any event loop; yield its URL."""
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*COMMAND, "demo", "--port", str(port)], stdout=subprocess.PIPE, stderr=errors, text=True, env=environment()
        )
        assert process.stdout is not None
        with process.stdout as output:
            try:
                found = re.search(r"http:\S+", output.readline() + output.readline())
                assert found, log.read_text()
                yield found[0]
            finally:
                process.send_signal(signal.SIGTERM)
                code = process.wait(PATIENCE)
    assert code == 0
