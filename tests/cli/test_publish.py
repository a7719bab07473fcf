"""`redismpx publish`: one message, or the lines of stdin."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from redismpx import blocking

from ..helpers.command import COMMAND, PATIENCE, environment, run, running
from ..helpers.servers import Server


@pytest.fixture
def mpx(target: Server) -> Iterator[blocking.Multiplexer]:
    with blocking.Multiplexer(target.admin_url) as mpx:
        yield mpx


def test_one_message_is_published(target: Server, mpx: blocking.Multiplexer) -> None:
    """DATA is published as it is, any bytes; the output is the number of receivers. REDIS_URL is the server."""
    with mpx.subscribe("publish") as sub:
        assert run("publish", "publish", b"\xff\n", REDIS_URL=target.admin_url) == (0, "1 receiver\n", "")
        assert sub.get(timeout=5).data == b"\xff\n"
    assert run("publish", "publish", "x", "--sharded", "--redis", target.admin_url) == (0, "0 receivers\n", "")


def test_a_message_is_appended_to_a_stream(target: Server, mpx: blocking.Multiplexer) -> None:
    """With --stream the message is kept, and the output is its id."""
    code, output, _ = run("publish", "kept", "one", "--stream", "--redis", target.admin_url)
    (message,) = mpx.history("kept")
    assert (code, output.encode().strip(), message.data) == (0, message.id, b"one")


def test_each_line_of_a_file_is_a_message(target: Server, mpx: blocking.Multiplexer) -> None:
    """Without DATA, the lines of stdin are published in their order, empty ones and the last one too."""
    lines = [b"%d" % number for number in range(5_000)] + [b"", b"last"]
    with mpx.subscribe("lines", max_pending=10_000) as sub:
        code, output, errors = run("publish", "lines", stdin=b"\n".join(lines), REDIS_URL=target.admin_url)
        assert [sub.get(timeout=5).data for _ in lines] == lines
    assert (code, output) == (0, "")
    assert errors.startswith("published 5002 messages in ")


def test_a_line_is_published_when_it_is_written(target: Server, mpx: blocking.Multiplexer) -> None:
    """A pipe that stays open delays nothing; Ctrl-C ends the command."""
    reader, writer = os.pipe()
    with mpx.subscribe("live") as sub, running("publish", "live", "--redis", target.admin_url, stdin=reader) as command:
        os.close(reader)
        os.write(writer, b"one\ntw")
        assert sub.get(timeout=PATIENCE).data == b"one"
        os.write(writer, b"o\n")
        assert sub.get(timeout=5).data == b"two"
        assert command.stop(signal.SIGINT) == (130, "")
    os.close(writer)


def test_a_terminal_gets_a_progress_bar(target: Server, tmp_path: Path) -> None:
    """On a terminal, the lines of a file are counted while they are published."""
    path = tmp_path / "lines"
    path.write_bytes(b"x\n" * 20_000)
    with (
        path.open("rb") as file,
        running("publish", "bar", "--redis", target.admin_url, terminal=True, stdin=file.fileno()) as command,
    ):
        command.until(r"━.* [\d,]+ messages.* [\d,]+/s")
        code, output = command.end()
    assert code == 0
    assert "published 20000 messages in " in output


@pytest.mark.parametrize("stdin", [b"a\nb\n" + b"x" * 1_048_577 + b"\nc\n", b"a\nb\n" + b"x" * 3_000_000])
def test_a_line_that_cannot_be_published_is_an_error(target: Server, stdin: bytes) -> None:
    """The error has the number of the line, and tells how many lines were published."""
    code, output, errors = run("publish", "long", "--redis", target.admin_url, stdin=stdin)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert errors.startswith("redismpx publish: line 3 of stdin: ")
    assert "2 lines before it were published" in errors


def test_a_forbidden_channel_is_an_error(target: Server, mpx: blocking.Multiplexer) -> None:
    """A message that Redis rejects is an error of one line."""
    url = target.admin_url.replace("//", "//least:secret@")
    code, output, errors = run("publish", "a", "b", "--redis", url)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert "no permissions" in errors.lower()
    with subprocess.Popen(
        [*COMMAND, "publish", "a"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(REDIS_URL=url)
    ) as process:
        assert b"line 1 of stdin: " in process.communicate(b"x\n", timeout=PATIENCE)[1]
