"""Streams to browsers with Flask: each browser gets the messages of one room as Server-Sent Events.

gunicorn --workers 2 --threads 8 examples.flask_stream:app
gunicorn --workers 2 --worker-class gevent examples.flask_stream:app  # without threads, any number of browsers
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from flask import Flask, Response, abort, request

from redismpx import Activation, Message
from redismpx.blocking import Multiplexer

app = Flask(__name__)  # it rejects pages of other sites: see same_origin.py
app.config["TRUSTED_HOSTS"] = os.environ.get("HOSTS", "localhost,127.0.0.1").split(",")  # others get status 400
app.before_request(
    lambda: abort(403) if urlsplit(request.headers.get("Origin", request.host_url)).netloc != request.host else None
)
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
            for event in sub.events(timeout=1):  # seconds until a heartbeat: it fails if the browser has gone
                if isinstance(event, Message):
                    yield f"data: {json.dumps(event.data.decode(errors='replace'))}\n\n"
                else:  # from each activation on, nothing is missed
                    yield f"event: {'active' if isinstance(event, Activation) else 'gap'}\ndata:\n\n"
            yield ": heartbeat\n\n"


@app.get("/<room>")
def page(room: str) -> str:
    return PAGE


@app.post("/<room>")
def say(room: str) -> Response:
    return Response(f"{mpx.publish(f'room:{room}', request.get_data())}\n", mimetype="text/plain")


@app.get("/<room>/stream")
def stream(room: str) -> Response:
    return Response(events(room), mimetype="text/event-stream", headers={"Cache-Control": "no-store"})
