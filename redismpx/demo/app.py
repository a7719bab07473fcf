"""The web application: the page's files, and a session for each WebSocket."""

from __future__ import annotations

__all__ = ["HEADERS", "STATIC", "new_app"]

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
from .chat import Chat
from .session import Session
from .watch import Watch

STATIC = Path(__file__).parent / "static"
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def new_app(backend: Backend) -> Starlette:
    """Build the application. It closes the backend at its end."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await backend.aclose()

    async def chat(socket: WebSocket) -> None:
        await _run(Chat, socket, backend)

    async def watch(socket: WebSocket) -> None:
        await _run(Watch, socket, backend)

    files = [_file(f"/{path.name}", path) for path in sorted(STATIC.iterdir()) if path.is_file()]
    routes = [
        _file("/", STATIC / "index.html"),
        *files,
        WebSocketRoute("/chat", chat),
        WebSocketRoute("/watch", watch),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


def _file(url: str, path: Path) -> Route:
    async def get(request: Request) -> Response:
        return FileResponse(path, headers=HEADERS)

    return Route(url, get)


async def _run(kind: type[Session], socket: WebSocket, backend: Backend) -> None:
    if not _is_own(socket):
        await socket.close()  # before it is accepted: 403
        return
    await socket.accept()
    await kind(socket, backend).run()


def _is_own(socket: WebSocket) -> bool:
    """Whether a WebSocket comes from this page: browsers let any page connect to any server, and say which it was."""
    origin = socket.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == socket.headers.get("host")
