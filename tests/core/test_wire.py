"""Commands as bytes, and the escaping of glob characters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redismpx._core.wire import Command, Verb, escape_glob


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=4))
def test_each_argument_is_sent_with_its_length(names: list[bytes]) -> None:
    """A command is an array of strings, each with its length."""
    sent = bytes(Command(Verb.SUBSCRIBE, tuple(names)))
    parts = [b"SUBSCRIBE", *names]
    assert sent == b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


def test_escape_glob_rejects_other_types() -> None:
    """escape_glob() raises TypeError for what is no text or bytes."""
    with pytest.raises(TypeError):
        escape_glob(1)  # type: ignore[arg-type]


@given(st.binary(max_size=20))
def test_escaping_leaves_no_active_glob_character(prefix: bytes) -> None:
    """An escaped prefix has no active glob character, and means the same bytes."""
    escaped = escape_glob(prefix)
    plain, position = bytearray(), 0
    while position < len(escaped):
        if escaped[position] == ord("\\"):
            position += 1
        else:
            assert escaped[position] not in b"*?["
        plain.append(escaped[position])
        position += 1
    assert bytes(plain) == prefix
