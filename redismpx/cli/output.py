"""What the commands write. Names and payloads are data from outside: a terminal gets them escaped."""

from __future__ import annotations

__all__ = ["Form", "Output", "shown"]

import base64
import enum
import json
import os
import sys
from typing import Any

_CYAN, _DIM, _YELLOW, _PLAIN = "\x1b[36m", "\x1b[2m", "\x1b[33m", "\x1b[0m"


class Form(enum.Enum):
    """How messages are written."""

    TEXT = enum.auto()
    JSON = enum.auto()
    RAW = enum.auto()


def shown(data: bytes) -> str:
    """Return data as text in one line: UTF-8, with all that is not printable escaped."""
    text = data.decode(errors="backslashreplace")
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


class Output:
    """Writes messages to stdout, and notices beside them: to stdout of a terminal, otherwise to stderr."""

    def __init__(self, form: Form = Form.TEXT) -> None:
        self._form = form
        self._is_terminal = sys.stdout.isatty()
        self._is_colored = self._is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def message(self, data: bytes, labels: dict[str, bytes] | None = None, **others: bytes) -> None:
        """Write a message: the payload, and labels such as its channel in front of it; others in JSON only.

        Raises:
            BrokenPipeError: nobody reads the output any more.
        """
        labels = labels or {}
        if self._form is Form.RAW:
            line = data + b"\n"
        elif self._form is Form.JSON:
            line = json.dumps(_fields({**labels, **others, "data": data})).encode() + b"\n"
        else:
            heads = "".join(f"{self._paint(_CYAN, shown(label))}\t" for label in labels.values())
            line = f"{heads}{shown(data)}\n".encode(sys.stdout.encoding or "utf-8", "backslashreplace")
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()

    def notice(self, text: str, *, warning: bool = False) -> None:
        """Write a line about the messages, and not of them."""
        stream = sys.stdout if self._is_terminal else sys.stderr
        stream.write(self._paint(_YELLOW if warning else _DIM, f"# {text}") + "\n")
        stream.flush()

    def _paint(self, color: str, text: str) -> str:
        return f"{color}{text}{_PLAIN}" if self._is_colored else text


def _fields(labels: dict[str, bytes]) -> dict[str, Any]:
    """Return the fields of a JSON object. Bytes that are no UTF-8 are in base 64."""
    fields = {}
    for name, data in labels.items():
        try:
            fields[name] = data.decode()
        except UnicodeDecodeError:
            fields[f"{name}_base64"] = base64.b64encode(data).decode()
    return fields
