"""The examples of topics, and the stages of their tutorial, run as their users run them: with the broker."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from redismpx.blocking import Multiplexer, Topics
from redismpx.url_file import read_url_file

ROOT = Path(__file__).parents[2]
EXAMPLES = ("callbacks", "coroutines", "processes", "rpc", "sensors")
DEADLINE = 30  # seconds


def read_blocks(page: str, language: str) -> list[str]:
    """Return the fenced blocks of a page in one language."""
    text = (ROOT / "docs" / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


class Program:
    """A Python program that runs, and its output."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.is_interrupted = False

    def read_line(self) -> str:
        """Return the next line of the output."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def finish(self) -> str:
        """Return the rest of the output; the program must end well, and log nothing."""
        output, errors = self.process.communicate(timeout=DEADLINE)
        assert (self.process.returncode, errors) == (0, ""), errors
        return output

    def interrupt(self) -> str:
        """End the program as Ctrl-C does; return the rest of its output, and what it has logged."""
        self.process.send_signal(signal.SIGINT)
        return "".join(self.process.communicate(timeout=DEADLINE))


@contextmanager
def python(*arguments: str, cwd: Path = ROOT, url_file: Path | None = None) -> Iterator[Program]:
    url = {} if url_file is None else {"BROKER_URL_FILE": str(url_file), "REDIS_URL": read_url_file(url_file)}
    process = subprocess.Popen(
        [sys.executable, "-W", "error", *arguments], cwd=cwd, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **url},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # Where a shell has the tests run in the background, they ignore SIGINT, and so would this process.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        yield Program(process)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def url_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The URL file of a broker, as the tutorial starts it."""
    path = tmp_path_factory.mktemp("broker") / "broker.url"
    with python("-m", "redismpx", "broker", "--url-file", str(path)) as broker:
        assert broker.read_line() == f"Serving at the URL in {path} (press Ctrl-C to stop)\n"
        yield path
        broker.interrupt()


# --- the examples


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_example_of_topics_is_short(name: str) -> None:
    """An example of topics has at most 50 lines."""
    assert len((ROOT / f"examples/topics_{name}.py").read_text().splitlines()) <= 50


def test_callbacks_get_each_source_in_order() -> None:
    """Three consumers get the messages of the three periodic sources that they cover, each source from its start."""
    with python("-m", "examples.topics_callbacks") as program:
        lines = program.finish().splitlines()
    assert len(lines) == 30
    numbers = defaultdict(list)
    for line in lines:
        consumer, source, number = re.fullmatch(r"(\w+): (?:.*?)\b(tea|milk|oven|(?=\d+ deg))\D*(\d+).*", line).groups()
        numbers[consumer, source].append(int(number))
    first = {"tea": 251, "milk": 121, "oven": 201, "": 201}
    assert {consumer for consumer, _ in numbers} == {"ticker", "warning", "journal"}
    assert len(numbers) == 6
    for (_, source), values in numbers.items():
        assert values == list(range(first[source], first[source] + len(values)))


def test_coroutines_consume_all_that_is_published() -> None:
    """At the end, each coroutine function and the reader have consumed all messages that they cover."""
    with python("-m", "examples.topics_coroutines") as program:
        *_, published, consumed = program.finish().splitlines()
    total, tea = re.fullmatch(r"published: (\d+), of these tea: (\d+)", published).groups()
    counts = dict(re.findall(r"'(\w+)': (\d+)", consumed))
    assert counts == {"stock": total, "journal": total, "bill": tea}
    assert 0 < int(tea) < int(total)


def test_sensors_print_what_the_docstring_shows() -> None:
    """The tree of sensors delivers by wildcards as its docstring shows."""
    with python("-m", "examples.topics_sensors") as program:
        output = program.finish()
    docstring = (ROOT / "examples/topics_sensors.py").read_text().split('"""')[1]
    assert docstring.partition("topics_sensors\n")[2] == output


def test_two_processes_share_one_tree_of_topics(url_file: Path) -> None:
    """A script and an event loop exchange messages through the broker; Ctrl-C ends the kitchen without a traceback."""
    with python("-m", "examples.topics_processes", "kitchen", url_file=url_file) as kitchen:
        assert kitchen.read_line() == "the kitchen is open\n"
        with python("-m", "examples.topics_processes", "order", "tea", "soup", url_file=url_file) as order:
            assert order.finish() == "tea is ready\nsoup is ready\n"
        assert "Traceback" not in kitchen.interrupt()
        assert kitchen.process.returncode == 0


def test_requests_on_topics_are_answered_by_a_process(url_file: Path) -> None:
    """Without a service there is an error at once; with one, the result, or the error of the handler."""

    def ask(*arguments: str) -> str:
        with python("-m", "examples.topics_rpc", *arguments, url_file=url_file) as client:
            return client.finish()

    assert ask("multiply", "6", "7") == "nobody serves this topic\n"
    with python("-m", "examples.topics_rpc", "serve", url_file=url_file) as server:
        assert server.read_line() == "serving\n"
        assert ask("multiply", "6", "7") == "42.0\n"
        assert re.fullmatch("the handler failed: ZeroDivisionError: .*\n", ask("divide", "1", "0"))
        assert "handler of service on b'example!math.*' raised ZeroDivisionError" in server.interrupt()
        assert server.process.returncode == 0


# --- the pages


def test_the_tutorial_of_topics_runs_as_told(url_file: Path) -> None:
    """Each stage of the tutorial prints what the page shows, in one process and in three."""
    folder = url_file.parent
    stages = read_blocks("tutorial/topics.md", "python")
    shown = [
        (command.split()[-1], output)
        for command, output in re.findall(
            r"^```console\n\$ ([^\n]*\.py)\n(.*?)^```$",
            (ROOT / "docs/tutorial/topics.md").read_text(),
            re.MULTILINE | re.DOTALL,
        )
    ]
    assert Counter(name for name, _ in shown) == {"shop.py": 3, "packing.py": 1, "board.py": 1}

    def write(stage: str) -> str:
        name = stage.partition("\n")[0].removeprefix("# ")
        (folder / name).write_text(stage)
        return name

    alone, packing, shop, serving, asking, board = stages
    (_, all_in_one), (_, packed), (_, journal), (_, answers), (_, sold) = shown
    with python(write(alone), cwd=folder) as program:
        assert program.finish() == all_in_one
    with python(write(packing), cwd=folder) as packer:
        lines = [packer.read_line()]
        with python(write(shop), cwd=folder) as program:
            assert program.finish() == journal
        assert "".join([*lines, packer.read_line()]) == packed
    with python(write(serving), cwd=folder) as packer, python(write(board), cwd=folder) as watcher:
        assert packer.read_line() == "ready to pack\n"
        lines = [watcher.read_line()]
        with python(write(asking), cwd=folder) as program:
            assert program.finish() == answers
        while (line := watcher.read_line()) == lines[0]:
            pass
        assert "".join([*lines, line]) == sold


def test_a_shell_publishes_to_a_topic(url_file: Path, tmp_path: Path) -> None:
    """The shell command of the reference publishes a message that subscribers get. It runs with a redis-cli of ours."""
    (command,) = read_blocks("reference/topics.md", "sh")
    client = tmp_path / "redis-cli"
    client.write_text('#!/bin/sh\nprintf "%s\\n%s\\n%s" "$@" > arguments\n')
    client.chmod(0o700)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment, check=True, timeout=DEADLINE)
    verb, channel, payload = (tmp_path / "arguments").read_bytes().split(b"\n", 2)
    with Multiplexer.from_url_file(url_file) as mpx, Topics(mpx, prefix="shop") as topics:
        reader = topics.open("orders.eu")
        topics.wait_for_activation(timeout=DEADLINE)
        assert (verb, mpx.publish(channel, payload)) == (b"PUBLISH", 1)
        assert reader.get(timeout=DEADLINE).content == {"id": 7}
        assert topics.undecodable == 0
