"""`redismpx channels` and `redismpx completion`."""

from __future__ import annotations

import re
import shutil
import subprocess

import redis

from redismpx import blocking

from ..helpers.command import COMMAND, environment, run, running
from ..helpers.flavours import FLAVOURS, start_server

HOSTILE = b"\x1b[31m[bold]x"


def test_subscriptions_are_shown() -> None:
    """Channels with their counts, the number of patterns, and the connections: as lines, and drawn in a terminal."""
    server = start_server(FLAVOURS[0])
    try:
        with (
            blocking.Multiplexer(server.admin_url, client_name="one") as one,
            blocking.Multiplexer(server.admin_url) as two,
            one.subscribe("news", HOSTILE),
            two.subscribe("news"),
            one.subscribe("orders", sharded=True),
            one.new_pattern_subscription("w*", print) as pattern,
        ):
            pattern.wait_for_activation(timeout=10)
            code, output, errors = run("channels", REDIS_URL=server.admin_url)
            lines = output.splitlines()
            assert (code, errors) == (0, "")
            assert lines[:4] == [
                "channel\tnews\t2", "channel\t\\x1b[31m[bold]x\t1", "sharded\torders\t1", "patterns\t1",
            ]  # fmt: skip
            assert any(re.fullmatch(r"client\t127.0.0.1:\d+\tone\t2\t1\t1\t0", line) for line in lines[4:])
            assert len(lines) == 6
            assert run("channels", "o*", REDIS_URL=server.admin_url)[1].startswith("sharded\torders\t1\npatterns")
            with running("channels", "--redis", server.admin_url, terminal=True) as command:
                code, drawn = command.end()
            assert code == 0
            assert re.search(r"│ news +│ channel │ +2 │", drawn)
            assert "│ \\x1b[31m[bold]x " in drawn
            assert "3 channels, 1 patterns, 2 connections" in drawn
    finally:
        server.remove()


def test_a_terminal_is_kept_up_to_date() -> None:
    """With --watch a new subscription appears, and an outage is shown; Ctrl-C restores the screen and ends well."""
    server = start_server(FLAVOURS[0])
    try:
        with running("channels", "--watch", "--redis", server.admin_url, terminal=True) as command:
            command.until("0 channels")
            with blocking.Multiplexer(server.admin_url) as mpx, mpx.subscribe("later"):
                command.until(r"│ later +│ channel │ +1 │")
            server.kill()
            command.until("Connection refused|Connect call failed|Connection closed")
            code, output = command.stop()
        assert code == 0
        assert output.rstrip().endswith(("\x1b[?1049l", "\x1b[?25h"))
        assert "Traceback" not in output
    finally:
        server.remove()


def test_watching_needs_a_terminal() -> None:
    """--watch into a pipe, and a missing right, are errors of one line."""
    assert run("channels", "--watch") == (2, "", "redismpx channels: --watch needs a terminal\n")
    server = start_server(FLAVOURS[0])
    try:
        with redis.Redis.from_url(server.admin_url) as admin:
            admin.execute_command("ACL", "SETUSER", "u", "on", ">s3cret", "+ping")
        code, output, errors = run("channels", "--redis", server.admin_url.replace("//", "//u:s3cret@"))
        assert (code, output, errors.count("\n")) == (2, "", 1)
        assert "s3cret" not in errors
    finally:
        server.remove()


def test_a_shell_completes_commands_and_options() -> None:
    """The script is valid in its shell, and what it calls knows the commands and their options."""
    for shell in ("bash", "zsh", "fish"):
        code, script, _ = run("completion", shell)
        assert code == 0
        assert "_REDISMPX_COMPLETE" in script
        if shutil.which(shell):
            assert subprocess.run([shell, "-n"], input=script, text=True, check=False).returncode == 0
    for words, expected in (("redismpx pub", "plain,publish\n"), ("redismpx listen --aft", "plain,--after\n")):
        changes = {"_REDISMPX_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        completed = subprocess.run(
            COMMAND, capture_output=True, text=True, env=environment(**changes), check=False, timeout=20
        )
        assert (completed.stdout, completed.stderr) == (expected, "")
