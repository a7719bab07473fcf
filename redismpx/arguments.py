"""Checks of arguments, and their conversion to the types that the package uses."""

from __future__ import annotations

__all__ = [
    "Limits",
    "check_bound",
    "check_callback",
    "check_overflow",
    "check_plain",
    "check_positive",
    "check_seconds",
    "to_bytes",
    "to_events",
    "to_key_name",
    "to_names",
    "to_pattern",
    "to_payload",
    "to_position",
]

import inspect
import re
from collections.abc import Iterable
from dataclasses import is_dataclass
from types import FunctionType, MethodType
from typing import Any, NamedTuple, TypeVar

from ._core.keyspace import KeyName, exact_key, new_key_name
from ._core.overflow import Overflow
from .errors import quote
from .typing import Payload

_Callback = TypeVar("_Callback")

_match_id = re.compile(rb"([0-9]{1,20})(?:-([0-9]{1,20}))?").fullmatch  # the id of an entry in a stream


class Limits(NamedTuple):
    """The limits of one multiplexer. None: no limit."""

    max_channels: int | None
    max_patterns: int | None
    max_promises: int | None
    max_name_bytes: int | None
    max_pattern_bytes: int | None
    max_pattern_stars: int | None


def to_bytes(name: str | bytes, what: str, max_bytes: int | None = None) -> bytes:
    """Return the bytes of a name; `str` is encoded as UTF-8. `what` is what errors call the name.

    Raises:
        TypeError: the name is not `str` or `bytes`.
        ValueError: the name has a character that UTF-8 cannot encode, or is longer than `max_bytes`.
    """
    if type(name) is not bytes:
        if isinstance(name, str):
            name = _encode(name, what)
        elif isinstance(name, bytes):
            name = _exact(name)
        else:
            hint = "; unpack it: *names" if isinstance(name, (list, tuple, set, frozenset)) else ""
            raise TypeError(f"{what} must be str or bytes, not {type(name).__name__}{hint}")
    if max_bytes is not None and len(name) > max_bytes:
        raise ValueError(f"{what} of {len(name)} bytes is too long: at most {max_bytes} are allowed")
    return name


def to_names(names: Iterable[str | bytes], what: str, max_bytes: int | None = None) -> list[bytes]:
    """Return the bytes of each name, and raise, as to_bytes() does. It takes half the time for thousands of names."""
    try:
        encoded = [
            name if type(name) is bytes else name.encode() if type(name) is str else to_bytes(name, what)
            for name in names
        ]
    except UnicodeEncodeError:
        encoded = [to_bytes(name, what) for name in names]  # which raises a clear error
    if max_bytes is not None and max(map(len, encoded), default=0) > max_bytes:
        encoded = [to_bytes(name, what, max_bytes) for name in encoded]  # which raises, too
    return encoded


def to_payload(data: Payload, max_bytes: int | None) -> bytes:
    """Return the bytes of a payload; `str` is encoded as UTF-8.

    Raises:
        TypeError: the payload is not `str` or `bytes`, and has neither the buffer protocol nor `__bytes__`.
        ValueError: the payload has a character that UTF-8 cannot encode, or is longer than `max_bytes`.
    """
    if type(data) is not bytes:
        if isinstance(data, str):
            data = _encode(data, "the data")
        elif hasattr(type(data), "__bytes__"):
            data = _exact(bytes(data))
        else:
            try:
                data = memoryview(data).tobytes()  # type: ignore[arg-type]
            except TypeError:
                raise TypeError(
                    "data must be bytes, str, a buffer or an object with __bytes__, "
                    f"not {type(data).__name__}; encode it first: {_encoding_of(data)}"
                ) from None
    if max_bytes is not None and len(data) > max_bytes:
        raise ValueError(
            f"a payload of {len(data)} bytes is longer than max_payload={max_bytes}; "
            "publish a reference to the data instead, or raise max_payload"
        )
    return data


def _encoding_of(data: object) -> str:
    """Return the call that encodes a payload."""
    if hasattr(type(data), "model_dump_json"):  # pydantic
        return "data.model_dump_json()"
    if hasattr(type(data), "__struct_fields__"):
        return "msgspec.json.encode(data)"
    if is_dataclass(data):
        return "json.dumps(dataclasses.asdict(data))"
    return "json.dumps(data)" if isinstance(data, (dict, list, tuple)) else "str(data), json.dumps(data)"


def to_pattern(pattern: str | bytes, limits: Limits) -> bytes:
    """Return the bytes of a glob pattern, as to_bytes() does.

    Servers match patterns recursively: many stars cost them time, and more than a thousand stars crashed some servers
    (CVE-2022-36021, CVE-2024-31228).

    Raises:
        TypeError: the pattern is not `str` or `bytes`.
        ValueError: the pattern is empty or too long, has too many stars, or has a character that UTF-8 cannot encode.
    """
    name = to_bytes(pattern, "a pattern", limits.max_pattern_bytes)
    if not name:
        raise ValueError("a pattern must not be empty: the empty pattern matches only the empty channel")
    stars = name.count(b"*")
    if limits.max_pattern_stars is not None and stars > limits.max_pattern_stars:
        raise ValueError(
            f"a pattern with {stars} stars costs the server too much time; max_pattern_stars={limits.max_pattern_stars}"
        )
    return name


def to_key_name(pattern: str | bytes, db: int, limits: Limits, *, has_subkeys: bool) -> KeyName:
    """Return the name for the events of keys: a glob pattern, or one key. Raises as to_pattern() does."""
    if isinstance(db, bool) or not isinstance(db, int):
        raise TypeError(f"db must be an int, not {type(db).__name__}")
    if db < 0:
        raise ValueError(f"db must be at least 0, not {db}")
    text = to_bytes(pattern, "a key pattern", limits.max_name_bytes)
    if not text or exact_key(text) is None:
        to_pattern(text, limits)
    return new_key_name(text, db, has_subkeys=has_subkeys)


def to_position(after: str | bytes | None) -> bytes | None:
    """Return a position in a stream; raise `TypeError` or `ValueError` for anything that is no id.

    None stays None: from now on. `"0"` becomes empty: all that is kept.
    """
    if after is None:
        return None
    text = to_bytes(after, "after")
    if text == b"0":
        return b""
    match = _match_id(text)
    numbers = (int(match[1]), int(match[2] or 0)) if match is not None else (1 << 64, 0)
    if max(numbers) >= 1 << 64:
        raise ValueError(f"after must be the id of an entry, as 1700000000000-0, '0' or None, not {quote(text)}")
    return b"%d-%d" % numbers


def to_events(events: Iterable[str | bytes] | None) -> frozenset[bytes] | None:
    """Return the names of events, or None; raise `TypeError` or `ValueError` for anything else."""
    if events is None:
        return None
    if isinstance(events, (str, bytes)):
        raise TypeError("events must be a set of names, as in events={'set', 'expired'}")
    names = frozenset([to_bytes(event, "an event") for event in events])
    if not names:
        raise ValueError("events must not be empty; None stands for all events")
    return names


def _encode(name: str, what: str) -> bytes:
    try:
        return str.encode(name)
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} has a character that UTF-8 cannot encode, at index {error.start}; pass bytes"
        ) from None


def _exact(data: bytes) -> bytes:
    """Return plain bytes: a subclass may have a length, a hash and an equality of its own."""
    return data if type(data) is bytes else memoryview(data).tobytes()


def check_bound(bound: int | None, what: str) -> int | None:
    """Return an upper limit, or None; raise `TypeError` or `ValueError` for anything else."""
    return None if bound is None else check_positive(bound, what)


def check_seconds(seconds: float | None, what: str) -> float | None:
    """Return a number of seconds, or None; raise `TypeError` or `ValueError` for anything else."""
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"{what} must be a number of seconds or None, not {type(seconds).__name__}")
    if not 0 <= seconds < 1e9:
        raise ValueError(f"{what} must be from 0 to less than 1e9 seconds, not {seconds!s:.20}")
    return seconds


def check_callback(callback: _Callback, what: str, *arguments: str) -> _Callback:
    """Return a callback, or None; raise `TypeError` for an object that cannot be called with these arguments.

    A callable that does not tell its parameters is accepted: some built-in functions do not.
    """
    if callback is None or _takes(callback, len(arguments)):
        return callback
    if not callable(callback):
        raise TypeError(f"{what} must be callable, not {type(callback).__name__}")
    try:  # not those of a function that a decorator wraps: the decorator may add some
        parameters = inspect.signature(callback, follow_wrapped=False)
    except Exception:  # noqa: BLE001, users' objects
        return callback
    try:
        parameters.bind(*arguments)
    except TypeError as error:
        call = f"{what}({', '.join(arguments)})"
        raise TypeError(f"{what} is called as {call}, but its parameters are {parameters}: {error}") from None
    return callback


def check_plain(callback: _Callback, what: str, *arguments: str) -> _Callback:
    """Return a plain function, or None, as check_callback() does; raise `TypeError` for a coroutine function."""
    if inspect.iscoroutinefunction(callback):
        raise TypeError(f"{what} must be a plain function: nothing can be awaited there; start a task in it")
    return check_callback(callback, what, *arguments)


def _takes(callback: object, count: int) -> bool:
    """Tell, much faster than `inspect`, that a plain function or method takes so many arguments; False if unsure."""
    function: Any = callback
    if isinstance(callback, MethodType):
        function, count = callback.__func__, count + 1
    if type(function) is not FunctionType or function.__code__.co_kwonlyargcount:
        return False
    most = function.__code__.co_argcount
    return most - len(function.__defaults__ or ()) <= count <= most


def check_positive(number: int, what: str) -> int:
    """Return an int that is at least 1; raise `TypeError` or `ValueError` for anything else."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{what} must be an int, not {type(number).__name__}")
    if number < 1:
        raise ValueError(f"{what} must be at least 1, not {number}")
    return number


def check_overflow(overflow: Overflow | str) -> Overflow:
    """Return an overflow policy, given itself or its name; raise `TypeError` or `ValueError` for anything else."""
    if isinstance(overflow, Overflow):
        return overflow
    if not isinstance(overflow, str):
        raise TypeError(f"overflow must be an Overflow or its name, not {type(overflow).__name__}")
    try:
        return Overflow(overflow)
    except ValueError:
        names = ", ".join(policy.value for policy in Overflow)
        raise ValueError(f"overflow must be one of {names}, not {overflow!r}") from None
