"""Topics in Redis: the names of their channels and patterns, and the form of their messages. No I/O.

A message to the topic `a.b` is published on the channel `<prefix>:a.b`, a broadcast on `<prefix>:`. A request to it is
published on `<prefix>!a.b`, so that it reaches handlers and nobody else. The payload is an `Envelope`.
"""

from __future__ import annotations

__all__ = [
    "ORIGIN",
    "TOPIC",
    "Decoded",
    "Names",
    "check_prefix",
    "decode_json",
    "encode_json",
    "names_of",
    "read_message",
    "request_name",
    "request_names",
    "to_content",
    "topic_of",
]

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from .._core.topic_tree import MORE, ONE, Words, parse_filter, parse_topic
from ..envelope import Envelope
from ..typing import Decode

ORIGIN = "Mpx-Origin"
"""The header that names the publisher: one `Topics` object of one process."""
TOPIC = "Mpx-Topic"
"""The header that has the topic, if the messages of all topics are in one stream."""

_dump = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class Names(NamedTuple):
    """What to subscribe to."""

    channels: tuple[bytes, ...]
    patterns: tuple[bytes, ...]


class Decoded(NamedTuple):
    """A message from another process."""

    topic: Words
    content: dict[str, Any]
    envelope: Envelope


def check_prefix(prefix: str) -> bytes:
    """Return a prefix as it is in the names of channels.

    Raises:
        TypeError, ValueError: it is not `str`, is empty, or has `:`, `!` or characters that a topic may not have.
    """
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be str, not {type(prefix).__name__}")
    try:
        words = parse_filter(prefix)
    except ValueError as error:
        raise ValueError(f"prefix has the rules of a topic: {error}") from None
    if ":" in prefix or "!" in prefix:
        raise ValueError("prefix must not have : or !, which end it in the names of channels")
    if not words:
        raise ValueError("prefix must not be empty: it keeps the topics of one application apart from all other names")
    return prefix.encode()


def names_of(prefix: bytes, words: Words) -> Names:
    """Return the channels and patterns that have all messages of a filter. With wildcards, they have others, too."""
    broadcast = prefix + b":"
    if not words:
        return Names((broadcast,), (broadcast + b"*",))
    if ONE not in words and MORE not in words:
        name = broadcast + ".".join(words).encode()
        return Names((broadcast, name), (name + b".*",))
    glob = broadcast + ".".join(["*" if word in (ONE, MORE) else word for word in words]).encode()
    return Names((broadcast,), (glob,) if glob.endswith(b"*") else (glob, glob + b".*"))


def request_name(prefix: bytes, words: Words) -> bytes:
    """Return the channel for the requests to a topic."""
    return prefix + b"!" + ".".join(words).encode()


def request_names(prefix: bytes, words: Words) -> tuple[bytes, ...]:
    """Return the channel and the pattern, or the pattern alone, that have all requests to a topic and below it."""
    name = request_name(prefix, words)
    return (name, name + b".*") if words else (name + b"*",)


def topic_of(name: bytes) -> Words:
    """Return the topic of what follows the prefix in the name of a channel. Foreign publishers may write anything.

    Raises:
        ValueError: it is no topic.
    """
    return parse_topic(name.decode())


def read_message(topic: bytes | None, raw: bytes, decode: Decode[Any], *, not_from: str) -> Decoded | None:
    """Read a payload; return None if it is from `not_from`. `topic` is None if a header has it.

    Raises:
        Exception: it is no message of a topic, or what `decode` raises.
    """
    envelope = Envelope.from_bytes(raw)
    if envelope.headers.get(ORIGIN) == not_from:
        return None
    words = topic_of(topic) if topic is not None else parse_topic(envelope.headers[TOPIC])
    return Decoded(words, to_content(decode(envelope.body)), envelope)


def to_content(body: object) -> dict[str, Any]:
    """Return a decoded body, if it is the keywords of a message.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(body, dict) or not all(isinstance(key, str) for key in body):
        raise ValueError("the body of a message must be an object: values by keywords")
    return body


def encode_json(value: object) -> bytes:
    """Return a value as JSON.

    Raises:
        TypeError, ValueError: JSON has no such value.
    """
    try:
        return _dump(value).encode()
    except RecursionError:
        raise ValueError("the value is too deep, or refers to itself") from None


def decode_json(data: bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is no JSON text.
    """
    return json.loads(data, parse_constant=_reject)


def _reject(name: str) -> Mapping[str, Any]:
    raise ValueError(f"JSON has no {name}")
