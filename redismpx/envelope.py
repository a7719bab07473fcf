"""A payload with headers, an id, a time and a place for the answer, as bytes that any language can read. No I/O.

The wire form: a first line, one line for each header, an empty line, and the body, which may be any bytes.

    MPX/1 <id> <timestamp> [<reply-to>]
    <name>: <value>

    <body>

Lines end with CR LF.
"""

from __future__ import annotations

__all__ = ["MAX_HEAD", "MAX_HEADERS", "Envelope", "new_id"]

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from urllib.parse import quote_from_bytes, unquote_to_bytes

MAX_HEADERS = 100
"""Headers that an envelope may have: as many as HTTP servers allow, and far more than anybody needs."""
MAX_HEAD = 65_536
"""Bytes that may come before the body, so that a hostile payload of any size is refused after a look at so many."""

_ID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
_FIRST_LINE = re.compile(f"MPX/1 ({_ID}) ({_TIME})(?: ([!-~]+))?", re.ASCII)
_SAFE = bytes(range(0x21, 0x7F)).replace(b"%", b"").decode()  # what stands for itself in a channel
_STRAY = re.compile("%(?![0-9A-Fa-f]{2})")
_is_id = re.compile(_ID).fullmatch
_is_name = re.compile("[^:\r\n\0\ud800-\udfff]+").fullmatch  # the last are what UTF-8 cannot carry
_is_value = re.compile("[^\r\n\0\ud800-\udfff]*").fullmatch
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})

_last = 0  # the time in the newest id: milliseconds, and their 4096th parts


def new_id() -> str:
    """Return a UUID, version 7: ids sort by the time when they were made, those of one thread in their order."""
    global _last
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    # RFC 9562, 6.2, method 3: 12 bits of a finer clock, and one more than the last when that has not moved.
    _last = max(milliseconds << 12 | (rest << 12) // 1_000_000, _last + 1)
    chance = int.from_bytes(os.urandom(8)) & 0x3FFF_FFFF_FFFF_FFFF
    number = (_last >> 12) << 80 | 7 << 76 | (_last & 0xFFF) << 64 | 2 << 62 | chance
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Envelope:
    """A payload and what belongs to it. `bytes(envelope)` is what to publish; `from_bytes` is a `decode`.

    Args:
        body: the payload proper: any bytes.
        headers: text by name. Names are not empty and have no colon; neither names nor values have CR, LF or NUL.
            Both are taken as they are: no case is folded, no space is stripped. The mapping is copied.
        reply_to: the channel on which an answer is wanted; None: none is.
        id: a UUID in its usual form. Left out, one that sorts by time (version 7).
        timestamp: with a time zone; kept in UTC. Left out, it is now.

    Raises `TypeError` and `ValueError` for what cannot be sent, and never repeats it.
    """

    body: bytes
    """The payload proper."""
    headers: Mapping[str, str] = field(default_factory=lambda: _NO_HEADERS, hash=False)
    """Text by name, read-only."""
    reply_to: bytes | None = field(default=None, kw_only=True)
    """The channel on which an answer is wanted; None if none is."""
    id: str = field(default_factory=new_id, kw_only=True)
    """A UUID. Those that this library makes sort by time."""
    timestamp: datetime = field(default_factory=_now, kw_only=True)
    """When it was made, by the clock of who made it: in UTC, with microseconds."""

    def __post_init__(self) -> None:
        if not isinstance(self.body, bytes):
            raise TypeError(f"a body must be bytes, not {type(self.body).__name__}")
        if self.headers is not _NO_HEADERS:
            object.__setattr__(self, "headers", _checked(self.headers))
        if self.reply_to is not None:
            if not isinstance(self.reply_to, bytes):
                raise TypeError(f"reply_to must be bytes or None, not {type(self.reply_to).__name__}")
            if not self.reply_to:
                raise ValueError("reply_to must not be empty; None is for no answer")
        if not _is_id(self.id):
            raise ValueError("an id must be a UUID in its usual form: 36 characters, lower case")
        if not isinstance(self.timestamp, datetime):
            raise TypeError(f"a timestamp must be a datetime, not {type(self.timestamp).__name__}")
        if self.timestamp.tzinfo is not UTC:
            if self.timestamp.utcoffset() is None:
                raise ValueError("a timestamp must have a time zone: datetime.now(UTC)")
            object.__setattr__(self, "timestamp", self.timestamp.astimezone(UTC))

    def __bytes__(self) -> bytes:
        """Return the wire form. Raises `ValueError` if there is more before the body than MAX_HEAD."""
        timestamp = self.timestamp.replace(tzinfo=None).isoformat("T", "microseconds")
        line = f"MPX/1 {self.id} {timestamp}Z"
        if self.reply_to is not None:
            line = f"{line} {quote_from_bytes(self.reply_to, _SAFE)}"
        if self.headers:
            line = "\r\n".join([line, *[f"{name}: {value}" for name, value in self.headers.items()]])
        head = line.encode()
        if len(head) > MAX_HEAD:
            raise ValueError(f"headers and reply_to take {len(head)} bytes; {MAX_HEAD} are allowed")
        return b"%b\r\n\r\n%b" % (head, self.body)

    @classmethod
    def from_bytes(cls, data: bytes) -> Envelope:
        """Read the wire form. Raises `ValueError` for anything else, without repeating it."""
        try:
            end = data.find(b"\r\n\r\n", 0, MAX_HEAD + 4)
            if not data.startswith(b"MPX/1 ") or end < 0:
                raise ValueError(f"no head of at most {MAX_HEAD} bytes that begins with MPX/1")
            first, _, rest = data[:end].decode().partition("\r\n")
            found = _FIRST_LINE.fullmatch(first)
            if found is None:
                raise ValueError("its first line is not MPX/1, an id, a timestamp and perhaps a channel")
            id, timestamp, reply_to = found.groups()  # noqa: A001, its name
            return cls(
                data[end + 4 :],
                _read_headers(rest.split("\r\n")) if rest else _NO_HEADERS,
                reply_to=None if reply_to is None else _unquote(reply_to),
                id=id,
                timestamp=_read_time(timestamp),
            )
        except UnicodeDecodeError:
            raise ValueError("not an envelope: its head is not UTF-8") from None
        except ValueError as error:
            raise ValueError(f"not an envelope: {error}") from None

    def __repr__(self) -> str:
        reply = "" if self.reply_to is None else " to be answered"
        return f"<Envelope {self.id} {len(self.headers)} headers, {len(self.body)} bytes{reply}>"


def _checked(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return a copy that nobody can change."""
    copy = dict(headers)
    if len(copy) > MAX_HEADERS:
        raise ValueError(f"{len(copy)} headers are more than the {MAX_HEADERS} that are allowed")
    for name, value in copy.items():
        if not _is_name(name):
            raise ValueError("the name of a header must not be empty, and have no colon, CR, LF or NUL in it")
        if not _is_value(value):
            raise ValueError("the value of a header must not have CR, LF or NUL in it")
    return MappingProxyType(copy)


def _read_headers(lines: list[str]) -> dict[str, str]:
    headers = {}
    for line in lines:
        name, separator, value = line.partition(": ")
        if not separator:
            raise ValueError("a line among its headers has no colon and space")
        headers[name] = value
    if len(headers) < len(lines):
        raise ValueError("it has a header twice")
    return headers


def _read_time(timestamp: str) -> datetime:
    try:
        return datetime.fromisoformat(timestamp)
    except ValueError:
        raise ValueError("there is no such time as its timestamp") from None


def _unquote(reply_to: str) -> bytes:
    if "%" not in reply_to:
        return reply_to.encode()
    if _STRAY.search(reply_to):
        raise ValueError("in its channel for answers is a % without two hexadecimal digits")
    return unquote_to_bytes(reply_to)
