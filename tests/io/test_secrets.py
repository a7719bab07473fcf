"""A password is replaced in every form in which a server or a library may repeat it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio.sentinel import Sentinel
from redis.credentials import UsernamePasswordCredentialProvider

from redismpx._io.redispy.secrets import Secrets

SECRET = "p@ss/w%rd#? é'\"\\ in hunter2"


def quoted_by_redis(text: str) -> str:
    """The form of an argument in the log and in some errors of Redis."""
    named = {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t", ord('"'): '\\"', ord("\\"): "\\\\"}
    data = text.encode(errors="surrogateescape")
    return "".join(named.get(byte, chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}") for byte in data)


ENCODINGS: dict[str, Callable[[str], str]] = {
    "raw": str,
    "repr": lambda text: repr(text)[1:-1],
    "bytes": lambda text: repr(text.encode())[2:-1],
    "latin-1": lambda text: text.encode().decode("latin-1"),
    "JSON": lambda text: json.dumps(text)[1:-1],
    "Redis": quoted_by_redis,
    "RESP": lambda text: f"${len(text.encode())}\r\n{text}\r\n",
    "URL": lambda text: quote(text, ""),
    "URL path": quote,
    "URL, lower case": lambda text: re.sub("%..", lambda found: found[0].lower(), quote(text, "")),
    "URL, partly": lambda text: quote(text, "/@:?"),
}
each_way = pytest.mark.parametrize("encode", ENCODINGS.values(), ids=list(ENCODINGS))


def secrets(**options: object) -> Secrets:
    pool: Any = SimpleNamespace(connection_kwargs=options)
    return Secrets(pool)


@each_way
def test_a_password_is_replaced_in_each_encoding(encode: Callable[[str], str]) -> None:
    """The password is replaced wherever it occurs, and nothing else is."""
    text = f"ERR 'AUTH' 'user' '{encode(SECRET)}', AUTH {encode(SECRET)} again"
    hidden = secrets(password=SECRET).hide(text)
    assert "hunter2" not in hidden
    assert hidden.startswith("ERR 'AUTH' 'user' '")
    assert hidden.endswith(" again")
    assert hidden.count("***") == 2


@each_way
@given(password=st.text(st.characters(exclude_categories=["Cs"]), min_size=4, max_size=40))
def test_any_password_is_replaced(encode: Callable[[str], str], password: str) -> None:
    """A password of any characters is replaced, whichever of them are escaped."""
    assert encode(password) not in secrets(password=password).hide(f"before {encode(password)} after")


def test_a_long_password_that_is_cut_off_is_replaced() -> None:
    """A token of which a server repeats the first part only is replaced; so is one of many kilobytes."""
    token = "eyJhbGciOiJSUzI1NiIsImtpZCI6IjEifQ." * 100
    hide = secrets(password=token).hide
    assert hide(f"'AUTH' '{token[:40]}' ") == "'AUTH' '***' "
    assert hide(f"before {token} after") == "before *** after"


def test_short_texts_are_not_replaced() -> None:
    """A password of three characters occurs in any text by chance; replacing it would only point it out."""
    assert secrets(password="red").hide("connection to redis refused") == "connection to redis refused"


@pytest.mark.parametrize(
    "options",
    [
        {"password": SECRET},
        {"password": SECRET.encode()},
        {"ssl_password": SECRET},
        {"credential_provider": UsernamePasswordCredentialProvider("user", SECRET)},
        {"password": None, "credential_provider": None},
    ],
    ids=lambda options: next(iter(options)),
)
def test_each_option_with_a_password_counts(options: dict[str, object]) -> None:
    """Passwords of the server and of the private key are known, as text, as bytes or from a provider."""
    assert ("hunter2" in secrets(**options).hide(f"no {SECRET}")) is (options.get("password", 0) is None)


def test_the_passwords_of_sentinels_count() -> None:
    """The password for the Sentinels is known beside the password for the master."""
    sentinel = Sentinel([("127.0.0.1", 1)], sentinel_kwargs={"password": "hunter2-sentinel"}, password="hunter2-master")
    pool: Any = sentinel.master_for("main").connection_pool
    assert "hunter2" not in Secrets(pool).hide("not hunter2-sentinel, not hunter2-master")


def test_the_causes_of_an_error_are_cleaned_too() -> None:
    """The arguments and attributes of an exception and of those that led to it show no password."""
    first, second = OSError(7, f"first {SECRET}"), ValueError(f"second {SECRET}".encode())
    error = RuntimeError(f"third {SECRET}", 3)
    error.detail = f"detail {SECRET}"  # type: ignore[attr-defined]
    second.__context__ = first
    error.__cause__, second.__cause__ = second, error  # even in a loop
    secrets(password=SECRET).hide_in(error)
    assert (error.args, vars(error)) == (("third ***", 3), {"detail": "detail ***"})
    assert second.args == (b"second ***",)
    assert first.args == (7, "first ***")
