"""The form of a reply: an `Envelope` with the body, or with a header that says why there is none. No I/O.

A request chooses the channel for its reply. It may choose one that is served, so a service must tell a reply from a
request: a reply has one of two headers that no request has.
"""

from __future__ import annotations

__all__ = [
    "FAILURE",
    "REPLIES",
    "check_request_headers",
    "decode_body",
    "new_failure",
    "new_reply",
    "read_reply",
    "read_request",
]

from collections.abc import Mapping
from typing import Any

from ._core.raised import first_line, is_a, name_of
from .envelope import REPLY, REPLY_HEADERS, Envelope
from .errors import DecodeError, RequestFailed, plain
from .typing import Decode

FAILURE = "Mpx-Error"
"""The header of a reply that reports a failure: the type and the text of the exception that the handler raised."""
REPLIES = b"__mpx_reply:"
"""The prefix of all reply channels."""


def new_reply(body: object) -> bytes:
    """Return the reply for what a handler returned.

    Raises:
        TypeError: the handler returned something else than bytes or None.
    """
    if body is None:
        body = b""
    if not isinstance(body, bytes):
        raise TypeError(f"a handler must return bytes or None, not {type(body).__name__}; encode= converts its results")
    return bytes(Envelope(body, REPLY_HEADERS))


def new_failure(error: BaseException) -> bytes:
    """Return the reply that reports an exception: its type and the first line of its text, never its traceback."""
    text = first_line(error)
    if is_a(error, DecodeError) and error.__cause__ is not None:  # whose own text may repeat the data
        text += f" ({name_of(error.__cause__)})"
    kind = name_of(error)
    return bytes(Envelope(b"", {FAILURE: plain(f"{kind}: {text}" if text else kind)}))


def decode_body(channel: bytes, body: bytes, decode: Decode[Any] | None) -> Any:
    """Return a body, decoded if there is a `decode`.

    Raises:
        DecodeError: `decode` raised an exception, which is the cause.
    """
    if decode is None:
        return body
    try:
        return decode(body)
    except Exception as error:
        raise DecodeError(channel, body) from error


def read_reply(channel: bytes, reply: bytes, decode: Decode[Any] | None = None) -> Any:
    """Return the body of a reply to a request on `channel`.

    Raises:
        RequestFailed: the reply reports a failure, or is not an envelope.
        DecodeError: the body cannot be decoded.
    """
    try:
        envelope = Envelope.from_bytes(reply)
    except ValueError as error:
        raise RequestFailed(channel, f"the reply is {error}") from None
    failure = envelope.headers.get(FAILURE)
    if failure is not None:
        raise RequestFailed(channel, failure)
    return decode_body(channel, envelope.body, decode)


def read_request(data: bytes) -> Envelope:
    """Return the envelope of a request.

    Raises:
        ValueError: the payload is not an envelope, or it is a reply.
    """
    envelope = Envelope.from_bytes(data)
    check_request_headers(envelope.headers)
    return envelope


def check_request_headers(headers: Mapping[str, str]) -> None:
    """Raise `ValueError` if headers belong to a reply."""
    if headers and (REPLY in headers or FAILURE in headers):
        raise ValueError(f"the headers {REPLY} and {FAILURE} are for replies; no service handles a request with them")
