"""Three Sentinels, a master and two replicas on loopback, each of which can be killed and restarted.

Each method returns what the servers themselves report, and waits until all live servers agree about a change.
"""

from __future__ import annotations

import asyncio
from itertools import permutations
from typing import Self

from redis.asyncio.sentinel import Sentinel

from .servers import SentinelServer, Server, find_binary
from .waiting import eventually

MASTER = "main"  # the name of the master, for `Sentinel.master_for`
ROLES = ({b"master"}, {b"slave"}, {b"sentinel"})  # the flags of a server that is not suspected and in no failover
DOWN_AFTER = 3000  # milliseconds of silence after which a master counts as dead; a busy one may be silent for 1 s
REMEMBERED = {b"master_down"}  # what a Sentinel last reported about its master; kept until the next report


async def close(manager: Sentinel) -> None:
    """Close the clients of the Sentinels. redis-py 7 cannot do it itself."""
    for client in manager.sentinels:
        await client.aclose()


class Sentinels:
    """Three servers, one of them the master, and three Sentinels, two of which must agree that it is dead."""

    def __init__(self, binary: str, passwords: tuple[str, str] | None = None) -> None:
        options = ["--repl-diskless-sync-delay", "0"]
        if passwords is not None:
            options += ["--requirepass", passwords[0], "--masterauth", passwords[0]]
        first = Server(binary, *options)
        self.servers = [first, *(Server(binary, *options, "--replicaof", f"127.0.0.1 {first.port}") for _ in range(2))]
        self.sentinels = [SentinelServer(binary, first, quorum=2) for _ in range(3)]
        for servers, password in zip((self.servers, self.sentinels), passwords or (), strict=False):
            for server in servers:
                server.admin_url = f"redis://:{password}@127.0.0.1:{server.port}"
        if passwords is not None:
            for sentinel in self.sentinels:
                auth = (f"sentinel auth-pass {MASTER} {passwords[0]}", f"sentinel sentinel-pass {passwords[1]}")
                sentinel.configure(*auth, f"requirepass {passwords[1]}")

    @classmethod
    async def start(cls, flavour: str, *, passwords: tuple[str, str] | None = None) -> Self:
        """Start all servers. `passwords`: one for the servers, one for the Sentinels."""
        binary = find_binary(flavour)
        assert binary is not None, flavour
        sentinels = cls(binary, passwords)
        try:
            await sentinels._form()
        except BaseException:
            await sentinels.stop()
            raise
        return sentinels

    async def _form(self) -> None:
        for sentinel in self.sentinels:
            sentinel.configure(
                f"sentinel myid {sentinel.port:040}",
                f"sentinel failover-timeout {MASTER} 1000",  # no failover starts within twice this time after another
                f"sentinel parallel-syncs {MASTER} 2",
                *(f"sentinel known-replica {MASTER} 127.0.0.1 {server.port}" for server in self.servers[1:]),
            )
        for sentinel, other in permutations(self.sentinels, 2):
            sentinel.configure(f"sentinel known-sentinel {MASTER} 127.0.0.1 {other.port} {other.port:040}")
        for servers in (self.servers, self.sentinels):
            for server in servers:
                server.launch()
            for server in servers:
                server.wait_until_it_answers()
        for sentinel in self.sentinels:
            await self._hurry(sentinel)
        await self.settled()
        for sentinel in self.sentinels:  # set last: a server that is not connected yet would count as dead
            await sentinel.admin.execute_command("SENTINEL", "SET", MASTER, "down-after-milliseconds", DOWN_AFTER)

    async def _hurry(self, sentinel: SentinelServer) -> None:
        """Make a Sentinel check and publish more often, until it ends, so that it notices changes sooner.

        A Sentinel demotes a master that no other Sentinel has announced within four publish periods. The Sentinel that
        leads a failover checks only each second whether the new master has its role, and announces it then.
        """
        for period, milliseconds in (("ping-period", 200), ("info-period", 200), ("publish-period", 1000)):
            await sentinel.admin.execute_command("SENTINEL", "DEBUG", period, milliseconds)

    async def stop(self) -> None:
        """Kill all servers and remove their files."""
        await self.release()
        for server in (*self.sentinels, *self.servers):
            server.remove()

    async def release(self) -> None:
        """Close the clients that this object opened: they belong to the running loop."""
        for server in (*self.sentinels, *self.servers):
            await server.release()

    # --- what the servers report

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """The addresses of the Sentinels, for `redis.asyncio.sentinel.Sentinel`."""
        return [("127.0.0.1", sentinel.port) for sentinel in self.sentinels]

    async def master(self) -> Server:
        """Return the server that all live Sentinels name as the master."""
        named: set[int] = set()

        async def not_one() -> str:
            named.clear()
            named.update(await self._named())
            return "" if len(named) == 1 else f"the sentinels name {named}"

        await eventually(not_one)
        return next(server for server in self.servers if server.port in named)

    async def settled(self) -> None:
        """Wait until all live Sentinels name one master, and all other live servers are its replicas."""
        await eventually(self._discord)

    async def _named(self) -> list[int]:
        replies = await asyncio.gather(
            *(s.admin.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER) for s in self.sentinels if s.alive)
        )
        return [int(reply[1]) for reply in replies]

    async def _discord(self) -> str:
        port, *others = set(await self._named())
        if others:
            return f"the sentinels name {port} and {others}"
        for server in self.servers:
            if server.alive:
                role = await server.admin.execute_command("ROLE")
                if role[0] != b"master" if server.port == port else role[2:4] != [port, b"connected"]:
                    return f"{server} is {role}, and the master is {port}"
        complaints = [await self._complaint(sentinel) for sentinel in self.sentinels if sentinel.alive]
        return "; ".join(filter(None, complaints))

    async def _complaint(self, sentinel: SentinelServer) -> str:
        """Return which live servers a Sentinel does not see or reports a fault of."""
        ask = sentinel.admin.execute_command
        seen = [
            dict(zip(reply[::2], reply[1::2], strict=True)) if isinstance(reply, list) else reply  # by the protocol
            for reply in (
                await ask("SENTINEL", "MASTER", MASTER),
                *await ask("SENTINEL", "REPLICAS", MASTER),
                *await ask("SENTINEL", "SENTINELS", MASTER),
            )
        ]
        living = {server.port for server in (*self.servers, *self.sentinels) if server.alive and server is not sentinel}
        unseen = living - {int(other[b"port"]) for other in seen}
        faults = [
            other
            for other in seen
            if int(other[b"port"]) in living
            and not (
                set(other[b"flags"].split(b",")) - REMEMBERED in ROLES
                and other.get(b"master-link-status", b"ok") == b"ok"
            )
        ]
        return f"{sentinel} does not see {unseen}, and finds {faults}" if unseen or faults else ""

    # --- faults

    async def failover(self) -> Server:
        """Make the Sentinels fail over by command; return the new master."""
        old = await self.master()
        await self.sentinels[0].admin.execute_command("SENTINEL", "FAILOVER", MASTER)
        return await self._promoted(old)

    async def kill_master(self) -> Server:
        """Kill the master; return the new one that the Sentinels promote."""
        old = await self.master()
        await self.kill(old)
        return await self._promoted(old)

    async def _promoted(self, old: Server) -> Server:
        async def still() -> str:
            return f"{old} is the master still" if old.port in await self._named() else ""

        await eventually(still)
        await self.settled()
        return await self.master()

    async def kill(self, server: Server) -> None:
        """Kill a server or a Sentinel, and wait for nothing."""
        await server.release()
        server.kill()

    async def restart(self, server: Server) -> None:
        """Restart a server or Sentinel that was killed, and wait until a former master is demoted."""
        server.start()
        if isinstance(server, SentinelServer):
            await self._hurry(server)
        await self.settled()
