"""One description for two classes: the docstrings of the asyncio API, in the words of the blocking one."""

from __future__ import annotations

__all__ = ["as_blocking", "described_by"]

import re
from collections.abc import Callable
from typing import TypeVar

_Class = TypeVar("_Class", bound=type)

_WORDS = [
    (r"\bA cancelled\b", "An interrupted"),
    (r"\bCancelling\b", "Interrupting"),
    (r"\bCancelled, it\b", "Interrupted, it"),
    (r"\basync (?=with|for)", ""),
    (r"\bawait (?=\w)", ""),
    (r"`asyncio\.QueueEmpty`|asyncio\.QueueEmpty", "queue.Empty"),
    (r"\bAn asynchronous\b", "A"),
    (r"\baclose\(\)", "close()"),
    (r" in a running event loop", ""),
    (r"In the next iterations of the loop", "Soon"),
]


def as_blocking(text: str) -> str:
    """Return a docstring of the asyncio API as it is for threads."""
    for asynchronous, blocking in _WORDS:
        text = re.sub(asynchronous, blocking, text)
    return text


def described_by(original: type) -> Callable[[_Class], _Class]:
    """Decorate a class: each public member without a docstring gets that of the asyncio class."""

    def describe(blocking: _Class) -> _Class:
        for name, member in vars(blocking).items():
            if not name.startswith("_") and getattr(member, "__doc__", None) is None and hasattr(original, name):
                text = getattr(original, name).__doc__
                target = getattr(member, "__func__", member)
                target.__doc__ = None if text is None else as_blocking(text)
        return blocking

    return describe
