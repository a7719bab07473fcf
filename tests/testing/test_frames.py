"""Messages are removed from what a server sends, and nothing else is."""

from __future__ import annotations

from typing import Any

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redismpx.testing.frames import MessageFilter

REPLIES = [
    b"+OK\r\n",
    b"-ERR no\r\n",
    b":7\r\n",
    b"$-1\r\n",
    b"$4\r\n\r\n*3\r\n",
    b"*-1\r\n",
    b"_\r\n",
    b"%1\r\n$1\r\na\r\n*1\r\n:1\r\n",
    b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n",
    b"*3\r\n$7\r\nmessage\r\n$1\r\nb\r\n$29\r\n*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n",
]
DROPPED = [
    b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\n\r\n\r\n",
    b">3\r\n$8\r\nsmessage\r\n$1\r\na\r\n$0\r\n\r\n",
    b"*4\r\n$8\r\npmessage\r\n$1\r\n*\r\n$1\r\na\r\n$1\r\nx\r\n",
]


@given(st.lists(st.sampled_from(REPLIES + DROPPED)), st.integers(1, 20))
def test_messages_are_removed_wherever_pieces_end(frames: list[bytes], size: int) -> None:
    """Whatever the pieces are, each reply passes whole, and the messages of the channel do not."""
    edit = MessageFilter({b"a"})
    data = b"".join(frames)
    passed = [edit(data[at : at + size]) for at in range(0, len(data), size)]
    assert b"".join(passed) == b"".join(each for each in frames if each not in DROPPED)
    reader = hiredis.Reader()
    for piece in passed:  # no half of a reply waits in the client
        reader.feed(piece)
        while reader.gets() is not False:
            pass
        assert not reader.has_data()


@pytest.mark.parametrize("data", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"*x\r\n", b"\r\n", b"$1x\r\na\r\n"])
def test_what_is_no_resp_passes_unchanged(data: bytes) -> None:
    """Bytes of a broken server pass, and so do all that follow."""
    edit: Any = MessageFilter({b"a"})
    assert edit(b"+OK\r\n" + data) + edit(DROPPED[0]) == b"+OK\r\n" + data + DROPPED[0]
