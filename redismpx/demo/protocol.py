"""The messages between page and server, and the checks of what arrives. No I/O.

Every WebSocket message is one JSON object. A request from the page has the key `do`; a message from the server has the
key `type`.

On `/chat`, one WebSocket for each chat client:

    {"do": "join", "room": ROOM}                 subscribe to a room
    {"do": "leave", "room": ROOM}
    {"do": "say", "room": ROOM, "text": TEXT}    publish to a room that this client has joined

    {"type": "welcome", "name": NAME}            the first message: the name of this client
    {"type": "rooms", "rooms": [ROOM, ...]}      the rooms that this client has joined, confirmed or not
    {"type": "activation", "room": ROOM}         Redis has confirmed the subscription
    {"type": "message", "room": ROOM, "from": NAME, "text": TEXT}
    {"type": "missed", "numbers": N}             how many numbers the subscription has missed in a gap
    {"type": "disconnect", "reason": TEXT}       the connection to Redis is lost; the server reconnects
    {"type": "error", "text": TEXT, "do": VERB}  the last request was rejected, and why; null: it was no request

A client that has lost its WebSocket asks for its name again, with `/chat?name=NAME`.

On `/watch`, one WebSocket for each page:

    {"do": "promise", "seconds": NUMBER}         make a promise: wait this long for one message
    {"do": "keep", "promise": CHANNEL}           publish the message that keeps the promise
    {"do": "fault", "fault": FAULT, "seconds": NUMBER}
                                                 FAULT: "cut" the connection, "freeze" it, or "restart" the server

    {"type": "facts", "command": TEXT, "embedded": BOOLEAN, "channel": NAME, "stream": NAME}
                                                 how to publish with redis-cli; whether all faults are possible; where
                                                 the numbers are published
    {"type": "number", "of": KIND, "number": N}  KIND: "channel", "stream" or "topic", the subscription to the numbers
    {"type": "interrupted", "of": KIND}
    {"type": "resumed", "of": KIND}
    {"type": "gap", "of": "stream"}              Redis does not keep what was missed
    {"type": "reply", "number": N, "reply": N or null}
                                                 the square of a number, from a service that is asked once a second;
                                                 null: the request failed
    {"type": "activation", "pattern": TEXT}      the feed of all rooms is active; `message` and
                                                 `disconnect` follow as above
    {"type": "promise", "promise": CHANNEL, "state": STATE, "seconds": NUMBER, "detail": TEXT}
                                                 STATE: "waiting", then one of "kept", "timed out", "interrupted"
    {"type": "counters", "clients": N, "rooms": N, "subscriptions": N, "connections": N or null, "reconnects": N,
     "messages": N, "published": N, "state": TEXT, "fault": FAULT or null}
                                                 `connections` is counted by Redis; null if
                                                 Redis does not reply. `published` is the last number that the
                                                 publisher has sent, whatever the subscriptions get
    {"type": "error", "text": TEXT, "do": VERB}

In Redis, a room is the channel `demo:room:ROOM`. A message on that channel is `{"from": NAME, "text": TEXT}`; any other
payload is shown as text.
"""

from __future__ import annotations

__all__ = [
    "MAX_CHAT_TEXT",
    "MAX_WEBSOCKET_MESSAGE",
    "PROMISE_PREFIX",
    "ROOM_PREFIX",
    "channel_of",
    "decode_chat_message",
    "encode_chat_message",
    "fault_of",
    "parse_request",
    "room_of",
    "seconds_of",
]

import json
import re
from typing import Any

from .errors import RequestRejected

MAX_WEBSOCKET_MESSAGE = 4096  # bytes of a WebSocket message
MAX_CHAT_TEXT = 500  # characters of a chat message
ROOM_PREFIX = b"demo:room:"
PROMISE_PREFIX = b"demo:promise:"

_ROOM = re.compile(r"[\w-]{1,32}")


def parse_request(text: str | None) -> dict[str, Any]:
    """Parse a request of the page. Raises `RequestRejected` if it is not a JSON object."""
    try:
        request = json.loads(text or "")
    except (ValueError, RecursionError):
        raise RequestRejected("the request is not JSON") from None
    if not isinstance(request, dict):
        raise RequestRejected("the request is not a JSON object")
    return request


def channel_of(room: object) -> bytes:
    """Return the channel of a room. Raises `RequestRejected` if the room's name is invalid."""
    if not isinstance(room, str) or not _ROOM.fullmatch(room):
        raise RequestRejected("a room's name has 1 to 32 letters, digits, - or _")
    return ROOM_PREFIX + room.encode()


def room_of(channel: bytes) -> str:
    """Return the room of a channel, shortened: any program may publish to a channel with a long name."""
    return channel.removeprefix(ROOM_PREFIX)[:64].decode(errors="replace")


def encode_chat_message(name: str, text: object) -> bytes:
    """Return the payload of a chat message. Raises `RequestRejected` if the text is not valid."""
    if not isinstance(text, str) or not text.strip():
        raise RequestRejected("the message is empty")
    if len(text) > MAX_CHAT_TEXT:
        raise RequestRejected(f"the message has more than {MAX_CHAT_TEXT} characters")
    return json.dumps({"from": name, "text": text}).encode()


def decode_chat_message(payload: bytes) -> dict[str, str]:
    """Decode a payload. Any program may publish to a room, so any payload is accepted."""
    try:
        match json.loads(payload[:MAX_WEBSOCKET_MESSAGE]):
            case {"from": str(name), "text": str(text)}:
                return {"from": name[:64], "text": text[:MAX_CHAT_TEXT]}
    except (ValueError, RecursionError):
        pass
    return {"from": "another program", "text": payload[:MAX_CHAT_TEXT].decode(errors="replace")}


def seconds_of(value: object) -> float:
    """Check the timeout of a promise. Raises `RequestRejected` unless it is 1 to 120 seconds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value <= 120:
        raise RequestRejected("the timeout of a promise must be 1 to 120 seconds")
    return value


def fault_of(request: dict[str, Any]) -> tuple[str, float]:
    """Check a fault and its seconds. Raises `RequestRejected`."""
    match request:
        case {"fault": "cut" | "freeze" | "restart" as fault, "seconds": float() | int() as seconds}:
            if 0 <= seconds <= 30:
                return fault, seconds
    raise RequestRejected("a fault is a cut, a freeze or a restart, of at most 30 seconds")
