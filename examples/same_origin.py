"""Rejects requests that pages of other sites send. All ASGI examples use it; a site with its own login needs it too.

Browsers let any page connect to any server, and send the origin of the page. Other programs send no origin. A page can
also make the name of its own site lead here (DNS rebinding). So the only accepted names are `localhost` and the names
in the environment variable HOSTS, separated by commas. IP addresses are accepted: no name server can make them lead
elsewhere.
"""

import os
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

HOSTS = {"localhost", *filter(None, os.environ.get("HOSTS", "").lower().split(","))}


class SameOrigin:
    """An ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or is_allowed(Headers(scope=scope)):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocketClose()(scope, receive, send)  # before accept(), which makes the reply 403
        else:
            await PlainTextResponse("unknown Host, or a page of another site\n", 403)(scope, receive, send)


def is_allowed(headers: Headers) -> bool:
    host, origin = headers.get("host", ""), headers.get("origin")
    if origin not in (None, f"http://{host}", f"https://{host}"):
        return False
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name in HOSTS or bool(ip_address(name))
    except ValueError:
        return False
