"""A client that is used elsewhere too: in another loop, in another process, or up to the bound of its pool."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from redis.asyncio import Redis
from redis.asyncio.connection import BlockingConnectionPool
from redis.asyncio.sentinel import Sentinel

from redismpx import Multiplexer

from ..helpers.cluster import Cluster
from ..helpers.programs import run_program
from ..helpers.sentinel import close
from ..helpers.servers import SentinelServer, Server
from ..helpers.waiting import until

pytestmark = [pytest.mark.one_flavour, pytest.mark.usefixtures("no_leaks")]

CLIENTS = """
import asyncio, os, sys, warnings
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.sentinel import Sentinel
from redismpx import Multiplexer

warnings.simplefilter("ignore")  # what asyncio says of the loop that a child inherits, and of abandoned connections
kind, where = sys.argv[1:]
if kind == "sentinel":
    sentinel = Sentinel([("127.0.0.1", int(where))])
    client = sentinel.master_for("main")
else:
    client = (Redis if kind == "redis" else RedisCluster).from_url(where)

async def use():
    assert await client.set("key", "value")
    assert await client.get("key") == b"value"

async def multiplex():
    async with Multiplexer(client, publish_timeout=5) as mpx:
        sub = mpx.new_channel_subscription()
        sub.add("a")
        await sub.wait_for_activation(timeout=10)
        await mpx.publish("a", "x")
        assert (await sub.get(5)).data == b"x"
"""
LOOPS = """
asyncio.run(use())
for _ in range(2):
    asyncio.run(multiplex())
"""
FORK = """
loop = asyncio.new_event_loop()
loop.run_until_complete(use())
child = os.fork()
if child == 0:
    sys.stderr = open(os.devnull, "w")
    try:
        asyncio.run(multiplex())
    except BaseException:
        os._exit(1)
    os._exit(0)
async def both():
    for _ in range(20):
        await use()
        await multiplex()
loop.run_until_complete(both())
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
loop.run_until_complete(both())
"""


@pytest.fixture
def sentinel(server: Server) -> Iterator[SentinelServer]:
    """A Sentinel that watches `server`."""
    sentinel = SentinelServer(server.binary, server).start()
    yield sentinel
    sentinel.remove()


@pytest.mark.parametrize("program", [LOOPS, FORK], ids=["loops", "fork"])
def test_a_client_may_be_used_in_other_loops_and_processes(url: str, program: str) -> None:
    """A client that other loops or a forked process use too serves a multiplexer in each, and is not disturbed."""
    run_program(CLIENTS + program, "redis", url)


@pytest.mark.parametrize("program", [LOOPS, FORK], ids=["loops", "fork"])
def test_a_sentinel_client_may_be_used_elsewhere(sentinel: SentinelServer, program: str) -> None:
    """The same with a client from Sentinel: the Sentinels are not asked over its connections either."""
    run_program(CLIENTS + program, "sentinel", str(sentinel.port))


@pytest.mark.parametrize("program", [LOOPS, FORK], ids=["loops", "fork"])
async def test_a_cluster_client_may_be_used_elsewhere(shared_cluster: Cluster, program: str) -> None:
    """The same with a cluster client."""
    await asyncio.to_thread(run_program, CLIENTS + program, "cluster", shared_cluster.url)


async def test_a_sentinel_client_stays_untouched(sentinel: SentinelServer) -> None:
    """No pool of a Sentinel client gets or loses a connection, and none to the Sentinels stays open."""
    manager = Sentinel([("127.0.0.1", sentinel.port)])
    client = manager.master_for("main")
    async with Multiplexer(client, delivery_probe=0.02) as mpx:
        await mpx.connect(10)
        await mpx.publish("a", "x")
        await until(lambda: mpx.stats().messages > 3)
    for pool in (client.connection_pool, manager.sentinels[0].connection_pool):
        assert not pool._available_connections
        assert not pool._in_use_connections
    await client.aclose()
    await close(manager)


@pytest.mark.parametrize("probe", [None, 0.01])
async def test_a_multiplexer_has_few_connections_whatever_it_does(url: str, admin: Redis, probe: float | None) -> None:
    """A multiplexer has a connection to subscribe, one to publish and one for a probe, whatever the pool allows."""
    pool = BlockingConnectionPool.from_url(url, max_connections=1, timeout=0.1, client_name="bound")
    client = Redis.from_pool(pool)
    async with Multiplexer(client, delivery_probe=probe) as mpx:
        taken = await pool.get_connection()  # the multiplexer neither waits for it nor takes it
        subs = [mpx.new_channel_subscription() for _ in range(100)]
        for number, sub in enumerate(subs):
            sub.add(f"a{number}")
        most = 0
        for _ in range(10):
            calls = [asyncio.ensure_future(mpx.publish("a1", "x")) for _ in range(1000)]
            names = [found["name"] for found in await admin.client_list()]
            most = max(most, names.count("bound") - 1)
            await asyncio.gather(*calls)
        assert most == 2 if probe is None else most in (2, 3)
        await pool.release(taken)
        assert await client.ping()  # nor does it keep the client from its own
    await client.aclose()
