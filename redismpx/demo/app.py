"""The web application. It serves the page's files and runs a handler for each WebSocket."""

from __future__ import annotations

__all__ = ["DEMO_FOLDER", "SECURITY_HEADERS", "SOURCES", "STATIC_FOLDER", "SameOrigin", "new_app"]

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketClose

from .backend import Backend
from .chat import ChatWebSocket
from .watch import WatchWebSocket

DEMO_FOLDER = Path(__file__).parent
STATIC_FOLDER = DEMO_FOLDER / "static"
SOURCES = (
    DEMO_FOLDER.parent / "multiplexer.py",
    *(DEMO_FOLDER / name for name in ("backend.py", "chat.py", "ticker.py", "watch.py")),
)
"""The modules that the page links to."""
SECURITY_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def new_app(backend: Backend, host: str) -> Starlette:
    """Build the application for a server that listens on `host`. It closes the backend when it shuts down."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await backend.aclose()

    async def chat(socket: WebSocket) -> None:
        await socket.accept()
        await ChatWebSocket(socket, backend).run()

    async def watch(socket: WebSocket) -> None:
        await socket.accept()
        await WatchWebSocket(socket, backend).run()

    files = [_file(f"/{path.name}", path) for path in sorted(STATIC_FOLDER.iterdir()) if path.is_file()]
    routes = [
        _file("/", STATIC_FOLDER / "index.html"),
        *files,
        *[_file(f"/source/{path.name}", path, "text/plain") for path in SOURCES],
        WebSocketRoute("/chat", chat),
        WebSocketRoute("/watch", watch),
    ]
    return Starlette(routes=routes, lifespan=lifespan, middleware=[Middleware(SameOrigin, host=host)])


def _file(url: str, path: Path, media_type: str | None = None) -> Route:
    async def get(request: Request) -> Response:
        return FileResponse(path, headers=SECURITY_HEADERS, media_type=media_type)

    return Route(url, get)


class SameOrigin:
    """Rejects requests that pages of other sites send.

    Browsers let any page connect to any server, and send the origin of the page. Other programs send no origin. A page
    can also make the name of its own site lead here (DNS rebinding). So the only accepted names are `localhost` and
    `host`. IP addresses are accepted: no name server can make them lead elsewhere.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        self._names = {"localhost", host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or reject it."""
        refusal = None if scope["type"] == "lifespan" else self._refusal(Headers(scope=scope))
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocketClose()(scope, receive, send)  # before accept(), which makes the reply 403
        else:
            await PlainTextResponse(refusal, 403)(scope, receive, send)

    def _refusal(self, headers: Headers) -> str | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_trusted(host):
            return "Open this page at localhost or at an IP address, or start the demo with --host NAME.\n"
        if origin not in (None, f"http://{host}", f"https://{host}"):
            return "Pages of other sites cannot connect to this demo.\n"
        return None

    def _is_trusted(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in self._names or bool(ip_address(name))
        except ValueError:
            return False
