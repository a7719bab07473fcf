"""The one vocabulary of page and server. Checks what comes in; no I/O.

Every WebSocket message is one JSON object. What the page asks has a `do`, what the server tells has a `type`.

On `/chat`, one WebSocket for each chat client:

    {"do": "join", "room": ROOM}                 subscribe to a room
    {"do": "leave", "room": ROOM}
    {"do": "say", "room": ROOM, "text": TEXT}    publish to a room that was joined

    {"type": "welcome", "name": NAME}            first of all: what this client is called
    {"type": "rooms", "rooms": [ROOM, ...]}      the rooms that are wanted now, active or not
    {"type": "activation", "room": ROOM}         Redis has confirmed it
    {"type": "message", "room": ROOM, "from": NAME, "text": TEXT}
    {"type": "disconnect", "reason": TEXT}       the connection to Redis is lost; it reconnects by itself
    {"type": "error", "text": TEXT}              what was asked for was refused, and why

On `/watch`, one WebSocket for each page:

    {"do": "promise", "seconds": NUMBER}         wait for one message, for so long
    {"do": "keep", "promise": CHANNEL}           publish that message
    {"do": "cut"}                                let Redis kill the multiplexer's connection

    {"type": "activation", "pattern": TEXT}      the feed of all rooms is live; then `message`, `disconnect` as above
    {"type": "promise", "promise": CHANNEL, "state": STATE, "seconds": NUMBER, "detail": TEXT}
                                                 STATE: "waiting", then one of "kept", "timed out", "interrupted"
    {"type": "cut", "connections": NUMBER}       how many connections Redis has killed
    {"type": "counters", "clients": N, "rooms": N, "subscriptions": N, "connections": N or null, "reconnects": N,
     "state": TEXT}                              `connections` is what Redis counts itself; null: it does not tell
    {"type": "error", "text": TEXT}

In Redis, a room is the channel `demo:room:ROOM`, and a message there `{"from": NAME, "text": TEXT}`; anything else that
is published there is shown as text.
"""

from __future__ import annotations

__all__ = [
    "MAX_SIZE",
    "MAX_TEXT",
    "PROMISE_PREFIX",
    "ROOM_PREFIX",
    "channel_of",
    "dump",
    "load",
    "read",
    "room_of",
    "seconds_of",
]

import json
import re
from typing import Any

from .errors import Refused

MAX_SIZE = 4096  # bytes of a WebSocket message
MAX_TEXT = 500  # characters of a chat message
ROOM_PREFIX = b"demo:room:"
PROMISE_PREFIX = b"demo:promise:"

_ROOM = re.compile(r"[\w-]{1,32}")


def read(text: str | None) -> dict[str, Any]:
    """Read what a page sent. Raises `Refused`."""
    try:
        request = json.loads(text or "")
    except (ValueError, RecursionError):
        raise Refused("that is not JSON") from None
    if not isinstance(request, dict):
        raise Refused("that is not a JSON object")
    return request


def channel_of(room: object) -> bytes:
    """Return the channel of a room. Raises `Refused` for what cannot be its name."""
    if not isinstance(room, str) or not _ROOM.fullmatch(room):
        raise Refused("a room's name has 1 to 32 letters, digits, - or _")
    return ROOM_PREFIX + room.encode()


def room_of(channel: bytes) -> str:
    """Return the room of a channel. Anybody may publish to any channel, so what is shown is bounded."""
    return channel.removeprefix(ROOM_PREFIX)[:64].decode(errors="replace")


def dump(name: str, text: object) -> bytes:
    """Build the payload of a chat message. Raises `Refused` for what cannot be one."""
    if not isinstance(text, str) or not text.strip():
        raise Refused("a message needs some text")
    if len(text) > MAX_TEXT:
        raise Refused(f"a message has at most {MAX_TEXT} characters")
    return json.dumps({"from": name, "text": text}).encode()


def load(payload: bytes) -> dict[str, str]:
    """Read the payload of a chat message, whoever published it."""
    try:
        match json.loads(payload[:MAX_SIZE]):
            case {"from": str(name), "text": str(text)}:
                return {"from": name[:64], "text": text[:MAX_TEXT]}
    except (ValueError, RecursionError):
        pass
    return {"from": "somebody else", "text": payload[:MAX_TEXT].decode(errors="replace")}


def seconds_of(value: object) -> float:
    """Return the time that a promise has. Raises `Refused`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value <= 120:
        raise Refused("a promise has 1 to 120 seconds")
    return value
