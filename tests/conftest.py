"""The fixtures that start servers, and the checks around every test."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
from hypothesis import Phase, settings
from redis.asyncio import Redis

from redismpx.testing import Proxy

from .helpers.cluster import Cluster
from .helpers.flavours import FLAVOURS, binary_of, start_server
from .helpers.leaks import left_behind, open_sockets
from .helpers.loops import LOOPS, run
from .helpers.sentinel import Sentinels
from .helpers.servers import Server

T = TypeVar("T")


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loop of the tests. REDISMPX_LOOP selects another one than asyncio's own."""
    kind = os.environ.get("REDISMPX_LOOP", "asyncio")
    return {kind: LOOPS[kind]}


def pytest_configure(config: pytest.Config) -> None:
    """Ignore how long a step of the loop or an example of Hypothesis takes: that depends on the load of the machine."""
    # Options of this run are not for runs that tests start. The controller of pytest-xdist leaves them to its workers.
    if config.getoption("dist", "no") == "no":
        os.environ.pop("PYTEST_ADDOPTS", None)
    logging.getLogger("asyncio").addFilter(lambda record: not record.getMessage().startswith("Executing "))
    # The time of an example says how busy the machine is, too. Each test has a time limit as a whole.
    settings.register_profile("tests", deadline=None)
    # A mutant is to be noticed; a small example of it, which takes minutes to find, is of no use.
    settings.register_profile("mutants", settings.get_profile("tests"), phases=[Phase.explicit, Phase.generate])
    settings.load_profile(os.environ.get("REDISMPX_HYPOTHESIS", "tests"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(specs: Sequence[Any]) -> None:
    """Start the workers of pytest-xdist with the options of this interpreter, such as `-X dev` and `-W error`."""
    for spec in specs:
        spec.python = shlex.join([sys.executable, *subprocess._args_from_interpreter_flags()])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run a test that is marked `one_flavour` with the first server only."""

    def is_left_out(item: pytest.Item) -> bool:
        call: Any = getattr(item, "callspec", None)  # None without parameters
        flavours = () if call is None else call.params.values()
        return item.get_closest_marker("one_flavour") is not None and any(each in FLAVOURS[1:] for each in flavours)

    config.hook.pytest_deselected(items=[item for item in items if is_left_out(item)])
    items[:] = [item for item in items if not is_left_out(item)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[pytest.TestReport]:
    """With REDISMPX_NO_SKIP set, as in CI, a skipped test fails."""
    report = yield
    # pytest-xdist sends reports as UTF-8, and some tests log names that UTF-8 cannot encode.
    report.sections = [(title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections]
    if report.skipped and os.environ.get("REDISMPX_NO_SKIP"):
        report.outcome = "failed"
        report.longrepr = f"skipped, although REDISMPX_NO_SKIP is set: {report.longrepr}"
    return report


@pytest.fixture(scope="session", params=FLAVOURS)
def shared_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of each flavour, for tests that leave it unchanged."""
    server = start_server(request.param)
    yield server
    server.remove()


@pytest.fixture(params=FLAVOURS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of each flavour for one test, which may kill, freeze and configure it."""
    server = start_server(request.param)
    yield server
    server.remove()


@pytest.fixture
def successor(server: Server) -> Iterator[Server]:
    """A replica of `server`, to take its place."""
    flavour = "redis" if "redis-server" in server.binary else "valkey"
    replica = start_server(flavour, "--replicaof", "127.0.0.1", str(server.port))
    yield replica
    replica.remove()


@pytest.fixture
def service(server: Server) -> Iterator[Proxy]:
    """The address by which the master can be reached, whichever server it is."""
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture(scope="session", params=FLAVOURS)
def cluster_of_session(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster of each flavour, for `shared_cluster`."""

    async def start() -> Cluster:
        cluster = await Cluster.start(request.param)
        await cluster.release()
        return cluster

    binary_of(request.param)
    cluster = run(start())
    yield cluster
    run(cluster.stop())


@pytest.fixture
async def shared_cluster(cluster_of_session: Cluster) -> AsyncIterator[Cluster]:
    """A cluster of each flavour, for tests that kill no node. Earlier tests may have moved slots and roles."""
    await cluster_of_session.settled()
    yield cluster_of_session
    await cluster_of_session.release()


Rig = TypeVar("Rig", Cluster, Sentinels)


@asynccontextmanager
async def standing(rig: type[Rig], flavour: str) -> AsyncIterator[Rig]:
    """Start a cluster or Sentinels of a flavour, for one test."""
    binary_of(flavour)
    started = await rig.start(flavour)
    yield started
    await started.stop()


@pytest.fixture(params=FLAVOURS)
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    """A cluster of each flavour for one test, which may kill any node."""
    async with standing(Cluster, request.param) as cluster:
        yield cluster


@pytest.fixture(params=FLAVOURS)
async def sentinels(request: pytest.FixtureRequest) -> AsyncIterator[Sentinels]:
    """Three Sentinels, a master and two replicas of each flavour for one test, which may kill any of them."""
    async with standing(Sentinels, request.param) as sentinels:
        yield sentinels


@pytest.fixture
def url(shared_server: Server) -> str:
    return shared_server.url


@pytest.fixture
async def admin(request: pytest.FixtureRequest) -> AsyncIterator[Redis]:
    """A client of the test's server, to publish and to ask what the server knows."""
    name = "server" if "server" in request.fixturenames else "shared_server"
    client = Redis.from_url(request.getfixturevalue(name).admin_url)
    yield client
    await client.aclose()


def pytest_collection_finish() -> None:
    """Exclude modules and tests, which stay until the end, from the garbage collections in the tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture
async def no_leaks() -> AsyncIterator[None]:
    """Check that the test leaves no task, timer or socket."""
    sockets = open_sockets()
    tasks = asyncio.all_tasks()
    yield
    await asyncio.sleep(0)
    left = [item for item in left_behind() if item not in tasks]
    assert not left, left
    gc.collect()
    for _ in range(200):  # a proxy that outlives the test closes its connections a little later
        if open_sockets() <= sockets:
            break
        await asyncio.sleep(0.01)
    assert open_sockets() <= sockets
