"""Fixtures for pytest: a server, its faults, and a multiplexer. redismpx is imported when a test uses one of them.

This module stands beside the package, because pytest imports each installed plugin: importing `redismpx` here would
cost all users of it time, and hide its import from coverage.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from redismpx import Multiplexer
    from redismpx.embedded import Server
    from redismpx.testing import Faults, GivenServer, MemoryServer


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--redismpx-url`."""
    parser.getgroup("redismpx").addoption(
        "--redismpx-url",
        metavar="URL",
        help="the server of the fixture redismpx_server; by default an embedded one is started",
    )


@pytest.fixture(scope="session")
def redismpx_server(pytestconfig: pytest.Config) -> Iterator[Server | GivenServer]:
    """Start one Valkey server for all tests, at its `url`; with `--redismpx-url`, take that one.

    Override this fixture to use another server, also one that is in this process: `return MemoryServer()`.
    """
    from redismpx.embedded import Server
    from redismpx.testing import GivenServer

    url = pytestconfig.getoption("--redismpx-url")
    if url is not None:
        yield GivenServer(url)
        return
    with Server(port=0) as server:
        yield server


@pytest.fixture
def faults(redismpx_server: Server | GivenServer | MemoryServer) -> Iterator[Faults]:
    """Begin the faults of `redismpx_server` for one test; connect the application to their `url`.

    A server that the plugin has started is empty at the beginning of the test.
    """
    from redis import Redis

    from redismpx.embedded import Server
    from redismpx.testing import Faults

    if isinstance(redismpx_server, Server):
        with Redis.from_url(redismpx_server.url) as admin:
            admin.flushall()
    with Faults(redismpx_server) as faults:
        yield faults


@pytest.fixture
def multiplexer(request: pytest.FixtureRequest) -> Multiplexer:
    """Make a multiplexer for an async test, connected through `faults`. It reconnects quickly; the end closes it."""
    if not inspect.iscoroutinefunction(getattr(request.node, "function", None)):
        pytest.fail(
            "the fixture multiplexer is for async tests; in others: redismpx.blocking.Multiplexer(faults.url)",
            pytrace=False,
        )
    plugin = "anyio" if "anyio_backend" in request.fixturenames else "asyncio"
    if not request.config.pluginmanager.hasplugin(plugin):
        pytest.fail("the fixture multiplexer needs pytest-asyncio, or a test that is marked anyio", pytrace=False)
    mpx: Multiplexer = request.getfixturevalue(f"_redismpx_multiplexer_{plugin}")
    return mpx


@pytest.fixture
async def _redismpx_multiplexer_anyio(faults: Faults) -> AsyncIterator[Multiplexer]:
    async with _open(faults) as mpx:
        yield mpx


def pytest_configure(config: pytest.Config) -> None:
    """Make the same fixture for pytest-asyncio, if it is there: in its strict mode, it needs a decorator of its own."""
    if not config.pluginmanager.hasplugin("asyncio"):
        return
    import pytest_asyncio

    class ForAsyncio:
        @pytest_asyncio.fixture
        async def _redismpx_multiplexer_asyncio(self, faults: Faults) -> AsyncIterator[Multiplexer]:
            async with _open(faults) as mpx:
                yield mpx

    config.pluginmanager.register(ForAsyncio(), "redismpx-asyncio")


@asynccontextmanager
async def _open(faults: Faults) -> AsyncIterator[Multiplexer]:
    from redis.backoff import ConstantBackoff

    from redismpx import Multiplexer

    async with faults.client() as client, Multiplexer(client, backoff=ConstantBackoff(0.01)) as mpx:
        yield mpx
