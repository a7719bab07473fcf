"""What callers hand in: checked at the door, and turned into what is used inside."""

from __future__ import annotations

from typing import TypeVar

from ._core.backlog import Overflow

_T = TypeVar("_T")


def to_bytes(name: str | bytes, what: str) -> bytes:
    """Return the bytes of a name; `str` stands for its UTF-8. `what` names it in the error.

    Raises `TypeError` for anything that is neither, and `ValueError` for text that UTF-8 cannot carry.
    """
    if isinstance(name, bytes):
        return name
    if not isinstance(name, str):
        hint = "; unpack it: *names" if isinstance(name, (list, tuple, set, frozenset)) else ""
        raise TypeError(f"{what} must be str or bytes, not {type(name).__name__}{hint}")
    try:
        return name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} has a character that UTF-8 cannot carry, at index {error.start}; pass bytes"
        ) from None


def check_seconds(seconds: float | None, what: str) -> float | None:
    """Return a number of seconds, or None; raise `TypeError` or `ValueError` for anything else."""
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"{what} must be a number of seconds or None, not {type(seconds).__name__}")
    if not 0 <= seconds < 1e9:
        raise ValueError(f"{what} must not be negative or longer than a lifetime, and is {seconds!s:.20}")
    return seconds


def check_callback(callback: _T, what: str) -> _T:
    """Return a callback, or None where that is allowed; raise `TypeError` for what cannot be called."""
    if callback is not None and not callable(callback):
        raise TypeError(f"{what} must be callable, not {type(callback).__name__}")
    return callback


def check_max_pending(max_pending: int) -> int:
    """Return a bound on waiting messages; raise `TypeError` or `ValueError` for anything else."""
    if isinstance(max_pending, bool) or not isinstance(max_pending, int):
        raise TypeError(f"max_pending must be an int, not {type(max_pending).__name__}")
    if max_pending < 1:
        raise ValueError(f"max_pending must be at least 1, and is {max_pending}")
    return max_pending


def check_overflow(overflow: Overflow | str) -> Overflow:
    """Return an overflow policy, also by its name; raise `TypeError` or `ValueError` for anything else."""
    if isinstance(overflow, Overflow):
        return overflow
    if not isinstance(overflow, str):
        raise TypeError(f"overflow must be an Overflow or its name, not {type(overflow).__name__}")
    try:
        return Overflow(overflow)
    except ValueError:
        names = ", ".join(policy.value for policy in Overflow)
        raise ValueError(f"overflow must be one of {names}, and is {overflow!r}") from None
