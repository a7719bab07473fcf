"""Envelopes carry any bytes; other bytes are rejected without being shown."""

from __future__ import annotations

import dataclasses
import functools
import re
import uuid
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redismpx import Envelope
from redismpx import envelope as envelopes
from redismpx.envelope import MAX_HEAD, MAX_HEADERS, new_id

pytestmark = pytest.mark.usefixtures("no_leaks")

ID = "0193f5c1-7a3e-7c4d-8b21-5f0e9a6d3c77"
TIME = datetime(2025, 1, 2, 3, 4, 5, 6, UTC)
WIRE = (
    b"MPX/1 0193f5c1-7a3e-7c4d-8b21-5f0e9a6d3c77 2025-01-02T03:04:05.000006Z answer:a%20b%25\r\n"
    b"Content-Type: text/plain\r\nk\xc3\xa4se:  zwei: Leerzeichen \r\nempty: \r\n\r\nbody\r\n\r\n\x00\xff"
)
PLAIN = Envelope(b"", id=ID, timestamp=TIME)

names = st.text(st.characters(exclude_characters=":\r\n\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
values = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=50)
zones = st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-11))])
envelopes_of_all_kinds = st.builds(
    Envelope,
    st.binary(),
    st.dictionaries(names, values, max_size=8),
    reply_to=st.none() | st.binary(min_size=1, max_size=40),
    id=st.uuids().map(str),
    timestamp=st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=zones),
)


def test_the_wire_form_is_the_documented_one() -> None:
    """An envelope is written and read exactly as the documentation shows."""
    headers = {"Content-Type": "text/plain", "käse": " zwei: Leerzeichen ", "empty": ""}
    envelope = Envelope(b"body\r\n\r\n\0\xff", headers, reply_to=b"answer:a b%", id=ID, timestamp=TIME)
    assert bytes(envelope) == WIRE
    assert Envelope.from_bytes(WIRE) == envelope
    assert bytes(PLAIN) == b"MPX/1 0193f5c1-7a3e-7c4d-8b21-5f0e9a6d3c77 2025-01-02T03:04:05.000006Z\r\n\r\n"


@given(envelopes_of_all_kinds)
def test_a_written_envelope_is_read_back_equal(envelope: Envelope) -> None:
    """Any envelope is equal to itself after writing and reading."""
    again = Envelope.from_bytes(bytes(envelope))
    assert again == envelope
    assert hash(again) == hash(envelope)
    assert (again.body, again.headers, again.reply_to) == (envelope.body, envelope.headers, envelope.reply_to)
    assert again.id == envelope.id
    assert again.timestamp == envelope.timestamp
    assert again.timestamp.tzinfo is UTC
    assert bytes(again) == bytes(envelope)


@given(st.binary() | st.binary().map(b"MPX/1 ".__add__))
def test_other_bytes_are_rejected_and_not_repeated(data: bytes) -> None:
    """Arbitrary bytes raise ValueError, and no exception context shows them."""
    with pytest.raises(ValueError, match=r"^not an envelope: ") as caught:
        Envelope.from_bytes(data)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@given(envelopes_of_all_kinds, st.data())
def test_a_damaged_envelope_is_rejected_or_still_valid(envelope: Envelope, data: st.DataObject) -> None:
    """Damaged bytes are rejected, or read as a valid envelope."""
    wire = bytearray(bytes(envelope))
    position = data.draw(st.integers(0, len(wire) - 1))
    wire[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        read = Envelope.from_bytes(bytes(wire))
    except ValueError:
        return
    assert Envelope.from_bytes(bytes(read)) == read


FIRST = f"MPX/1 {ID} 2025-01-02T03:04:05.000006Z".encode()


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (b"", "begins with MPX/1"),
        (b"secret", "begins with MPX/1"),
        (FIRST.replace(b"/1", b"/2") + b"\r\n\r\nsecret", "begins with MPX/1"),
        (FIRST + b"\r\nsecret: secret\r\n", "begins with MPX/1"),  # it has no end
        (FIRST + b"\n\nsecret", "begins with MPX/1"),
        (FIRST.replace(b"-", b"", 1) + b"\r\n\r\n", "first line"),
        (FIRST.replace(b"c77", b"C77") + b"\r\n\r\n", "first line"),
        (FIRST.replace(b"Z", b"+00:00") + b"\r\n\r\n", "first line"),
        (FIRST.replace(b".000006", b"") + b"\r\n\r\n", "first line"),
        (FIRST + b" \r\n\r\n", "first line"),
        (FIRST + b" secret secret\r\n\r\n", "first line"),
        (FIRST + b" secr\xc3\xa9t\r\n\r\n", "first line"),
        (FIRST.replace(b"01-02", b"13-02") + b"\r\n\r\n", "not a valid time"),
        (FIRST + b" secret%2\r\n\r\n", "hexadecimal"),
        (FIRST + b"\r\nsecret\r\n\r\n", "no colon and space"),
        (FIRST + b"\r\nsecret:secret\r\n\r\n", "no colon and space"),
        (FIRST + b"\r\n: secret\r\n\r\n", "must not be empty"),
        (FIRST + b"\r\na:b: secret\r\n\r\n", "a colon"),
        (FIRST + b"\r\nsecret: a\r\nsecret: b\r\n\r\n", "twice"),
        (FIRST + b"\r\nsecret: a\nb\r\n\r\n", "CR, LF or NUL"),
        (FIRST + b"\r\nsecret: a\0b\r\n\r\n", "CR, LF or NUL"),
        (FIRST + b"\r\nsecret: \xff\r\n\r\n", "UTF-8"),
        (FIRST + b"\r\nsecret: " + b"x" * MAX_HEAD + b"\r\n\r\n", "begins with MPX/1"),
        (FIRST + b"".join(b"\r\n%d: secret" % n for n in range(MAX_HEADERS + 1)) + b"\r\n\r\n", "are allowed"),
    ],
)
def test_a_malformed_envelope_is_rejected_with_the_reason(data: bytes, hint: str) -> None:
    """Each malformed part is named in the error, without repeating the bytes."""
    with pytest.raises(ValueError, match=f"^not an envelope: .*{hint}") as caught:
        Envelope.from_bytes(data)
    assert "secr" not in str(caught.value)


@pytest.mark.parametrize("bad", ["a\rb", "a\nb", "\0", "\ud800"])
def test_headers_that_break_the_wire_form_are_rejected(bad: str) -> None:
    """Line ends, NUL and lone surrogates in headers raise; so do empty names and names with a colon."""
    for headers in ({bad: ""}, {"name": bad}):
        with pytest.raises(ValueError, match=r"header must not .*CR, LF or NUL") as caught:
            Envelope(b"", headers)
        assert bad not in str(caught.value)
    for name in ("", "a:b", ":"):
        with pytest.raises(ValueError, match="must not be empty"):
            Envelope(b"", {name: ""})


def test_invalid_fields_are_rejected() -> None:
    """Body, reply_to, id, timestamp and headers of a wrong type or value raise."""
    for bad in ("text", None, bytearray(b"x")):
        with pytest.raises(TypeError, match="a body must be bytes"):
            Envelope(bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="reply_to must be bytes or None"):
        Envelope(b"", reply_to="text")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reply_to must not be empty"):
        Envelope(b"", reply_to=b"")
    for bad in ("", "0", ID.upper(), ID + "\n", f"{{{ID}}}"):
        with pytest.raises(ValueError, match="an id must be a UUID"):
            Envelope(b"", id=bad)
    with pytest.raises(ValueError, match="must have a time zone"):
        Envelope(b"", timestamp=datetime(2025, 1, 1))
    with pytest.raises(TypeError, match="a timestamp must be a datetime"):
        Envelope(b"", timestamp=0)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Envelope(b"", {"name": 1})  # type: ignore[dict-item]


def test_the_head_is_limited_and_the_body_is_not() -> None:
    """At most 100 headers and 65,536 bytes precede the body, whose length has no limit."""
    at_most = {str(number): "" for number in range(MAX_HEADERS)}
    assert len(Envelope.from_bytes(bytes(Envelope(b"", at_most))).headers) == MAX_HEADERS
    with pytest.raises(ValueError, match="101 headers are more than the 100"):
        Envelope(b"", {**at_most, "one": "more"})
    room = MAX_HEAD - len(bytes(PLAIN)) - len(b"x: ") + len(b"\r\n")  # the head has no CR LF CR LF, but one CR LF
    longest = dataclasses.replace(PLAIN, headers={"x": "y" * room})
    assert Envelope.from_bytes(bytes(longest)) == longest
    for too_long in ({"headers": {"x": "y" * (room + 1)}}, {"reply_to": b"y" * MAX_HEAD}):
        with pytest.raises(ValueError, match="65536 are allowed"):
            bytes(dataclasses.replace(PLAIN, **too_long))  # type: ignore[arg-type]
    assert len(Envelope.from_bytes(bytes(Envelope(b"y" * 10_000_000))).body) == 10_000_000


def test_an_envelope_is_immutable_and_shows_no_content() -> None:
    """Fields cannot be assigned, and repr() shows neither body nor headers."""
    headers = {"secret-name": "secret"}
    envelope = Envelope(b"secret", headers, reply_to=b"secret", id=ID)
    headers["other"] = "later"
    assert envelope.headers == {"secret-name": "secret"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        envelope.body = b""  # type: ignore[misc]
    with pytest.raises(TypeError):
        envelope.headers["other"] = ""  # type: ignore[index]
    assert repr(envelope) == f"<Envelope {ID} 1 headers, 6 bytes, with reply_to>"
    assert repr(PLAIN) == f"<Envelope {ID} 0 headers, 0 bytes>"


def test_ids_sort_by_creation_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids of one thread sort in the order of creation, also when the clock stands still or goes back."""
    several = [new_id() for _ in range(10_000)]
    assert several == sorted(set(several))
    before = datetime.now(UTC)
    envelope = Envelope(b"")
    assert before <= envelope.timestamp <= datetime.now(UTC)
    assert uuid.UUID(envelope.id).version == 7
    assert uuid.UUID(envelope.id).variant == uuid.RFC_4122
    assert str(uuid.UUID(envelope.id)) == envelope.id
    milliseconds = int(envelope.id.replace("-", "")[:12], 16)
    assert milliseconds == pytest.approx(envelope.timestamp.timestamp() * 1000, abs=1000)

    at = envelopes._last // 4096 * 1_000_000 + 10_000_000_000  # ten seconds from now
    monkeypatch.setattr(envelopes, "_last", 0)
    for step, now in enumerate([at, at, at - 5_000_000, at + 999_999, at + 1_000_000]):  # it stands still, goes back
        monkeypatch.setattr(envelopes.time, "time_ns", lambda now=now: now)
        several.append(new_id())
        assert several[-2] < several[-1], step
    assert int(several[-1].replace("-", "")[:12], 16) == at // 1_000_000 + 1
    assert several[-2].split("-")[2] == "7fff"  # the last 4096th part of its millisecond


@functools.cache
def page() -> str:
    return (Path(__file__).parents[2] / "docs/reference/envelope.md").read_text()


def test_the_documentation_shows_the_wire_form() -> None:
    """The example in the documentation is a valid envelope with the fields that the page names."""
    shown = (
        re.findall(r"^```text\n(MPX/1.*?)\n```$", page(), re.MULTILINE | re.DOTALL)[0].replace("\n", "\r\n").encode()
    )
    assert Envelope.from_bytes(shown) == Envelope(
        b"12.50", {"Currency": "EUR"}, reply_to=b"paid:7", id=ID, timestamp=TIME
    )


@given(envelopes_of_all_kinds)
def test_the_documented_code_reads_and_writes_envelopes(envelope: Envelope) -> None:
    """The twenty lines of Python in the documentation read and write our envelopes."""
    (lines,) = re.findall(r"^```python\n(import re\n.*?)```$", page(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(lines, names)
    number, timestamp, reply_to, headers, body = names["read"](bytes(envelope))
    assert (number, reply_to, headers, body) == (envelope.id, envelope.reply_to, envelope.headers, envelope.body)
    assert datetime.fromisoformat(timestamp) == envelope.timestamp
    assert Envelope.from_bytes(names["write"](number, timestamp, reply_to, headers, body)) == envelope
    for damaged in (bytes(envelope)[1:], bytes(envelope).replace(b"\r\n\r\n", b"\n\n")):
        with pytest.raises(ValueError):
            names["read"](damaged)
