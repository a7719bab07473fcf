"""A server process, and the proxy before it, for `Faults`."""

from __future__ import annotations

import secrets
import time
from contextlib import closing, suppress
from typing import Any, Protocol
from urllib.parse import urlsplit

import redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import RedisError, ResponseError

from ..embedded import Server
from ._pubsub import Rights
from .frames import MessageFilter
from .memory import MemoryServer
from .proxy import Flow, Proxy

_TIMEOUT = 10.0  # seconds for the server to do what it is told
_EVERYTHING = ("on", "allkeys", "allchannels", "+@all")


class GivenServer:
    """A server that runs already. It can be neither restarted nor replaced.

    Args:
        url: its URL, with the right to make users; `redis://` or `valkey://`, and not TLS.

    Example:
        ::

            with Faults(GivenServer("redis://localhost:6379")) as faults, Multiplexer(faults.url) as mpx:
                mpx.connect(timeout=5)
    """

    def __init__(self, url: str) -> None:
        self.url = url
        """The URL of the server."""


class Rig(Protocol):
    """A server and the network to it, as `Faults` changes them."""

    dropped: set[bytes]
    """The channels whose messages are lost on their way to subscribers."""

    @property
    def flows(self) -> tuple[Flow, Flow]: ...
    @property
    def url(self) -> str: ...
    def client(self, **options: Any) -> AsyncRedis: ...
    def open(self) -> None: ...
    def close(self) -> None: ...
    def refuse(self, refusing: bool) -> None: ...
    def cut(self) -> int: ...
    def reset_after(self, count: int | None) -> None: ...
    def deny(self, *rules: str) -> None: ...
    def permit_all(self) -> None: ...
    def restart(self) -> None: ...
    def failover(self) -> None: ...


class ServerRig:
    """A server with a port, a user on it for the application, and a proxy for its connections.

    Args:
        server: the server; None: one of its own.
    """

    def __init__(self, server: Server | GivenServer | None) -> None:
        self._own = [] if server is not None else [Server(port=0)]
        self.server: Server | GivenServer = server or self._own[0]
        """The server that new connections reach."""
        self.dropped: set[bytes] = set()
        self._proxy: Proxy
        self._user = f"redismpx-{secrets.token_hex(4)}"
        self._password = secrets.token_hex(16)

    @property
    def url(self) -> str:
        """The URL of the proxy. It stays the same whatever happens to the server."""
        path = urlsplit(self.server.url).path
        return f"redis://{self._user}:{self._password}@127.0.0.1:{self._proxy.port}{path}"

    def client(self, **options: Any) -> AsyncRedis:
        return AsyncRedis.from_url(self.url, **options)

    # --- life

    def open(self) -> None:
        for server in self._own:
            server.start()
        try:
            address = _address(self.server)
            self.permit_all()
            self._proxy = Proxy(address).__enter__()
            self._proxy.new_edit = lambda: MessageFilter(self.dropped)
        except BaseException:  # Ctrl-C too: no server is left behind
            self._stop_servers()
            raise

    def close(self) -> None:
        try:
            self._proxy.__exit__()
            self._remove_user(self.server)
        finally:
            self._stop_servers()

    def _stop_servers(self) -> None:
        for server in self._own:
            server.stop()

    # --- the network

    @property
    def flows(self) -> tuple[Flow, Flow]:
        return self._proxy.to_server, self._proxy.to_client

    def refuse(self, refusing: bool) -> None:
        self._proxy.refusing = refusing

    def cut(self) -> int:
        return self._proxy.cut()

    def reset_after(self, count: int | None) -> None:
        self._proxy.reset_after(count)

    # --- the server

    def deny(self, *rules: str) -> None:
        with closing(_admin(self.server)) as admin:
            try:
                admin.execute_command("ACL", "SETUSER", self._user, *rules)
            except ResponseError as error:
                raise ValueError(f"the server rejects the rules {' '.join(rules)}: {error}") from error

    def permit_all(self) -> None:
        """Make the user of the application, or give it all rights again."""
        with closing(_admin(self.server)) as admin:
            admin.execute_command("ACL", "SETUSER", self._user, "reset", f">{self._password}", *_EVERYTHING)

    def _remove_user(self, server: Server | GivenServer) -> None:
        with suppress(RedisError), closing(_admin(server)) as admin:  # the server may have ended
            admin.execute_command("ACL", "DELUSER", self._user)

    def restart(self) -> None:
        server = self._embedded("restart()")
        server.stop()
        server.start()
        self._proxy.target = _address(server)
        self.permit_all()

    def failover(self) -> None:
        former = self._embedded("failover()")
        successor = Server(port=0)
        successor.start()
        self._own.append(successor)
        with closing(_admin(former)) as primary, closing(_admin(successor)) as replica:
            primary.config_set("repl-diskless-sync-delay", 0)
            replica.config_set("masterauth", urlsplit(former.url).password or "")
            replica.replicaof(*_address(former))
            give_up = time.monotonic() + _TIMEOUT
            while not _has_caught_up(primary, replica):
                if time.monotonic() > give_up:
                    raise RuntimeError(f"the replica has not caught up within {_TIMEOUT:g} s")
                time.sleep(0.01)
            replica.replicaof("NO", "ONE")
        self.server = successor
        self.permit_all()
        self._proxy.target = _address(successor)
        self.cut()
        self._remove_user(former)

    def _embedded(self, what: str) -> Server:
        if isinstance(self.server, GivenServer):
            raise RuntimeError(f"{what} needs a redismpx.embedded.Server, not the server of a given URL")
        return self.server


class MemoryRig:
    """The same for a server without a socket."""

    def __init__(self, server: MemoryServer) -> None:
        self._server = server
        self.dropped = server.dropped
        self.client = server.client

    @property
    def url(self) -> str:
        raise RuntimeError("a MemoryServer has no URL; give client() to the multiplexer")

    @property
    def flows(self) -> tuple[Flow, Flow]:
        return self._server.flows

    def open(self) -> None:
        pass

    def close(self) -> None:
        self.cut()

    def refuse(self, refusing: bool) -> None:
        self._server.is_refusing = refusing

    def cut(self) -> int:
        transports = tuple(self._server.transports)
        for transport in transports:
            transport.cut()
        return len(transports)

    def reset_after(self, count: int | None) -> None:
        for transport in tuple(self._server.transports):
            transport.left = count

    def deny(self, *rules: str) -> None:
        with self._server.lock:
            self._server.pubsub.rights.apply(rules)
            for session in self._server.pubsub.without_rights():
                session.write(None)

    def permit_all(self) -> None:
        with self._server.lock:
            self._server.pubsub.rights = Rights()

    def restart(self) -> None:
        self.cut()

    def failover(self) -> None:
        self.cut()


def _admin(server: Server | GivenServer) -> redis.Redis:
    return redis.Redis.from_url(server.url, socket_timeout=_TIMEOUT)


def _address(server: Server | GivenServer) -> tuple[str, int]:
    parts = urlsplit(server.url)
    if parts.scheme not in ("redis", "valkey") or parts.hostname is None:
        raise ValueError("Faults needs a server with a port and without TLS, such as Server(port=0)")
    return parts.hostname, parts.port or 6379


def _has_caught_up(primary: redis.Redis, replica: redis.Redis) -> bool:
    state: Any = replica.info()
    written: Any = primary.info()
    return state["master_link_status"] == "up" and bool(state["slave_repl_offset"] >= written["master_repl_offset"])
