"""`redismpx listen`: which messages it prints, how, and what ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import redis

from redismpx import blocking

from ..helpers.command import COMMAND, PATIENCE, Running, environment, run, running
from ..helpers.flavours import FLAVOURS, start_server
from ..helpers.servers import Server

HOSTILE = "\x1b]0;owned\x07\x9b31m]bold]\u202e\r\n".encode()
SHOWN = r"\x1b]0;owned\x07\x9b31m]bold]\u202e\r\n"


@contextmanager
def listening(server: Server, *arguments: str | bytes, terminal: bool = False) -> Iterator[Running]:
    """Run the command until it is subscribed."""
    with running("listen", *arguments, "--redis", server.url, terminal=terminal) as command:
        command.until("# listening to ")
        yield command


@pytest.fixture
def admin(target: Server) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(target.admin_url) as client:
        yield client


def test_channels_and_patterns_are_printed(target: Server, admin: redis.Redis) -> None:
    """A name with a character of patterns is a pattern; --count ends the command."""
    with listening(target, "news", "weather.*", "--count", "3") as command:
        admin.publish("news", "one")
        admin.publish("weather.eu", "two")
        admin.publish("weather", "none")
        admin.publish("news", "three")
        code, output = command.end()
    assert (code, output) == (0, "# listening to news, weather.*\nnews\tone\nweather.eu\ttwo\nnews\tthree\n")


def test_pattern_option_takes_each_name_as_a_pattern(target: Server, admin: redis.Redis) -> None:
    """With --pattern, a name without its characters is a pattern too; JSON has the pattern of each message."""
    with listening(target, "plain", "--pattern", "--json", "--count", "1") as command:
        assert admin.pubsub_numpat() == 1
        admin.publish("plain", b"\xff")
        _, output = command.end()
    assert json.loads(output.splitlines()[1]) == {"channel": "plain", "pattern": "plain", "data_base64": "/w=="}


def test_sharded_channels_are_printed(target: Server, admin: redis.Redis) -> None:
    """With --sharded, the names are channels of sharded Pub/Sub, also with a star."""
    with listening(target, "a*", "--sharded", "--count", "1") as command:
        admin.publish("a*", "classic")
        admin.execute_command("SPUBLISH", "a*", "sharded")
        assert command.end()[1].endswith("*\na*\tsharded\n")


def test_a_stream_is_printed_from_an_id(target: Server) -> None:
    """With --stream and --after, the messages that Redis keeps come first, each with its id."""
    with blocking.Multiplexer(target.admin_url) as mpx:
        first, second = mpx.append("listened", "one"), mpx.append("listened", "two")
        with listening(
            target, "listened", "--stream", "--after", first.decode(), "--count", "2", "--redis", target.admin_url
        ) as command:
            third = mpx.append("listened", "three")
            lines = command.end()[1].splitlines()
    assert lines[1:] == [f"listened\t{second.decode()}\ttwo", f"listened\t{third.decode()}\tthree"]


@pytest.mark.parametrize("terminal", [False, True])
def test_hostile_data_is_escaped(target: Server, admin: redis.Redis, terminal: bool) -> None:
    """Control characters and markup in names and payloads reach neither a terminal nor a file."""
    with listening(target, HOSTILE, "*", "--count", "2", terminal=terminal) as command:
        admin.publish(HOSTILE, HOSTILE + b"[bold]")
        output = command.end()[1]
    assert "[bold]" in output
    assert output.count(SHOWN) == 5  # the notice has one of them
    for forbidden in ("\x1b]", "\x07", "\x9b", "\u202e"):
        assert forbidden not in output


def test_raw_payloads_are_printed_as_they_are(target: Server, admin: redis.Redis) -> None:
    """With --raw, a line is the payload."""
    with subprocess.Popen(
        [*COMMAND, "listen", "raw", "--raw", "--count", "1", "--redis", target.url],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
    ) as process:  # fmt: skip
        assert process.stderr is not None
        assert process.stderr.readline() == b"# listening to raw\n"
        admin.publish("raw", HOSTILE)
        assert process.communicate(timeout=PATIENCE) == (HOSTILE + b"\n", b"")


def test_a_terminal_gets_colors_unless_told(target: Server, admin: redis.Redis) -> None:
    """In a terminal the channel is colored; NO_COLOR is respected."""
    for no_color, shown in (("", "\x1b[36mnews\x1b[0m\tx\r\n"), ("1", "\nnews\tx\r\n")):
        with running(
            "listen", "news", "--count", "1", "--redis", target.url, terminal=True, NO_COLOR=no_color
        ) as command:
            command.until("# listening to ")
            admin.publish("news", "x")
            assert command.end()[1].endswith(shown)


def test_a_gap_is_shown_where_it_lies() -> None:
    """A lost connection is one notice on stderr, also for several subscriptions, and so is its end."""
    server = start_server(FLAVOURS[0])
    try:
        with (
            redis.Redis.from_url(server.admin_url) as admin,
            subprocess.Popen(
                [*COMMAND, "listen", "news", "n*", "--count", "4", "--redis", server.url],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
            ) as process,
        ):  # fmt: skip
            assert process.stderr is not None
            assert process.stderr.readline() == b"# listening to news, n*\n"
            admin.publish("news", "before")
            admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            lost, back = process.stderr.readline(), process.stderr.readline()
            assert lost.startswith(b"# gap: connection lost: ")
            assert lost.endswith(b"; messages may be missing here\n")
            assert back == b"# connected again\n"
            while admin.pubsub_numsub("news")[0][1] + admin.pubsub_numpat() < 2:
                pass
            admin.publish("news", "after")
            output, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode, output, errors) == (0, b"news\tbefore\n" * 2 + b"news\tafter\n" * 2, b"")
    finally:
        server.remove()


def test_timeout_ends_it(target: Server) -> None:
    """--timeout ends it well; if messages are missing to --count, with exit status 1."""
    assert run("listen", "silent", "--timeout", "0.1", "--redis", target.url)[0] == 0
    assert run("listen", "silent", "--timeout", "0.1", "--count", "1", "--redis", target.url)[0] == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_quietly(target: Server, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end it without another line, and with exit status 0."""
    with listening(target, "news") as command:
        assert command.stop(number) == (0, "# listening to news\n")


def test_a_closed_pipe_ends_it_quietly(target: Server, admin: redis.Redis) -> None:
    """It ends when its reader ends, also without a further message; the error output stays empty."""
    for is_sent in (True, False):
        reader, writer = os.pipe()
        process = subprocess.Popen(
            [*COMMAND, "listen", "news", "--redis", target.url], stdout=writer, stderr=subprocess.PIPE,
            env=environment(),
        )  # fmt: skip
        os.close(writer)
        assert process.stderr is not None
        assert process.stderr.readline() == b"# listening to news\n"
        if is_sent:
            process.send_signal(signal.SIGSTOP)  # it has the message and the closed pipe to deal with at once
            admin.publish("news", "x" * 100_000)
        os.close(reader)
        process.send_signal(signal.SIGCONT)
        assert process.communicate(timeout=PATIENCE)[1] == b""
        assert process.returncode == 0


def test_a_refused_name_is_an_error(target: Server, admin: redis.Redis) -> None:
    """A channel without the right to it ends the command with an error of one line."""
    admin.execute_command("ACL", "SETUSER", "deaf", "on", ">s3cret", "resetchannels", "&ok", "+@all", "~*")
    url = target.admin_url.replace("//", "//deaf:s3cret@")
    code, output, errors = run("listen", "ok", "forbidden", "--redis", url)
    *notices, error = errors.splitlines()
    assert (code, output, notices) == (2, "", [])
    assert error.startswith("redismpx listen: Redis rejected channel b'forbidden': ")
    assert "s3cret" not in errors
