"""What all commands have in common: help, errors in one line, missing packages, and their page."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import click
import pytest

from redismpx.cli.commands import group
from redismpx.cli.main import main

from ..helpers.command import run
from ..helpers.programs import run_program

PAGE = (Path(__file__).parents[2] / "docs/reference/command-line.md").read_text()
CONNECTING = {
    "listen": ["x"],
    "publish": ["x", "y"],
    "request": ["x", "y"],
    "serve": ["x", "--command", "cat"],
    "history": ["x"],
    "channels": [],
    "bench": [],
}
"""The commands that connect to a server, with arguments."""


def test_the_page_has_every_command_and_option() -> None:
    """The page of the command line has a row for each command, and one for each of its options."""
    for name, command in group.commands.items():
        assert f"| [`{name}`]" in PAGE
        section = PAGE.partition(f"## `redismpx {name}`\n")[2].partition("\n## ")[0]
        shared = PAGE.partition("## The server\n")[2].partition("\n## ")[0]
        if not section:  # it has a page of its own
            section = (Path(__file__).parents[2] / "docs/how-to/embedded.md").read_text()
        rows = re.findall(r"^\| (`.*?) \|", section + shared, re.MULTILINE)
        documented = {option for row in rows for option in re.findall(r"--[a-z-]+", row)}
        options = {text for option in command.params if isinstance(option, click.Option) for text in option.opts}
        assert options <= documented | {"-h"}, name


@pytest.mark.parametrize("command", CONNECTING)
def test_no_server_is_an_error_of_one_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The error names the address, and not the password."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert main([command, *CONNECTING[command], "--redis", f"redis://user:s3cret@127.0.0.1:{port}"]) == 2
    output, errors = capsys.readouterr()
    assert (output, errors.count("\n")) == ("", 1)
    assert errors.startswith(f"redismpx {command}: ")
    assert f"127.0.0.1:{port}" in errors
    assert "s3cret" not in errors


@pytest.mark.parametrize("command", CONNECTING)
def test_an_unknown_option_of_a_url_is_an_error(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line with the option, and exit status 2."""
    assert main([command, *CONNECTING[command], "--redis", "redis://:s3cret@127.0.0.1:1?foo=s3cret"]) == 2
    output, errors = capsys.readouterr()
    assert (output, errors.count("\n")) == ("", 1)
    assert "an option that redis-py does not know: " in errors
    assert "'foo'" in errors
    assert "s3cret" not in errors


@pytest.mark.parametrize("url", ["http://s3cret@h", "redis://:s3cret/x@127.0.0.1:1", "s3cret"])
def test_an_invalid_url_is_not_repeated(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The error about a URL says what is wrong, and repeats nothing of it."""
    assert main(["listen", "x", "--redis", url]) == 2
    output, errors = capsys.readouterr()
    assert (output, errors.count("\n")) == ("", 1)
    assert "the Redis URL cannot be used" in errors
    assert "s3cret" not in errors


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["listen"], "redismpx listen: Missing argument 'NAMES...'."),
        (["listen", "x", "--after", "0"], "redismpx listen: --after is for streams: add --stream"),
        (["listen", "x", "--json", "--raw"], "redismpx listen: give --json or --raw, not both"),
        (["listen", "x", "--stream", "--sharded"], "redismpx listen: give one of --pattern, --sharded and --stream"),
        (["listen", "x", "--timeout", "0"], "redismpx listen: Invalid value for '--timeout': '0' is not a positive"),
        (["listen", "x", "--redis", "a", "--url-file", "b"], "redismpx listen: give --redis or --url-file, not both"),
        (["listen", "x", "--url-file", "/no/file"], "redismpx listen: there is no URL file /no/file; start a server"),
        (["publish", "x", "y", "--stream", "--sharded"], "redismpx publish: give --sharded or --stream, not both"),
        (["history", "x", "--json", "--raw"], "redismpx history: give --json or --raw, not both"),
        (["bench", "--callers", "0"], "redismpx bench: Invalid value for '--callers': 0 is not in the range"),
        (["broker", "--port", "1", "--unix", "s"], "redismpx broker: give --port or --unix, not both"),
        (["no\x1bne"], "redismpx: No such command 'no\\x1bne'."),
        (["--nothing"], "redismpx: No such option"),
    ],
)
def test_wrong_arguments_are_an_error_of_one_line(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line has the command and the reason, without control characters."""
    assert main(arguments) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith(reason)
    assert errors.count("\n") == 1
    assert "\x1b" not in errors


def test_a_url_file_names_the_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--url-file is read as a broker writes it."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    path = tmp_path / "broker.url"
    path.write_text(f"redis://:s3cret@127.0.0.1:{port}\n")
    assert main(["publish", "x", "y", "--url-file", str(path)]) == 2
    errors = capsys.readouterr().err
    assert f"127.0.0.1:{port}" in errors
    assert "s3cret" not in errors


def test_help_has_status_0() -> None:
    """Help goes to stdout, of a command, of all of them, and without arguments."""
    outputs = [run(*arguments) for arguments in ((), ("--help",), ("listen", "-h"))]
    assert [(code, errors) for code, _, errors in outputs] == [(0, "")] * 3
    assert outputs[0][1] == outputs[1][1]
    assert "--after" in outputs[2][1]


def test_a_missing_click_is_named() -> None:
    """Without click, the error has the command that installs it."""
    run_program(
        """
import sys
class Lines(list):
    write = list.append
sys.modules["click"] = None
from redismpx.cli.main import main
sys.stderr, stderr = Lines(), sys.stderr
code, lines, sys.stderr = main(["listen", "x"]), sys.stderr, stderr
assert code == 2, code
assert lines == ["redismpx: click is not installed; in the source of redismpx, run: pip install '.[cli]'\\n"], lines
"""
    )
