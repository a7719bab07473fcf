"""The names and messages of keyspace notifications, with keys of any bytes, and the setting that they need."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from redismpx._core.keyspace import ParsedKeyEvent, exact_key, missing_flags, new_key_name, parse_key_event
from redismpx._core.wire import Kind, escape_glob

HOSTILE = st.lists(st.sampled_from([b":", b"__", b"__:", b"@", b"\n", b"|", b",", b"*", b"\\", b"\0", b"\xff"])).map(
    b"".join
)
KEYS = st.binary() | HOSTILE
EVENTS = st.sampled_from([b"set", b"hset", b"expired", b""])


@given(key=KEYS, event=EVENTS, db=st.integers(0, 10_000))
@example(b"__keyspace@7__:x", b"set", 0)
def test_every_key_survives_its_channel(key: bytes, event: bytes, db: int) -> None:
    """The channel of a key, whatever its bytes are, tells the key, the event and the database."""
    name = new_key_name(escape_glob(key), db)
    assert name.kind is Kind.CHANNEL
    assert (name.key, name.event_of(event)) == (key, event)
    assert parse_key_event(name.name, event) == ParsedKeyEvent(key, event, db, ())


@given(key=KEYS, event=EVENTS, subkeys=st.lists(KEYS, min_size=1))
def test_every_subkey_survives_its_message(key: bytes, event: bytes, subkeys: list[bytes]) -> None:
    """A message about subkeys tells all of them, in their order, whatever their bytes are."""
    name = new_key_name(escape_glob(key), 0, has_subkeys=True)
    data = event + b"|" + b",".join([b"%d:%s" % (len(subkey), subkey) for subkey in subkeys])
    assert name.event_of(data) == event
    assert parse_key_event(name.name, data) == ParsedKeyEvent(key, event, 0, tuple(subkeys))


@given(data=st.binary() | HOSTILE | st.from_regex(rb"\A[a-z]+\|([0-9]{0,3}:?[a-z,]*)*\Z"))
@example(b"hset|" + b"9" * 5_000 + b":a")
@example(b"hset|3:ab")
@example(b"hset|1:ab")
@example(b"hset|1:a,")
@example(b"hset|2:a,")
def test_no_published_text_breaks_the_parser(data: bytes) -> None:
    """Anybody may publish anything on the channel of a key: no text raises, and none makes up subkeys."""
    event, _, rest = data.partition(b"|")
    parsed = parse_key_event(b"__subkeyspace@0__:key", data)
    assert (parsed.key, parsed.event) == (b"key", event)
    whole = b",".join([b"%d:%s" % (len(subkey), subkey) for subkey in parsed.subkeys])
    assert not parsed.subkeys or whole in (rest, rest.removesuffix(b",")) or b"0" in rest  # it may begin a length


@given(pattern=st.text("ab*?[]\\^-"))
def test_an_exact_pattern_matches_its_key_only(pattern: str) -> None:
    """A pattern with a glob character that is not escaped has no exact key; any other one has."""
    plain = pattern.encode().replace(b"\\\\", b"").replace(b"\\*", b"").replace(b"\\?", b"").replace(b"\\[", b"")
    key = exact_key(pattern.encode())
    assert (key is None) == bool(set(plain) & set(b"*?["))
    if key is not None and "\\" not in pattern:
        assert fnmatchcase(key.decode(), pattern)


@pytest.mark.parametrize(
    ("flags", "events", "missing"),
    [
        ("", None, "KA"),
        ("Ex", None, "K"),
        ("K", None, "A"),
        ("AKE", None, ""),  # codespell:ignore ake
        ("Kx", {b"expired"}, ""),
        ("KA", {b"expired", b"set", b"hset", b"evicted"}, ""),
        ("Kx", {b"expired", b"set"}, "$"),
        ("E$", {b"del", b"expired"}, "Kgx"),
        ("KA", {b"new", b"keymiss"}, "mn"),
        ("K", {b"an event of a module"}, ""),
    ],
)
def test_missing_letters_are_found(flags: str, events: set[bytes] | None, missing: str) -> None:
    """Exactly the letters are missing without which the events are not published."""
    name = new_key_name(b"*", 0)
    assert missing_flags(flags, name, None if events is None else frozenset(events)) == missing


def test_subkeys_need_another_letter() -> None:
    """Notifications with subkeys are turned on by a letter of their own."""
    assert missing_flags("KEA", new_key_name(b"*", 0, has_subkeys=True), None) == "S"
