"""Start the servers that the demo needs, serve the page, and stop everything at the end."""

from __future__ import annotations

__all__ = ["MAX_HTTP_CONNECTIONS", "run"]

import asyncio
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from types import FrameType
from typing import NoReturn

import uvicorn
import websockets  # noqa: F401, uvicorn imports it only when a WebSocket opens, which is too late to report that it is missing

from ..embedded import CannotStartServer, Server
from ..testing import Faults
from .app import new_app
from .backend import Backend, Embedded
from .errors import CannotStart
from .protocol import MAX_WEBSOCKET_MESSAGE

MAX_HTTP_CONNECTIONS = 500  # requests beyond them get 503


def run(host: str, port: int, redis_url: str | None) -> None:
    """Serve until SIGINT or SIGTERM. Raises `CannotStart`, and `KeyboardInterrupt` if a signal arrives during start."""
    with _on_signal(_interrupt), _listen(host, port) as listener, _redis(redis_url) as (url, embedded):
        asyncio.run(_serve(listener, host, url, embedded))


async def _serve(listener: socket.socket, host: str, redis_url: str, embedded: Embedded | None) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()

    def stop() -> None:
        stopping.set()
        server.should_exit = True

    # uvicorn installs its own handlers while it serves. After it has stopped, it raises the signal again, and this
    # handler receives it.
    with _on_signal(lambda number, frame: loop.call_soon_threadsafe(stop)):
        backend = Backend(redis_url, embedded)
        server = uvicorn.Server(
            uvicorn.Config(
                new_app(backend, host),
                lifespan="on",
                log_level="warning",
                access_log=False,
                server_header=False,
                ws_max_size=MAX_WEBSOCKET_MESSAGE,
                ws_per_message_deflate=False,
                limit_concurrency=MAX_HTTP_CONNECTIONS,
                timeout_graceful_shutdown=3,
            )
        )
        async with aclosing(backend):  # the application closes it too, but only if it has started
            if await _connect(backend, stopping):
                print(f"Redis is at {backend.server_url if embedded else backend.address}")  # noqa: T201
                print(f"Serving on {_url(host, listener)} (press Ctrl-C to stop)", flush=True)  # noqa: T201
                await server.serve(sockets=[listener])


async def _connect(backend: Backend, stopping: asyncio.Event) -> bool:
    """Wait until Redis is connected and return True; return False if a signal arrives first. Raises `CannotStart`."""
    connecting = asyncio.create_task(backend.connect())
    stopped = asyncio.create_task(stopping.wait())
    await asyncio.wait([connecting, stopped], return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if connecting.done():
        connecting.result()
        return not stopping.is_set()
    connecting.cancel()
    return False


@contextmanager
def _on_signal(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Handle SIGINT and SIGTERM with `handler` inside the block. asyncio installs no SIGINT handler then."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise CannotStart(
            f"cannot listen on {host} port {port}: {error.strerror or error}; choose another with --port or --host"
        ) from error


def _url(host: str, listener: socket.socket) -> str:
    if host in {"", "0.0.0.0", "::"}:  # noqa: S104, listens on all interfaces, also on this one  # nosec B104
        host = "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


@contextmanager
def _redis(url: str | None) -> Iterator[tuple[str, Embedded | None]]:
    """Yield the Redis URL: the given one, or that of an embedded server, with its faults, until the block ends."""
    if url is not None:
        yield url, None
        return
    with tempfile.TemporaryDirectory(prefix="redismpx-demo-") as folder:
        try:
            server = Server(port=0, append_only=folder)  # a restart keeps the streams
            server.start()
        except (CannotStartServer, ModuleNotFoundError) as error:
            raise CannotStart(f"{error}; use another server with --redis URL") from error
        try:
            with Faults(server) as faults:
                yield faults.url, Embedded(server, faults)
        finally:
            server.stop()
