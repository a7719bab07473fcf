"""A delivery probe finds a server that answers pings and delivers nothing."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest
from redis.asyncio import ConnectionPool, Redis

from redismpx import ConnectionLost, Multiplexer
from redismpx._io.redispy.endpoint import Endpoint
from redismpx._io.session.delivery_probe import DeliveryProbe
from redismpx.testing import Checker, Proxy

from ..helpers.servers import Server
from ..helpers.waiting import until

pytestmark = pytest.mark.usefixtures("no_leaks")


async def fail_over(service: Proxy, successor: Server) -> None:
    """Make the replica the master, and leave the old one and its connections as they are."""
    async with Redis.from_url(successor.url) as admin:
        await admin.execute_command("REPLICAOF", "NO", "ONE")
    service.target = successor.port


async def test_a_former_master_that_still_answers_is_left(successor: Server, service: Proxy) -> None:
    """A delivery probe finds a former master that answers pings, and the connection moves to the new one."""
    checker = Checker()
    async with Multiplexer(service.url, ping_interval=0.1, delivery_probe=0.2) as mpx:
        sub = mpx.new_channel_subscription(*checker.callbacks)
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        await fail_over(service, successor)
        await until(lambda: checker.kinds == ["activation", "disconnect", "activation"])
        (lost,) = [event for kind, event in checker.events if kind == "disconnect"]
        assert isinstance(lost, ConnectionLost)
        assert "delivery probe" in lost.reason
        async with Redis.from_url(successor.url) as admin:
            await admin.publish("a", "new")
        await until(lambda: checker.payloads == [b"new"])
    assert not checker.faults


async def test_without_a_probe_a_former_master_is_kept(successor: Server, service: Proxy) -> None:
    """Without a probe a former master that answers pings is kept, and no message arrives."""
    checker = Checker()
    async with Multiplexer(service.url, ping_interval=0.05) as mpx:
        sub = mpx.new_channel_subscription(*checker.callbacks)
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        await fail_over(service, successor)
        link = mpx._hub.deployment.main._link
        assert link is not None
        for _ in range(3):  # it goes on answering pings, each sent after the last was heard
            heard = link.liveness._last_reply
            await until(lambda heard=heard: link.liveness._last_reply > heard)
        async with Redis.from_url(successor.url) as admin:
            assert await admin.publish("a", "new") == 0
        assert mpx.connected
        assert checker.kinds == ["activation"]


async def test_a_probe_that_arrives_changes_nothing(url: str) -> None:
    """Probes that arrive cause no event and keep the connection."""
    async with Multiplexer(url, delivery_probe=0.02) as mpx:
        checker = Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks)
        sub.add("a")
        await until(lambda: mpx.stats().messages >= 10)
        assert checker.kinds == ["activation"]
        assert mpx.stats().connections == 1


async def test_a_probe_behind_a_backlog_changes_nothing(url: str, admin: Redis) -> None:
    """A probe that waits unread, behind messages with slow callbacks, is not lost."""
    async with Multiplexer(url, delivery_probe=0.05) as mpx:
        checker = Checker()

        def on_message(channel: bytes, data: bytes) -> None:
            time.sleep(0.002)
            checker.on_message(channel, data)

        sub = mpx.new_channel_subscription(
            on_message, on_activation=checker.on_activation, on_disconnect=checker.on_disconnect
        )
        sub.add("a")
        await sub.wait_for_activation(timeout=5)
        async with admin.pipeline(transaction=False) as pipeline:
            for _ in range(1500):  # 3 s of work
                pipeline.publish("a", b"x" * 1000)
            await pipeline.execute()
        await until(lambda: mpx.stats().messages >= 1503, 20)  # the probe, and two after the backlog
        assert set(checker.kinds) == {"activation", "message"}


async def test_a_probe_of_another_process_is_ignored(url: str) -> None:
    """Processes forked from one share the probe's channel, and each recognises its own probe."""
    async with Multiplexer(url, delivery_probe=0.05) as mpx:
        (probe,) = mpx._hub.deployment._listeners
        take = probe.deliver

        def deliver(channel: bytes, data: bytes) -> None:
            take(channel, data)
            take(channel, b"of another process")

        probe.deliver = deliver
        await until(lambda: mpx.stats().messages >= 5)
        assert mpx.stats().connections == 1


@pytest.mark.parametrize("rights", ["-publish", "resetchannels &a"])
async def test_a_probe_without_permission_keeps_the_connection(
    url: str, admin: Redis, rights: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A probe that may not be published or received is one warning and keeps the connection."""
    await admin.execute_command("ACL", "SETUSER", "probe", "on", "nopass", "~*", "&*", "+@all", *rights.split())
    try:
        checker = Checker()
        async with Multiplexer(url, username="probe", password="", delivery_probe=0.02) as mpx:
            sub = mpx.new_channel_subscription(*checker.callbacks)
            sub.add("a")
            await until(lambda: "grant +publish, +subscribe and &__mpx_probe:*" in caplog.text)
            if rights == "-publish":
                before = (await admin.info("stats"))["total_connections_received"]
                async with asyncio.timeout(10):
                    while (await admin.info("stats"))["total_connections_received"] < before + 6:  # one for each probe
                        await asyncio.sleep(0.01)
            else:
                await sub.wait_for_activation(timeout=5)
            assert checker.kinds == ["activation"]
        assert [record.levelno for record in caplog.records].count(logging.WARNING) == 1
    finally:
        await admin.execute_command("ACL", "DELUSER", "probe")


async def test_failing_probes_back_off_until_one_arrives(url: str) -> None:
    """Each lost probe doubles the interval up to a limit, and one that arrives resets it."""
    waits: list[float] = []

    def condemn(reason: str) -> None:
        waits.append(probe.wait)
        probe.disconnect(ConnectionLost(reason))
        probe.activate(probe.channel)

    pool = ConnectionPool.from_url(url)
    probe = DeliveryProbe(Endpoint(pool), 0.01, lambda: False, condemn)
    probe.activate(probe.channel)
    task = asyncio.create_task(probe.run())
    await until(lambda: len(waits) == 6)
    assert waits == pytest.approx([0.02, 0.04, 0.08, 0.1, 0.1, 0.1])
    async with Redis(connection_pool=pool) as client, client.pubsub() as pubsub:
        await pubsub.subscribe(probe.channel)
        async for message in pubsub.listen():
            if message["type"] == "message":
                probe.deliver(message["channel"], message["data"])
                break
        await until(lambda: probe.wait == 0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
