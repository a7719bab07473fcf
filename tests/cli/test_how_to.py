"""The how-to page of the command line: each command prints what the page shows."""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ..helpers.command import Running, environment, running
from ..helpers.flavours import FLAVOURS, start_server

PAGE = Path(__file__).parents[2] / "docs/how-to/command-line.md"
WAITING = ("broker", "listen news", "serve")
"""The commands that the page runs in a terminal of their own."""


def likened(output: str) -> str:
    """An output without what differs from run to run: numbers, and the widths of a table."""
    return re.sub(r"[━─┏┳┓┃┡╇┩│└┴┘ ]+", " ", re.sub(r"\d[\d,.]*", "N", output)).strip()


def test_each_command_prints_what_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All commands of the page, in its order; those in a terminal of their own run until the end of the page."""
    blocks = re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    shown = [step.partition("\n")[::2] for block in blocks for step in block.removeprefix("$ ").split("\n$ ")]
    assert {name for command, _ in shown for name in re.findall(r"redismpx (\w+)", command)} == {
        "bench", "broker", "channels", "doctor", "history", "listen", "publish", "request", "serve",
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)
    server = start_server(FLAVOURS[0])
    waiting: list[tuple[Running, str]] = []
    try:
        with contextlib.ExitStack() as terminals:
            for command, output in shown:
                if command.removeprefix("redismpx ").startswith(WAITING):
                    words = shlex.split(command)[1:]
                    terminal = terminals.enter_context(running(*words, REDIS_URL=server.admin_url))
                    terminal.until(re.escape(output.partition("\n")[0]))
                    waiting.append((terminal, output))
                    continue
                program = command.replace("redismpx", f"{shlex.quote(sys.executable)} -W error -m redismpx", 1)
                there = environment(REDIS_URL=server.admin_url)
                done = subprocess.run(
                    program, shell=True, text=True, timeout=30, check=False, env=there,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                )  # fmt: skip
                assert (done.returncode, likened(done.stdout)) == (0, likened(output)), command
            for terminal, output in waiting:
                assert likened(terminal.stop()[1]) == likened(output)
    finally:
        server.remove()
