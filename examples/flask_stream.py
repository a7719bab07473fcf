"""Streams to browsers with Flask: each browser gets the messages of one room as Server-Sent Events.

gunicorn --workers 2 --threads 8 examples.flask_stream:app
gunicorn --workers 2 --worker-class gevent examples.flask_stream:app  # without threads, any number of browsers
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from flask import Flask, Response, request

from redismpx import Activation, Disconnect
from redismpx.blocking import Multiplexer

HOSTS = {"localhost", "127.0.0.1", *os.environ.get("HOSTS", "").lower().split(",")} - {""}
HEARTBEAT = 1.0  # seconds: only when a server writes does it notice that a browser has gone

app = Flask(__name__)
mpx = Multiplexer(os.environ.get("REDIS_URL", "redis://localhost:6379"))  # starts with its first call, in each worker

PAGE = """<!doctype html><title>Room</title><ul id="list"></ul><form id="form"><input id="text" autofocus></form>
<script>
const show = text => list.append(Object.assign(document.createElement("li"), {textContent: text}))
const stream = new EventSource(location.pathname + "/stream")
stream.onmessage = event => show(JSON.parse(event.data))
stream.addEventListener("gap", () => show("(messages may be missing here)"))
form.onsubmit = event => { event.preventDefault(); fetch("", {method: "POST", body: text.value}); text.value = "" }
</script>"""


def events(room: str) -> Iterator[str]:
    with mpx.new_channel_subscription() as sub:  # closed when the browser leaves: Flask closes the generator
        sub.add(f"room:{room}")
        while not sub.closed:
            for event in sub.events(timeout=HEARTBEAT):
                if isinstance(event, Activation):
                    yield "event: active\ndata:\n\n"  # from here on, nothing is missed
                elif isinstance(event, Disconnect):
                    yield "event: gap\ndata:\n\n"
                else:
                    yield f"data: {json.dumps(event.data.decode(errors='replace'))}\n\n"
            yield ": heartbeat\n\n"


@app.before_request
def reject_other_sites() -> Response | None:
    """Reject pages of other sites, also one that has made its own name lead here: see same_origin.py."""
    origin = request.headers.get("Origin")
    is_own_page = origin in (None, f"http://{request.host}", f"https://{request.host}")
    if is_own_page and urlsplit(f"//{request.host}").hostname in HOSTS:
        return None
    return Response("unknown Host, or a page of another site\n", 403)


@app.get("/<room>")
def page(room: str) -> str:
    return PAGE


@app.post("/<room>")
def say(room: str) -> Response:
    receivers = mpx.publish(f"room:{room}", request.get_data())
    return Response(f"{receivers}\n", mimetype="text/plain")


@app.get("/<room>/stream")
def stream(room: str) -> Response:
    return Response(events(room), mimetype="text/event-stream", headers={"Cache-Control": "no-store"})
