"""A payload with headers, an id, a timestamp and a reply channel, as bytes that any language can read. No I/O.

The wire form: a first line, one line for each header, an empty line, and the body (any bytes).

    MPX/1 <id> <timestamp> [<reply-to>]
    <name>: <value>

    <body>

Lines end with CR LF.
"""

from __future__ import annotations

__all__ = ["MAX_HEAD", "MAX_HEADERS", "REPLY", "REPLY_HEADERS", "Envelope", "Headers", "new_id"]

import os
import re
import time
from collections.abc import ItemsView, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import quote_from_bytes, unquote_to_bytes

MAX_HEADERS = 100
"""The number of headers that an envelope may have: as many as HTTP servers allow."""
MAX_HEAD = 65_536
"""The number of bytes before the body: only so many bytes of a hostile payload are read before it is rejected."""
REPLY = "Mpx-Reply"
"""The header that tells a reply from a request. Its value is `ok`."""

_ID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
_FIRST_LINE = re.compile(f"MPX/1 ({_ID}) ({_TIME})(?: ([!-~]+))?", re.ASCII)
_SAFE = bytes(range(0x21, 0x7F)).replace(b"%", b"").decode()  # bytes of a channel that are not escaped
_STRAY = re.compile("%(?![0-9A-Fa-f]{2})")
_is_id = re.compile(_ID).fullmatch
_is_name = re.compile("[^:\r\n\0\ud800-\udfff]+").fullmatch  # UTF-8 cannot encode the last range
_is_value = re.compile("[^\r\n\0\ud800-\udfff]*").fullmatch

_last = 0  # the time of the newest id, in 4096ths of a millisecond


def new_id() -> str:
    """Return a UUID of version 7: ids sort by the time when they were made, and ids of one thread by their order."""
    global _last
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    # RFC 9562, 6.2, method 3: 12 bits of a finer clock; if the clock has not moved, one more than the last id.
    _last = max(milliseconds << 12 | (rest << 12) // 1_000_000, _last + 1)
    chance = int.from_bytes(os.urandom(8)) & 0x3FFF_FFFF_FFFF_FFFF
    number = (_last >> 12) << 80 | 7 << 76 | (_last & 0xFFF) << 64 | 2 << 62 | chance
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Envelope:
    """A payload with headers, an id, a timestamp and a reply channel. Immutable.

    `Multiplexer.publish()` accepts an envelope; `bytes(envelope)` is its wire form. `from_bytes()` reads the wire form,
    and can be the `decode` of a subscription.

    Args:
        body: the payload itself: any bytes.
        headers: text by name. A name is not empty and has no colon. Names and values have no CR, LF or NUL. Both are
            used unchanged: case and spaces are kept. The mapping is copied.
        reply_to: the channel for the reply. None: no reply is expected.
        id: a UUID in its usual form. Default: a new UUID of version 7, which sorts by time.
        timestamp: a time with a time zone; it is converted to UTC. Default: now.

    Raises:
        TypeError, ValueError: a value is invalid. The error does not repeat the value.

    Example:
        ::

            envelope = Envelope(b"12.50", {"Currency": "EUR"})
            await mpx.publish("payments", envelope)
            print(Envelope.from_bytes(bytes(envelope)) == envelope)  # True
    """

    body: bytes
    """The payload itself."""
    headers: Mapping[str, str] = field(default_factory=lambda: _NO_HEADERS, hash=False)
    """Text by name, read-only."""
    reply_to: bytes | None = field(default=None, kw_only=True)
    """The channel for the reply. None: no reply is expected."""
    id: str = field(default_factory=new_id, kw_only=True)
    """A UUID. The ids that this library makes sort by time."""
    timestamp: datetime = field(default_factory=_now, kw_only=True)
    """The time at which the envelope was made, by the clock of its maker: in UTC, with microseconds."""

    def __post_init__(self) -> None:
        if not isinstance(self.body, bytes):
            raise TypeError(f"a body must be bytes, not {type(self.body).__name__}")
        if type(self.headers) is not Headers:
            object.__setattr__(self, "headers", Headers(self.headers))
        if self.reply_to is not None:
            if not isinstance(self.reply_to, bytes):
                raise TypeError(f"reply_to must be bytes or None, not {type(self.reply_to).__name__}")
            if not self.reply_to:
                raise ValueError("reply_to must not be empty; None means that no reply is expected")
        if not _is_id(self.id):
            raise ValueError("an id must be a UUID in its usual form: 36 characters, lower case")
        if not isinstance(self.timestamp, datetime):
            raise TypeError(f"a timestamp must be a datetime, not {type(self.timestamp).__name__}")
        if self.timestamp.tzinfo is not UTC:
            if self.timestamp.utcoffset() is None:
                raise ValueError("a timestamp must have a time zone: datetime.now(UTC)")
            object.__setattr__(self, "timestamp", self.timestamp.astimezone(UTC))

    def __bytes__(self) -> bytes:
        """Return the wire form. Raises `ValueError` if there are more than MAX_HEAD bytes before the body."""
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
        """Read the wire form.

        Args:
            data: a payload.

        Returns:
            The envelope.

        Raises:
            ValueError: the payload is not an envelope. The error does not repeat the payload.
        """
        try:
            end = data.find(b"\r\n\r\n", 0, MAX_HEAD + 4)
            if not data.startswith(b"MPX/1 ") or end < 0:
                raise ValueError(f"no head of at most {MAX_HEAD} bytes that begins with MPX/1")
            first, _, rest = data[:end].decode().partition("\r\n")
            found = _FIRST_LINE.fullmatch(first)
            if found is None:
                raise ValueError("its first line is not MPX/1, an id, a timestamp and an optional channel")
            id, timestamp, reply_to = found.groups()  # noqa: A001, the name of the field
            headers = _COMMON_HEADERS.get(rest)
            return cls(
                data[end + 4 :],
                _read_headers(rest.split("\r\n")) if headers is None else headers,
                reply_to=None if reply_to is None else _unquote(reply_to),
                id=id,
                timestamp=_read_time(timestamp),
            )
        except UnicodeDecodeError:
            raise ValueError("not an envelope: its head is not UTF-8") from None
        except ValueError as error:
            raise ValueError(f"not an envelope: {error}") from None

    def __repr__(self) -> str:
        reply = "" if self.reply_to is None else ", with reply_to"
        return f"<Envelope {self.id} {len(self.headers)} headers, {len(self.body)} bytes{reply}>"


class Headers(Mapping[str, str]):
    """Valid headers: text by name, read-only. Unlike a `types.MappingProxyType`, they can be pickled and copied."""

    __slots__ = ("_texts",)

    def __init__(self, texts: Mapping[str, str]) -> None:
        if type(texts) is not dict and not isinstance(texts, Mapping):
            raise TypeError(f"headers must be a mapping of str to str, not {type(texts).__name__}")
        self._texts = copy = dict(texts)
        if len(copy) > MAX_HEADERS:
            raise ValueError(f"{len(copy)} headers are more than the {MAX_HEADERS} that are allowed")
        try:
            for name, value in copy.items():
                if not _is_name(name):
                    raise ValueError("the name of a header must not be empty, and must not have a colon, CR, LF or NUL")
                if not _is_value(value):
                    raise ValueError("the value of a header must not have CR, LF or NUL")
        except TypeError:
            (wrong, *_) = [
                type(text).__name__ for header in copy.items() for text in header if not isinstance(text, str)
            ]
            raise TypeError(f"the names and values of headers must be str, not {wrong}") from None

    def __getitem__(self, name: str) -> str:
        return self._texts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def items(self) -> ItemsView[str, str]:
        """Return the names with their values, faster than `Mapping` itself does."""
        return self._texts.items()

    def __repr__(self) -> str:
        return repr(self._texts)


_NO_HEADERS: Headers = Headers({})
REPLY_HEADERS: Headers = Headers({REPLY: "ok"})
_COMMON_HEADERS = {"": _NO_HEADERS, f"{REPLY}: ok": REPLY_HEADERS}  # already read


def _read_headers(lines: list[str]) -> dict[str, str]:
    headers = {}
    for line in lines:
        name, separator, value = line.partition(": ")
        if not separator:
            raise ValueError("a header line has no colon and space")
        headers[name] = value
    if len(headers) < len(lines):
        raise ValueError("a header occurs twice")
    return headers


def _read_time(timestamp: str) -> datetime:
    try:
        return datetime.fromisoformat(timestamp)
    except ValueError:
        raise ValueError("its timestamp is not a valid time") from None


def _unquote(reply_to: str) -> bytes:
    if "%" not in reply_to:
        return reply_to.encode()
    if _STRAY.search(reply_to):
        raise ValueError("its reply channel has a % without two hexadecimal digits")
    return unquote_to_bytes(reply_to)
