"""The web application. It serves the page's files and runs a handler for each WebSocket."""

from __future__ import annotations

__all__ = ["SECURITY_HEADERS", "STATIC_FOLDER", "new_app"]

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from .backend import Backend
from .chat import ChatWebSocket
from .watch import WatchWebSocket
from .websocket import DemoWebSocket

STATIC_FOLDER = Path(__file__).parent / "static"
SECURITY_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def new_app(backend: Backend) -> Starlette:
    """Build the application. It closes the backend when it shuts down."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await backend.aclose()

    async def chat(socket: WebSocket) -> None:
        await _run(ChatWebSocket, socket, backend)

    async def watch(socket: WebSocket) -> None:
        await _run(WatchWebSocket, socket, backend)

    files = [_file(f"/{path.name}", path) for path in sorted(STATIC_FOLDER.iterdir()) if path.is_file()]
    routes = [
        _file("/", STATIC_FOLDER / "index.html"),
        *files,
        WebSocketRoute("/chat", chat),
        WebSocketRoute("/watch", watch),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


def _file(url: str, path: Path) -> Route:
    async def get(request: Request) -> Response:
        return FileResponse(path, headers=SECURITY_HEADERS)

    return Route(url, get)


async def _run(handler: type[DemoWebSocket], socket: WebSocket, backend: Backend) -> None:
    if not _is_same_origin(socket):
        await socket.close()  # a close before accept() makes the reply 403
        return
    await socket.accept()
    await handler(socket, backend).run()


def _is_same_origin(socket: WebSocket) -> bool:
    """Return True unless another site's page opened the WebSocket.

    Browsers let any page connect to any server, and send the page's origin. Other programs send no origin.
    """
    origin = socket.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == socket.headers.get("host")
