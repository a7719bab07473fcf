"""Measure what Pub/Sub costs the servers.

    $ python -m tools.measure_scale [--server redis] [--messages 50000]

For messages of 64 bytes, prints the CPU time that the servers report:

- on one server, for each number of subscribed connections;
- in clusters, at the node that gets the PUBLISH and at all others, for classic and sharded channels, with the bytes
  that all nodes write.

Then prints the memory of a server for each subscribed name, the cost of one refresh of the slot map, and how often ten
multiplexers refresh it when a primary dies. There is no limit; the exit status is 0.

Run it on a machine that is idle otherwise. Servers that have to wait get more messages at a time, which makes each
message cheaper.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import socket
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from redis.asyncio import RedisCluster

from redismpx import Multiplexer
from redismpx._io.redispy.slot_map import SlotMap
from tests.helpers.cluster import Cluster
from tests.helpers.monitor import calls_of
from tests.helpers.servers import Server
from tests.helpers.waiting import until

from .measuring import FLAVOURS, running_server

PAYLOAD = b"x" * 64
CHANNEL = b"room:1"
NAMES, CONNECTIONS, REFRESHES, HERD = 100_000, 1_000, 300, 10


def pack(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


class Peer:
    """A bare connection, which costs this process little, so that the servers are the bottleneck."""

    def __init__(self, server: Server) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port), 30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def read(self, size: int) -> None:
        """Read `size` bytes."""
        while size:
            data = self._socket.recv(min(size, 1 << 16))
            assert data, "the server closed the connection"
            size -= len(data)

    def subscribe(self, names: Sequence[bytes], *, sharded: bool) -> None:
        verb = b"ssubscribe" if sharded else b"subscribe"
        self.send(pack(verb, *names))
        self.read(sum(len(pack(verb, name)) + len(b":%d\r\n" % (n + 1)) for n, name in enumerate(names)))

    def close(self) -> None:
        self._socket.close()


def exchange(
    publisher: Peer, subscribers: Sequence[Peer], counted: int, count: int, batch: int, *, sharded: bool
) -> None:
    """Publish `count` messages, `batch` at a time, and receive each batch before the next."""
    command = pack(b"SPUBLISH" if sharded else b"PUBLISH", CHANNEL, PAYLOAD) * batch
    replies = len(b":%d\r\n" % counted) * batch
    frames = len(pack(b"smessage" if sharded else b"message", CHANNEL, PAYLOAD)) * batch
    for _ in range(count // batch):
        publisher.send(command)
        publisher.read(replies)
        for subscriber in subscribers:
            subscriber.read(frames)


async def cpu(server: Server) -> float:
    """Return the microseconds of CPU time that a server has used."""
    info = await server.admin.info("cpu")
    return float(info["used_cpu_user"] + info["used_cpu_sys"]) * 1e6


def written(server: Server) -> int:
    """Return the bytes that a server has written, to clients and to other nodes."""
    assert server.process is not None
    return int(Path(f"/proc/{server.process.pid}/io").read_text().split()[3])


async def memory(server: Server) -> int:
    return int((await server.admin.info("memory"))["used_memory"])


async def one_server(server: Server, count: int) -> None:
    publisher = Peer(server)
    try:
        for batch in (1, 100):
            for receivers in (0, 1, 10, 100):
                costs = []
                for sharded in (False, True):
                    subscribers = [Peer(server) for _ in range(receivers)]
                    for subscriber in subscribers:
                        subscriber.subscribe([CHANNEL], sharded=sharded)
                    messages = count // max(1, receivers // 5) // batch * batch
                    before = await cpu(server)
                    exchange(publisher, subscribers, receivers, messages, batch, sharded=sharded)
                    costs.append((await cpu(server) - before) / messages)
                    for subscriber in subscribers:
                        subscriber.close()
                print(
                    f"one server, {batch:>3} at a time, {receivers:>3} connections: "
                    f"PUBLISH {costs[0]:.2f} us, SPUBLISH {costs[1]:.2f} us for a message",
                    flush=True,
                )
    finally:
        publisher.close()
        await server.release()


async def memory_of_names(server: Server, sharded: bool) -> None:
    names = [b"room:%06d" % number for number in range(NAMES)]
    verb = b"ssubscribe" if sharded else b"subscribe"
    peers = []
    try:
        costs = []
        for _ in range(2):
            before = await memory(server)
            peers.append(Peer(server))
            for start in range(0, NAMES, 500):
                part = names[start : start + 500]
                peers[-1].send(pack(verb, *part))
                numbers = range(start + 1, start + 1 + len(part))
                peers[-1].read(sum(len(pack(verb, part[0])) + len(b":%d\r\n" % number) for number in numbers))
            costs.append((await memory(server) - before) / NAMES)
        before = await memory(server)
        for _ in range(CONNECTIONS):
            peers.append(Peer(server))
            peers[-1].subscribe(names[:1], sharded=sharded)
        each = (await memory(server) - before) / CONNECTIONS
        kind = "shard channel" if sharded else "channel"
        print(
            f"memory of the server for a {kind}: {costs[0]:.0f} B, and {costs[1]:.0f} B for each further connection "
            f"with the same name; for a connection with one name: {each:.0f} B",
            flush=True,
        )
    finally:
        for peer in peers:
            peer.close()
        await server.release()


async def one_cluster(flavour: str, primaries: int, replicas: int, count: int) -> None:
    cluster = await Cluster.start(flavour, primaries, replicas)
    await cluster.give_up_after(15)  # seconds; busy nodes must not count as dead
    label = f"{primaries} primaries, {replicas} replicas"
    try:
        owner = await cluster.owner(CHANNEL)
        elsewhere = next(node for node in await cluster.primaries() if node is not owner)
        others = [node for node in cluster.nodes if node is not owner]
        for sharded, where in ((False, elsewhere), (True, owner)):
            publisher, subscriber = Peer(owner), Peer(where)
            subscriber.subscribe([CHANNEL], sharded=sharded)
            before = [await cpu(node) for node in (owner, *others)]
            bytes_before = sum(map(written, cluster.nodes))
            exchange(publisher, [subscriber], int(sharded), count, 100, sharded=sharded)
            await asyncio.sleep(0.2)  # until the nodes that have no subscriber have read the messages, too
            bytes_after = sum(map(written, cluster.nodes))
            after = [await cpu(node) for node in (owner, *others)]
            at_owner, *rest = [(now - then) / count for now, then in zip(after, before, strict=True)]
            verb = "SPUBLISH" if sharded else "PUBLISH"
            print(
                f"{label}: {verb} to 1 connection {at_owner:.2f} us at the publishing node, "
                f"{sum(rest):.2f} us at all others, {(bytes_after - bytes_before) / count:.0f} B written for a message",
                flush=True,
            )
            publisher.close()
            subscriber.close()
        async with RedisCluster.from_url(cluster.url) as client:
            slot_map = SlotMap(client)
            await slot_map.refresh()
            sent_before = [(await node.admin.info("stats"))["total_net_output_bytes"] for node in cluster.nodes]
            before = [await cpu(node) for node in cluster.nodes]
            began = time.process_time()
            for _ in range(REFRESHES):
                await slot_map.refresh()
            here = (time.process_time() - began) * 1e6 / REFRESHES
            there = sum([await cpu(node) for node in cluster.nodes]) - sum(before)
            sent = sum([(await node.admin.info("stats"))["total_net_output_bytes"] for node in cluster.nodes])
            print(
                f"{label}: one refresh of the slot map {there / REFRESHES:.0f} us at the nodes, {here:.0f} us in this "
                f"process, {(sent - sum(sent_before)) / REFRESHES:.0f} B",
                flush=True,
            )
    finally:
        await cluster.stop()


async def herd(flavour: str) -> None:
    """Kill a primary to which every multiplexer has a link; count the refreshes until all channels are active."""
    cluster = await Cluster.start(flavour)
    names = [b"room:%d" % number for number in range(30)]
    try:
        async with contextlib.AsyncExitStack() as stack:
            client = await stack.enter_async_context(RedisCluster.from_url(cluster.url))
            active: Counter[int] = Counter()
            for number in range(HERD):
                mpx = await stack.enter_async_context(Multiplexer(client))
                sub = mpx.new_channel_subscription(
                    lambda *_: None,
                    lambda error, number=number: active.subtract({number: len(error.names or names)}),
                    lambda _, number=number: active.update([number]),
                    sharded=True,
                )
                sub.add(*names)
                await sub.wait_for_activation(timeout=30)
            dead = await cluster.owner(names[0])
            others = [node for node in cluster.nodes if node is not dead]
            await cluster.give_up_after(5)
            before = sum([await calls_of(node.admin, "cluster|slots") for node in others])
            began = time.monotonic()
            await cluster.kill(dead)
            await until(lambda: active.total() < HERD * len(names))
            await until(lambda: active.total() == HERD * len(names), 60)
            took = time.monotonic() - began
            refreshes = sum([await calls_of(node.admin, "cluster|slots") for node in others]) - before
            print(
                f"a primary dies: {HERD} multiplexers refresh {refreshes / HERD:.1f} times each in {took:.1f} s",
                flush=True,
            )
    finally:
        await cluster.stop()


async def measure(flavour: str, count: int) -> None:
    print(flavour)
    with running_server(flavour) as server:
        await one_server(server, count)
    for sharded in (False, True):
        with running_server(flavour) as server:
            await memory_of_names(server, sharded)
    for primaries in (3, 6):
        await one_cluster(flavour, primaries, primaries, count)
    await herd(flavour)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", choices=FLAVOURS, default="valkey")
    parser.add_argument("--messages", type=int, default=50_000)
    options = parser.parse_args()
    logging.disable()
    asyncio.run(measure(options.server, options.messages))


if __name__ == "__main__":
    main()
