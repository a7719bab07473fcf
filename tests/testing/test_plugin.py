"""The fixtures of the pytest plugin and of the mixin, as tests of an application use them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from redis import Redis

from redismpx.embedded import Server

BODY = """
    async with multiplexer.subscribe("news") as news:
        faults.cut()
        await multiplexer.connect(timeout=5)
        await news.wait_for_activation(timeout=5)
        await multiplexer.publish("news", "hello")
        assert (await news.get(timeout=5)).data == b"hello"
"""
ASYNCIO = f"""
import pytest

@pytest.mark.asyncio
async def test_asyncio(multiplexer, faults):{BODY}
"""
ANYIO = f"""
import pytest

@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.mark.anyio
async def test_anyio(multiplexer, faults):{BODY}

@pytest.fixture
async def news(multiplexer):
    async with multiplexer.subscribe("news") as news:
        yield news

@pytest.mark.anyio
async def test_anyio_fixture(multiplexer, news):
    await multiplexer.publish("news", "hello")
    assert (await news.get(timeout=5)).data == b"hello"
"""
UNITTEST = f"""
import unittest
from redismpx.blocking import Multiplexer
from redismpx.testing import MultiplexerMixin

class TestAsync(MultiplexerMixin, unittest.IsolatedAsyncioTestCase):
    async def test_async(self):
        multiplexer, faults = self.multiplexer, self.faults
    {BODY.replace(chr(10), chr(10) + "    ")}

class TestBlocking(MultiplexerMixin, unittest.TestCase):
    def test_blocking(self):
        with Multiplexer(self.faults.url) as mpx:
            self.assertEqual(mpx.publish("news", "hello"), 0)
"""
BLOCKING = """
from redis import Redis
from redismpx.blocking import Multiplexer

def test_blocking(faults):
    with Multiplexer(faults.url) as mpx, mpx.subscribe("news") as news:
        mpx.publish("news", "hello")
        assert news.get(timeout=5).data == b"hello"

def test_leave_something(faults):
    Redis.from_url(faults.url).set("a", "b")

def test_the_next_test_finds_nothing(redismpx_server, faults):
    with Redis.from_url(redismpx_server.url) as redis:
        assert redis.keys() == []
"""
UNUSED = """
import sys

def test_nothing_is_imported():
    assert not {"redismpx", "redis"} & set(sys.modules)
"""


MEMORY = f"""
import pytest
from redismpx.testing import MemoryServer

@pytest.fixture(scope="session")
def redismpx_server():
    return MemoryServer()

@pytest.mark.asyncio
async def test_memory(multiplexer, faults):{BODY}
"""
PLAIN = """
def test_plain(multiplexer):
    pass

async def test_without_a_plugin(multiplexer):
    pass
"""
OTHER_SERVER = """
from redis import Redis

def test_the_server_is_the_given_one(redismpx_server, faults):
    assert redismpx_server.url == URL
    with Redis.from_url(faults.url) as redis:
        assert redis.get("a") == b"b"
"""


def run(folder: Path, *options: str, expected: int = 0, **files: str) -> str:
    """Run the tests in these files, in the order of their names; return what pytest printed."""
    for name, text in files.items():
        (folder / f"test_{name}.py").write_text(text)
    options = (*options, "-p", "no:cacheprovider", "--rootdir=.")
    if "no:asyncio" not in options:
        options += ("-o", "asyncio_default_fixture_loop_scope=function")
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stdout


def test_the_fixtures_serve_all_kinds_of_tests(tmp_path: Path) -> None:
    """In one run: pytest-asyncio in its strict mode, anyio, unittest, tests without a loop, a server in memory."""
    kinds = {"asyncio": ASYNCIO, "anyio": ANYIO, "unittest": UNITTEST, "blocking": BLOCKING, "memory": MEMORY}
    assert "9 passed" in run(tmp_path, **kinds)


def test_the_plugin_imports_nothing_before_it_is_used(tmp_path: Path) -> None:
    """Neither redismpx nor redis. Then its fixtures work, in the automatic mode of pytest-asyncio."""
    without_marks = ASYNCIO.replace("@pytest.mark.asyncio\n", "")
    assert "2 passed" in run(tmp_path, "--asyncio-mode=auto", a_unused=UNUSED, b_asyncio=without_marks)


def test_anyio_alone_and_a_given_server_are_enough(tmp_path: Path) -> None:
    """Without pytest-asyncio; with `--redismpx-url`, tests use that server and leave its data and users alone."""
    with Server(port=0) as server, Redis.from_url(server.url) as admin:
        admin.set("a", "b")
        options = ("-p", "no:asyncio", f"--redismpx-url={server.url}")
        assert "3 passed" in run(tmp_path, *options, anyio=ANYIO, other=OTHER_SERVER.replace("URL", repr(server.url)))
        assert admin.get("a") == b"b"
        assert admin.acl_users() == ["default"]


def test_what_the_multiplexer_needs_is_said(tmp_path: Path) -> None:
    """It is for coroutines, and needs a plugin that runs them."""
    printed = run(tmp_path, "-p", "no:asyncio", "-p", "no:anyio", expected=1, plain=PLAIN)
    assert "in others: redismpx.blocking.Multiplexer(faults.url)" in printed
    assert "needs pytest-asyncio, or a test that is marked anyio" in printed
