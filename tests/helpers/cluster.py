"""A Redis Cluster on loopback whose slots can move and whose nodes can fail over, die and be added.

Each method returns what the nodes themselves report, and waits until all live nodes agree about a change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, Self

from redis.crc import key_slot
from redis.exceptions import ResponseError

from .servers import Server, find_binary
from .waiting import eventually

SLOTS = 16384
QUICK = 1.0  # seconds of silence after which a node counts as dead, during a failover
PATIENT = 4.0  # the same at all other times, because the machine may be busy
ROLES = (frozenset({"master"}), frozenset({"slave"}))
"""The flags of a live node that is neither suspected nor new."""


def slot_of(name: int | str | bytes) -> int:
    """Return the slot of a name, or the number of a slot itself."""
    return name if isinstance(name, int) else key_slot(name.encode() if isinstance(name, str) else name)


@dataclass(frozen=True)
class Word:
    """What a node reports about a node, itself or another."""

    flags: frozenset[str]
    primary: str
    """The id of the node that it is a replica of, or `-`."""
    linked: bool
    """Whether the reporting node is connected to it. A failover needs that."""
    ranges: tuple[str, ...]
    """The slots that it serves, as the node writes them."""

    @property
    def slots(self) -> set[int]:
        slots: set[int] = set()
        for first, last in (text.split("-") if "-" in text else (text, text) for text in self.ranges):
            slots.update(range(int(first), int(last) + 1))
        return slots


class Node(Server):
    """One server of a cluster. A restart keeps its id, its ports and its view of the cluster."""

    def __init__(self, binary: str, options: Iterable[str] = ()) -> None:
        super().__init__(
            binary, "--cluster-enabled", "yes",
            "--cluster-announce-ip", "127.0.0.1", "--cluster-node-timeout", str(int(QUICK * 1000)),
            "--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0",
            "--repl-ping-replica-period", "1", "--enable-debug-command", "yes", *options,
        )  # fmt: skip
        self.id = ""

    @property
    def bus_port(self) -> int:
        return int(self.options[self.options.index("--cluster-port") + 1])

    async def ask(self, *command: str | bytes | int) -> Any:
        return await self.admin.execute_command(*command)

    async def ask_all(self, commands: Iterable[tuple[str | bytes | int, ...]]) -> list[Any]:
        pipe = self.admin.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        return await pipe.execute()

    async def words(self) -> dict[str, Word]:
        """Return what it reports about each node that it knows, itself included, by id."""
        text = await self.ask("CLUSTER", "NODES")
        words = {}
        for line in text.decode().splitlines():
            name, _address, flags, primary, _ping, _pong, _epoch, link, *slots = line.split()
            ranges = tuple(slot for slot in slots if not slot.startswith("["))  # these slots are being moved
            words[name] = Word(frozenset(flags.split(",")) - {"myself"}, primary, link == "connected", ranges)
        return words

    async def word(self) -> Word:
        """Return what it reports about itself."""
        return (await self.words())[self.id]

    async def complaint(self) -> str:
        """Return why it does not serve or, if it is a replica, why it is not in sync; an empty text if all is well."""
        info = await self.ask("CLUSTER", "INFO")
        if b"cluster_state:ok" not in info:
            return f"{self} says {info.split()[0].decode()}"
        role = await self.ask("ROLE")
        return "" if role[0] == b"master" or role[3] == b"connected" else f"{self} is {role}"


class Cluster:
    """Some primaries, each with the same number of replicas or none, that share all slots evenly."""

    def __init__(self, binary: str, options: tuple[str, ...]) -> None:
        self._binary = binary
        self._options = options
        self.nodes: list[Node] = []

    @classmethod
    async def start(cls, flavour: str, primaries: int = 3, replicas: int = 3, *options: str) -> Self:
        """Start a cluster; `replicas` is their total number."""
        binary = find_binary(flavour)
        assert binary is not None, flavour
        cluster = cls(binary, options)
        try:
            await cluster._form(primaries, replicas)
        except BaseException:
            await cluster.stop()
            raise
        return cluster

    async def _form(self, primaries: int, replicas: int) -> None:
        await self._launch(primaries + replicas)
        first, last = self.nodes[:primaries], self.nodes[primaries:]
        for number, node in enumerate(self.nodes):
            await node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for number, node in enumerate(first):
            start, end = SLOTS * number // primaries, SLOTS * (number + 1) // primaries - 1
            await node.ask("CLUSTER", "ADDSLOTSRANGE", start, end)
        await self._introduce(combinations(self.nodes, 2))
        for number, node in enumerate(last):
            await node.ask("CLUSTER", "REPLICATE", first[number % primaries].id)
        await self.settled()
        await self.give_up_after(PATIENT)

    async def _launch(self, count: int) -> list[Node]:
        nodes = [Node(self._binary, self._options) for _ in range(count)]
        self.nodes += nodes
        for node in nodes:
            node.launch()
        for node in nodes:
            node.wait_until_it_answers()
            node.id = (await node.ask("CLUSTER", "MYID")).decode()
        return nodes

    async def _introduce(self, pairs: Iterable[tuple[Node, Node]]) -> None:
        for node, other in pairs:
            await node.ask("CLUSTER", "MEET", "127.0.0.1", other.port, other.bus_port)
        await eventually(self._strangers)

    async def _strangers(self) -> str:
        known = {node.id for node in self.nodes}
        for node in self.live:
            words = await node.words()
            if words.keys() != known or any("handshake" in word.flags for word in words.values()):
                return f"{node} knows {words}"
        return ""

    async def stop(self) -> None:
        """Kill all nodes and remove their files."""
        await self.release()
        for node in self.nodes:
            node.remove()

    async def release(self) -> None:
        """Close the clients that this object opened: they belong to the running loop."""
        for node in self.nodes:
            await node.release()

    # --- what the nodes report

    @property
    def live(self) -> list[Node]:
        return [node for node in self.nodes if node.alive]

    @property
    def url(self) -> str:
        """The URL of a live node."""
        return self.urls[0]

    @property
    def urls(self) -> list[str]:
        return [node.admin_url for node in self.live]

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.id == name)

    async def primaries(self) -> list[Node]:
        return [node for node in self.live if "master" in (await node.word()).flags]

    async def replicas(self, primary: Node) -> list[Node]:
        return [node for node in self.live if (await node.word()).primary == primary.id]

    async def owner(self, slot: int | str | bytes) -> Node:
        """Return the one node that reports to serve a slot, or the slot of a name."""
        number = slot_of(slot)
        owners: list[Node] = []

        async def not_one() -> str:
            owners[:] = [node for node in await self.primaries() if number in (await node.word()).slots]
            return "" if len(owners) == 1 else f"slot {number} is served by {owners}"

        await eventually(not_one)
        return owners[0]

    async def settled(self) -> None:
        """Wait until all live nodes agree and none reports a fault."""
        await eventually(self._discord)

    async def _discord(self) -> str:
        live = self.live
        known = {node.id for node in self.nodes}
        first: dict[str, Word | None] = {}
        for node in live:
            words = await node.words()
            of_the_living = {other.id: words.get(other.id) for other in live}
            first = first or of_the_living
            well = all(word is not None and word.flags in ROLES and word.linked for word in of_the_living.values())
            if not (well and words.keys() <= known and of_the_living == first):
                return f"{node} says {words}, {live[0]} says {first}"
        complaints = [complaint for node in live if (complaint := await node.complaint())]
        return "; ".join(complaints)

    # --- who is subscribed where

    async def shard_subscribers(self, names: Iterable[bytes]) -> dict[bytes, dict[Node, int]]:
        """Return how many clients of each node are subscribed to each shard channel; nodes without any are left out."""
        return await self._numbers("SHARDNUMSUB", names)

    async def subscribers(self, names: Iterable[bytes]) -> dict[bytes, dict[Node, int]]:
        """Return the same for classic channels."""
        return await self._numbers("NUMSUB", names)

    async def shard_channels(self) -> dict[Node, set[bytes]]:
        """Return the shard channels that have subscribers at each node; nodes without any are left out."""
        return await self._names("SHARDCHANNELS")

    async def channels(self) -> dict[Node, set[bytes]]:
        """Return the same for classic channels."""
        return await self._names("CHANNELS")

    async def patterns(self) -> dict[Node, int]:
        """Return how many patterns have subscribers at each node; nodes without any are left out."""
        counts = {node: await node.admin.pubsub_numpat() for node in self.live}
        return {node: count for node, count in counts.items() if count}

    async def _numbers(self, command: str, names: Iterable[bytes]) -> dict[bytes, dict[Node, int]]:
        names = list(names)
        numbers: dict[bytes, dict[Node, int]] = {name: {} for name in names}
        for node in self.live:
            reply = await node.ask("PUBSUB", command, *names)
            for name, number in zip(reply[::2], reply[1::2], strict=True):
                if number:
                    numbers[name][node] = number
        return numbers

    async def _names(self, command: str) -> dict[Node, set[bytes]]:
        names = {node: set(await node.ask("PUBSUB", command)) for node in self.live}
        return {node: found for node, found in names.items() if found}

    # --- slots that move

    async def move_slot(self, slot: int | str | bytes, to: Node) -> None:
        """Move a slot, or the slot of a name, with its keys, while clients use it."""
        await self.begin_move(slot, to)
        await self.finish_move(slot, to)

    async def begin_move(self, slot: int | str | bytes, to: Node) -> None:
        """Begin to move a slot: its owner migrates it, and the other node imports it."""
        await self._begin([slot_of(slot)], await self.owner(slot), to)

    async def finish_move(self, slot: int | str | bytes, to: Node) -> None:
        """Move the keys, and announce the new owner to all nodes."""
        await self._finish([slot_of(slot)], await self.owner(slot), to)
        await self.settled()

    async def _begin(self, slots: list[int], source: Node, to: Node) -> None:
        await to.ask_all(("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id) for slot in slots)
        await source.ask_all(("CLUSTER", "SETSLOT", slot, "MIGRATING", to.id) for slot in slots)

    async def _finish(self, slots: list[int], source: Node, to: Node) -> None:
        while any(found := await source.ask_all(("CLUSTER", "GETKEYSINSLOT", slot, 100) for slot in slots)):
            await source.ask_all(
                ("MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *keys) for keys in found if keys
            )
        others = [node for node in await self.primaries() if node not in (to, source)]
        for node in (to, source, *others):
            try:
                await node.ask_all(("CLUSTER", "SETSLOT", slot, "NODE", to.id) for slot in slots)
            except ResponseError:  # a node that lost its last slot became a replica of the new owner
                if "slave" not in (await node.word()).flags:
                    raise

    # --- nodes that come and go

    async def failover(self, primary: Node, how: Literal["command", "takeover", "kill"] = "command") -> Node:
        """Have a replica take over from a primary; return it, the new primary.

        `command`: by a vote, which a shard may hold once in eight node timeouts, so the command is repeated
        until then. `takeover`: without asking any node. `kill`: the primary is killed.
        """
        replicas = await self.replicas(primary)
        assert replicas, f"{primary} has no replica"
        await self.give_up_after(QUICK)
        if how == "kill":
            await self.kill(primary)
        promoted: list[Node] = []
        clock = asyncio.get_running_loop().time
        ask_at = clock()

        async def find_promoted() -> list[Node]:
            return [node for node in replicas if "master" in (await node.word()).flags]

        async def none() -> str:
            nonlocal ask_at
            promoted[:] = await find_promoted()
            if not promoted:
                if how != "kill" and clock() >= ask_at:
                    ask_at = clock() + 2
                    await replicas[0].ask("CLUSTER", "FAILOVER", *(["TAKEOVER"] if how == "takeover" else []))
                return f"no replica of {primary} is promoted: {replicas}"
            # Redis 7.0 may count the votes of an earlier failover: such a replica is a primary for a moment, with an
            # old epoch, and the others do not follow it.
            return await self._discord() or ("" if await find_promoted() == promoted else f"{promoted} was overruled")

        await eventually(none)
        await self.give_up_after(PATIENT)
        return promoted[0]

    async def give_up_after(self, seconds: float) -> None:
        """Set the seconds of silence after which a node counts as dead."""
        for node in self.live:
            await node.ask("CONFIG", "SET", "cluster-node-timeout", int(seconds * 1000))

    async def kill(self, node: Node) -> None:
        """Kill a node, and wait for nothing."""
        await node.release()
        node.kill()

    async def restart(self, node: Node) -> None:
        """Restart a node that was killed. It becomes a replica if another node was promoted meanwhile."""
        node.start()
        await self.settled()
        await self.give_up_after(PATIENT)

    async def add_node(self) -> Node:
        """Add a primary without slots."""
        known = self.live
        (node,) = await self._launch(1)
        await self._introduce((node, other) for other in known)
        await self.settled()
        await self.give_up_after(PATIENT)
        return node

    async def remove_node(self, node: Node) -> None:
        """Move its slots to the others, remove it from the cluster, and kill it. Valkey takes 10 ms for each slot."""
        slots = sorted((await node.word()).slots)
        others = [other for other in await self.primaries() if other is not node]
        for number, other in enumerate(others):
            share = slots[len(slots) * number // len(others) : len(slots) * (number + 1) // len(others)]
            await self._begin(share, node, other)
            await self._finish(share, node, other)
        await self.settled()
        await self.kill(node)
        self.nodes.remove(node)
        node.remove()
        for other in self.live:
            await other.ask("CLUSTER", "FORGET", node.id)
        await self.settled()
