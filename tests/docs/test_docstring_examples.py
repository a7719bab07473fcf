"""The examples in docstrings run, and print what their comments say; and each public name is in an example.

The example of a method uses an object of its class, and `mpx`, a multiplexer. `BEFORE` makes them, in the words of
asyncio: the examples for threads get the same lines without `await`. `AFTER` calls what an example only defines.
"""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import io
import json
import queue
import re
import secrets
import tokenize
import types
import unittest
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

import broadcaster
import pytest
import redis
import redis.asyncio
import socketio
from litestar import Litestar
from litestar.channels import ChannelsPlugin
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute

import redismpx
from redismpx import Multiplexer, blocking
from redismpx.blocking.described import as_blocking
from redismpx.contrib.channels import ChannelLayer
from redismpx.contrib.starlette import get_multiplexer, lifespan
from redismpx.embedded import Server
from redismpx.topics import Topics
from redismpx.url_file import read_url_file

from ..helpers.asgi import serving
from ..helpers.flavours import start_server

ROOT = Path(__file__).parents[2]
PORT, URL = "6379", "redis://localhost:6379"  # what the examples are written for
DEADLINE = 30.0  # seconds for one example

BEFORE = {
    "ChannelSubscription": """
        sub = mpx.new_channel_subscription()
        sub.add("news")
        await sub.wait_for_activation(timeout=5)
        """,
    "KeySubscription": """
        sessions = mpx.new_key_subscription("session:*")
        await sessions.wait_for_activation(timeout=5)
        """,
    "PromiseSubscription": """
        promises = mpx.new_promise_subscription("order-")
        await promises.wait_for_activation(timeout=5)
        """,
    "TopicReader": "topics = Topics()",
    "TopicReader.run": 'orders = topics.open("orders.eu")',
    "Topics.every": "topics = Topics()",
}
AFTER = {
    "EventStream": r'await hear(mpx, news, None, "event: activation\ndata: ")',
    "MultiplexerMixin": "run_tests(TestBoard)",
    "bridge": 'await talk(mpx, chat, "hello")',
    "last_event_id": r"""
        first = (await mpx.append("feed", "1")).decode()
        second = (await mpx.append("feed", "2")).decode()
        await hear(mpx, feed, first, "event: activation\ndata: ", f"id: {second}\ndata: 2")
        """,
}
FOR_THREADS = {
    *("Fault", "Faults", "Flow", "GivenServer", "MultiplexerMixin", "Proxy"),  # of redismpx.testing
    *("MultiplexerManager", "Server", "URLFile"),
}
"""Names outside of `redismpx.blocking` whose examples have no event loop."""


# --- the public names


def find(target: str) -> Any:
    """Import what a directive of the reference names."""
    module, _, name = target.rpartition(".")
    found = getattr(importlib.import_module(module), name, None)
    return importlib.import_module(target) if found is None else found


def public_names() -> Iterator[tuple[str, str]]:
    """Yield the module and the name of all that the reference documents, and of all that the packages export."""
    modules = ["redismpx", "redismpx.blocking", "redismpx.topics", "redismpx.testing"]
    for page in sorted((ROOT / "docs/reference").glob("*.md")):
        for target in re.findall(r"^\.\. auto\w+:: (redismpx[\w.]+)", page.read_text(), re.MULTILINE):
            if isinstance(find(target), types.ModuleType):
                modules.append(target)
            else:
                module, _, name = target.rpartition(".")
                yield module, name
    for module in modules:
        for name in importlib.import_module(module).__all__:
            yield module, name


PUBLIC = list(dict.fromkeys(public_names()))


# --- the examples


class Example(NamedTuple):
    module: str
    name: str
    """The class or the function; of a method, with its class."""
    source: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"

    @property
    def is_for_threads(self) -> bool:
        return self.module == "redismpx.blocking" or self.name in FOR_THREADS

    @property
    def printed(self) -> str:
        """What it prints: what follows the word "prints" in a comment, or the comment behind a `print()`."""
        lines = [line.partition("  # ") for line in self.source.splitlines()]
        comments = [
            comment.rpartition("prints ")[2]
            for code, _, comment in lines
            if "prints " in comment or ("print(" in code and comment)
        ]
        return "".join(f"{comment}\n" for comment in comments)

    def program(self, port: int) -> types.CodeType:
        """Compile the example, with what comes before and after it, for a server on a port."""
        names = dict.fromkeys([self.name.partition(".")[0], self.name])
        before, after = ("\n".join(dedent(each.get(name, "")) for name in names) for each in (BEFORE, AFTER))
        source = f"{as_blocking(before) if self.is_for_threads else before}\n{self.source}\n{after}"
        code: types.CodeType = compile(
            source.replace(PORT, str(port)), str(self), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        )
        return code


def read_examples() -> Iterator[Example]:
    """Yield the examples of all public names and of their methods; that of an inherited method once."""
    seen = set()
    for module, name in PUBLIC:
        value = getattr(importlib.import_module(module), name)
        found = {name: value}
        if isinstance(value, type):
            found |= {f"{name}.{member}": each for member, each in inspect.getmembers(value) if member[0] != "_"}
        for each, member in found.items():
            function = getattr(member, "__func__", member)
            text = inspect.cleandoc(getattr(function, "__doc__", None) or "")
            _, heading, source = text.partition("\nExample:\n    ::\n\n")
            if heading and function not in seen:
                seen.add(function)
                yield Example(module, each, dedent(source))


EXAMPLES = list(read_examples())


# --- what an example finds


async def hear(mpx: Multiplexer, endpoint: Callable[..., Awaitable[Response]], after: str | None, *events: str) -> None:
    """Serve a stream of events, and read these from it."""
    app = Starlette(routes=[Route("/", endpoint)], lifespan=lifespan(mpx))
    async with serving(app) as served, served.streaming("/", after) as client:
        assert [await client.hear() for _ in events] == [*events]


async def talk(mpx: Multiplexer, endpoint: Callable[..., Awaitable[None]], text: str) -> None:
    """Serve a WebSocket that sends to everybody what it receives."""
    app = Starlette(routes=[WebSocketRoute("/", endpoint)], lifespan=lifespan(mpx))
    async with serving(app) as served, served.connect("/") as client:
        await client.send(text)
        assert await client.recv() == text


def run_tests(case: type[unittest.TestCase]) -> None:
    """Run the test of an example."""
    output = io.StringIO()
    result = unittest.TextTestRunner(output).run(unittest.defaultTestLoader.loadTestsFromTestCase(case))
    assert (result.testsRun, result.wasSuccessful()) == (1, True), output.getvalue()


async def read_sensor() -> int:
    return 21


def names_for(example: Example, port: int, mpx: Any) -> dict[str, Any]:
    """Return what the example has imported, `mpx`, and a client of redis-py."""
    names: dict[str, Any] = {name: getattr(redismpx, name) for name in redismpx.__all__}
    modules = (asyncio, broadcaster, json, queue, redismpx, secrets, socketio, unittest)
    names |= {module.__name__: module for module in modules}
    names |= {each.__name__: each for each in (ChannelsPlugin, Server, Starlette, Topics)}
    names |= {each.__name__: each for each in (get_multiplexer, hear, read_sensor, read_url_file, run_tests, talk)}
    names["Litestar"] = partial(Litestar, logging_config=None)  # otherwise it configures the logging of this process
    own = importlib.import_module(example.module)
    names |= {name: getattr(own, name) for name in own.__all__}
    client = redis.Redis if example.is_for_threads else redis.asyncio.Redis
    if example.is_for_threads:
        names["Multiplexer"] = blocking.Multiplexer
    return names | {"Redis": client, "redis": client(port=port), "REGISTRY": CollectorRegistry(), "mpx": mpx}


@pytest.fixture(scope="module")
def server_port() -> Iterator[int]:
    server = start_server("valkey", "--notify-keyspace-events", "KEA")
    yield server.port
    server.remove()


@pytest.fixture
def port(server_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The port of an empty server, whose URL is in a file."""
    monkeypatch.chdir(tmp_path)
    Path("broker.url").write_text(f"redis://localhost:{server_port}\n")
    with redis.Redis(port=server_port) as client:
        client.flushall()
    return server_port


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("example", [each for each in EXAMPLES if not each.is_for_threads], ids=str)
async def test_each_example_prints_what_it_says(
    example: Example, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example of each docstring runs in an event loop, and prints what its comments say."""
    async with asyncio.timeout(DEADLINE), Multiplexer(f"redis://localhost:{port}") as mpx:
        names = names_for(example, port, mpx)
        running = eval(example.program(port), names)  # a coroutine, if the example awaits something
        if running is not None:
            await running
        await mpx.drain()
        for value in list(names.values()):
            if isinstance(value, ChannelLayer):
                await value.close()
            elif isinstance(value, (Multiplexer, Topics, redis.asyncio.Redis)):
                await value.aclose()
    assert capsys.readouterr().out == example.printed


@pytest.mark.parametrize("example", [each for each in EXAMPLES if each.is_for_threads], ids=str)
def test_each_example_for_threads_prints_what_it_says(
    example: Example, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example of each docstring runs without an event loop, and prints what its comments say."""
    with blocking.Multiplexer(f"redis://localhost:{port}") as mpx:
        names = names_for(example, port, mpx)
        exec(example.program(port), names)
        mpx.drain(DEADLINE)
        for value in list(names.values()):
            if isinstance(value, (blocking.Multiplexer, blocking.Topics, redis.Redis)):
                value.close()
    assert capsys.readouterr().out == example.printed


# --- the names


def blocks() -> Iterator[str]:
    """Yield the Python code of README, documentation and examples."""
    for page in ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")):
        yield from re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    for program in sorted((ROOT / "examples").glob("*.py")):
        yield program.read_text()


def words(source: str) -> set[str]:
    """Return the names in code; those in comments and texts do not count."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.string for token in tokens if token.type == tokenize.NAME}


def test_each_public_name_is_in_an_example() -> None:
    """Each public name is in the example of a docstring, or in a program of README, documentation or `examples/`."""
    programs = [(source, words(source)) for source in blocks()]
    missing = []
    for module, name in PUBLIC:
        found = [words(each.source) for each in EXAMPLES if each.module == module]
        package = ".".join(module.split(".")[:3])
        found += [names for source, names in programs if module == "redismpx" or f"{package} import" in source]
        if not any(name in names for names in found):
            missing.append(f"{module}.{name}")
    assert missing == []
