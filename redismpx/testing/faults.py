"""A server and the network to it under one object: what can go wrong, by name."""

from __future__ import annotations

__all__ = ["Fault", "Faults"]

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from redis.asyncio import Redis

from ..embedded import Server
from ._rig import GivenServer, MemoryRig, Rig, ServerRig
from .memory import MemoryServer
from .proxy import Flow


class Fault:
    """A fault that lasts until the end of a `with` block, or until `Faults.heal()`.

    It begins when the method of `Faults` is called; `with` only ends it.

    Example:
        ::

            with Faults() as faults:
                outage: Fault = faults.refuse()
                outage.end()
    """

    def __init__(self, end: Callable[[], object]) -> None:
        self._end: Callable[[], object] | None = end

    def end(self) -> None:
        """End the fault. Without effect when it has ended."""
        end, self._end = self._end, None
        if end is not None:
            end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()


class Faults:
    """A server, and a proxy before it that has the faults of a network.

    Connect the application to `url`. Its multiplexers, clients and workers see the faults; the server itself is always
    reachable for the test, at its own URL.

    The methods may be called in an event loop: none waits for a client. `restart()` and `failover()` start a server, so
    a coroutine awaits `arestart()` and `afailover()` instead. A fault without a natural end lasts until the end of a
    `with` block, or until `heal()`. Only `with` and `async with` start a `Faults`; its end heals everything and ends
    its connections.

    Args:
        server: a started `redismpx.embedded.Server` with a port, a `GivenServer` or a `MemoryServer`. It stays yours.
            None: a server of its own.

    Raises:
        ValueError: the server has no port, or speaks TLS only.

    Example:
        ::

            with Faults() as faults, Multiplexer(faults.url) as mpx, mpx.subscribe("news") as sub:
                events = sub.events()
                print(type(next(events)).__name__)  # Activation
                faults.cut()
                print(type(next(events)).__name__)  # Disconnect
                with faults.delay(200):  # milliseconds
                    mpx.publish("news", "late")
    """

    def __init__(self, server: Server | GivenServer | MemoryServer | None = None) -> None:
        self._rig: Rig = MemoryRig(server) if isinstance(server, MemoryServer) else ServerRig(server)
        self._is_open = False
        self._faults: list[Fault] = []

    # --- life

    @property
    def url(self) -> str:
        """The URL of the proxy, for the application. It stays the same whatever happens to the server.

        Raises:
            RuntimeError: outside the `with` block, and with a `MemoryServer`, which has no URL.
        """
        return self._network.url

    def client(self, **options: Any) -> Redis:
        """Return a redis-py client of the server through the faults, to give to a multiplexer. Close it yourself.

        Args:
            options: options of `redis.asyncio.Redis`.

        Raises:
            RuntimeError: outside the `with` block.
        """
        return self._network.client(**options)

    @property
    def _network(self) -> Rig:
        if not self._is_open:
            raise RuntimeError("Faults works inside its block only: with Faults() as faults")
        return self._rig

    def __enter__(self) -> Self:
        self._rig.open()
        self._is_open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.heal()
        self._is_open = False
        self._rig.close()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.__exit__, kind, error, traceback)

    def heal(self) -> None:
        """End all faults. Lost connections and lost messages stay lost."""
        faults, self._faults = self._faults, []
        for fault in reversed(faults):
            fault.end()

    def _begin(self, end: Callable[[], object]) -> Fault:
        fault = Fault(end)
        self._faults.append(fault)
        return fault

    # --- the network

    def cut(self) -> int:
        """Close all connections; return their number. New ones are accepted."""
        return self._network.cut()

    def refuse(self) -> Fault:
        """Close all connections, and reset each new one: the server is down."""
        self._network.refuse(True)
        self.cut()
        return self._begin(lambda: self._rig.refuse(False))

    def freeze(self) -> Fault:
        """Pass no byte on. Connections stay open, and new ones are accepted: the server hangs.

        At the end, everything that was held back is passed on.
        """
        return self._flow(stall=True)

    def delay(self, milliseconds: float) -> Fault:
        """Delay the bytes of each direction by so many milliseconds."""
        return self._flow(delay=milliseconds / 1000)

    def limit(self, bytes_per_second: float) -> Fault:
        """Pass on at most so many bytes per second, on each connection and in each direction."""
        return self._flow(rate=bytes_per_second)

    def reset_after(self, count: int) -> Fault:
        """Reset each connection that is open now after `count` more bytes to its client: in the middle of a message.

        Connections that are made later are not affected.
        """
        self._network.reset_after(count)
        return self._begin(lambda: self._rig.reset_after(None))

    def drop(self, *channels: str | bytes) -> Fault:
        """Lose the messages on these channels on their way to subscribers, without a sign."""
        names = {each.encode() if isinstance(each, str) else each for each in channels}
        self._network.dropped |= names
        return self._begin(lambda: self._rig.dropped.difference_update(names))

    def _flow(self, **fields: Any) -> Fault:
        flows = self._network.flows

        def change(**fields: Any) -> None:
            for flow in flows:
                for name, value in fields.items():
                    setattr(flow, name, value)

        change(**fields)
        return self._begin(lambda: change(**{name: getattr(Flow, name) for name in fields}))

    # --- the server

    def deny(self, *rules: str) -> Fault:
        """Take rights from the application, by rules of ACL SETUSER: `deny("-publish")`, `deny("resetchannels")`.

        Redis closes a connection whose user has lost the right to a channel that it is subscribed to.

        Raises:
            ValueError: the server rejects a rule.
            redis.exceptions.RedisError: the server does not let users be made.
        """
        self._network.deny(*rules)
        return self._begin(self._rig.permit_all)

    def restart(self) -> None:
        """Stop the server and start it again, empty unless it keeps its data. Connections are refused meanwhile.

        It blocks for about 50 ms; a coroutine awaits `arestart()`.

        Raises:
            RuntimeError: the server is a `GivenServer`.
        """
        with self.refuse():
            self._network.restart()

    async def arestart(self) -> None:
        """Await this in a coroutine, instead of `restart()`."""
        await asyncio.to_thread(self.restart)

    def failover(self) -> None:
        """Start a replica, and let it take the place of the server, with all its data. Connections are closed.

        The old server goes on running, without clients. It blocks for about a second; a coroutine awaits
        `afailover()`.

        Raises:
            RuntimeError: the server is a `GivenServer`, or the replica does not catch up.
        """
        self._network.failover()

    async def afailover(self) -> None:
        """Await this in a coroutine, instead of `failover()`."""
        await asyncio.to_thread(self.failover)
