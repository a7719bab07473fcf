"""What callers hand in: checked at the door, and turned into what is used inside."""

from __future__ import annotations

__all__ = [
    "Limits",
    "check_bound",
    "check_callback",
    "check_overflow",
    "check_positive",
    "check_seconds",
    "to_bytes",
    "to_pattern",
    "to_payload",
]

from typing import NamedTuple, TypeVar

from ._core.buffer import Overflow
from .typing import Payload

_T = TypeVar("_T")


class Limits(NamedTuple):
    """How much may be asked of one multiplexer. None: as much as you like."""

    max_channels: int | None
    max_patterns: int | None
    max_promises: int | None
    max_name_bytes: int | None
    max_pattern_bytes: int | None
    max_pattern_stars: int | None


def to_bytes(name: str | bytes, what: str, max_bytes: int | None = None) -> bytes:
    """Return the bytes of a name; `str` stands for its UTF-8. `what` names it in the error.

    Raises `TypeError` for anything that is neither, and `ValueError` for text that UTF-8 cannot carry, or that is too
    long.
    """
    if isinstance(name, str):
        name = _encode(name, what)
    if isinstance(name, bytes):
        if max_bytes is not None and len(name) > max_bytes:
            raise ValueError(f"{what} of {len(name)} bytes is longer than the {max_bytes} that are allowed")
        return name
    hint = "; unpack it: *names" if isinstance(name, (list, tuple, set, frozenset)) else ""
    raise TypeError(f"{what} must be str or bytes, not {type(name).__name__}{hint}")


def to_payload(data: Payload, max_bytes: int | None) -> bytes:
    """Return the bytes of a payload; `str` stands for its UTF-8. Raises `TypeError` and `ValueError`, as to_bytes()."""
    if type(data) is not bytes:
        if isinstance(data, str):
            data = _encode(data, "the data")
        elif hasattr(type(data), "__bytes__"):
            data = bytes(data)
        else:
            try:
                data = memoryview(data).tobytes()  # type: ignore[arg-type]
            except TypeError:
                raise TypeError(
                    "data must be bytes, str, a buffer or an object with __bytes__, "
                    f"not {type(data).__name__}; encode it first: str(data), json.dumps(data)"
                ) from None
    if max_bytes is not None and len(data) > max_bytes:
        raise ValueError(
            f"a payload of {len(data)} bytes is longer than the {max_bytes} that max_payload allows; "
            "publish where it can be found instead, or raise the bound"
        )
    return data


def to_pattern(pattern: str | bytes, limits: Limits) -> bytes:
    """Return the bytes of a glob pattern, as to_bytes() does; raise `ValueError` for one that matches nothing or harms.

    A server's matching is recursive: many stars cost it time, and more than a thousand crashed some (CVE-2022-36021,
    CVE-2024-31228).
    """
    name = to_bytes(pattern, "a pattern", limits.max_pattern_bytes)
    if not name:
        raise ValueError("a pattern must not be empty: it would match no channel but the empty one")
    stars = name.count(b"*")
    if limits.max_pattern_stars is not None and stars > limits.max_pattern_stars:
        raise ValueError(f"a pattern with {stars} stars is not for a server to match; max_pattern_stars bounds them")
    return name


def _encode(name: str, what: str) -> bytes:
    try:
        return name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} has a character that UTF-8 cannot carry, at index {error.start}; pass bytes"
        ) from None


def check_bound(bound: int | None, what: str) -> int | None:
    """Return a bound on something, or None; raise `TypeError` or `ValueError` for anything else."""
    return None if bound is None else check_positive(bound, what)


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


def check_positive(number: int, what: str) -> int:
    """Return an int from 1 on; raise `TypeError` or `ValueError` for anything else."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{what} must be an int, not {type(number).__name__}")
    if number < 1:
        raise ValueError(f"{what} must be at least 1, and is {number}")
    return number


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
