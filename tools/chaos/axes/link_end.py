"""Slow plain callbacks at the end of a link: what the server has written to the socket is delivered before the loss."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import redis

from redismpx import ConnectionLost, Multiplexer
from tests.helpers.servers import find_binary

from ..scenes import Scene, Witness, admin_of, arrived, require
from ..surroundings import has_tls, start_tls_server

LONGEST = 0.15  # seconds that the slow callbacks of one scene may take together


class SlowWitness(Witness):
    """A witness whose callback keeps the loop to itself; it notes what it had at the first loss."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self.at_loss: int | None = None

    def on_message(self, channel: bytes, message: bytes) -> None:
        ends = time.perf_counter() + self._seconds
        while time.perf_counter() < ends:
            pass
        super().on_message(channel, message.strip())

    def on_disconnect(self, error: ConnectionLost) -> None:
        super().on_disconnect(error)
        if self.at_loss is None:
            self.at_loss = self.messages


class LinkEnd(Scene):
    """Slow plain callbacks at the end of a link. All messages that the server had written to the socket before the
    connection ended are delivered before the disconnect: over TCP, a Unix socket, and TLS if the server has it."""

    def set_up(self) -> None:
        server = self.start_server()
        self.admin = admin_of(server)
        self.wires: list[tuple[str, redis.Redis, dict[str, Any]]] = [
            (server.url, self.admin, {}),
            (f"unix://{server.socket_path}", self.admin, {}),
        ]
        if has_tls(self.flavour):
            binary = find_binary(self.flavour)
            assert binary is not None
            secure = start_tls_server(binary)
            self.servers.append(secure)
            options = {"ssl_cert_reqs": "none"}
            self.wires.append((f"rediss://localhost:{secure.tls_port}", admin_of(secure), options))
        for _, admin, _ in self.wires:
            admin.config_set("client-output-buffer-limit", "pubsub 0 0 0")

    async def play(self) -> None:
        rng = self.rng
        url, admin, options = rng.choice(self.wires)
        end = rng.choice(("killed", "killed while it is read", "killed while names are added", "abandoned"))
        count = rng.choice((50, 1_000, 3_000, 6_000))
        slow = rng.uniform(0, LONGEST / count)
        self.seen[f"{url.partition(':')[0]}, {end}"] += 1
        async with self.multiplexer(url, **options) as mpx:
            witnesses = [SlowWitness(slow), SlowWitness(0)]
            self.witnesses += witnesses
            for witness in witnesses:
                witness.sub = mpx.new_channel_subscription(*witness.callbacks, on_error=witness.on_error)
                witness.sub.add("a")
                await witness.sub.wait_for_activation(timeout=10)
            publish(admin, 0, count, rng.randrange(10, 300))
            if end == "killed while it is read":
                await arrived(lambda: witnesses[1].messages > 0, lambda: "the first message")
            await self.written(admin)
            await self.end_link(end, mpx, admin, witnesses[1])
            await arrived(lambda: all(w.at_loss is not None for w in witnesses), lambda: f"the loss ({end})")
            for witness in witnesses:
                require(
                    witness.at_loss == count and witness.last.get(b"a") is None,
                    f"{url}, {end}: {witness.at_loss} of {count} messages were delivered before the disconnect",
                )
                await witness.sub.wait_for_activation(timeout=10)
            publish(admin, count, 3, 10)
            await arrived(
                lambda: all(w.messages == count + 3 for w in witnesses), lambda: f"{witnesses[0].events[-5:]}"
            )
            for witness in witnesses:
                witness.account(count + 3, end)

    @staticmethod
    async def written(admin: redis.Redis) -> None:
        """Wait until the server has written to the sockets all that it has for its subscribers."""
        while any(int(client["obl"]) + int(client["omem"]) for client in admin.client_list(_type="pubsub")):
            await asyncio.sleep(0)

    async def end_link(self, end: str, mpx: Multiplexer, admin: redis.Redis, witness: Witness) -> None:
        if end == "abandoned":
            mpx._hub.deployment.abandon("a scene")
            return
        if end == "killed while names are added":  # so that a write fails
            port = mpx._hub.deployment.main.address[1]
            while unacknowledged(port):
                await asyncio.sleep(0)
            witness.sub.add(*(f"{self.rng.random()}" for _ in range(100)))
        admin.client_kill_filter(_type="pubsub")


def unacknowledged(port: int) -> bool:
    """Tell whether a server on this port has sent anything by TCP that has not arrived yet."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, _, queues, *_ = line.split()
        if int(local.partition(":")[2], 16) == port and int(queues.partition(":")[0], 16):
            return True
    return False


def publish(admin: redis.Redis, start: int, count: int, size: int) -> None:
    """Publish numbers on one channel while the loop stands still."""
    pipeline = admin.pipeline(transaction=False)
    for number in range(start, start + count):
        pipeline.publish("a", b"%*d" % (size, number))
    require(set(pipeline.execute()) == {1}, "somebody else is subscribed, or nobody is")
