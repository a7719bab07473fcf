"""Where one reply of a server ends and the next begins, and which of them are messages. No I/O."""

from __future__ import annotations

__all__ = ["MessageFilter"]

from collections.abc import Collection

import hiredis

_MESSAGES = {b"message": 1, b"smessage": 1, b"pmessage": 2}
"""Where the channel of each kind of message is in its frame."""


class MessageFilter:
    """Removes messages from what a server sends to one client, from the first byte on.

    An incomplete reply waits for its rest. Bytes that are no RESP pass unchanged, and so do all that follow.

    Args:
        dropped: the channels whose messages are removed. It may change at any time.
    """

    def __init__(self, dropped: Collection[bytes]) -> None:
        self._dropped = dropped
        self._buffer = bytearray()
        self._is_resp = True

    def __call__(self, data: bytes) -> bytes:
        """Return what the client gets of these bytes and of those that waited."""
        self._buffer += data
        kept = bytearray()
        start = 0
        try:
            while self._is_resp and (end := _end_of_reply(self._buffer, start)) is not None:
                frame = bytes(self._buffer[start:end])
                start = end
                if not (self._dropped and _channel(frame) in self._dropped):
                    kept += frame
        except ValueError:
            self._is_resp = False
        if not self._is_resp:
            kept += self._buffer[start:]
            start = len(self._buffer)
        del self._buffer[:start]
        return bytes(kept)


def _end_of_reply(data: bytearray, start: int) -> int | None:
    """Return where the reply that begins at `start` ends; None if its end is missing. ValueError: it is no RESP."""
    left = 1  # elements that are still to come
    while left:
        end = data.find(b"\r\n", start)
        if end < 0:
            return None
        kind, rest = chr(data[start]), data[start + 1 : end]
        start = end + 2
        left -= 1
        if kind in ("*", ">", "~"):
            left += max(0, int(rest))
        elif kind in ("%", "|"):
            left += 2 * int(rest) + (kind == "|")  # attributes are followed by the reply that they belong to
        elif kind in ("$", "!", "=") and int(rest) >= 0:
            start += int(rest) + 2
            if start > len(data):
                return None
        elif kind not in ("+", "-", ":", "_", "#", ",", "(", "$"):
            raise ValueError(kind)
    return start


def _channel(frame: bytes) -> bytes | None:
    """Return the channel of a message; None if the reply is no message."""
    if frame[:1] not in b"*>":
        return None
    reader = hiredis.Reader()
    reader.feed(frame)
    reply = reader.gets()
    place = _MESSAGES.get(reply[0]) if reply and type(reply[0]) is bytes else None
    return None if place is None else reply[place]
