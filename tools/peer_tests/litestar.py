"""The tests that Litestar has for its backends of channels, and for the plugin with each of them, on the backend.

Its source package has no tests: `--source` is a checkout of https://github.com/litestar-org/litestar.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tools.measuring import running_server

_PRIVATE = "a function of its own backend: the keys of streams expire by themselves"
LEFT_OUT = {
    "test_redis_streams_backend_flushall": _PRIVATE,
    "test_redis_stream_backend_expires": "looks at private attributes of its own backend",
}
"""Beside these, the tests of the other backends (memory, asyncpg, psycopg) do not run."""

CONFTEST = """
import os
import sys
import unittest.mock
from unittest.mock import AsyncMock, MagicMock, Mock

for name in ("asyncpg", "psycopg"):  # these backends are imported, but no test with them runs
    unused = type("Unused", (), {})
    module = Mock(AsyncPgChannelsBackend=unused, PsycoPgChannelsBackend=unused)
    sys.modules[f"litestar.channels.backends.{name}"] = module
sys.modules.setdefault("pytest_mock", Mock())  # the type of a fixture

import pytest

from redismpx.contrib.litestar import MultiplexerChannelsBackend

URL, LEFT_OUT = os.environ["REDIS_URL"], os.environ["PEER_LEFT_OUT"].split()


def pytest_collection_modifyitems(config, items):
    if not items:  # they cannot be imported
        return
    names = {getattr(item, "originalname", item.name) for item in items}
    assert not set(LEFT_OUT) - names, "tests that are left out are gone"

    def runs(item):
        words = ("memory", "postgres", "asyncpg", "psycopg")
        of_others = any(word in name for word in words for name in (item.name, *item.fixturenames))
        return item.originalname not in LEFT_OUT and not of_others

    config.hook.pytest_deselected(items=[item for item in items if not runs(item)])
    items[:] = [item for item in items if runs(item)]


@pytest.fixture(autouse=True)
def empty_server():
    from redis import Redis

    with Redis.from_url(URL) as admin:
        admin.flushall()


@pytest.fixture
def redis_pub_sub_backend():
    return MultiplexerChannelsBackend(URL)


@pytest.fixture
def redis_stream_backend():
    return MultiplexerChannelsBackend(URL, history=1)


@pytest.fixture
def redis_stream_backend_with_history():
    return MultiplexerChannelsBackend(URL, history=10)


@pytest.fixture
def mocker():
    class Mocker:
        MagicMock, AsyncMock = MagicMock, AsyncMock

        def patch(self, *args, **options):
            patch = unittest.mock.patch(*args, **options)
            patches.append(patch)
            return patch.start()

    patches = []
    yield Mocker()
    for patch in patches:
        patch.stop()


@pytest.fixture
def async_mock():
    return AsyncMock()


@pytest.fixture
def mock():
    return MagicMock()
"""


def run(source: Path | None, folder: Path) -> int:
    """Run the tests; return 0 if all of them pass."""
    if source is None:
        print("litestar has no tests in its source package: pass --source, a checkout of its repository")
        return 2
    tests = folder / "tests/unit/test_channels"
    tests.mkdir(parents=True)
    for package in (folder / "tests", folder / "tests/unit"):
        (package / "__init__.py").touch()
    for name in ("__init__.py", "test_backends.py", "test_plugin.py", "util.py"):
        shutil.copy(source / "tests/unit/test_channels" / name, tests)
    (tests / "conftest.py").write_text(CONFTEST)
    root = str(Path(__file__).parents[2])
    options = ("-q", "-rA", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", ".", "-o", "asyncio_mode=auto")
    with running_server() as server:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(folder), root]),
            "REDIS_URL": server.url,
            "PEER_LEFT_OUT": " ".join(LEFT_OUT),
        }
        command = [sys.executable, "-m", "pytest", *options, "tests/unit/test_channels"]
        status = subprocess.run(command, cwd=folder, env=environment, check=False).returncode
    for name, why in LEFT_OUT.items():
        print(f"LEFT OUT {name}: {why}")
    print("LEFT OUT all tests with the other backends: memory, asyncpg, psycopg")
    return int(status != 0)
