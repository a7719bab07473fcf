"""A planned failover: FAILOVER, which closes no connection, with messages published at both servers."""

from __future__ import annotations

import asyncio
import time

import redis

from redismpx import ConnectionLost, Multiplexer, NoResponders, PromiseTimeout
from redismpx._io.redispy import connection
from redismpx.testing import Proxy
from tests.helpers.servers import Server

from ..scenes import Scene, Violation, Witness, admin_of, arrived, require

LONG = 20.0  # seconds until a server has its new role


class Failover(Scene):
    """A planned failover (FAILOVER) between a primary and its replica, which closes no connection. What is published at
    the primary arrives, whichever of the two it is; what is published at the replica arrives if the link leads there.
    Messages are lost only if a server has sent the other one all its data (a full resynchronization). No call of
    publish() fails, and no request that a service gets ends in NoResponders."""

    def set_up(self) -> None:
        connection.ROLE_INTERVAL = 0.05
        options = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
        self.primary = self.start_server(*options)
        self.replica = self.start_server(*options, "--replicaof", f"127.0.0.1 {self.primary.port}")
        self.admins = {server: admin_of(server) for server in (self.primary, self.replica)}
        ends = time.monotonic() + LONG
        while not self.is_in_sync():
            require(time.monotonic() < ends, "the replica does not replicate")
            time.sleep(0.01)
        self.proxy = Proxy(self.primary.port)
        self.proxy.__enter__()

    def is_in_sync(self) -> bool:
        """Tell whether the replica replicates the primary."""
        role = self.admins[self.replica].execute_command("ROLE")
        return bool(role[2:4] == [self.primary.port, b"connected"])

    async def play(self) -> None:
        rng = self.rng
        self.proxy.target = self.primary.port
        self.numbers = {b"all": 0, b"replica": 0}
        self.unanswered = 0
        async with self.multiplexer(self.proxy.url, publish_timeout=LONG) as mpx:
            below = self.witness(may_skip=True)
            below.sub = mpx.new_channel_subscription(*below.callbacks, on_error=below.on_error)
            below.sub.add(b"all", b"replica")
            service = mpx.serve("echo", lambda request: request.body)
            await below.sub.wait_for_activation(timeout=LONG)
            await service.wait_for_activation(timeout=LONG)
            for _ in range(rng.randrange(1, 3)):
                await self.publish_everywhere(mpx, below)
                stop = asyncio.Event()
                load = asyncio.create_task(self.publish_until(mpx, stop))
                full_syncs = self.full_syncs()
                try:
                    await self.fail_over()
                finally:
                    await asyncio.sleep(rng.uniform(0, 0.1))
                    stop.set()
                    await load
                await self.publish_number(mpx)  # the one before may be lost
                await self.up_to_date(below, b"all")
                lost, below.skipped, self.unanswered = below.skipped + self.unanswered, 0, 0
                full_syncs = self.full_syncs() - full_syncs
                self.seen["full resynchronizations"] += full_syncs
                self.seen["lost between the servers"] += lost
                require(full_syncs or not lost, f"{lost} messages lost: {below.events[-20:]}")
                require(below.disconnects == 0, f"FAILOVER has cost the connection: {below.events[-3:]}")
                await self.publish_everywhere(mpx, below)
                # A call that waits during FAILOVER reaches the subscribers of the former primary only. So the link
                # leads to the primary before the next one.
                await self.reconnect(below)
                await service.wait_for_activation(timeout=LONG)
            service.close()

    async def fail_over(self) -> None:
        """Make the replica the primary, and the primary its replica."""
        self.seen["failovers"] += 1
        old, new = self.primary, self.replica
        await arrived(lambda: self.begin_failover(old, new), lambda: "the replica is not online")
        self.primary, self.replica = new, old
        await arrived(self.is_in_sync, lambda: "the failover does not end")
        self.proxy.target = new.port  # of new connections, as with a name that leads to the primary

    def begin_failover(self, old: Server, new: Server) -> bool:
        """Send FAILOVER; return whether the server accepts it."""
        try:
            self.admins[old].execute_command("FAILOVER", "TO", "127.0.0.1", new.port)
        except redis.ResponseError as error:
            if "not online" in str(error):
                return False
            raise
        return True

    async def publish_until(self, mpx: Multiplexer, stop: asyncio.Event) -> None:
        """Publish numbers to everybody, one after the other, and send requests, until told to stop."""
        while not stop.is_set():
            try:
                await self.publish_number(mpx)
                await self.ask(mpx)
            except ConnectionLost as error:
                raise Violation(f"publish() has failed during FAILOVER: {error}") from error
            except PromiseTimeout:
                self.unanswered += 1
            await asyncio.sleep(0.002)

    async def publish_number(self, mpx: Multiplexer) -> None:
        self.numbers[b"all"] += 1
        await mpx.publish(b"all", b"%d" % self.numbers[b"all"])

    def full_syncs(self) -> int:
        """Return how often a server has sent the other one all its data. What is published meanwhile may be lost."""
        return sum([admin.info("stats")["sync_full"] for admin in self.admins.values()])

    async def ask(self, mpx: Multiplexer) -> None:
        self.seen["requests"] += 1
        try:
            require(await mpx.request("echo", b"x", timeout=LONG) == b"x", "another reply than that of the service")
        except NoResponders as error:
            raise Violation("NoResponders, although there is a service") from error

    async def publish_everywhere(self, mpx: Multiplexer, witness: Witness) -> None:
        """Publish by way of the multiplexer, at the primary, and at the replica."""
        for _ in range(self.rng.randrange(1, 5)):
            if self.rng.random() < 0.5:
                await self.publish_number(mpx)
                self.seen["published"] += 1
            else:
                self.numbers[b"all"] += 1
                self.admins[self.primary].publish(b"all", b"%d" % self.numbers[b"all"])
                self.seen["published at the primary"] += 1
            await self.up_to_date(witness, b"all")
        self.numbers[b"replica"] += 1
        counted = self.admins[self.replica].publish(b"replica", b"%d" % self.numbers[b"replica"])
        if counted:
            self.seen["got from the replica"] += 1
            await self.up_to_date(witness, b"replica")
        else:
            self.numbers[b"replica"] -= 1
        await self.ask(mpx)

    async def up_to_date(self, witness: Witness, channel: bytes) -> None:
        await arrived(
            lambda: witness.last.get(channel, 0) == self.numbers[channel],
            lambda: f"{self.numbers}, {witness.last}, {witness.events[-5:]}",
        )

    async def reconnect(self, witness: Witness) -> None:
        """Kill the link; the next one leads to the primary."""
        self.seen["kills"] += 1
        for admin in self.admins.values():
            admin.client_kill_filter(_type="pubsub")
        await arrived(lambda: witness.disconnects == 1, lambda: "a disconnect")
        await witness.sub.wait_for_activation(timeout=LONG)
        witness.disconnects = 0
