"""Key events under kills and failovers, from a single server and from every primary of a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import redis
from redis.crc import key_slot
from redis.exceptions import MovedError

from redismpx import Activation, ConnectionLost, Disconnect, KeyEvent, Multiplexer
from redismpx._io.deployment import primaries
from tests.helpers.cluster import Cluster, Node
from tests.helpers.loops import run
from tests.helpers.servers import Server

from ..scenes import Scene, Witness, admin_of, arrived, require

KINDS = ("plain", "async", "read")
LONG = 30.0  # seconds until a failover is over
SETTING = ("--notify-keyspace-events", "KA")


class KeyWitness(Witness):
    """A key subscription. Its names are tags: the keys of a tag are numbered, and belong to one server.

    In a cluster, a gap is about the tags of one primary, or of all. Events of a primary that is back may arrive before
    the subscription is active again; nothing is promised about them. When a primary is replaced, there may be a second
    gap: the old one is back as a replica, and the subscription is active there until the slot map is read.
    """

    def __init__(self, scene: Keys, mpx: Multiplexer, kind: str) -> None:
        super().__init__(upcoming=lambda tag: {tag: scene.numbers[tag] + 1})
        self._scene = scene
        self.kind = kind
        self.reasons: list[str] = []  # of all gaps
        self.sub = mpx.new_key_subscription(
            scene.pattern,
            None if kind == "read" else self.take if kind == "plain" else self.take_and_wait,
            *((None, None) if kind == "read" else (self.lose, self.start)),
            events={"set"},
            on_error=self.on_error,
        )

    def take(self, event: KeyEvent) -> None:
        _, tag, number = event.key.split(b":")
        if tag in self.active or not self._scene.is_cluster:
            self.on_message(tag, number)

    def take_and_wait(self, event: KeyEvent) -> Awaitable[None]:
        self.take(event)
        return asyncio.sleep(0)

    def lose(self, error: ConnectionLost) -> None:
        self.reasons.append(error.reason)
        lost = self.active & self._scene.tags_of(error.node)
        if lost:
            self.on_disconnect(ConnectionLost(error.reason, frozenset(lost)))
        elif not self._scene.is_cluster:
            self.faults.append("a disconnect with nothing active")

    def start(self, name: bytes) -> None:
        if self.active == set(self._scene.numbers):
            self.faults.append(f"{name!r} activated twice, after the gaps {self.reasons[-4:]}")
        for tag in set(self._scene.numbers) - self.active:
            self.on_activation(tag)

    async def read(self) -> None:
        """Read everything in order, until the subscription is closed."""
        async for event in self.sub.events():
            match event:
                case Activation(name):
                    self.start(name)
                case Disconnect(error):
                    self.lose(error)
                case KeyEvent():
                    self.take(event)


class Keys(Scene):
    """Key subscriptions on a single server and in a cluster, while connections are killed, primaries are killed, and
    planned failovers happen. For the keys of each primary, events come between an activation and a disconnect that
    names the primary, and none of them is missing."""

    def set_up(self) -> None:
        primaries.READ_INTERVAL = 0.2
        self.single = self.start_server(*SETTING)
        self.cluster = run(self.start_cluster())
        self.servers += self.cluster.nodes
        self.admins: dict[Server, redis.Redis] = {s: admin_of(s) for s in (self.single, *self.cluster.nodes)}
        self.count = 0

    async def start_cluster(self) -> Cluster:
        cluster = await Cluster.start(self.flavour, 3, 3, *SETTING)
        await cluster.release()
        return cluster

    async def play(self) -> None:
        self.count += 1
        self.is_cluster = self.rng.random() < 0.5
        self.pattern = f"scene-{self.count}:*"
        self.numbers = {f"{{t{number}}}".encode(): 0 for number in range(12 if self.is_cluster else 3)}
        self.homes: dict[bytes, set[Server]] = {tag: {self.single} for tag in self.numbers}
        self.owners: dict[bytes, Server] = dict.fromkeys(self.numbers, self.single)
        if not self.is_cluster:
            self.seen["single server"] += 1
            async with self.multiplexer(self.single.url) as mpx:
                await self.watch(mpx, self.kill_at_single)
            return
        self.seen["cluster"] += 1
        try:
            for tag in self.numbers:
                self.owners[tag] = owner = await self.cluster.owner(key_slot(tag))
                self.homes[tag] = {owner, *await self.cluster.replicas(owner)}
            client = redis.asyncio.RedisCluster.from_url(self.cluster.url)
            try:
                async with self.multiplexer(client) as mpx:
                    await self.watch(mpx, self.harm_cluster)
            finally:
                await client.aclose()
        finally:
            await self.cluster.release()

    def tags_of(self, node: str | None) -> set[bytes]:
        """Return the tags that a server may own in this scene; None: all tags."""
        homes = {f"127.0.0.1:{server.port}": server for server in self.admins}
        return {tag for tag in self.numbers if node is None or homes[node] in self.homes[tag]}

    async def watch(self, mpx: Multiplexer, harm: Callable[[], Awaitable[None]]) -> None:
        """Have some subscriptions get events, while something goes wrong again and again."""
        witnesses = [KeyWitness(self, mpx, kind) for kind in self.rng.choices(KINDS, k=self.rng.randrange(1, 4))]
        self.witnesses += witnesses
        readers = [asyncio.create_task(witness.read()) for witness in witnesses if witness.kind == "read"]
        for witness in witnesses:
            await witness.sub.wait_for_activation(timeout=LONG)
        await self.up_to_date(witnesses)
        for _ in range(self.rng.randrange(1, 4)):
            gaps = [witness.disconnects for witness in witnesses]
            self.set_keys()
            await harm()
            self.set_keys()
            await arrived(
                lambda gaps=gaps: all(w.disconnects > gap for w, gap in zip(witnesses, gaps, strict=True)),  # type: ignore[misc]
                lambda: f"a gap: {[witness.events[-4:] for witness in witnesses]}",
                LONG,
            )
            await self.up_to_date(witnesses)
        for witness in witnesses:
            witness.sub.close()
        await asyncio.gather(*readers)

    def set_keys(self) -> None:
        """Set some keys at their primaries, between two steps of the loop."""
        for _ in range(self.rng.randrange(1, 30)):
            self.set_key(self.rng.choice(list(self.numbers)))

    def set_key(self, tag: bytes) -> None:
        self.numbers[tag] += 1
        key = b"%s:%s:%d" % (self.pattern.removesuffix(":*").encode(), tag, self.numbers[tag])
        try:
            self.admins[self.owners[tag]].set(key, 1, px=10_000)
        except MovedError as moved:  # its primary had no CPU time for so long that a replica has replaced it
            self.owners[tag] = new = next(server for server in self.admins if server.port == moved.port)
            self.admins[new].set(key, 1, px=10_000)

    async def up_to_date(self, witnesses: list[KeyWitness]) -> None:
        """Wait until every subscription is active; then each gets the next event of every tag, or there is a gap."""
        for witness in witnesses:
            await arrived(
                lambda w=witness: w.active == set(self.numbers),  # type: ignore[misc]
                lambda w=witness: f"{w.sub!r} is not active: {w.events[-4:]}",  # type: ignore[misc]
                LONG,
            )
        gaps = [witness.disconnects for witness in witnesses]

        def is_interrupted() -> bool:
            return gaps != [witness.disconnects for witness in witnesses]

        for tag in self.numbers:
            self.set_key(tag)
        for witness in witnesses:
            await arrived(
                lambda w=witness: w.last == self.numbers or is_interrupted(),  # type: ignore[misc]
                lambda w=witness: f"{w.kind}: {w.last} instead of {self.numbers}; {w.events[-4:]}",  # type: ignore[misc]
            )
        if is_interrupted():
            await self.up_to_date(witnesses)

    # --- what goes wrong

    def kill_links(self, *servers: Server) -> None:
        for server in servers:
            self.admins[server].client_kill_filter(_type="pubsub")

    async def kill_at_single(self) -> None:
        self.seen["kills"] += 1
        self.kill_links(self.single)

    async def harm_cluster(self) -> None:
        primaries = sorted(set(self.owners.values()), key=lambda server: server.port)
        how = self.rng.choices(("kills", "all killed", "planned failover", "primary killed"), (4, 3, 2, 1))[0]
        self.seen[how] += 1
        if how in ("kills", "all killed"):
            self.kill_links(*(primaries if how == "all killed" else [self.rng.choice(primaries)]))
            return
        old: Any = self.rng.choice(primaries)
        assert isinstance(old, Node)
        is_planned = how == "planned failover"
        new = await self.cluster.failover(old, "command" if is_planned else "kill")
        if not is_planned:
            await self.cluster.restart(old)
            self.admins[old].ping()
        for tag, owner in self.owners.items():
            if owner is old:
                self.owners[tag] = new
        require(old not in self.owners.values(), "a tag has kept its owner")
